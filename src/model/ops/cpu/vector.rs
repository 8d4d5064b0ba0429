//! Sixteen numbers in a register.
//!
//! The compiler turns most loops into vector code by itself, but not those over arrays of sums: it keeps
//! the sums in memory, or gathers. Where that matters, the loops are written with [`Vector`]. Compiled
//! for a machine with AVX-512 it is one register; elsewhere an array, which the compiler splits into
//! what the machine has. Both round alike.

/// Numbers in a vector.
pub const LANES: usize = 16;

/// A vector in memory.
pub type Lanes = [f32; LANES];

/// A vector at work.
#[derive(Clone, Copy)]
pub struct Vector(imp::Register);

impl Vector {
    /// The same number sixteen times.
    #[inline(always)]
    pub fn splat(value: f32) -> Self {
        Self(imp::splat(value))
    }

    /// Reads a vector.
    #[inline(always)]
    pub fn load(lanes: &Lanes) -> Self {
        Self(imp::load(lanes))
    }

    /// Reads at most sixteen numbers; what is missing is 0.
    #[inline(always)]
    pub fn load_part(values: &[f32]) -> Self {
        let mut lanes = [0.0; LANES];
        lanes[..values.len()].copy_from_slice(values);
        Self::load(&lanes)
    }

    /// Writes a vector.
    #[inline(always)]
    pub fn store(self, lanes: &mut Lanes) {
        imp::store(self.0, lanes);
    }

    /// The sum.
    #[inline(always)]
    pub fn plus(self, other: Self) -> Self {
        Self(imp::plus(self.0, other.0))
    }

    /// The difference.
    #[inline(always)]
    pub fn minus(self, other: Self) -> Self {
        Self(imp::minus(self.0, other.0))
    }

    /// The product.
    #[inline(always)]
    pub fn times(self, other: Self) -> Self {
        Self(imp::times(self.0, other.0))
    }

    /// `self * by + and`, rounded as [`super::lanes::fma`] does.
    #[inline(always)]
    pub fn times_plus(self, by: Self, and: Self) -> Self {
        Self(imp::times_plus(self.0, by.0, and.0))
    }

    /// The larger of each two.
    #[inline(always)]
    pub fn larger(self, other: Self) -> Self {
        Self(imp::larger(self.0, other.0))
    }

    /// The sum of all lanes: halves are added to halves, as [`super::lanes::total`] does.
    #[inline(always)]
    pub fn total(self) -> f32 {
        imp::total(self.0)
    }

    /// Both vectors' numbers in turn: the lower halves', then the upper halves'.
    #[inline(always)]
    pub fn interleave(self, other: Self) -> [Self; 2] {
        imp::interleave(self.0, other.0).map(Self)
    }

    /// [`super::lanes::exp`] of each.
    #[inline(always)]
    pub fn exp(self) -> Self {
        Self(imp::exp(self.0))
    }
}

/// Rows to columns: number `j` of vector `i` becomes number `i` of vector `j`.
#[inline(always)]
pub fn transpose(mut vectors: [Vector; LANES]) -> [Vector; LANES] {
    const HALF: usize = LANES / 2;
    // Each round moves one bit of a number's place from its vector's index to its lane's.
    for _ in 0..LANES.ilog2() {
        let pairs: [[Vector; 2]; HALF] =
            std::array::from_fn(|i| vectors[i].interleave(vectors[i + HALF]));
        vectors = std::array::from_fn(|i| pairs[i / 2][i % 2]);
    }
    vectors
}

#[cfg(all(
    target_arch = "x86_64",
    target_feature = "avx512f",
    target_feature = "avx512dq"
))]
#[expect(unsafe_code, reason = "vector instructions")]
mod imp {
    use std::arch::x86_64::*;

    use super::super::lanes::exp_constants::*;
    use super::Lanes;

    pub type Register = __m512;

    /// Wraps instructions, all of which this module's target features include.
    macro_rules! instructions {
        ($(fn $name:ident($($argument:ident: $kind:ty),*) -> $result:ty { $body:expr })*) => {$(
            #[inline(always)]
            pub fn $name($($argument: $kind),*) -> $result {
                // SAFETY: the module exists only where the compiled-for machine has the instructions;
                // pointers come from references to as many numbers as are read or written.
                unsafe { $body }
            }
        )*};
    }

