//! Matrix products of bf16 factors on matrix tiles, and how their factors are laid out for them.
//!
//! A *plane* is a matrix of bf16 numbers, a row of some values for each *pixel*; rows are a multiple of [`BLOCK`] long, the last of them zeros.

use super::{BLOCK, Block, PAIRS, Unit, round};
use crate::simd::{Level, for_each_level, level};

/// Values of a pixel with zeros up to whole blocks.
pub(crate) fn pitch(values: usize) -> usize {
    values.next_multiple_of(BLOCK)
}

for_each_level! {
    /// Rounds pixels of `values` values to such of `pitch`.
    pub(crate) fn write_pixels(from: &[f32], values: usize, pitch: usize, out: &mut [u16]) {
        let _ = FMA;
        if values == pitch {
            for (out, value) in out.iter_mut().zip(from) {
                *out = round(*value);
            }
            return;
        }
        for (out, from) in out.chunks_exact_mut(pitch).zip(from.chunks_exact(values)) {
            for (out, value) in out.iter_mut().zip(from) {
                *out = round(*value);
            }
            out[values..].fill(0);
        }
    }
}

/// `out[pixel] = Σ plane[pixel + offset] × weights`, rows of `outer` values; `margin` pixels lie before and behind the plane's own, and `weights` are packed
/// pairs, `[outer / 32, offsets, values / 32]` times [`PAIRS`].
pub(crate) fn multiply(unit: Unit, plane: &[u16], margin: usize, offsets: &[isize], weights: &[u32], out: &mut [f32], outer: usize) {
    let pixels = out.len() / outer;
    let blocks = outer / BLOCK;
    let steps = weights.len() / (blocks * offsets.len() * PAIRS);
    let inner = steps * BLOCK;
    let reach = offsets.iter().map(|offset| offset.unsigned_abs()).max().unwrap_or(0);
    assert!(pixels.is_multiple_of(BLOCK) && outer.is_multiple_of(BLOCK) && weights.len() == blocks * offsets.len() * steps * PAIRS);
    assert!(steps > 0 && reach <= margin && plane.len() >= (margin + pixels + margin) * inner && out.len() == pixels * outer);
    let places: Vec<isize> = offsets.iter().map(|offset| offset * (inner * size_of::<u16>()) as isize).collect();
    let tiles = unit.begin();
    for (block, weights) in weights.chunks_exact(offsets.len() * steps * PAIRS).enumerate() {
        for pixel in (0..pixels).step_by(BLOCK) {
            let sums = &mut out[pixel * outer + block * BLOCK..];
            let block = Block {
                rows: plane[(margin + pixel) * inner..].as_ptr(),
                row: inner * size_of::<u16>(),
                places: &places,
                steps,
                pairs: weights.as_ptr(),
                sums: sums.as_mut_ptr(),
                line: outer * size_of::<f32>(),
                adds: false,
            };
            // SAFETY: just checked: no offset leaves the margins, and the last block ends where its buffers do.
            unsafe { tiles.sum(&block) };
        }
    }
}

/// Adds Σ plane\[pixel + offset\] × other plane\[pixel\], `[offsets, channels, filters]`. The plane is [`transpose`]d, `row` pixels of each channel, beginning
/// with those of the margin; the other one is packed by [`pair_pixels`].
pub(crate) fn add_products(
    unit: Unit,
    (transposed, row, margin): (&[u16], usize, usize),
    offsets: &[isize],
    (pairs, pixels): (&[u32], usize),
    out: &mut [f32],
    filters: usize,
) {
    let channels = transposed.len() / row;
    let reach = offsets.iter().map(|offset| offset.unsigned_abs()).max().unwrap_or(0);
    assert!(channels.is_multiple_of(BLOCK) && filters.is_multiple_of(BLOCK) && pixels.is_multiple_of(BLOCK) && pixels > 0);
    assert!(transposed.len() == channels * row && reach <= margin && row >= margin + pixels + margin);
    assert!(pairs.len() == pixels / 2 * filters && out.len() == offsets.len() * channels * filters);
    let tiles = unit.begin();
    for (filter, pairs) in (0..filters).step_by(BLOCK).zip(pairs.chunks_exact(pixels / 2 * BLOCK)) {
        for channel in (0..channels).step_by(BLOCK) {
            for (point, offset) in offsets.iter().enumerate() {
                let sums = &mut out[(point * channels + channel) * filters + filter..];
                let block = Block {
                    rows: transposed[channel * row + margin..].as_ptr(),
                    row: row * size_of::<u16>(),
                    places: &[offset * size_of::<u16>() as isize],
                    steps: pixels / BLOCK,
                    pairs: pairs.as_ptr(),
                    sums: sums.as_mut_ptr(),
                    line: filters * size_of::<f32>(),
                    adds: true,
                };
                // SAFETY: as in `multiply`.
                unsafe { tiles.sum(&block) };
            }
        }
    }
}

/// Values of a row of so many pixels: an odd number of cache lines, so that rows do not fall on few lines of the first-level cache.
pub(crate) fn row_of(pixels: usize) -> usize {
    (pixels.div_ceil(BLOCK) | 1) * BLOCK
}

