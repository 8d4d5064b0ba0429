//! Sixteen numbers in a register.
//!
//! The compiler turns most loops into vector code by itself, but not those over arrays of sums: it keeps
//! the sums in memory, or gathers. Where that matters, the loops are written with [`Vector`]. Compiled
//! for a machine with AVX-512 it is one register, with AVX2 two; elsewhere an array, which the compiler
//! splits into what the machine has. All round alike.

#[cfg(all(
    target_arch = "x86_64",
    target_feature = "avx2",
    target_feature = "fma"
))]
#[path = "x86.rs"]
mod imp;
#[cfg(not(all(
    target_arch = "x86_64",
    target_feature = "avx2",
    target_feature = "fma"
)))]
#[path = "portable.rs"]
mod imp;

use super::lanes::exp_constants::{HIGHEST, LN2_HIGH, LN2_LOW, LOWEST, POLYNOMIAL, ROUND};

/// Vectors that the machine's registers hold.
pub use imp::REGISTERS;

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

    /// Four [`Self::total`]s at once.
    #[inline(always)]
    pub fn totals(vectors: [Self; 4]) -> [f32; 4] {
        imp::totals(vectors.map(|vector| vector.0))
    }

    /// Both vectors' numbers in turn: the lower halves', then the upper halves'.
    #[inline(always)]
    pub fn interleave(self, other: Self) -> [Self; 2] {
        imp::interleave(self.0, other.0).map(Self)
    }

    /// [`super::lanes::exp`] of each.
    #[inline(always)]
    pub fn exp(self) -> Self {
        let splat = Self::splat;
        let clamped = Self(imp::smaller(
            self.larger(splat(LOWEST)).0,
            imp::splat(HIGHEST),
        ));
        let rounded = clamped.times_plus(splat(std::f32::consts::LOG2_E), splat(ROUND));
        let n = rounded.minus(splat(ROUND));
        let r = n.times_plus(splat(-LN2_HIGH), clamped);
        let r = n.times_plus(splat(-LN2_LOW), r);
        let mut p = splat(POLYNOMIAL[0]);
        for coefficient in &POLYNOMIAL[1..] {
            p = p.times_plus(r, splat(*coefficient));
        }
        let p = p.times_plus(r.times(r), r.plus(splat(1.0)));
        let exp = p.times(Self(imp::power_of_two(rounded.0)));
        Self(imp::zero_below(self.0, LOWEST, exp.0))
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
        let totals = [lanes::total(x), lanes::total(y), lanes::total(z), 48.0];
        assert_eq!(Vector::totals([vx, vy, vz, Vector::splat(3.0)]), totals);
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
