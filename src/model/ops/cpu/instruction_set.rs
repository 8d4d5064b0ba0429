//! Sixteen numbers at a time, in the registers that a machine has.
//!
//! [`InstructionSet`] is what the kernels' innermost loops are written in. Its implementers are tokens:
//! whoever holds one was given it because the machine can do what it stands for, which is what makes their
//! methods sound. All of them compute the same, number by number; only where the machine cannot multiply
//! and add in one rounding ([`Portable`] with `FUSED` off) do results differ.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64 as arch;
use std::sync::OnceLock;

use half::bf16;

/// Numbers of a vector: one AVX-512 register, two of AVX2, four of NEON.
pub const LANES: usize = 16;

/// Vectors of [`LANES`] numbers.
///
/// Methods are inlined into a function that is compiled for the set.
pub trait InstructionSet: Copy {
    /// Sixteen f32.
    type Vector: Copy;

    /// The same number in every place.
    fn splat(self, value: f32) -> Self::Vector;
    /// Reads a vector.
    fn load(self, from: &[f32; LANES]) -> Self::Vector;
    /// Writes a vector.
    fn store(self, value: Self::Vector, to: &mut [f32; LANES]);
    /// Reads and widens, exactly.
    fn load_bf16(self, from: &[bf16; LANES]) -> Self::Vector;
    /// Reads and widens, exactly.
    fn load_i8(self, from: &[i8; LANES]) -> Self::Vector;
    /// `a * b`.
    fn multiply(self, a: Self::Vector, b: Self::Vector) -> Self::Vector;
    /// `a + b`.
    fn add(self, a: Self::Vector, b: Self::Vector) -> Self::Vector;
    /// `a * b + sum`, rounded once.
    fn multiply_add(self, a: Self::Vector, b: Self::Vector, sum: Self::Vector) -> Self::Vector;
    /// Asks for a line of memory before it is needed.
    fn prefetch<T>(self, from: *const T);
}

/// What this machine can do.
#[derive(Clone, Copy, Debug)]
pub enum Machine {
    #[cfg(target_arch = "x86_64")]
    Avx512(Avx512),
    #[cfg(target_arch = "x86_64")]
    Avx2(Avx2),
    Portable(Portable<{ cfg!(target_arch = "aarch64") }>),
}

impl Machine {
    /// Looks once.
    pub fn here() -> Self {
        static DETECTED: OnceLock<Machine> = OnceLock::new();
        *DETECTED.get_or_init(|| {
            #[cfg(target_arch = "x86_64")]
            {
                if is_x86_feature_detected!("avx512f") {
                    return Self::Avx512(Avx512(()));
                }
                if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                    return Self::Avx2(Avx2(()));
                }
            }
            Self::Portable(Portable)
        })
    }

    /// All sets that this machine has.
    #[cfg(test)]
    pub fn every() -> Vec<Self> {
        let mut every = vec![Self::Portable(Portable)];
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                every.push(Self::Avx2(Avx2(())));
            }
            if is_x86_feature_detected!("avx512f") {
                every.push(Self::Avx512(Avx512(())));
            }
        }
        every
    }
}

/// Plain loops. `FUSED`: whether the machine multiplies and adds in one rounding.
#[derive(Clone, Copy, Debug)]
pub struct Portable<const FUSED: bool>;

impl<const FUSED: bool> InstructionSet for Portable<FUSED> {
    type Vector = [f32; LANES];

    #[inline(always)]
    fn splat(self, value: f32) -> Self::Vector {
        [value; LANES]
    }
    #[inline(always)]
    fn load(self, from: &[f32; LANES]) -> Self::Vector {
        *from
    }
    #[inline(always)]
    fn store(self, value: Self::Vector, to: &mut [f32; LANES]) {
        *to = value;
    }
    #[inline(always)]
    fn load_bf16(self, from: &[bf16; LANES]) -> Self::Vector {
        from.map(|value| f32::from_bits(u32::from(value.to_bits()) << 16))
    }
    #[inline(always)]
    fn load_i8(self, from: &[i8; LANES]) -> Self::Vector {
        from.map(f32::from)
    }
    #[inline(always)]
    fn multiply(self, mut a: Self::Vector, b: Self::Vector) -> Self::Vector {
        for (a, b) in a.iter_mut().zip(b) {
            *a *= b;
        }
        a
    }
    #[inline(always)]
    fn add(self, mut a: Self::Vector, b: Self::Vector) -> Self::Vector {
        for (a, b) in a.iter_mut().zip(b) {
            *a += b;
        }
        a
    }
    #[inline(always)]
    fn multiply_add(self, a: Self::Vector, b: Self::Vector, sum: Self::Vector) -> Self::Vector {
        let mut out = sum;
        for (lane, out) in out.iter_mut().enumerate() {
            *out = if FUSED {
                a[lane].mul_add(b[lane], *out)
            } else {
                a[lane] * b[lane] + *out
            };
        }
        out
    }
    #[inline(always)]
    fn prefetch<T>(self, _from: *const T) {}
}

