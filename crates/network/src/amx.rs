//! A processor's matrix tiles: products of bf16 factors, summed up in fp32, 32 × 32 sums at a time (Intel's Advanced Matrix Extensions,
//! "Intel 64 and IA-32 Architectures Software Developer's Manual", volume 1, chapter 18); and the same sums in plain loops, which tests compare.
//!
//! A *block* of sums is two by two tiles of 16 × 16. Its factors are rows of pairs (for each row of sums, the bf16 values whose products it sums
//! up, side by side in memory) and [`packed`](PAIRS) pairs (for each 32 of those values and 32 columns of sums, two tiles of 16 pairs × 16 columns,
//! a pair in a `u32`, the first value in its lower half).
//!
//! Each pair of products is summed up in fp32, rounded to the nearest, and added to the sum; subnormal numbers count as zero.

pub(crate) mod products;

use std::sync::OnceLock;

/// Rows and columns of a block of sums, and values of a row of factors that a step takes.
pub(crate) const BLOCK: usize = 32;

/// Packed pairs that a step takes: 16 pairs of values by 32 columns.
pub(crate) const PAIRS: usize = 16 * BLOCK;

const SIDE: usize = 16;

/// What computes the products.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unit {
    /// The processor's tiles.
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    Tiles,
    /// Plain loops.
    #[cfg_attr(not(test), expect(dead_code, reason = "they are slower than fp32, so only tests ask for them"))]
    Loops,
}

/// The processor's tiles, if it has some, and the system lets this process use them. Found out once; an `EPISTEME_SIMD` that names a lesser
/// instruction set leaves them out, too.
pub(crate) fn tiles() -> Option<Unit> {
    static FOUND: OnceLock<Option<Unit>> = OnceLock::new();
    *FOUND.get_or_init(detect)
}

#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
fn detect() -> Option<Unit> {
    None
}

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
fn detect() -> Option<Unit> {
    use std::arch::x86_64::{__cpuid, __cpuid_count};

    use crate::simd::{Level, level};

    /// Linux: asks for the use of a processor's feature whose state is large, for all threads of this process.
    const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
    const XFEATURE_XTILEDATA: libc::c_long = 18;
    if level() != Level::Avx512 || __cpuid(0).eax < 7 {
        return None;
    }
    let features = __cpuid_count(7, 0).edx;
    let (has_bf16, has_tiles) = (features >> 22 & 1 == 1, features >> 24 & 1 == 1);
    // SAFETY: the call reads its two numbers, and refuses what it does not know.
    let may = || unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) } == 0;
    (has_bf16 && has_tiles && may()).then_some(Unit::Tiles)
}

/// Factors and sums of a block.
#[derive(Clone, Copy)]
pub(crate) struct Block<'a> {
    /// The first row of factors; 32 rows begin `row` bytes after each other.
    pub(crate) rows: *const u16,
    pub(crate) row: usize,
    /// How many bytes from there the rows' values begin that are taken one after the other, `steps` times 32 values from each place.
    pub(crate) places: &'a [isize],
    pub(crate) steps: usize,
    /// Packed pairs, [`PAIRS`] a step of each place.
    pub(crate) pairs: *const u32,
    /// The first row of 32 sums; 32 rows begin `line` bytes after each other.
    pub(crate) sums: *mut f32,
    pub(crate) line: usize,
    /// Whether products are added to what is there.
    pub(crate) adds: bool,
}

/// This thread's tiles, as long as they are in use.
pub(crate) struct Tiles(Unit);

impl Unit {
    pub(crate) fn begin(self) -> Tiles {
        #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
        if self == Unit::Tiles {
            // SAFETY: such a unit is there where tiles are.
            unsafe { native::begin() };
        }
        Tiles(self)
    }
}

impl Drop for Tiles {
    fn drop(&mut self) {
        #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
        if self.0 == Unit::Tiles {
            // SAFETY: as above.
            unsafe { native::end() };
        }
    }
}

impl Tiles {
    /// Computes the sums of a block.
    ///
    /// # Safety
    ///
    /// All that `block` tells of can be read, and its sums be written.
    #[inline]
    pub(crate) unsafe fn sum(&self, block: &Block<'_>) {
        match self.0 {
            #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
            // SAFETY: as the caller says; the tiles have begun.
            Unit::Tiles => unsafe { native::sum(block) },
            // SAFETY: as the caller says.
            Unit::Loops => unsafe { loops(block) },
        }
    }
}

