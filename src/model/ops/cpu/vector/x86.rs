//! What vectors of AVX2 and of AVX-512 share.

use std::arch::x86_64::{
    __m128, _mm_add_ps, _mm_add_ss, _mm_cvtss_f32, _mm_movehdup_ps, _mm_movehl_ps, _mm_movelh_ps,
    _mm_storeu_ps, _mm_unpackhi_ps, _mm_unpacklo_ps, _mm256_add_ps, _mm256_castps256_ps128,
    _mm256_extractf128_ps,
};

use super::super::lanes::exp_constants::ROUND;

#[cfg_attr(
    all(target_feature = "avx512f", target_feature = "avx512dq"),
    path = "avx512.rs"
)]
#[cfg_attr(
    not(all(target_feature = "avx512f", target_feature = "avx512dq")),
    path = "avx2.rs"
)]
mod registers;

pub use registers::*;

/// Turns the lowest bits of a number rounded by [`ROUND`] into an exponent.
pub const EXPONENT_BIAS: i32 = 127i32.wrapping_sub(ROUND.to_bits() as i32);

/// Wraps instructions, all of which the target features that a module is compiled for include.
macro_rules! instructions {
    ($(fn $name:ident($($argument:ident: $kind:ty),*) -> $result:ty { $body:expr })*) => {$(
        #[inline(always)]
        #[expect(unsafe_code, reason = "vector instructions")]
        pub fn $name($($argument: $kind),*) -> $result {
            // SAFETY: the module exists only where the compiled-for machine has the instructions;
            // pointers come from references to as many numbers as are read or written.
            unsafe { $body }
        }
    )*};
}
use instructions;

instructions! {
    fn quarter(x: Register) -> __m128 {{
        let [low, high] = halves(x);
        let x = _mm256_add_ps(low, high);
        _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x))
    }}
    fn total(x: Register) -> f32 {{
        let x = quarter(x);
        let x = _mm_add_ps(x, _mm_movehl_ps(x, x));
        _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)))
    }}
    fn totals(vectors: [Register; 4]) -> [f32; 4] {{
        let [a, b, c, d] = vectors.map(quarter);
        let ab = _mm_add_ps(_mm_unpacklo_ps(a, b), _mm_unpackhi_ps(a, b));
        let cd = _mm_add_ps(_mm_unpacklo_ps(c, d), _mm_unpackhi_ps(c, d));
        let totals = _mm_add_ps(_mm_movelh_ps(ab, cd), _mm_movehl_ps(cd, ab));
        let mut four = [0.0; 4];
        _mm_storeu_ps(four.as_mut_ptr(), totals);
        four
    }}
}
