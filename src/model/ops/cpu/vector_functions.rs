//! Functions over [`VectorMath`]: the exponential, a transpose, dot products and scaled sums.
//!
//! In and out: vectors, or slices of any length. All are inlined into a [`super::entry::Kernel`]. The order
//! of every sum is that of [`super::lanes`].

use super::element::Element;
use super::instruction_set::LANES;
use super::lanes::exp_constants::{HIGHEST, LN2_HIGH, LN2_LOW, LOWEST, POLYNOMIAL, ROUND};
use super::vector_math::VectorMath;

/// Reads the first sixteen numbers, or all; what is missing is 0.
#[inline(always)]
pub fn load_part<S: VectorMath, E: Element>(isa: S, values: &[E]) -> S::Vector {
    let mut lanes = [E::ZERO; LANES];
    let whole = values.first_chunk().unwrap_or_else(|| {
        lanes[..values.len()].copy_from_slice(values);
        &lanes
    });
    E::load(isa, whole)
}

/// [`super::lanes::exp`] of each.
#[inline(always)]
pub fn exp<S: VectorMath>(isa: S, x: S::Vector) -> S::Vector {
    let clamped = isa.smaller(isa.larger(x, isa.splat(LOWEST)), isa.splat(HIGHEST));
    let log2_e = isa.splat(std::f32::consts::LOG2_E);
    let rounded = isa.multiply_add(clamped, log2_e, isa.splat(ROUND));
    let n = isa.subtract(rounded, isa.splat(ROUND));
    let r = isa.multiply_add(n, isa.splat(-LN2_HIGH), clamped);
    let r = isa.multiply_add(n, isa.splat(-LN2_LOW), r);
    let mut p = isa.splat(POLYNOMIAL[0]);
    for coefficient in &POLYNOMIAL[1..] {
        p = isa.multiply_add(p, r, isa.splat(*coefficient));
    }
    let p = isa.multiply_add(p, isa.multiply(r, r), isa.add(r, isa.splat(1.0)));
    let exp = isa.multiply(p, isa.power_of_two(rounded));
    isa.if_below(x, isa.splat(LOWEST), isa.splat(0.0), exp)
}

/// Rows to columns: number `j` of vector `i` becomes number `i` of vector `j`.
#[inline(always)]
pub fn transpose<S: VectorMath>(isa: S, vectors: [S::Vector; LANES]) -> [S::Vector; LANES] {
    let vectors = interleave_halves(isa, vectors);
    let vectors = interleave_halves(isa, vectors);
    let vectors = interleave_halves(isa, vectors);
    interleave_halves(isa, vectors)
}

/// Moves one bit of each number's place from its vector's index to its lane's.
#[inline(always)]
fn interleave_halves<S: VectorMath>(isa: S, vectors: [S::Vector; LANES]) -> [S::Vector; LANES] {
    let mut moved = [isa.splat(0.0); LANES];
    let (lower, upper) = vectors.split_at(LANES / 2);
    let pairs = moved.as_chunks_mut().0.iter_mut();
    for ((pair, lower), upper) in pairs.zip(lower).zip(upper) {
        *pair = isa.interleave(*lower, *upper);
    }
    moved
}

/// The dot product of two slices of equal length.
#[inline(always)]
pub fn dot<S: VectorMath, E: Element>(isa: S, x: &[f32], y: &[E]) -> f32 {
    let [sum] = dot_lanes(isa, [x], y);
    isa.total(sum)
}

/// The dot products of four slices with one of the same length.
#[inline(always)]
pub fn four_dots<S: VectorMath, E: Element>(isa: S, x: [&[f32]; 4], y: &[E]) -> [f32; 4] {
    isa.totals(dot_lanes(isa, x, y))
}

/// Dot products before the lanes are added up.
#[inline(always)]
fn dot_lanes<S: VectorMath, E: Element, const N: usize>(
    isa: S,
    x: [&[f32]; N],
    y: &[E],
) -> [S::Vector; N] {
    let x = x.map(|x| &x[..y.len()]);
    let mut sums = [isa.splat(0.0); N];
    let (chunks, rest) = y.as_chunks::<LANES>();
    for (i, y) in chunks.iter().enumerate() {
        let y = E::load(isa, y);
        for (sum, x) in sums.iter_mut().zip(&x) {
            let x = x[i * LANES..].first_chunk().expect("x is as long as y");
            *sum = isa.multiply_add(isa.load(x), y, *sum);
        }
    }
    if !rest.is_empty() {
        let y = load_part(isa, rest);
        for (sum, x) in sums.iter_mut().zip(&x) {
            *sum = isa.multiply_add(load_part(isa, &x[chunks.len() * LANES..]), y, *sum);
        }
    }
    sums
}

