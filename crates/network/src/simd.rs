//! Compiles a loop for AVX-512, for AVX2 with FMA, and for the baseline, and chooses at run time.

use std::sync::OnceLock;

pub(crate) mod vector;

use vector::for_each_vector;

/// The widest instruction set that this machine and operating system offer to our loops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Level {
    /// AVX-512 F, VL, BW, DQ and FMA.
    Avx512,
    /// AVX2 and FMA.
    Avx2,
    /// What the target guarantees.
    Baseline,
}

/// The environment variable that names a lesser level than the machine's, to compare or to test: `avx2` or `baseline`.
const LEVEL: &str = "EPISTEME_SIMD";

/// Found out once.
#[inline]
pub(crate) fn level() -> Level {
    static FOUND: OnceLock<Level> = OnceLock::new();
    *FOUND.get_or_init(|| match std::env::var(LEVEL).as_deref() {
        Ok("baseline") => Level::Baseline,
        Ok("avx2") if detect() == Level::Avx512 => Level::Avx2,
        _ => detect(),
    })
}

fn detect() -> Level {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::is_x86_feature_detected as has;
        if has!("avx512f") && has!("avx512vl") && has!("avx512bw") && has!("avx512dq") && has!("fma") && has!("avx2") {
            return Level::Avx512;
        }
        if has!("avx2") && has!("fma") {
            return Level::Avx2;
        }
    }
    Level::Baseline
}

/// `a * b + c`: fused where the loop is compiled for FMA; without FMA, `mul_add` would be a slow library call.
#[inline(always)]
pub(crate) fn multiply_add<const FMA: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FMA { a.mul_add(b, c) } else { a * b + c }
}

/// Defines a function whose body is compiled once for each [`Level`]. The body may use the constants `FMA` and `WIDE`: whether there are
/// thirty-two registers of 64 bytes, not sixteen of 32 at most.
macro_rules! for_each_level {
    ($(#[$meta:meta])* $vis:vis fn $name:ident($($arg:ident: $type:ty),* $(,)?) $(-> $result:ty)? $body:block) => {
        $(#[$meta])*
        #[allow(clippy::too_many_arguments)]
        $vis fn $name($($arg: $type),*) $(-> $result)? {
            #[inline(always)]
            #[allow(clippy::too_many_arguments)]
            fn body<const FMA: bool, const WIDE: bool>($($arg: $type),*) $(-> $result)? $body
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq,avx2,fma")]
            #[allow(clippy::too_many_arguments)]
            fn avx512($($arg: $type),*) $(-> $result)? {
                body::<true, true>($($arg),*)
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma")]
            #[allow(clippy::too_many_arguments)]
            fn avx2($($arg: $type),*) $(-> $result)? {
                body::<true, false>($($arg),*)
            }
            match $crate::simd::level() {
                #[cfg(target_arch = "x86_64")]
                // SAFETY: the features that the function is compiled for were just detected.
                $crate::simd::Level::Avx512 => unsafe { avx512($($arg),*) },
                #[cfg(target_arch = "x86_64")]
                // SAFETY: the features that the function is compiled for were just detected.
                $crate::simd::Level::Avx2 => unsafe { avx2($($arg),*) },
                _ => body::<false, false>($($arg),*),
            }
        }
    };
}
pub(crate) use for_each_level;

for_each_level! {
    /// `sums[j] += Σ_i rows[i][j]` for rows of `sums.len()` values.
    pub(crate) fn add_rows(rows: &[f32], sums: &mut [f32]) {
        let _ = FMA;
        let width = sums.len();
        for row in rows.chunks_exact(width) {
            for (sum, value) in sums.iter_mut().zip(row) {
                *sum += *value;
            }
        }
    }
}

for_each_level! {
    /// `out[j] += values[j]`.
    pub(crate) fn add(values: &[f32], out: &mut [f32]) {
        let _ = FMA;
        for (out, value) in out.iter_mut().zip(values) {
            *out += *value;
        }
    }
}

/// Floating-point operations a second of all threads of the current pool together, when they do nothing but fused multiply-adds
/// on registers: what no kernel can exceed. Takes a fraction of a second.
pub fn peak_flops() -> f64 {
    const ROUNDS: usize = 10_000_000;
    let clock = std::time::Instant::now();
    let done = rayon::broadcast(|_| {
        let mut done = 0;
        // SAFETY: the function has no requirement but its instruction set.
        unsafe { multiply_adds(ROUNDS, &mut done) };
        done
    });
    done.iter().sum::<usize>() as f64 / clock.elapsed().as_secs_f64()
}

for_each_vector! {
    /// Twelve independent chains, more than the units' latency; adds the operations done.
    unsafe fn multiply_adds<V>(rounds: usize, done: &mut usize) {
        // SAFETY: the caller has the instruction set.
        unsafe {
            let mut sums = [V::splat(std::hint::black_box(1.0)); 12];
            let (factor, summand) = (V::splat(std::hint::black_box(0.999)), V::splat(std::hint::black_box(0.5)));
            for _ in 0..rounds {
                for sum in &mut sums {
                    *sum = sum.multiply_add(factor, summand);
                }
            }
            let mut kept = [0.0; 16];
            for sum in sums {
                sum.store(kept.as_mut_ptr());
                std::hint::black_box(&kept);
            }
            *done += rounds * sums.len() * V::LANES * 2;
        }
    }
}