/// The machine has AVX-512F.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy, Debug)]
pub struct Avx512(());

#[cfg(target_arch = "x86_64")]
#[expect(unsafe_code, reason = "vector instructions")]
// SAFETY: here and in every block below, the token says that the machine has AVX-512F, and reads and
// writes go through references to arrays of the vector's size.
impl InstructionSet for Avx512 {
    type Vector = arch::__m512;

    #[inline(always)]
    fn splat(self, value: f32) -> Self::Vector {
        // SAFETY: see the implementation.
        unsafe { arch::_mm512_set1_ps(value) }
    }
    #[inline(always)]
    fn load(self, from: &[f32; LANES]) -> Self::Vector {
        // SAFETY: see the implementation.
        unsafe { arch::_mm512_loadu_ps(from.as_ptr()) }
    }
    #[inline(always)]
    fn store(self, value: Self::Vector, to: &mut [f32; LANES]) {
        // SAFETY: see the implementation.
        unsafe { arch::_mm512_storeu_ps(to.as_mut_ptr(), value) }
    }
    #[inline(always)]
    fn load_bf16(self, from: &[bf16; LANES]) -> Self::Vector {
        // SAFETY: see the implementation; a bf16 is sixteen bits.
        unsafe {
            let narrow = arch::_mm256_loadu_si256(from.as_ptr().cast());
            let wide = arch::_mm512_slli_epi32::<16>(arch::_mm512_cvtepu16_epi32(narrow));
            arch::_mm512_castsi512_ps(wide)
        }
    }
    #[inline(always)]
    fn load_i8(self, from: &[i8; LANES]) -> Self::Vector {
        // SAFETY: see the implementation.
        unsafe {
            let narrow = arch::_mm_loadu_si128(from.as_ptr().cast());
            arch::_mm512_cvtepi32_ps(arch::_mm512_cvtepi8_epi32(narrow))
        }
    }
    #[inline(always)]
    fn multiply(self, a: Self::Vector, b: Self::Vector) -> Self::Vector {
        // SAFETY: see the implementation.
        unsafe { arch::_mm512_mul_ps(a, b) }
    }
    #[inline(always)]
    fn add(self, a: Self::Vector, b: Self::Vector) -> Self::Vector {
        // SAFETY: see the implementation.
        unsafe { arch::_mm512_add_ps(a, b) }
    }
    #[inline(always)]
    fn multiply_add(self, a: Self::Vector, b: Self::Vector, sum: Self::Vector) -> Self::Vector {
        // SAFETY: see the implementation.
        unsafe { arch::_mm512_fmadd_ps(a, b, sum) }
    }
    #[inline(always)]
    fn prefetch<T>(self, from: *const T) {
        // SAFETY: a prefetch of any address is harmless.
        unsafe { arch::_mm_prefetch::<{ arch::_MM_HINT_T0 }>(from.cast()) }
    }
}

/// The machine has AVX2 and fused multiply-add.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy, Debug)]
pub struct Avx2(());

#[cfg(target_arch = "x86_64")]
#[expect(unsafe_code, reason = "vector instructions")]
// SAFETY: here and in every block below, the token says that the machine has AVX2 and FMA, and reads and
// writes go through references to arrays of the vector's size.
impl InstructionSet for Avx2 {
    type Vector = [arch::__m256; 2];