/// `y += a[0] * x[0]`, then `y += a[1] * x[1]` and so on.
#[inline(always)]
pub fn add_scaled<S: VectorMath, E: Element, const N: usize>(
    isa: S,
    y: &mut [f32],
    a: [f32; N],
    x: [&[E]; N],
) {
    let x = x.map(|x| &x[..y.len()]);
    let (chunks, rest) = y.as_chunks_mut::<LANES>();
    let first_of_rest = chunks.len() * LANES;
    for (i, y) in chunks.iter_mut().enumerate() {
        let mut sum = isa.load(y);
        for (a, x) in a.iter().zip(&x) {
            let x = x[i * LANES..].first_chunk().expect("x is as long as y");
            sum = isa.multiply_add(isa.splat(*a), E::load(isa, x), sum);
        }
        isa.store(sum, y);
    }
    for (i, y) in rest.iter_mut().enumerate() {
        for (a, x) in a.iter().zip(&x) {
            *y = isa.multiply_add_one(*a, x[first_of_rest + i].widen(), *y);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::entry::{Entry, Kernel, on_every_set};
    use super::super::instruction_set::Portable;
    use super::super::lanes;
    use super::super::vector_math::Lanes;
    use super::*;

    /// Whether scalars of this build fuse.
    const FUSED: bool = cfg!(any(target_feature = "fma", target_arch = "aarch64"));

    #[inline(always)]
    fn stored<S: VectorMath>(isa: S, x: S::Vector) -> Lanes {
        let mut lanes = [0.0; LANES];
        isa.store(x, &mut lanes);
        lanes
    }

    #[derive(Clone, Copy)]
    struct Exponentials<'a>(&'a [Lanes]);

    impl Kernel for Exponentials<'_> {
        type Output = Vec<Lanes>;

        #[inline(always)]
        fn run<S: VectorMath>(self, isa: S) -> Vec<Lanes> {
            let mut out = Vec::new();
            for x in self.0 {
                out.push(stored(isa, exp(isa, isa.load(x))));
            }
            out
        }
    }

    #[test]
    fn exponentials_are_the_same_in_all_sets_and_in_scalars() {
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
        let mut x: Vec<Lanes> = (-2000..2000)
            .map(|first| std::array::from_fn(|i| (first * 16 + i as i32) as f32 * 0.003))
            .collect();
        x.push(std::array::from_fn(|i| tails[i % tails.len()]));
        let outputs = on_every_set(Exponentials(&x));
        for output in &outputs {
            assert_eq!(output, &outputs[0]);
        }
        for (x, exps) in x.iter().zip(Portable::<FUSED>.enter(Exponentials(&x))) {
            assert_eq!(exps, x.map(lanes::exp));
        }
        let nan = on_every_set(Exponentials(&[[f32::NAN; LANES]]));
        assert!(nan.iter().all(|nan| nan[0].iter().all(|nan| nan.is_nan())));
    }

    #[derive(Clone, Copy)]
    struct Transpose;

    impl Kernel for Transpose {
        type Output = ();

        #[inline(always)]
        fn run<S: VectorMath>(self, isa: S) {
            let mut rows = [isa.splat(0.0); LANES];
            for (i, row) in rows.iter_mut().enumerate() {
                *row = isa.load(&std::array::from_fn(|j| (i * LANES + j) as f32));
            }
            for (j, column) in transpose(isa, rows).iter().enumerate() {
                let want = std::array::from_fn(|i| (i * LANES + j) as f32);
                assert_eq!(stored(isa, *column), want);
            }
        }
    }

    #[test]
    fn rows_become_columns() {
        on_every_set(Transpose);
    }

    #[derive(Clone, Copy)]
    struct Sums<'a>([&'a [f32]; 4]);

    impl Kernel for Sums<'_> {
        type Output = (Vec<f32>, Vec<f32>);

        #[inline(always)]
        fn run<S: VectorMath>(self, isa: S) -> Self::Output {
            let y = self.0[3];
            let mut dots = vec![dot(isa, self.0[0], y)];
            dots.extend(four_dots(isa, self.0, y));
            let mut scaled = y.to_vec();
            add_scaled(isa, &mut scaled, [0.3, -1.7, 0.9, 2.0], self.0);
            dots.extend(stored(isa, load_part(isa, y)));
            (dots, scaled)
        }
    }

    #[test]
    fn sums_of_every_length_are_the_same_in_all_sets_and_close_to_double_precision() {
        for n in 0..67usize {
            let x: [Vec<f32>; 4] =
                [0.37, 0.11, 0.23, 1.3].map(|f| (0..n).map(|i| (i as f32 * f).sin()).collect());
            let x = x.each_ref().map(Vec::as_slice);
            let outputs = on_every_set(Sums(x));
            for output in &outputs {
                assert_eq!(output, &outputs[0]);
            }
            let (dots, scaled) = &outputs[0];
            let double = |i: usize, j: usize| f64::from(x[i][j]);
            for (got, row) in dots.iter().zip([0, 0, 1, 2, 3]) {
                let want: f64 = (0..n).map(|j| double(row, j) * double(3, j)).sum();
                assert!((f64::from(*got) - want).abs() < 1e-5);
            }
            for (j, got) in scaled.iter().enumerate() {
                let (a, b, c, y) = (double(0, j), double(1, j), double(2, j), double(3, j));
                let want = y + 0.3 * a - 1.7 * b + 0.9 * c + 2.0 * y;
                assert!((f64::from(*got) - want).abs() < 1e-5);
            }
            for (lane, got) in dots[5..].iter().enumerate() {
                assert_eq!(got, x[3].get(lane).unwrap_or(&0.0));
            }
        }
    }
}
