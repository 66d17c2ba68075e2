//! What follows the products: bias and the maximum of each window.

use crate::simd::for_each_level;

for_each_level! {
    /// Adds one bias a channel; channels are the last axis.
    pub(crate) fn add_bias(values: &mut [f32], bias: &[f32]) {
        let _ = FMA;
        for pixel in values.chunks_exact_mut(bias.len()) {
            for (value, bias) in pixel.iter_mut().zip(bias) {
                *value += *bias;
            }
        }
    }
}

for_each_level! {
    /// The maximum of windows of `side` × `side` pixels that do not overlap, and which pixel of the window it is (the first
    /// of equals); `winners` may be empty. `input` has `lines * side` lines of `width` pixels, of which `out_width * side` are used.
    pub(crate) fn pool_lines(input: &[f32], lines: usize, width: usize, out_width: usize, channels: usize, side: usize, output: &mut [f32], winners: &mut [u8]) {
        let _ = FMA;
        let line = width * channels;
        for y in 0..lines {
            for x in 0..out_width {
                let at = (y * out_width + x) * channels;
                let out = &mut output[at..at + channels];
                let corner = y * side * line + x * side * channels;
                if side == 2 {
                    let a = &input[corner..][..channels];
                    let b = &input[corner + channels..][..channels];
                    let c = &input[corner + line..][..channels];
                    let d = &input[corner + line + channels..][..channels];
                    if winners.is_empty() {
                        for i in 0..channels {
                            let top = if a[i] > b[i] { a[i] } else { b[i] };
                            let bottom = if c[i] > d[i] { c[i] } else { d[i] };
                            out[i] = if top > bottom { top } else { bottom };
                        }
                    } else {
                        let winners = &mut winners[at..at + channels];
                        for i in 0..channels {
                            let (mut best, mut at) = (a[i], 0u32);
                            if b[i] > best { best = b[i]; at = 1; }
                            if c[i] > best { best = c[i]; at = 2; }
                            if d[i] > best { best = d[i]; at = 3; }
                            out[i] = best;
                            winners[i] = at as u8;
                        }
                    }
                } else {
                    out.copy_from_slice(&input[corner..corner + channels]);
                    if !winners.is_empty() {
                        winners[at..at + channels].fill(0);
                    }
                    for place in 1..side * side {
                        let from = corner + place / side * line + place % side * channels;
                        let pixel = &input[from..from + channels];
                        if winners.is_empty() {
                            for (best, value) in out.iter_mut().zip(pixel) {
                                *best = if *value > *best { *value } else { *best };
                            }
                        } else {
                            for ((best, winner), value) in out.iter_mut().zip(&mut winners[at..at + channels]).zip(pixel) {
                                let better = *value > *best;
                                *best = if better { *value } else { *best };
                                *winner = if better { place as u8 } else { *winner };
                            }
                        }
                    }
                }
            }
        }
    }
}