/// Transposes a plane of pixels of `values` values each to rows of `row` pixels each.
pub(crate) fn transpose(plane: &[u16], values: usize, row: usize, out: &mut [u16]) {
    let pixels = plane.len() / values;
    assert!(values.is_multiple_of(BLOCK) && pixels <= row && out.len() == values * row);
    let whole = pixels / BLOCK * BLOCK;
    for first in (0..whole).step_by(BLOCK) {
        for value in (0..values).step_by(16) {
            let (from, to) = (&plane[first * values + value..], &mut out[value * row + first..]);
            match level() {
                #[cfg(target_arch = "x86_64")]
                // SAFETY: there is AVX-512; the square of 32 pixels by 16 values lies within both.
                Level::Avx512 => unsafe { transpose_square(from.as_ptr(), values, to.as_mut_ptr(), row) },
                _ => transpose_plainly(from, values, to, row, BLOCK),
            }
        }
    }
    for value in (0..values).step_by(16).filter(|_| whole < pixels) {
        transpose_plainly(&plane[whole * values + value..], values, &mut out[value * row + whole..], row, pixels - whole);
    }
}

/// The same of a few pixels and 16 values; behind the pixels, zeros.
fn transpose_plainly(from: &[u16], values: usize, out: &mut [u16], row: usize, pixels: usize) {
    for value in 0..16 {
        for pixel in 0..pixels {
            out[value * row + pixel] = from[pixel * values + value];
        }
    }
}

/// The same of 32 pixels: two in each lane of 16 vectors, which then change lanes for vectors.
///
/// # Safety
///
/// 32 rows of 16 values can be read, and 16 rows of 32 be written.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq")]
unsafe fn transpose_square(from: *const u16, values: usize, to: *mut u16, row: usize) {
    use std::arch::x86_64::{
        __m512i, _mm256_loadu_si256, _mm512_cvtepu16_epi32, _mm512_or_si512, _mm512_shuffle_i32x4, _mm512_slli_epi32, _mm512_storeu_si512,
        _mm512_unpackhi_epi32, _mm512_unpackhi_epi64, _mm512_unpacklo_epi32, _mm512_unpacklo_epi64,
    };
    // SAFETY: as the caller says.
    let load = |pixel: usize| unsafe { _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.add(pixel * values).cast())) };
    let pairs: [__m512i; 16] = std::array::from_fn(|pair| _mm512_or_si512(load(2 * pair), _mm512_slli_epi32::<16>(load(2 * pair + 1))));
    let twos: [__m512i; 16] = std::array::from_fn(|at| {
        let (a, b) = (pairs[at & !1], pairs[at | 1]);
        if at % 2 == 0 { _mm512_unpacklo_epi32(a, b) } else { _mm512_unpackhi_epi32(a, b) }
    });
    // In each quarter of the one at `4 i + j`: four pairs of pixels from `4 i` on, of a value that is `j` more than a multiple of four.
    let fours: [__m512i; 16] = std::array::from_fn(|at| {
        let first = at & !3 | at >> 1 & 1;
        if at % 2 == 0 { _mm512_unpacklo_epi64(twos[first], twos[first + 2]) } else { _mm512_unpackhi_epi64(twos[first], twos[first + 2]) }
    });
    let store = |value: usize, pixels: __m512i| {
        // SAFETY: as the caller says.
        unsafe { _mm512_storeu_si512(to.add(value * row).cast(), pixels) }
    };
    for j in 0..4 {
        const EVEN: i32 = 0x88;
        const ODD: i32 = 0xdd;
        let even = [_mm512_shuffle_i32x4::<EVEN>(fours[j], fours[4 + j]), _mm512_shuffle_i32x4::<EVEN>(fours[8 + j], fours[12 + j])];
        let odd = [_mm512_shuffle_i32x4::<ODD>(fours[j], fours[4 + j]), _mm512_shuffle_i32x4::<ODD>(fours[8 + j], fours[12 + j])];
        store(j, _mm512_shuffle_i32x4::<EVEN>(even[0], even[1]));
        store(4 + j, _mm512_shuffle_i32x4::<EVEN>(odd[0], odd[1]));
        store(8 + j, _mm512_shuffle_i32x4::<ODD>(even[0], even[1]));
        store(12 + j, _mm512_shuffle_i32x4::<ODD>(odd[0], odd[1]));
    }
}

/// Packed pairs that lie in a buffer for numbers.
pub(crate) fn as_pairs(values: &[f32]) -> &[u32] {
    // SAFETY: both are four bytes, aligned to four, of which all are valid.
    unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), values.len()) }
}

for_each_level! {
    /// Packs pairs of pixels: `[values / 32, pixels / 32]` times [`PAIRS`].
    pub(crate) fn pair_pixels(plane: &[u16], values: usize, out: &mut [u32]) {
        let _ = FMA;
        let steps = plane.len() / values / BLOCK;
        for (half, out) in out.chunks_exact_mut(256).enumerate() {
            let (block, step, side) = (half / 2 / steps, half / 2 % steps, half % 2);
            let first = step * BLOCK * values + block * BLOCK + side * 16;
            for (pair, out) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
                let even = &plane[first + 2 * pair * values..][..16];
                let odd = &plane[first + (2 * pair + 1) * values..][..16];
                for i in 0..16 {
                    out[i] = u32::from(even[i]) | u32::from(odd[i]) << 16;
                }
            }
        }
    }
}
