//! Patches of an image as rows of a matrix (im2col), and back (col2im).

use super::Conv;
use crate::simd::for_each_level;

/// Writes the patches of `rows` rows of outputs from `first` on, each as `pitch` values: the patch, then zeros. Where there are groups, the
/// patch of the first group, that of the second, and so on.
pub(super) fn gather(conv: &Conv, staged: &[f32], first: usize, rows: usize, out: &mut [f32]) {
    if conv.dilation > 1 || conv.groups > 1 {
        return gather_points(conv, staged, first, rows, out);
    }
    match conv.columns * conv.channels {
        1 => gather_fixed::<1>(conv, staged, first, rows, out),
        2 => gather_fixed::<2>(conv, staged, first, rows, out),
        3 => gather_fixed::<3>(conv, staged, first, rows, out),
        4 => gather_fixed::<4>(conv, staged, first, rows, out),
        5 => gather_fixed::<5>(conv, staged, first, rows, out),
        6 => gather_fixed::<6>(conv, staged, first, rows, out),
        7 => gather_fixed::<7>(conv, staged, first, rows, out),
        9 => gather_fixed::<9>(conv, staged, first, rows, out),
        12 => gather_fixed::<12>(conv, staged, first, rows, out),
        15 => gather_fixed::<15>(conv, staged, first, rows, out),
        16 => gather_fixed::<16>(conv, staged, first, rows, out),
        21 => gather_fixed::<21>(conv, staged, first, rows, out),
        segment => gather_any(conv, segment, staged, first, rows, out),
    }
}

/// A short copy of a length known to the compiler is a few moves; of one that is not, a call that costs more than the copy.
fn gather_fixed<const SEGMENT: usize>(conv: &Conv, staged: &[f32], first: usize, rows: usize, out: &mut [f32]) {
    let (_, width) = conv.computed();
    let line = conv.padded_width * conv.channels;
    let step = conv.stride * conv.channels;
    for (y, out) in out.chunks_exact_mut(width * conv.pitch()).take(rows).enumerate() {
        let top = (first + y) * conv.stride * line;
        for (x, out) in out.chunks_exact_mut(conv.pitch()).enumerate() {
            for (row, out) in out.as_chunks_mut::<SEGMENT>().0.iter_mut().take(conv.rows).enumerate() {
                let from = top + row * line + x * step;
                out.copy_from_slice(&staged[from..from + SEGMENT]);
            }
            out[conv.patch()..].fill(0.0);
        }
    }
}

fn gather_any(conv: &Conv, segment: usize, staged: &[f32], first: usize, rows: usize, out: &mut [f32]) {
    let (_, width) = conv.computed();
    let line = conv.padded_width * conv.channels;
    let step = conv.stride * conv.channels;
    for (y, out) in out.chunks_exact_mut(width * conv.pitch()).take(rows).enumerate() {
        let top = (first + y) * conv.stride * line;
        for (x, out) in out.chunks_exact_mut(conv.pitch()).enumerate() {
            for (row, out) in out.chunks_exact_mut(segment).take(conv.rows).enumerate() {
                let from = top + row * line + x * step;
                out.copy_from_slice(&staged[from..from + segment]);
            }
            out[conv.patch()..].fill(0.0);
        }
    }
}

/// Where the values of each point of each group lie, from a window's first value on: in the order of [`gather`].
fn points(conv: &Conv) -> Vec<usize> {
    let line = conv.padded_width * conv.channels;
    let places = |group: usize| {
        let point = move |place: usize| conv.dilation * (place / conv.columns * line + place % conv.columns * conv.channels);
        (0..conv.rows * conv.columns).map(move |place| point(place) + group * (conv.channels / conv.groups))
    };
    (0..conv.groups).flat_map(places).collect()
}

fn gather_points(conv: &Conv, staged: &[f32], first: usize, rows: usize, out: &mut [f32]) {
    let (_, width) = conv.computed();
    let (line, step, segment) = (conv.padded_width * conv.channels, conv.stride * conv.channels, conv.channels / conv.groups);
    let points = points(conv);
    for (y, out) in out.chunks_exact_mut(width * conv.pitch()).take(rows).enumerate() {
        for (x, out) in out.chunks_exact_mut(conv.pitch()).enumerate() {
            let window = &staged[(first + y) * conv.stride * line + x * step..];
            for (out, point) in out.chunks_exact_mut(segment).zip(&points) {
                out.copy_from_slice(&window[*point..*point + segment]);
            }
            out[conv.patches()..].fill(0.0);
        }
    }
}

fn spread_points(conv: &Conv, columns: &[f32], first: usize, rows: usize, padded: &mut [f32]) {
    let (_, width) = conv.computed();
    let (line, step, segment) = (conv.padded_width * conv.channels, conv.stride * conv.channels, conv.channels / conv.groups);
    let points = points(conv);
    for (y, columns) in columns.chunks_exact(width * conv.patches()).take(rows).enumerate() {
        for (x, patch) in columns.chunks_exact(conv.patches()).enumerate() {
            let window = &mut padded[(first + y) * conv.stride * line + x * step..];
            for (from, point) in patch.chunks_exact(segment).zip(&points) {
                window[*point..*point + segment].iter_mut().zip(from).for_each(|(to, from)| *to += from);
            }
        }
    }
}

/// Adds patches (rows of `patches` values without gaps) to the places of the padded image that they come from.
pub(super) fn spread(conv: &Conv, columns: &[f32], first: usize, rows: usize, padded: &mut [f32]) {
    if conv.dilation > 1 || conv.groups > 1 {
        return spread_points(conv, columns, first, rows, padded);
    }
    let (_, width) = conv.computed();
    let line = conv.padded_width * conv.channels;
    spread_rows(
        columns,
        rows,
        width,
        conv.rows,
        conv.columns * conv.channels,
        line,
        conv.stride * conv.channels,
        {
            let top = first * conv.stride * line;
            &mut padded[top..]
        },
        conv.stride * line,
    );
}

for_each_level! {
    fn spread_rows(columns: &[f32], rows: usize, width: usize, kernel_rows: usize, segment: usize, line: usize, step: usize, padded: &mut [f32], down: usize) {
        let _ = FMA;
        let patch = kernel_rows * segment;
        for y in 0..rows {
            for x in 0..width {
                let from = &columns[(y * width + x) * patch..][..patch];
                for row in 0..kernel_rows {
                    let start = y * down + row * line + x * step;
                    let to = &mut padded[start..start + segment];
                    for (to, from) in to.iter_mut().zip(&from[row * segment..][..segment]) {
                        *to += *from;
                    }
                }
            }
        }
    }
}
