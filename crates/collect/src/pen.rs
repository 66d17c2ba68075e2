//! A pen on paper: strokes bent by a hand, drawn with an anti-aliased line.

use std::f32::consts::TAU;

use rand::RngExt;
use rand_pcg::Pcg64;

use crate::strokes::{DIGITS, Stroke};

/// Pixels along each side of an image.
pub const SIDE: usize = 28;
/// Straight pieces between two points of a curve.
const PIECES: usize = 6;

type Point = (f32, f32);

/// A hand: everything that makes one writing of a digit unlike another.
struct Hand {
    /// From unit square to pixels: slant, rotation, size, place.
    matrix: [f32; 4],
    centre: Point,
    /// A slow wave across the paper: amplitude in pixels, frequency and phase, for each axis.
    wave: [(f32, f32, f32); 2],
    /// Half the line's width, in pixels.
    half_width: f32,
    /// How black the ink is, 0 to 1.
    ink: f32,
    /// Standard deviation of the paper's grain, 0 to 1.
    grain: f32,
    /// Share of pixels that are dust.
    dust: f32,
}

impl Hand {
    fn new(random: &mut Pcg64) -> Self {
        let angle: f32 = random.random_range(-0.22..0.22);
        let slant: f32 = random.random_range(-0.38..0.38);
        let height: f32 = random.random_range(16.5..23.5);
        let width: f32 = height * random.random_range(0.55..0.98);
        let (sin, cos) = angle.sin_cos();
        let mut wave = || (random.random_range(0.0..1.3), random.random_range(0.6..1.6) * TAU / SIDE as f32, random.random_range(0.0..TAU));
        let wave = [wave(), wave()];
        Self {
            // Rotation × slant × size.
            matrix: [cos * width, (cos * slant - sin) * height, sin * width, (sin * slant + cos) * height],
            centre: (SIDE as f32 / 2.0 + random.random_range(-2.0..2.0), SIDE as f32 / 2.0 + random.random_range(-1.8..1.8)),
            wave,
            half_width: random.random_range(0.65..1.75),
            ink: random.random_range(0.62..1.0),
            grain: random.random_range(0.0..0.08),
            dust: random.random_range(0.0..0.006),
        }
    }

    fn place(&self, (x, y): Point) -> Point {
        let (x, y) = (x - 0.5, y - 0.5);
        let px = self.centre.0 + self.matrix[0] * x - self.matrix[1] * y;
        let py = self.centre.1 + self.matrix[2] * x + self.matrix[3] * y;
        let [(ax, fx, sx), (ay, fy, sy)] = self.wave;
        (px + ax * (fx * py + sx).sin(), py + ay * (fy * px + sy).sin())
    }
}

/// Writes a digit: [`SIDE`] × [`SIDE`] pixels, ink white on black as MNIST has it.
pub fn write(digit: usize, random: &mut Pcg64) -> [u8; SIDE * SIDE] {
    let manners = DIGITS[digit];
    let manner = manners[random.random_range(0..manners.len())];
    let hand = Hand::new(random);
    let segments: Vec<(Point, Point)> = manner.iter().flat_map(|stroke| segments(stroke, &hand, random)).collect();
    let mut pixels = [0u8; SIDE * SIDE];
    for (place, pixel) in pixels.iter_mut().enumerate() {
        let centre = ((place % SIDE) as f32 + 0.5, (place / SIDE) as f32 + 0.5);
        let distance = segments.iter().map(|segment| squared_distance(centre, segment)).fold(f32::INFINITY, f32::min).sqrt();
        let dust = random.random_range(0.0..1.0) < hand.dust;
        let line = if dust { random.random_range(0.3..0.9) } else { hand.ink * (hand.half_width + 0.5 - distance).clamp(0.0, 1.0) };
        // The sum of four uniforms is near enough to a normal distribution.
        let grain: f32 = (0..4).map(|_| random.random_range(-0.5..0.5f32)).sum::<f32>() * 1.73 * hand.grain;
        *pixel = ((line + grain).clamp(0.0, 1.0) * 255.0).round() as u8;
    }
    pixels
}

/// A stroke as straight pieces in pixels, its points moved a little each by itself.
fn segments(stroke: &Stroke, hand: &Hand, random: &mut Pcg64) -> Vec<(Point, Point)> {
    let (points, smooth) = match stroke {
        Stroke::Curve(points) => (points, true),
        Stroke::Line(points) => (points, false),
    };
    let mut tremble = |value: f32| value + random.random_range(-0.045..0.045);
    let points: Vec<Point> = points.iter().map(|(x, y)| (tremble(*x), tremble(*y))).collect();
    let path = if smooth { catmull_rom(&points) } else { subdivided(&points) };
    let path: Vec<Point> = path.into_iter().map(|point| hand.place(point)).collect();
    path.windows(2).map(|pair| (pair[0], pair[1])).collect()
}

/// A smooth curve through the points (Catmull and Rom 1974, uniform).
fn catmull_rom(points: &[Point]) -> Vec<Point> {
    let at = |index: isize| points[index.clamp(0, points.len() as isize - 1) as usize];
    let mut path = vec![points[0]];
    for piece in 0..points.len() as isize - 1 {
        let (a, b, c, d) = (at(piece - 1), at(piece), at(piece + 1), at(piece + 2));
        for step in 1..=PIECES {
            let t = step as f32 / PIECES as f32;
            let axis = |a: f32, b: f32, c: f32, d: f32| {
                0.5 * (2.0 * b + (c - a) * t + (2.0 * a - 5.0 * b + 4.0 * c - d) * t * t + (3.0 * b - a - 3.0 * c + d) * t * t * t)
            };
            path.push((axis(a.0, b.0, c.0, d.0), axis(a.1, b.1, c.1, d.1)));
        }
    }
    path
}

/// The same straight line in pieces, so that the paper's wave can bend it.
fn subdivided(points: &[Point]) -> Vec<Point> {
    let mut path = vec![points[0]];
    for pair in points.windows(2) {
        path.extend((1..=PIECES).map(|step| {
            let t = step as f32 / PIECES as f32;
            (pair[0].0 + (pair[1].0 - pair[0].0) * t, pair[0].1 + (pair[1].1 - pair[0].1) * t)
        }));
    }
    path
}

fn squared_distance(point: Point, (from, to): &(Point, Point)) -> f32 {
    let (dx, dy) = (to.0 - from.0, to.1 - from.1);
    let (px, py) = (point.0 - from.0, point.1 - from.1);
    let t = ((px * dx + py * dy) / (dx * dx + dy * dy).max(1e-9)).clamp(0.0, 1.0);
    let (ex, ey) = (px - t * dx, py - t * dy);
    ex * ex + ey * ey
}
