//! A vector in one AVX-512 register.

use std::arch::x86_64::{
    __m256, __m512, _CMP_NLT_UQ, _mm512_add_epi32, _mm512_add_ps, _mm512_castps_si512,
    _mm512_castps512_ps256, _mm512_castsi512_ps, _mm512_cmp_ps_mask, _mm512_extractf32x8_ps,
    _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_maskz_mov_ps, _mm512_max_ps, _mm512_min_ps,
    _mm512_mul_ps, _mm512_permutex2var_ps, _mm512_set1_epi32, _mm512_set1_ps, _mm512_setr_epi32,
    _mm512_slli_epi32, _mm512_storeu_ps, _mm512_sub_ps,
};

use super::super::Lanes;
use super::{EXPONENT_BIAS, instructions};

pub type Register = __m512;
/// Vectors that the registers hold.
pub const REGISTERS: usize = 32;

instructions! {
    fn splat(value: f32) -> Register { _mm512_set1_ps(value) }
    fn load(lanes: &Lanes) -> Register { _mm512_loadu_ps(lanes.as_ptr()) }
    fn store(x: Register, lanes: &mut Lanes) -> () { _mm512_storeu_ps(lanes.as_mut_ptr(), x) }
    fn plus(x: Register, y: Register) -> Register { _mm512_add_ps(x, y) }
    fn minus(x: Register, y: Register) -> Register { _mm512_sub_ps(x, y) }
    fn times(x: Register, y: Register) -> Register { _mm512_mul_ps(x, y) }
    fn times_plus(x: Register, y: Register, z: Register) -> Register { _mm512_fmadd_ps(x, y, z) }
    fn larger(x: Register, y: Register) -> Register { _mm512_max_ps(y, x) }
    fn smaller(x: Register, y: Register) -> Register { _mm512_min_ps(x, y) }
    fn power_of_two(rounded: Register) -> Register {{
        let bias = _mm512_set1_epi32(EXPONENT_BIAS);
        let biased = _mm512_add_epi32(_mm512_castps_si512(rounded), bias);
        _mm512_castsi512_ps(_mm512_slli_epi32::<23>(biased))
    }}
    fn zero_below(x: Register, limit: f32, y: Register) -> Register {{
        let keep = _mm512_cmp_ps_mask::<_CMP_NLT_UQ>(x, _mm512_set1_ps(limit));
        _mm512_maskz_mov_ps(keep, y)
    }}
    fn halves(x: Register) -> [__m256; 2] {
        [_mm512_castps512_ps256(x), _mm512_extractf32x8_ps::<1>(x)]
    }
    fn interleave(x: Register, y: Register) -> [Register; 2] {{
        let low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
        let high = _mm512_add_epi32(low, _mm512_set1_epi32(8));
        [_mm512_permutex2var_ps(x, low, y), _mm512_permutex2var_ps(x, high, y)]
    }}
}