/// The bf16 number nearest to `value`, of two the even one: the upper half of an fp32 number.
#[inline(always)]
pub(crate) fn round(value: f32) -> u16 {
    let bits = value.to_bits();
    let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
    // Rounding could carry what says "not a number" into the sign.
    (if value.is_nan() { bits >> 16 | 0x40 } else { rounded }) as u16
}

fn widen(value: u16) -> f32 {
    f32::from_bits(u32::from(value) << 16)
}

/// See [`Tiles::sum`].
unsafe fn loops(block: &Block<'_>) {
    for row in 0..BLOCK {
        for column in 0..BLOCK {
            // SAFETY: as the caller says.
            unsafe {
                let to = block.sums.byte_add(row * block.line).add(column);
                let mut sum = if block.adds { to.read() } else { 0.0 };
                for (index, place) in block.places.iter().enumerate() {
                    let values = block.rows.byte_add(row * block.row).byte_offset(*place);
                    let pairs = block.pairs.add(index * block.steps * PAIRS);
                    for step in 0..block.steps {
                        let (mut even, mut odd) = (0.0f32, 0.0f32);
                        for pair in 0..SIDE {
                            let factors = pairs.add(step * PAIRS + column / SIDE * SIDE * SIDE + pair * SIDE + column % SIDE).read();
                            let values = values.add(step * BLOCK + 2 * pair);
                            even = widen(values.read()).mul_add(widen(factors as u16), even);
                            odd = widen(values.add(1).read()).mul_add(widen((factors >> 16) as u16), odd);
                        }
                        sum += even + odd;
                    }
                }
                to.write(sum);
            }
        }
    }
}

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod native {
    use std::arch::asm;

    use super::Block;

    /// As `ldtilecfg` reads it: which format, and the bytes of a row and the rows of each tile.
    #[repr(C, align(64))]
    struct Shapes {
        palette: u8,
        start: u8,
        reserved: [u8; 14],
        row_bytes: [u16; 16],
        rows: [u8; 16],
    }

    /// Eight tiles of 16 rows of 64 bytes.
    static SHAPES: Shapes = Shapes {
        palette: 1,
        start: 0,
        reserved: [0; 14],
        row_bytes: [64, 64, 64, 64, 64, 64, 64, 64, 0, 0, 0, 0, 0, 0, 0, 0],
        rows: [16, 16, 16, 16, 16, 16, 16, 16, 0, 0, 0, 0, 0, 0, 0, 0],
    };

    /// What [`sums`] reads, in this order.
    #[repr(C)]
    struct Arguments {
        places: *const isize,
        last: *const isize,
        steps: usize,
        /// From the first of the upper tile's rows to that of the lower's, in factors and in sums.
        down: usize,
        sums: *mut f32,
        line: usize,
        sums_down: usize,
    }

    /// # Safety
    ///
    /// This processor has tiles, and the process may use them.
    pub(super) unsafe fn begin() {
        // SAFETY: as the caller says; the compiler itself never touches tiles.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &SHAPES, options(nostack, readonly, preserves_flags)) };
    }

    /// # Safety
    ///
    /// As [`begin`].
    pub(super) unsafe fn end() {
        // SAFETY: as the caller says.
        unsafe { asm!("tilerelease", options(nostack, nomem, preserves_flags)) };
    }

    /// The loop over places and steps between these first and last instructions: tiles 0 to 3 are the sums, 4 and 5 rows of factors, 6 and 7
    /// packed pairs.
    macro_rules! sums {
        ($block:expr, $($first:literal),*) => {{
            let Block { rows, row, places, steps, pairs, sums, line, .. } = *$block;
            let range = places.as_ptr_range();
            let arguments = Arguments { places: range.start, last: range.end, steps, down: 16 * row, sums, line, sums_down: 16 * line };
            asm!(
                $($first,)*
                "mov {place}, [{arguments}]",
                "2:",
                "mov {upper}, [{place}]",
                "add {upper}, {rows}",
                "mov {lower}, [{arguments} + 24]",
                "add {lower}, {upper}",
                "mov {left}, [{arguments} + 16]",
                "3:",
                "tileloadd tmm4, [{upper} + 1*{row}]",
                "tileloadd tmm6, [{pairs} + 1*{side}]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tileloadd tmm7, [{pairs} + 1*{side} + 1024]",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tileloadd tmm5, [{lower} + 1*{row}]",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tdpbf16ps tmm3, tmm5, tmm7",
                "add {upper}, 64",
                "add {lower}, 64",
                "add {pairs}, 2048",
                "dec {left}",
                "jnz 3b",
                "add {place}, 8",
                "cmp {place}, [{arguments} + 8]",
                "jne 2b",
                "mov {upper}, [{arguments} + 32]",
                "mov {row}, [{arguments} + 40]",
                "mov {lower}, [{arguments} + 48]",
                "add {lower}, {upper}",
                "tilestored [{upper} + 1*{row}], tmm0",
                "tilestored [{upper} + 1*{row} + 64], tmm1",
                "tilestored [{lower} + 1*{row}], tmm2",
                "tilestored [{lower} + 1*{row} + 64], tmm3",
                arguments = in(reg) &arguments,
                rows = in(reg) rows,
                row = inout(reg) row => _,
                pairs = inout(reg) pairs => _,
                side = in(reg) 64usize,
                place = out(reg) _,
                upper = out(reg) _,
                lower = out(reg) _,
                left = out(reg) _,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack),
            );
        }};
    }

    /// # Safety
    ///
    /// As [`super::Tiles::sum`], between [`begin`] and [`end`]; there is at least a place and a step.
    pub(super) unsafe fn sum(block: &Block<'_>) {
        debug_assert!(!block.places.is_empty() && block.steps > 0);
        // SAFETY: as the caller says.
        unsafe {
            if !block.adds {
                return sums!(block, "tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3");
            }
            sums!(
                block,
                "mov {upper}, [{arguments} + 32]",
                "mov {place}, [{arguments} + 40]",
                "mov {lower}, [{arguments} + 48]",
                "add {lower}, {upper}",
                "tileloadd tmm0, [{upper} + 1*{place}]",
                "tileloadd tmm1, [{upper} + 1*{place} + 64]",
                "tileloadd tmm2, [{lower} + 1*{place}]",
                "tileloadd tmm3, [{lower} + 1*{place} + 64]"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(count: usize, seed: u64) -> Vec<f32> {
        let mut draw = crate::init::uniform(seed, 1);
        (0..count).map(|_| draw()).collect()
    }

    #[test]
    fn rounding_is_to_the_nearest_and_of_two_to_the_even() {
        for (value, rounded) in
            [(1.0, 1.0), (1.003, 1.0), (1.005, 1.0078125), (1.003_906_3, 1.0), (1.011_718_8, 1.015_625), (-0.1, -0.100_097_656)]
        {
            assert_eq!(widen(round(value)), rounded, "{value}");
        }
        assert!(widen(round(f32::NAN)).is_nan() && widen(round(f32::from_bits(0x7fff_ffff))).is_nan());
        assert_eq!(widen(round(f32::MAX)), f32::INFINITY);
    }

    /// The same block by the processor's tiles and by loops.
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    #[test]
    fn tiles_have_the_bits_of_loops() {
        if tiles().is_none() {
            println!("skipped: this processor has no matrix tiles");
            return;
        }
        let (steps, places, row) = (3, [0isize, 6, -4], 2 * (3 * BLOCK + 9));
        let rows: Vec<u16> = numbers(BLOCK * (row / 2) + 200, 1).into_iter().map(round).collect();
        let pairs: Vec<u32> = numbers(places.len() * steps * PAIRS * 2, 2)
            .chunks(2)
            .map(|pair| u32::from(round(pair[0])) | u32::from(round(pair[1])) << 16)
            .collect();
        let before = numbers(BLOCK * 40, 3);
        let sums = |unit: Unit, adds: bool| {
            let mut sums = before.clone();
            let block = Block {
                rows: rows[4..].as_ptr(),
                row,
                places: &places,
                steps,
                pairs: pairs.as_ptr(),
                sums: sums.as_mut_ptr(),
                line: 160,
                adds,
            };
            let tiles = unit.begin();
            // SAFETY: the slices are as long as that.
            unsafe { tiles.sum(&block) };
            sums
        };
        for adds in [false, true] {
            let (found, expected) = (sums(Unit::Tiles, adds), sums(Unit::Loops, adds));
            assert_eq!(found, expected);
            assert_ne!(found, before);
        }
    }
}
