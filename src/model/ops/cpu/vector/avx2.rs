//! A vector in two AVX2 registers.

use std::arch::x86_64::{
    __m256, _CMP_NLT_UQ, _mm256_add_epi32, _mm256_add_ps, _mm256_and_ps, _mm256_castps_si256,
    _mm256_castsi256_ps, _mm256_cmp_ps, _mm256_fmadd_ps, _mm256_loadu_ps, _mm256_max_ps,
    _mm256_min_ps, _mm256_mul_ps, _mm256_permute2f128_ps, _mm256_set1_epi32, _mm256_set1_ps,
    _mm256_slli_epi32, _mm256_storeu_ps, _mm256_sub_ps, _mm256_unpackhi_ps, _mm256_unpacklo_ps,
};

use super::super::Lanes;
use super::{EXPONENT_BIAS, instructions};

pub type Register = [__m256; 2];
/// Vectors that the registers hold.
pub const REGISTERS: usize = 8;

/// An instruction for both halves.
macro_rules! each {
    ($instruction:ident, $($argument:expr),*) => {
        [$instruction($($argument[0]),*), $instruction($($argument[1]),*)]
    };
}

instructions! {
    fn splat(value: f32) -> Register { [_mm256_set1_ps(value); 2] }
    fn load(lanes: &Lanes) -> Register {
        [_mm256_loadu_ps(lanes.as_ptr()), _mm256_loadu_ps(lanes.as_ptr().add(8))]
    }
    fn store(x: Register, lanes: &mut Lanes) -> () {{
        _mm256_storeu_ps(lanes.as_mut_ptr(), x[0]);
        _mm256_storeu_ps(lanes.as_mut_ptr().add(8), x[1]);
    }}
    fn plus(x: Register, y: Register) -> Register { each!(_mm256_add_ps, x, y) }
    fn minus(x: Register, y: Register) -> Register { each!(_mm256_sub_ps, x, y) }
    fn times(x: Register, y: Register) -> Register { each!(_mm256_mul_ps, x, y) }
    fn times_plus(x: Register, y: Register, z: Register) -> Register {
        each!(_mm256_fmadd_ps, x, y, z)
    }
    fn larger(x: Register, y: Register) -> Register { each!(_mm256_max_ps, y, x) }
    fn smaller(x: Register, y: Register) -> Register { each!(_mm256_min_ps, x, y) }
    fn power_of_two(rounded: Register) -> Register {
        rounded.map(|rounded| {
            let bias = _mm256_set1_epi32(EXPONENT_BIAS);
            let biased = _mm256_add_epi32(_mm256_castps_si256(rounded), bias);
            _mm256_castsi256_ps(_mm256_slli_epi32::<23>(biased))
        })
    }
    fn zero_below(x: Register, limit: f32, y: Register) -> Register {{
        let limit = _mm256_set1_ps(limit);
        let keep = x.map(|x| _mm256_cmp_ps::<_CMP_NLT_UQ>(x, limit));
        each!(_mm256_and_ps, keep, y)
    }}
    fn halves(x: Register) -> [__m256; 2] { x }
    fn interleave(x: Register, y: Register) -> [Register; 2] {{
        let of_half = |i: usize| {
            let low = _mm256_unpacklo_ps(x[i], y[i]);
            let high = _mm256_unpackhi_ps(x[i], y[i]);
            [
                _mm256_permute2f128_ps::<0x20>(low, high),
                _mm256_permute2f128_ps::<0x31>(low, high),
            ]
        };
        [of_half(0), of_half(1)]
    }}
}
