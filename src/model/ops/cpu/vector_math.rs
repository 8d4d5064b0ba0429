//! What attention computes with vectors beyond what products do.
//!
//! [`VectorMath`] extends [`InstructionSet`] by comparisons, powers of two, sums across a vector and
//! exchanges between vectors. All sets compute the same, number by number.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64 as arch;
use std::array::from_fn;

use super::entry::Entry;
#[cfg(target_arch = "x86_64")]
use super::instruction_set::{Avx2, Avx512};
use super::instruction_set::{InstructionSet, LANES, Portable};
use super::lanes;
#[cfg(target_arch = "x86_64")]
use super::lanes::exp_constants::ROUND;

/// A vector in memory.
pub type Lanes = [f32; LANES];

/// Turns the lowest bits of a number rounded by [`ROUND`] into an exponent.
#[cfg(target_arch = "x86_64")]
const EXPONENT_BIAS: i32 = 127i32.wrapping_sub(ROUND.to_bits() as i32);

/// Arithmetic of vectors, inlined into a function that is compiled for the set.
pub trait VectorMath: InstructionSet + Entry {
    /// Vectors that the registers hold.
    const REGISTERS: usize;

    /// `a - b`.
    fn subtract(self, a: Self::Vector, b: Self::Vector) -> Self::Vector;
    /// `b` where it is larger, else `a`: where `a` is no number, the result is none.
    fn larger(self, a: Self::Vector, b: Self::Vector) -> Self::Vector;
    /// `b` where it is smaller, else `a`.
    fn smaller(self, a: Self::Vector, b: Self::Vector) -> Self::Vector;
    /// [`lanes::power_of_two`] of each.
    fn power_of_two(self, rounded: Self::Vector) -> Self::Vector;
    /// `x` where `a` is below `b`, else `y`.
    fn if_below(
        self,
        a: Self::Vector,
        b: Self::Vector,
        x: Self::Vector,
        y: Self::Vector,
    ) -> Self::Vector;
    /// Both vectors' numbers in turn: the lower halves', then the upper halves'.
    fn interleave(self, a: Self::Vector, b: Self::Vector) -> [Self::Vector; 2];
    /// The sum of all places, added up as [`lanes::total`] does.
    fn total(self, x: Self::Vector) -> f32;
    /// Four [`Self::total`]s at once.
    fn totals(self, vectors: [Self::Vector; 4]) -> [f32; 4];
    /// `a * b + sum` of single numbers, rounded as the set's [`InstructionSet::multiply_add`] does.
    fn multiply_add_one(self, a: f32, b: f32, sum: f32) -> f32;
}

impl<const FUSED: bool> VectorMath for Portable<FUSED> {
    const REGISTERS: usize = 8;

