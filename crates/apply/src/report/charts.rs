//! Charts as inline SVG. Colours come from the page's style sheet, so that they follow its theme.

use std::fmt::Write;

use super::html::{escape, number};

/// A line of a chart.
pub struct Series<'a> {
    /// What the legend calls it.
    pub name: &'a str,
    /// The style sheet's class that colours it.
    pub class: &'a str,
    /// Points (x, y), by x.
    pub points: Vec<(f64, f64)>,
}

/// The plot's size and margins, in SVG units.
const WIDTH: f64 = 460.0;
const HEIGHT: f64 = 250.0;
const LEFT: f64 = 48.0;
const RIGHT: f64 = 14.0;
/// Above the plot stands the legend.
const TOP: f64 = 30.0;
const BOTTOM: f64 = 34.0;

/// A map from values to places on one axis.
#[derive(Clone, Copy)]
struct Axis {
    low: f64,
    high: f64,
    from: f64,
    to: f64,
}

impl Axis {
    fn place(&self, value: f64) -> f64 {
        let span = self.high - self.low;
        if span > 0.0 { self.from + (value - self.low) / span * (self.to - self.from) } else { (self.from + self.to) / 2.0 }
    }

    /// Round values from low to high: steps of 1, 2 or 5 times a power of ten, about `count` of them.
    fn ticks(&self, count: f64) -> Vec<f64> {
        let span = (self.high - self.low).max(1e-12);
        let power = 10f64.powf((span / count).log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0].map(|factor| factor * power).into_iter().find(|step| span / step <= count).unwrap_or(10.0 * power);
        let first = (self.low / step).ceil() as i64;
        let last = (self.high / step + 1e-9).floor() as i64;
        (first..=last).map(|tick| tick as f64 * step).collect()
    }
}

/// Lines over epochs, the kept epoch marked.
pub fn curves(title: &str, series: &[Series<'_>], kept: f64) -> String {
    let all = || series.iter().flat_map(|series| &series.points);
    let bounds = |of: fn(&(f64, f64)) -> f64| {
        all().map(of).fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| (low.min(value), high.max(value)))
    };
    let ((x_low, x_high), (y_low, y_high)) = (bounds(|point| point.0), bounds(|point| point.1));
    let room = (y_high - y_low).max(1e-6) * 0.06;
    let x = Axis { low: x_low, high: x_high, from: LEFT + 8.0, to: WIDTH - RIGHT - 8.0 };
    let y = Axis { low: y_low - room, high: y_high + room, from: HEIGHT - BOTTOM, to: TOP };
    let mut svg = open(title);
    grid(&mut svg, &x, &y, x.ticks(8.0).into_iter().filter(|tick| tick.fract() == 0.0).collect(), "epoch");
    let _ = write!(
        svg,
        "<line class=\"kept\" x1=\"{0:.1}\" x2=\"{0:.1}\" y1=\"{TOP}\" y2=\"{1:.1}\"><title>the epoch that was kept</title></line>",
        x.place(kept),
        HEIGHT - BOTTOM
    );
    for (index, series) in series.iter().enumerate() {
        let path: Vec<String> = series.points.iter().map(|(px, py)| format!("{:.1},{:.1}", x.place(*px), y.place(*py))).collect();
        let _ = write!(svg, "<polyline class=\"line {}\" points=\"{}\"/>", series.class, path.join(" "));
        for (px, py) in &series.points {
            let told = format!("{} {} in epoch {px}", escape(series.name), number(*py));
            let _ = write!(
                svg,
                "<circle class=\"dot {}\" cx=\"{:.1}\" cy=\"{:.1}\" r=\"2.6\"><title>{told}</title></circle>",
                series.class,
                x.place(*px),
                y.place(*py)
            );
        }
        let at = LEFT + 14.0 + index as f64 * 100.0;
        let _ = write!(
            svg,
            "<rect class=\"key {}\" x=\"{at}\" y=\"{}\" width=\"14\" height=\"3\"/><text x=\"{}\" y=\"{}\">{}</text>",
            series.class,
            8.0,
            at + 20.0,
            13.0,
            escape(series.name)
        );
    }
    svg + "</svg>"
}

