//! A register of f32, for kernels that must say which values stay in registers.
//!
//! All kinds round alike: a fused multiply-add rounds once, the others do what IEEE 754 says. The portable one has no fused
//! multiply-add, so it differs in the last bits.
#![expect(clippy::undocumented_unsafe_blocks, reason = "all of it rests on what the callers of the unsafe functions promise")]

/// A register of f32.
///
/// # Safety
///
/// Every function needs the instruction set of the register that it works on; pointers must be good for the lanes that are read or
/// written.
pub(crate) trait Vector: Copy {
    /// Values of one register.
    const LANES: usize;
    /// How many sums the processor's registers hold beside their factors: of thirty-two, or of sixteen.
    const SUMS: usize;
    unsafe fn splat(value: f32) -> Self;
    unsafe fn load(from: *const f32) -> Self;
    /// The first `count` lanes; zeros behind.
    unsafe fn load_first(from: *const f32, count: usize) -> Self;
    unsafe fn store(self, to: *mut f32);
    unsafe fn store_first(self, to: *mut f32, count: usize);
    /// The first `count` lanes as bytes; they hold whole numbers below 256.
    unsafe fn store_bytes(self, to: *mut u8, count: usize);
    /// `self * factor + summand`.
    unsafe fn multiply_add(self, factor: Self, summand: Self) -> Self;
    unsafe fn add(self, other: Self) -> Self;
    unsafe fn subtract(self, other: Self) -> Self;
    /// `other` where it is greater, lane by lane; where one is no number, `self`.
    unsafe fn or_greater(self, other: Self) -> Self;
    /// As [`Vector::or_greater`]; `place` becomes `at` in the lanes that changed.
    unsafe fn or_greater_at(self, place: Self, other: Self, at: Self) -> (Self, Self);
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::Vector;

    fn mask16(count: usize) -> __mmask16 {
        if count >= 16 { !0 } else { (1 << count) - 1 }
    }

    // SAFETY of all: the trait's contract.
    impl Vector for __m512 {
        const LANES: usize = 16;
        const SUMS: usize = 24;
        #[inline(always)]
        unsafe fn splat(value: f32) -> Self {
            unsafe { _mm512_set1_ps(value) }
        }
        #[inline(always)]
        unsafe fn load(from: *const f32) -> Self {
            unsafe { _mm512_loadu_ps(from) }
        }
        #[inline(always)]
        unsafe fn load_first(from: *const f32, count: usize) -> Self {
            unsafe { _mm512_maskz_loadu_ps(mask16(count), from) }
        }
        #[inline(always)]
        unsafe fn store(self, to: *mut f32) {
            unsafe { _mm512_storeu_ps(to, self) }
        }
        #[inline(always)]
        unsafe fn store_first(self, to: *mut f32, count: usize) {
            unsafe { _mm512_mask_storeu_ps(to, mask16(count), self) }
        }
        #[inline(always)]
        unsafe fn store_bytes(self, to: *mut u8, count: usize) {
            unsafe { _mm512_mask_cvtepi32_storeu_epi8(to.cast(), mask16(count), _mm512_cvtps_epi32(self)) }
        }
        #[inline(always)]
        unsafe fn multiply_add(self, factor: Self, summand: Self) -> Self {
            unsafe { _mm512_fmadd_ps(self, factor, summand) }
        }
        #[inline(always)]
        unsafe fn add(self, other: Self) -> Self {
            unsafe { _mm512_add_ps(self, other) }
        }
        #[inline(always)]
        unsafe fn subtract(self, other: Self) -> Self {
            unsafe { _mm512_sub_ps(self, other) }
        }
        #[inline(always)]
        unsafe fn or_greater(self, other: Self) -> Self {
            // The instruction gives its second operand where the comparison fails.
            unsafe { _mm512_max_ps(other, self) }
        }
        #[inline(always)]
        unsafe fn or_greater_at(self, place: Self, other: Self, at: Self) -> (Self, Self) {
            unsafe {
                let greater = _mm512_cmp_ps_mask::<_CMP_GT_OQ>(other, self);
                (_mm512_max_ps(other, self), _mm512_mask_mov_ps(place, greater, at))
            }
        }
    }

    /// A window into it is a mask of the first lanes.
    const MASK: [i32; 16] = [-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0];

    #[inline(always)]
    unsafe fn mask8(count: usize) -> __m256i {
        unsafe { _mm256_loadu_si256(MASK.as_ptr().add(8 - count.min(8)).cast()) }
    }