    instructions! {
        fn splat(value: f32) -> __m512 { _mm512_set1_ps(value) }
        fn load(lanes: &Lanes) -> __m512 { _mm512_loadu_ps(lanes.as_ptr()) }
        fn store(x: __m512, lanes: &mut Lanes) -> () { _mm512_storeu_ps(lanes.as_mut_ptr(), x) }
        fn plus(x: __m512, y: __m512) -> __m512 { _mm512_add_ps(x, y) }
        fn minus(x: __m512, y: __m512) -> __m512 { _mm512_sub_ps(x, y) }
        fn times(x: __m512, y: __m512) -> __m512 { _mm512_mul_ps(x, y) }
        fn times_plus(x: __m512, y: __m512, z: __m512) -> __m512 { _mm512_fmadd_ps(x, y, z) }
        fn larger(x: __m512, y: __m512) -> __m512 { _mm512_max_ps(y, x) }
        fn total(x: __m512) -> f32 {{
            let x = _mm256_add_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps::<1>(x));
            let x = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
            let x = _mm_add_ps(x, _mm_movehl_ps(x, x));
            _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)))
        }}
        fn interleave(x: __m512, y: __m512) -> [__m512; 2] {{
            let low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
            let high = _mm512_add_epi32(low, _mm512_set1_epi32(8));
            [_mm512_permutex2var_ps(x, low, y), _mm512_permutex2var_ps(x, high, y)]
        }}
        fn exp(x: __m512) -> __m512 {{
            let clamped = _mm512_min_ps(_mm512_max_ps(x, splat(LOWEST)), splat(HIGHEST));
            let rounded = times_plus(clamped, splat(std::f32::consts::LOG2_E), splat(ROUND));
            let n = minus(rounded, splat(ROUND));
            let r = times_plus(n, splat(-LN2_LOW), times_plus(n, splat(-LN2_HIGH), clamped));
            let mut p = splat(POLYNOMIAL[0]);
            for coefficient in &POLYNOMIAL[1..] {
                p = times_plus(p, r, splat(*coefficient));
            }
            let p = times_plus(p, times(r, r), plus(r, splat(1.0)));
            let bias = _mm512_set1_epi32(127i32.wrapping_sub(ROUND.to_bits() as i32));
            let biased = _mm512_add_epi32(_mm512_castps_si512(rounded), bias);
            let scale = _mm512_castsi512_ps(_mm512_slli_epi32::<23>(biased));
            let not_below = _mm512_cmp_ps_mask::<_CMP_NLT_UQ>(x, splat(LOWEST));
            _mm512_maskz_mul_ps(not_below, p, scale)
        }}
    }
}

#[cfg(not(all(
    target_arch = "x86_64",
    target_feature = "avx512f",
    target_feature = "avx512dq"
)))]
mod imp {
    use std::array::from_fn;

    use super::super::lanes;
    use super::{LANES, Lanes};

    pub type Register = Lanes;

    #[inline(always)]
    pub fn splat(value: f32) -> Lanes {
        [value; LANES]
    }

    #[inline(always)]
    pub fn load(lanes: &Lanes) -> Lanes {
        *lanes
    }

    #[inline(always)]
    pub fn store(x: Lanes, lanes: &mut Lanes) {
        *lanes = x;
    }

    #[inline(always)]
    pub fn plus(x: Lanes, y: Lanes) -> Lanes {
        from_fn(|lane| x[lane] + y[lane])
    }

    #[inline(always)]
    pub fn minus(x: Lanes, y: Lanes) -> Lanes {
        from_fn(|lane| x[lane] - y[lane])
    }

    #[inline(always)]
    pub fn times(x: Lanes, y: Lanes) -> Lanes {
        from_fn(|lane| x[lane] * y[lane])
    }

    #[inline(always)]
    pub fn times_plus(x: Lanes, y: Lanes, z: Lanes) -> Lanes {
        from_fn(|lane| lanes::fma(x[lane], y[lane], z[lane]))
    }

    #[inline(always)]
    pub fn larger(x: Lanes, y: Lanes) -> Lanes {
        from_fn(|lane| lanes::larger(x[lane], y[lane]))
    }

    #[inline(always)]
    pub fn total(x: Lanes) -> f32 {
        lanes::total(x)
    }

    #[inline(always)]
    pub fn interleave(x: Lanes, y: Lanes) -> [Lanes; 2] {
        let pick = |i: usize| if i % 2 == 0 { x[i / 2] } else { y[i / 2] };
        [from_fn(pick), from_fn(|i| pick(i + LANES))]
    }

    #[inline(always)]
    pub fn exp(x: Lanes) -> Lanes {
        from_fn(|lane| lanes::exp(x[lane]))
    }
}

#[cfg(test)]
mod tests {
    use super::super::lanes;
    use super::*;

    #[test]
    fn vectors_round_as_scalars_do() {
        let lanes =
            |seed: f32| -> Lanes { std::array::from_fn(|i| (i as f32 * seed).sin() * 40.0) };
        let (x, y, z) = (lanes(0.37), lanes(0.91), lanes(1.7));
        let [vx, vy, vz] = [x, y, z].map(|lanes| Vector::load(&lanes));
        let check = |got: Vector, want: &dyn Fn(usize) -> f32| {
            let mut lanes = [0.0; LANES];
            got.store(&mut lanes);
            assert_eq!(lanes, std::array::from_fn::<f32, LANES, _>(want));
        };
        check(vx.plus(vy), &|i| x[i] + y[i]);
        check(vx.minus(vy), &|i| x[i] - y[i]);
        check(vx.times(vy), &|i| x[i] * y[i]);
        check(vx.times_plus(vy, vz), &|i| lanes::fma(x[i], y[i], z[i]));
        check(vx.larger(vy), &|i| x[i].max(y[i]));
        check(Vector::splat(3.0), &|_| 3.0);
        check(Vector::load_part(&x[..5]), &|i| {
            if i < 5 { x[i] } else { 0.0 }
        });
        assert_eq!(vx.total(), lanes::total(x));
        let rows =
            std::array::from_fn(|i| Vector::load(&std::array::from_fn(|j| (i * LANES + j) as f32)));
        for (j, column) in transpose(rows).into_iter().enumerate() {
            check(column, &|i| (i * LANES + j) as f32);
        }
        for first in -2000..2000 {
            let x: Lanes = std::array::from_fn(|i| (first * 16 + i as i32) as f32 * 0.003);
            check(Vector::load(&x).exp(), &|i| lanes::exp(x[i]));
        }
        let tails = [
            f32::NEG_INFINITY,
            f32::MIN,
            -87.1,
            -87.0,
            88.0,
            1e9,
            f32::INFINITY,
            0.0,
        ];
        let x: Lanes = std::array::from_fn(|i| tails[i % tails.len()]);
        check(Vector::load(&x).exp(), &|i| lanes::exp(x[i]));
    }
}