/// Confidence against accuracy, in ten bins: (mean confidence, accuracy, examples).
pub fn reliability(bins: &[(f64, f64, u64)]) -> String {
    let x = Axis { low: 0.0, high: 1.0, from: LEFT, to: WIDTH - RIGHT };
    let y = Axis { low: 0.0, high: 1.0, from: HEIGHT - BOTTOM, to: TOP };
    let mut svg = open("Accuracy by confidence");
    grid(&mut svg, &x, &y, x.ticks(5.0), "confidence");
    let _ = write!(
        svg,
        "<line class=\"kept\" x1=\"{:.1}\" y1=\"{:.1}\" x2=\"{:.1}\" y2=\"{:.1}\"/>",
        x.place(0.0),
        y.place(0.0),
        x.place(1.0),
        y.place(1.0)
    );
    let most = bins.iter().map(|bin| bin.2).max().unwrap_or(1).max(1) as f64;
    for (confidence, accuracy, examples) in bins {
        let radius = 3.0 + 7.0 * (*examples as f64 / most).sqrt();
        let told = format!("{examples} examples: confidence {confidence:.3}, accuracy {accuracy:.3}");
        let _ = write!(
            svg,
            "<circle class=\"bubble\" cx=\"{:.1}\" cy=\"{:.1}\" r=\"{radius:.1}\"><title>{told}</title></circle>",
            x.place(*confidence),
            y.place(*accuracy)
        );
    }
    svg + "</svg>"
}

/// Bars from bottom to top, as a column's histogram.
pub fn histogram(counts: &[u64]) -> String {
    let most = counts.iter().max().copied().unwrap_or_default().max(1) as f64;
    let mut svg = format!(
        "<svg class=\"spark\" viewBox=\"0 0 {} 24\" preserveAspectRatio=\"none\" role=\"img\" aria-label=\"histogram\">",
        counts.len() * 5
    );
    for (bin, count) in counts.iter().enumerate() {
        let height = 24.0 * *count as f64 / most;
        let _ = write!(svg, "<rect x=\"{}\" y=\"{:.1}\" width=\"4\" height=\"{height:.1}\"/>", bin * 5, 24.0 - height);
    }
    svg + "</svg>"
}

fn open(title: &str) -> String {
    format!("<svg class=\"chart\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{0}\"><title>{0}</title>", escape(title))
}

fn grid(svg: &mut String, x: &Axis, y: &Axis, x_ticks: Vec<f64>, x_name: &str) {
    for tick in y.ticks(5.0) {
        let place = y.place(tick);
        let _ = write!(svg, "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{}\" y1=\"{place:.1}\" y2=\"{place:.1}\"/>", WIDTH - RIGHT);
        let _ = write!(svg, "<text class=\"tick end\" x=\"{}\" y=\"{:.1}\">{}</text>", LEFT - 6.0, place + 3.5, trimmed(tick));
    }
    for tick in x_ticks {
        let _ =
            write!(svg, "<text class=\"tick mid\" x=\"{:.1}\" y=\"{}\">{}</text>", x.place(tick), HEIGHT - BOTTOM + 15.0, trimmed(tick));
    }
    let _ = write!(svg, "<text class=\"tick mid\" x=\"{:.1}\" y=\"{}\">{x_name}</text>", (x.from + x.to) / 2.0, HEIGHT - 4.0);
}

/// A tick without trailing zeros.
fn trimmed(value: f64) -> String {
    let text = format!("{value:.4}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_axis_maps_its_ends_to_its_ends() {
        let axis = Axis { low: 2.0, high: 4.0, from: 100.0, to: 0.0 };
        assert_eq!([2.0, 3.0, 4.0].map(|value| axis.place(value)), [100.0, 50.0, 0.0]);
    }

    #[test]
    fn ticks_are_round_and_within_the_axis() {
        let axis = Axis { low: 0.13, high: 0.97, from: 0.0, to: 1.0 };
        let shown: Vec<String> = axis.ticks(5.0).into_iter().map(trimmed).collect();
        assert_eq!(shown, ["0.2", "0.4", "0.6", "0.8"]);
    }

    #[test]
    fn a_curve_goes_through_its_points() {
        let series = Series { name: "train", class: "train", points: vec![(1.0, 0.0), (2.0, 1.0)] };
        let svg = curves("Loss", &[series], 2.0);
        // Epoch 1 is at the left end, epoch 2 at the right, each 6 % of the span from the plot's edge.
        let (bottom, top) = (216.0 - 186.0 * 0.06 / 1.12, 30.0 + 186.0 * 0.06 / 1.12);
        assert!(svg.contains(&format!("points=\"56.0,{bottom:.1} 438.0,{top:.1}\"")), "{svg}");
    }
}