    // SAFETY of all: the trait's contract.
    impl Vector for __m256 {
        const LANES: usize = 8;
        const SUMS: usize = 12;
        #[inline(always)]
        unsafe fn splat(value: f32) -> Self {
            unsafe { _mm256_set1_ps(value) }
        }
        #[inline(always)]
        unsafe fn load(from: *const f32) -> Self {
            unsafe { _mm256_loadu_ps(from) }
        }
        #[inline(always)]
        unsafe fn load_first(from: *const f32, count: usize) -> Self {
            unsafe { _mm256_maskload_ps(from, mask8(count)) }
        }
        #[inline(always)]
        unsafe fn store(self, to: *mut f32) {
            unsafe { _mm256_storeu_ps(to, self) }
        }
        #[inline(always)]
        unsafe fn store_first(self, to: *mut f32, count: usize) {
            unsafe { _mm256_maskstore_ps(to, mask8(count), self) }
        }
        #[inline(always)]
        unsafe fn store_bytes(self, to: *mut u8, count: usize) {
            unsafe {
                let whole = _mm256_cvtps_epi32(self);
                let words = _mm_packs_epi32(_mm256_castsi256_si128(whole), _mm256_extracti128_si256::<1>(whole));
                let bytes = _mm_packus_epi16(words, words);
                if count >= 8 {
                    return _mm_storel_epi64(to.cast(), bytes);
                }
                let bytes = _mm_cvtsi128_si64(bytes).to_le_bytes();
                std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, count);
            }
        }
        #[inline(always)]
        unsafe fn multiply_add(self, factor: Self, summand: Self) -> Self {
            unsafe { _mm256_fmadd_ps(self, factor, summand) }
        }
        #[inline(always)]
        unsafe fn add(self, other: Self) -> Self {
            unsafe { _mm256_add_ps(self, other) }
        }
        #[inline(always)]
        unsafe fn subtract(self, other: Self) -> Self {
            unsafe { _mm256_sub_ps(self, other) }
        }
        #[inline(always)]
        unsafe fn or_greater(self, other: Self) -> Self {
            unsafe { _mm256_max_ps(other, self) }
        }
        #[inline(always)]
        unsafe fn or_greater_at(self, place: Self, other: Self, at: Self) -> (Self, Self) {
            unsafe {
                let greater = _mm256_cmp_ps::<_CMP_GT_OQ>(other, self);
                (_mm256_max_ps(other, self), _mm256_blendv_ps(place, at, greater))
            }
        }
    }
}

/// Four lanes for any processor, as the compiler sees fit.
#[derive(Clone, Copy)]
pub(crate) struct Portable([f32; 4]);

// SAFETY of all: the trait's contract; no instruction set is needed.
impl Vector for Portable {
    const LANES: usize = 4;
    const SUMS: usize = 12;
    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        Portable([value; 4])
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        Portable(unsafe { from.cast::<[f32; 4]>().read_unaligned() })
    }
    #[inline(always)]
    unsafe fn load_first(from: *const f32, count: usize) -> Self {
        Portable(std::array::from_fn(|lane| if lane < count { unsafe { *from.add(lane) } } else { 0.0 }))
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        unsafe { to.cast::<[f32; 4]>().write_unaligned(self.0) }
    }
    #[inline(always)]
    unsafe fn store_first(self, to: *mut f32, count: usize) {
        for (lane, value) in self.0.iter().enumerate().take(count) {
            unsafe { *to.add(lane) = *value };
        }
    }
    #[inline(always)]
    unsafe fn store_bytes(self, to: *mut u8, count: usize) {
        for (lane, value) in self.0.iter().enumerate().take(count) {
            unsafe { *to.add(lane) = *value as u8 };
        }
    }
    #[inline(always)]
    unsafe fn multiply_add(self, factor: Self, summand: Self) -> Self {
        Portable(std::array::from_fn(|lane| self.0[lane] * factor.0[lane] + summand.0[lane]))
    }
    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        Portable(std::array::from_fn(|lane| self.0[lane] + other.0[lane]))
    }
    #[inline(always)]
    unsafe fn subtract(self, other: Self) -> Self {
        Portable(std::array::from_fn(|lane| self.0[lane] - other.0[lane]))
    }
    #[inline(always)]
    unsafe fn or_greater(self, other: Self) -> Self {
        Portable(std::array::from_fn(|lane| if other.0[lane] > self.0[lane] { other.0[lane] } else { self.0[lane] }))
    }
    #[inline(always)]
    unsafe fn or_greater_at(self, place: Self, other: Self, at: Self) -> (Self, Self) {
        let place = std::array::from_fn(|lane| if other.0[lane] > self.0[lane] { at.0[lane] } else { place.0[lane] });
        (unsafe { self.or_greater(other) }, Portable(place))
    }
}

/// Defines an unsafe function over a [`Vector`] that is compiled once for each kind and called with the widest there is.
macro_rules! for_each_vector {
    ($(#[$meta:meta])* unsafe fn $name:ident<V>($($arg:ident: $type:ty),* $(,)?) $body:block) => {
        $(#[$meta])*
        unsafe fn $name($($arg: $type),*) {
            #[inline(always)]
            unsafe fn body<V: $crate::simd::vector::Vector>($($arg: $type),*) $body
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq,avx2,fma")]
            unsafe fn avx512($($arg: $type),*) {
                // SAFETY: as the caller says; the vector's instruction set is what this is compiled for.
                unsafe { body::<std::arch::x86_64::__m512>($($arg),*) }
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma")]
            unsafe fn avx2($($arg: $type),*) {
                // SAFETY: as above.
                unsafe { body::<std::arch::x86_64::__m256>($($arg),*) }
            }
            match $crate::simd::level() {
                #[cfg(target_arch = "x86_64")]
                // SAFETY: as the caller says; the features were just detected.
                $crate::simd::Level::Avx512 => unsafe { avx512($($arg),*) },
                #[cfg(target_arch = "x86_64")]
                // SAFETY: as above.
                $crate::simd::Level::Avx2 => unsafe { avx2($($arg),*) },
                // SAFETY: as above; no feature is needed.
                _ => unsafe { body::<$crate::simd::vector::Portable>($($arg),*) },
            }
        }
    };
}
pub(crate) use for_each_vector;