    #[inline(always)]
    fn splat(self, value: f32) -> Self::Vector {
        // SAFETY: see the implementation.
        [unsafe { arch::_mm256_set1_ps(value) }; 2]
    }
    #[inline(always)]
    fn load(self, from: &[f32; LANES]) -> Self::Vector {
        let (low, high) = (from.as_ptr(), from[8..].as_ptr());
        // SAFETY: see the implementation.
        unsafe { [arch::_mm256_loadu_ps(low), arch::_mm256_loadu_ps(high)] }
    }
    #[inline(always)]
    fn store(self, [low, high]: Self::Vector, to: &mut [f32; LANES]) {
        // SAFETY: see the implementation.
        unsafe {
            arch::_mm256_storeu_ps(to.as_mut_ptr(), low);
            arch::_mm256_storeu_ps(to[8..].as_mut_ptr(), high);
        }
    }
    #[inline(always)]
    fn load_bf16(self, from: &[bf16; LANES]) -> Self::Vector {
        let (low, high) = (from.as_ptr(), from[8..].as_ptr());
        // SAFETY: see the implementation; a bf16 is sixteen bits.
        unsafe {
            let low = arch::_mm256_cvtepu16_epi32(arch::_mm_loadu_si128(low.cast()));
            let high = arch::_mm256_cvtepu16_epi32(arch::_mm_loadu_si128(high.cast()));
            [
                arch::_mm256_castsi256_ps(arch::_mm256_slli_epi32::<16>(low)),
                arch::_mm256_castsi256_ps(arch::_mm256_slli_epi32::<16>(high)),
            ]
        }
    }
    #[inline(always)]
    fn load_i8(self, from: &[i8; LANES]) -> Self::Vector {
        // SAFETY: see the implementation.
        unsafe {
            let narrow = arch::_mm_loadu_si128(from.as_ptr().cast());
            let (low, high) = (narrow, arch::_mm_srli_si128::<8>(narrow));
            [
                arch::_mm256_cvtepi32_ps(arch::_mm256_cvtepi8_epi32(low)),
                arch::_mm256_cvtepi32_ps(arch::_mm256_cvtepi8_epi32(high)),
            ]
        }
    }
    #[inline(always)]
    fn multiply(self, [a, b]: Self::Vector, [c, d]: Self::Vector) -> Self::Vector {
        // SAFETY: see the implementation.
        unsafe { [arch::_mm256_mul_ps(a, c), arch::_mm256_mul_ps(b, d)] }
    }
    #[inline(always)]
    fn add(self, [a, b]: Self::Vector, [c, d]: Self::Vector) -> Self::Vector {
        // SAFETY: see the implementation.
        unsafe { [arch::_mm256_add_ps(a, c), arch::_mm256_add_ps(b, d)] }
    }
    #[inline(always)]
    fn multiply_add(
        self,
        [a, b]: Self::Vector,
        [c, d]: Self::Vector,
        [e, f]: Self::Vector,
    ) -> Self::Vector {
        // SAFETY: see the implementation.
        unsafe {
            [
                arch::_mm256_fmadd_ps(a, c, e),
                arch::_mm256_fmadd_ps(b, d, f),
            ]
        }
    }
    #[inline(always)]
    fn prefetch<T>(self, from: *const T) {
        // SAFETY: a prefetch of any address is harmless.
        unsafe { arch::_mm_prefetch::<{ arch::_MM_HINT_T0 }>(from.cast()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn agrees(isa: impl InstructionSet) {
        let plain = Portable::<true>;
        let numbers =
            |seed: f32| std::array::from_fn::<f32, LANES, _>(|i| (i as f32 * 0.7 + seed).sin());
        let (a, b, c) = (numbers(1.0), numbers(2.0), numbers(3.0));
        let narrow = a.map(bf16::from_f32);
        let bytes: [i8; LANES] = std::array::from_fn(|i| (i as i8 - 8) * 15);
        let out = |vector| {
            let mut out = [0f32; LANES];
            isa.store(vector, &mut out);
            out
        };
        let (x, y, z) = (isa.load(&a), isa.load(&b), isa.load(&c));
        assert_eq!(out(isa.splat(2.5)), [2.5; LANES]);
        assert_eq!(out(x), a);
        assert_eq!(out(isa.load_bf16(&narrow)), plain.load_bf16(&narrow));
        assert_eq!(out(isa.load_i8(&bytes)), plain.load_i8(&bytes));
        assert_eq!(out(isa.multiply(x, y)), plain.multiply(a, b));
        assert_eq!(out(isa.add(x, y)), plain.add(a, b));
        assert_eq!(out(isa.multiply_add(x, y, z)), plain.multiply_add(a, b, c));
    }

    #[test]
    fn all_sets_of_this_machine_compute_the_same() {
        agrees(Portable::<true>);
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx512f") {
                agrees(Avx512(()));
            }
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                agrees(Avx2(()));
            }
        }
    }
}
