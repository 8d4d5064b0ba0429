//! Sums and exponentials over slices, written so that the compiler turns them into vector code of the
//! machine that is compiled for. What gains from more is in [`super::vector_functions`].
//!
//! A sum keeps sixteen running totals and adds them up at the end in a fixed order: faster than one
//! total, more accurate, and the same whatever the caller does with other rows.

use super::entry::Kernel;
use super::instruction_set::{LANES, Machine};
use super::vector_functions;
use super::vector_math::VectorMath;

/// `a * b + c`, fused where all machines that are compiled for do that in one instruction.
#[inline(always)]
pub fn fma(a: f32, b: f32, c: f32) -> f32 {
    if cfg!(any(target_feature = "fma", target_arch = "aarch64")) {
        a.mul_add(b, c)
    } else {
        a * b + c
    }
}

/// The sum of sixteen numbers: the upper half is added to the lower, and so on.
#[inline(always)]
pub fn total(lanes: [f32; LANES]) -> f32 {
    let mut lanes = lanes;
    let mut half = LANES / 2;
    while half > 0 {
        for lane in 0..half {
            lanes[lane] += lanes[lane + half];
        }
        half /= 2;
    }
    lanes[0]
}

/// The sum of `term(x[i], y[i], sum)` in sixteen interleaved accumulators.
#[inline(always)]
fn accumulate(x: &[f32], y: &[f32], term: impl Fn(f32, f32, f32) -> f32) -> f32 {
    let mut lanes = [0f32; LANES];
    let (xs, x_rest) = x.as_chunks::<LANES>();
    let (ys, y_rest) = y.as_chunks::<LANES>();
    for (x, y) in xs.iter().zip(ys) {
        for lane in 0..LANES {
            lanes[lane] = term(x[lane], y[lane], lanes[lane]);
        }
    }
    for (lane, (x, y)) in x_rest.iter().zip(y_rest).enumerate() {
        lanes[lane] = term(*x, *y, lanes[lane]);
    }
    total(lanes)
}

/// The dot product of two slices of equal length.
#[inline]
pub fn dot(x: &[f32], y: &[f32]) -> f32 {
    Machine::here().enter(Dot { x, y })
}

struct Dot<'a> {
    x: &'a [f32],
    y: &'a [f32],
}

impl Kernel for Dot<'_> {
    type Output = f32;

    #[inline(always)]
    fn run<S: VectorMath>(self, isa: S) -> f32 {
        vector_functions::dot(isa, self.x, self.y)
    }
}

/// The sum of a slice.
#[inline]
pub fn sum(x: &[f32]) -> f32 {
    accumulate(x, x, |x, _, sum| sum + x)
}

/// The sum of squared distances from `mean`.
#[inline]
pub fn squared_distance(x: &[f32], mean: f32) -> f32 {
    accumulate(x, x, |x, _, sum| fma(x - mean, x - mean, sum))
}

/// The larger of two numbers.
#[inline(always)]
pub fn larger(a: f32, b: f32) -> f32 {
    if b > a { b } else { a }
}

/// The largest element; negative infinity for an empty slice.
#[inline]
pub fn max(x: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let (xs, rest) = x.as_chunks::<LANES>();
    for x in xs {
        for lane in 0..LANES {
            lanes[lane] = if x[lane] > lanes[lane] {
                x[lane]
            } else {
                lanes[lane]
            };
        }
    }
    lanes
        .iter()
        .chain(rest)
        .copied()
        .fold(f32::NEG_INFINITY, f32::max)
}

/// `e^x` within two units in the last place; 0 below -87, infinity never (88 is the largest argument).
///
/// Range reduction to `2^n * e^r` with |r| <= ln(2)/2 and the degree-6 polynomial of Cephes' `expf`
/// (Moshier, netlib.org/cephes). Branch-free, so a loop over a slice becomes vector code.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    use exp_constants::{HIGHEST, LN2_HIGH, LN2_LOW, LOWEST, POLYNOMIAL, ROUND};
    let clamped = x.clamp(LOWEST, HIGHEST);
    let rounded = fma(clamped, std::f32::consts::LOG2_E, ROUND);
    let n = rounded - ROUND;
    let r = fma(n, -LN2_LOW, fma(n, -LN2_HIGH, clamped));
    let mut p = POLYNOMIAL[0];
    for coefficient in &POLYNOMIAL[1..] {
        p = fma(p, r, *coefficient);
    }
    let p = fma(p, r * r, r + 1.0);
    let scale = power_of_two(rounded);
    if x < LOWEST { 0.0 } else { p * scale }
}

/// `2^n` of the `n` that a sum with [`exp_constants::ROUND`] holds in its lowest bits, from -126 to 127.
#[inline(always)]
pub fn power_of_two(rounded: f32) -> f32 {
    let n = rounded
        .to_bits()
        .wrapping_sub(exp_constants::ROUND.to_bits());
    f32::from_bits(n.wrapping_add(127) << 23)
}

/// The numbers of [`exp`], which vectors compute with too.
pub(super) mod exp_constants {
    pub const LOWEST: f32 = -87.0;
    pub const HIGHEST: f32 = 88.0;
    pub const LN2_HIGH: f32 = 0.693_359_4;
    pub const LN2_LOW: f32 = -2.121_944_4e-4;
    /// Adding and taking away 1.5 * 2^23 rounds to the nearest integer.
    pub const ROUND: f32 = 12_582_912.0;
    /// From the highest power to the square.
    pub const POLYNOMIAL: [f32; 6] = [
        1.987_569_1e-4,
        1.398_199_9e-3,
        8.333_452e-3,
        4.166_579_6e-2,
        0.166_666_65,
        0.5,
    ];
}

/// `1 / (1 + e^-x)`.
#[inline(always)]
pub fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_within_two_units_in_the_last_place() {
        let mut worst = 0f64;
        for step in -86_900..87_900 {
            let x = step as f32 / 1000.0;
            let want = f64::from(x).exp();
            worst = worst.max(((f64::from(exp(x)) - want) / want).abs());
        }
        assert!(worst < 2.4e-7, "relative error {worst}");
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(0.0), 1.0);
    }

    #[test]
    fn sums_of_every_length_agree_with_double_precision() {
        for n in 0..67usize {
            let x: Vec<f32> = (0..n).map(|i| (i as f32 * 0.37).sin()).collect();
            let y: Vec<f32> = (0..n).map(|i| (i as f32 * 0.11).cos()).collect();
            let want: f64 = x
                .iter()
                .zip(&y)
                .map(|(x, y)| f64::from(*x) * f64::from(*y))
                .sum();
            assert!((f64::from(dot(&x, &y)) - want).abs() < 1e-5);
            let want: f64 = x.iter().map(|x| f64::from(*x)).sum();
            assert!((f64::from(sum(&x)) - want).abs() < 1e-5);
            assert_eq!(max(&x), x.iter().copied().fold(f32::NEG_INFINITY, f32::max));
        }
    }
}