    #[inline(always)]
    fn subtract(self, a: Lanes, b: Lanes) -> Lanes {
        from_fn(|lane| a[lane] - b[lane])
    }
    #[inline(always)]
    fn larger(self, a: Lanes, b: Lanes) -> Lanes {
        from_fn(|lane| lanes::larger(a[lane], b[lane]))
    }
    #[inline(always)]
    fn smaller(self, a: Lanes, b: Lanes) -> Lanes {
        from_fn(|lane| if b[lane] < a[lane] { b[lane] } else { a[lane] })
    }
    #[inline(always)]
    fn power_of_two(self, rounded: Lanes) -> Lanes {
        rounded.map(lanes::power_of_two)
    }
    #[inline(always)]
    fn if_below(self, a: Lanes, b: Lanes, x: Lanes, y: Lanes) -> Lanes {
        from_fn(|lane| if a[lane] < b[lane] { x[lane] } else { y[lane] })
    }
    #[inline(always)]
    fn interleave(self, a: Lanes, b: Lanes) -> [Lanes; 2] {
        let pick = |i: usize| [a, b][i % 2][i / 2];
        [from_fn(pick), from_fn(|i| pick(i + LANES))]
    }
    #[inline(always)]
    fn total(self, x: Lanes) -> f32 {
        lanes::total(x)
    }
    #[inline(always)]
    fn totals(self, vectors: [Lanes; 4]) -> [f32; 4] {
        vectors.map(lanes::total)
    }
    #[inline(always)]
    fn multiply_add_one(self, a: f32, b: f32, sum: f32) -> f32 {
        if FUSED {
            a.mul_add(b, sum)
        } else {
            a * b + sum
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[expect(unsafe_code, reason = "vector instructions")]
// SAFETY: in every block below, the token says that the machine has AVX-512F, which includes AVX2 and FMA.
impl VectorMath for Avx512 {
    const REGISTERS: usize = 32;

    #[inline(always)]
    fn subtract(self, a: Self::Vector, b: Self::Vector) -> Self::Vector {
        // SAFETY: see the implementation.
        unsafe { arch::_mm512_sub_ps(a, b) }
    }
    #[inline(always)]
    fn larger(self, a: Self::Vector, b: Self::Vector) -> Self::Vector {
        // SAFETY: see the implementation.
        unsafe { arch::_mm512_max_ps(b, a) }
    }
    #[inline(always)]
    fn smaller(self, a: Self::Vector, b: Self::Vector) -> Self::Vector {
        // SAFETY: see the implementation.
        unsafe { arch::_mm512_min_ps(b, a) }
    }
    #[inline(always)]
    fn power_of_two(self, rounded: Self::Vector) -> Self::Vector {
        // SAFETY: see the implementation.
        unsafe {
            let bias = arch::_mm512_set1_epi32(EXPONENT_BIAS);
            let biased = arch::_mm512_add_epi32(arch::_mm512_castps_si512(rounded), bias);
            arch::_mm512_castsi512_ps(arch::_mm512_slli_epi32::<23>(biased))
        }
    }
    #[inline(always)]
    fn if_below(
        self,
        a: Self::Vector,
        b: Self::Vector,
        x: Self::Vector,
        y: Self::Vector,
    ) -> Self::Vector {
        // SAFETY: see the implementation.
        unsafe {
            let below = arch::_mm512_cmp_ps_mask::<{ arch::_CMP_LT_OQ }>(a, b);
            arch::_mm512_mask_blend_ps(below, y, x)
        }
    }
    #[inline(always)]
    fn interleave(self, a: Self::Vector, b: Self::Vector) -> [Self::Vector; 2] {
        // SAFETY: see the implementation.
        unsafe {
            let low =
                arch::_mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
            let high = arch::_mm512_add_epi32(low, arch::_mm512_set1_epi32(8));
            [
                arch::_mm512_permutex2var_ps(a, low, b),
                arch::_mm512_permutex2var_ps(a, high, b),
            ]
        }
    }
    #[inline(always)]
    fn total(self, x: Self::Vector) -> f32 {
        // SAFETY: see the implementation.
        unsafe { total(quarter(halves(x))) }
    }
    #[inline(always)]
    fn totals(self, [a, b, c, d]: [Self::Vector; 4]) -> [f32; 4] {
        // SAFETY: see the implementation.
        unsafe {
            totals([
                quarter(halves(a)),
                quarter(halves(b)),
                quarter(halves(c)),
                quarter(halves(d)),
            ])
        }
    }
    #[inline(always)]
    fn multiply_add_one(self, a: f32, b: f32, sum: f32) -> f32 {
        a.mul_add(b, sum)
    }
}

#[cfg(target_arch = "x86_64")]
#[expect(unsafe_code, reason = "vector instructions")]
// SAFETY: in every block below, the token says that the machine has AVX2 and FMA.
impl VectorMath for Avx2 {
    const REGISTERS: usize = 8;

    #[inline(always)]
    fn subtract(self, [a, b]: Self::Vector, [c, d]: Self::Vector) -> Self::Vector {
        // SAFETY: see the implementation.
        unsafe { [arch::_mm256_sub_ps(a, c), arch::_mm256_sub_ps(b, d)] }
    }
    #[inline(always)]
    fn larger(self, [a, b]: Self::Vector, [c, d]: Self::Vector) -> Self::Vector {
        // SAFETY: see the implementation.
        unsafe { [arch::_mm256_max_ps(c, a), arch::_mm256_max_ps(d, b)] }
    }
    #[inline(always)]
    fn smaller(self, [a, b]: Self::Vector, [c, d]: Self::Vector) -> Self::Vector {
        // SAFETY: see the implementation.
        unsafe { [arch::_mm256_min_ps(c, a), arch::_mm256_min_ps(d, b)] }
    }
    #[inline(always)]
    fn power_of_two(self, [low, high]: Self::Vector) -> Self::Vector {
        // SAFETY: see the implementation.
        unsafe { [half_power_of_two(low), half_power_of_two(high)] }
    }
    #[inline(always)]
    fn if_below(
        self,
        a: Self::Vector,
        b: Self::Vector,
        x: Self::Vector,
        y: Self::Vector,
    ) -> Self::Vector {
        // SAFETY: see the implementation.
        unsafe {
            [
                half_if_below(a[0], b[0], x[0], y[0]),
                half_if_below(a[1], b[1], x[1], y[1]),
            ]
        }
    }
    #[inline(always)]
    fn interleave(self, [a, b]: Self::Vector, [c, d]: Self::Vector) -> [Self::Vector; 2] {
        // SAFETY: see the implementation.
        unsafe { [half_interleave(a, c), half_interleave(b, d)] }
    }
    #[inline(always)]
    fn total(self, x: Self::Vector) -> f32 {
        // SAFETY: see the implementation.
        unsafe { total(quarter(x)) }
    }
    #[inline(always)]
    fn totals(self, [a, b, c, d]: [Self::Vector; 4]) -> [f32; 4] {
        // SAFETY: see the implementation.
        unsafe { totals([quarter(a), quarter(b), quarter(c), quarter(d)]) }
    }
    #[inline(always)]
    fn multiply_add_one(self, a: f32, b: f32, sum: f32) -> f32 {
        a.mul_add(b, sum)
    }
}

#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx512f")]
fn halves(x: arch::__m512) -> [arch::__m256; 2] {
    let high = arch::_mm512_extractf64x4_pd::<1>(arch::_mm512_castps_pd(x));
    [
        arch::_mm512_castps512_ps256(x),
        arch::_mm256_castpd_ps(high),
    ]
}

#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx2")]
fn half_power_of_two(rounded: arch::__m256) -> arch::__m256 {
    let bias = arch::_mm256_set1_epi32(EXPONENT_BIAS);
    let biased = arch::_mm256_add_epi32(arch::_mm256_castps_si256(rounded), bias);
    arch::_mm256_castsi256_ps(arch::_mm256_slli_epi32::<23>(biased))
}

#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx2")]
fn half_if_below(
    a: arch::__m256,
    b: arch::__m256,
    x: arch::__m256,
    y: arch::__m256,
) -> arch::__m256 {
    arch::_mm256_blendv_ps(y, x, arch::_mm256_cmp_ps::<{ arch::_CMP_LT_OQ }>(a, b))
}

#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx2")]
fn half_interleave(a: arch::__m256, b: arch::__m256) -> [arch::__m256; 2] {
    let low = arch::_mm256_unpacklo_ps(a, b);
    let high = arch::_mm256_unpackhi_ps(a, b);
    [
        arch::_mm256_permute2f128_ps::<0x20>(low, high),
        arch::_mm256_permute2f128_ps::<0x31>(low, high),
    ]
}

/// Halves added to halves, twice.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx2")]
fn quarter([low, high]: [arch::__m256; 2]) -> arch::__m128 {
    let x = arch::_mm256_add_ps(low, high);
    arch::_mm_add_ps(
        arch::_mm256_castps256_ps128(x),
        arch::_mm256_extractf128_ps::<1>(x),
    )
}

#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx2")]
fn total(x: arch::__m128) -> f32 {
    let x = arch::_mm_add_ps(x, arch::_mm_movehl_ps(x, x));
    arch::_mm_cvtss_f32(arch::_mm_add_ss(x, arch::_mm_movehdup_ps(x)))
}

#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx2")]
#[expect(unsafe_code, reason = "writes a vector")]
fn totals([a, b, c, d]: [arch::__m128; 4]) -> [f32; 4] {
    let ab = arch::_mm_add_ps(arch::_mm_unpacklo_ps(a, b), arch::_mm_unpackhi_ps(a, b));
    let cd = arch::_mm_add_ps(arch::_mm_unpacklo_ps(c, d), arch::_mm_unpackhi_ps(c, d));
    let totals = arch::_mm_add_ps(arch::_mm_movelh_ps(ab, cd), arch::_mm_movehl_ps(cd, ab));
    let mut four = [0.0; 4];
    // SAFETY: the array is as long as the vector.
    unsafe { arch::_mm_storeu_ps(four.as_mut_ptr(), totals) };
    four
}

#[cfg(test)]
mod tests {
    use super::super::entry::{Kernel, on_every_set};
    use super::lanes::exp_constants::ROUND;
    use super::*;

    const SPECIAL: [f32; 6] = [
        f32::NAN,
        f32::INFINITY,
        f32::NEG_INFINITY,
        0.0,
        -0.0,
        f32::MIN_POSITIVE,
    ];

    /// Sixteen numbers, of which the first few are special ones, in another order for each seed.
    fn numbers(seed: usize) -> Lanes {
        from_fn(|i| match SPECIAL.get((i + seed) % LANES) {
            Some(special) => *special,
            None => ((i * 7 + seed) as f32).sin() * 40.0,
        })
    }

    #[derive(Clone, Copy)]
    struct Everything;

    impl Kernel for Everything {
        type Output = Vec<u32>;

        #[inline(always)]
        fn run<S: VectorMath>(self, isa: S) -> Vec<u32> {
            let mut bits = Vec::new();
            for seed in 0..LANES {
                let (x, y) = (isa.load(&numbers(0)), isa.load(&numbers(seed)));
                let tame = numbers(seed).map(|x| if x.is_finite() { x } else { 1.0 });
                let vectors = [
                    isa.subtract(x, y),
                    isa.larger(x, y),
                    isa.smaller(x, y),
                    isa.power_of_two(isa.load(&tame.map(|x| ROUND + x.round()))),
                    isa.if_below(x, y, isa.splat(1.5), y),
                    isa.interleave(x, y)[0],
                    isa.interleave(x, y)[1],
                ];
                for vector in vectors {
                    let mut lanes = [0.0; LANES];
                    isa.store(vector, &mut lanes);
                    bits.extend(lanes.map(canonical));
                }
                let tame = isa.load(&tame);
                let doubled = isa.add(tame, tame);
                bits.push(canonical(isa.total(tame)));
                let four = [tame, doubled, isa.splat(3.0), isa.splat(-0.7)];
                bits.extend(isa.totals(four).map(canonical));
                let (a, b, c) = (1.1 + seed as f32, 0.3, -0.33 * seed as f32);
                bits.push(isa.multiply_add_one(a, b, c).to_bits());
            }
            bits
        }
    }

    /// The bits; those of one number that is none stand for all such.
    fn canonical(x: f32) -> u32 {
        if x.is_nan() { f32::NAN } else { x }.to_bits()
    }

    #[test]
    fn all_sets_of_this_machine_compute_the_same() {
        let outputs = on_every_set(Everything);
        for output in &outputs {
            assert_eq!(output, &outputs[0]);
        }
    }
}
