//! Products between sixteen query rows, one a vector lane, and any number of key rows.
//!
//! In: key rows side by side, query rows turned so that one column of all sixteen is one vector. Out:
//! the same. A lane never meets another lane, so a row's result does not depend on which rows share its
//! block; sums over keys run in key order. It must not know of masks or segments. All is inlined into a
//! [`super::entry::Kernel`].

use super::entry::Kernel;
use super::instruction_set::LANES;
use super::sum_tree::{EverySixteenth, tree};
use super::vector_functions::{load_part, transpose};
use super::vector_math::{Lanes, VectorMath};

/// Vectors that the registers of the largest sets hold.
const MANY: usize = 32;

/// Turns rows of equal length into columns, scaled; the lanes of empty rows are 0.
#[inline(always)]
pub fn turn<S: VectorMath>(isa: S, rows: [&[f32]; LANES], scale: f32, columns: &mut [Lanes]) {
    let scale = isa.splat(scale);
    for (tile, columns) in columns.chunks_mut(LANES).enumerate() {
        let mut vectors = [isa.splat(0.0); LANES];
        for (vector, row) in vectors.iter_mut().zip(&rows) {
            let part = row.get(tile * LANES..).unwrap_or_default();
            *vector = isa.multiply(load_part(isa, part), scale);
        }
        let vectors = transpose(isa, vectors);
        for (column, vector) in columns.iter_mut().zip(&vectors) {
            isa.store(*vector, column);
        }
    }
}

/// The opposite of [`turn`], each lane scaled by its own number.
#[inline(always)]
pub fn turn_back<S: VectorMath>(
    isa: S,
    columns: &[Lanes],
    scales: &Lanes,
    rows: &mut [&mut [f32]; LANES],
) {
    let scales = isa.load(scales);
    for (tile, columns) in columns.chunks(LANES).enumerate() {
        let mut vectors = [isa.splat(0.0); LANES];
        for (vector, column) in vectors.iter_mut().zip(columns) {
            *vector = isa.multiply(isa.load(column), scales);
        }
        let vectors = transpose(isa, vectors);
        for (row, vector) in rows.iter_mut().zip(&vectors) {
            if row.is_empty() {
                continue;
            }
            let mut lanes = [0.0; LANES];
            isa.store(*vector, &mut lanes);
            row[tile * LANES..][..columns.len()].copy_from_slice(&lanes[..columns.len()]);
        }
    }
}

/// For every key the dot product of its row with every lane: `out[key] = sum over d of
/// keys[key][d] * columns[d]`, summed as [`super::vector_functions::dot`] does, so that both give the same
/// bits. `keys`: `[keys, columns]`.
#[inline(always)]
pub fn products<S: VectorMath>(isa: S, keys: &[f32], columns: &[Lanes], out: &mut [Lanes]) {
    isa.enter(AllProducts { keys, columns, out });
}

/// A function of its own, for which the compiler allots registers better than within a whole task.
struct AllProducts<'a> {
    keys: &'a [f32],
    columns: &'a [Lanes],
    out: &'a mut [Lanes],
}

impl Kernel for AllProducts<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: VectorMath>(self, isa: S) {
        // As many keys at once as leave the sums of the tree, which has four levels, in registers.
        if S::REGISTERS >= MANY {
            products_by::<S, { MANY / 8 }>(isa, self.keys, self.columns, self.out);
        } else {
            products_by::<S, 1>(isa, self.keys, self.columns, self.out);
        }
    }
}

/// [`products`] of `N` keys at once.
#[inline(always)]
fn products_by<S: VectorMath, const N: usize>(
    isa: S,
    keys: &[f32],
    columns: &[Lanes],
    out: &mut [Lanes],
) {
    let dim = columns.len();
    let (whole, rest) = out.as_chunks_mut::<N>();
    let (whole_keys, rest_keys) = keys.split_at(whole.len() * N * dim);
    for (keys, out) in whole_keys.chunks_exact(N * dim).zip(whole) {
        products_of(isa, keys, columns, out);
    }
    for (key, out) in rest_keys.chunks_exact(dim).zip(rest) {
        products_of(isa, key, columns, std::array::from_mut(out));
    }
}

#[inline(always)]
fn products_of<S: VectorMath, const N: usize>(
    isa: S,
    keys: &[f32],
    columns: &[Lanes],
    out: &mut [Lanes; N],
) {
    let dim = columns.len();
    let keys: [&[f32]; N] = std::array::from_fn(|i| &keys[i * dim..(i + 1) * dim]);
    let sums = tree(isa, &Products { keys, columns });
    for (sum, out) in sums.iter().zip(out) {
        isa.store(*sum, out);
    }
}

/// The terms of `N` keys' products.
struct Products<'a, const N: usize> {
    keys: [&'a [f32]; N],
    columns: &'a [Lanes],
}

impl<const N: usize> EverySixteenth<N> for Products<'_, N> {
    #[inline(always)]
    fn sum<S: VectorMath>(&self, isa: S, first: usize) -> [S::Vector; N] {
        let mut sums = [isa.splat(0.0); N];
        let mut d = first;
        while d < self.columns.len() {
            let column = isa.load(&self.columns[d]);
            for (sum, key) in sums.iter_mut().zip(&self.keys) {
                *sum = isa.multiply_add(isa.splat(key[d]), column, *sum);
            }
            d += LANES;
        }
        sums
    }
}

/// For every lane the sum of key rows by weight: `out[d] = sum over keys of keys[key][d] *
/// weights[key]`. `keys`: `[keys, out]`.
#[inline(always)]
pub fn mix<S: VectorMath>(isa: S, keys: &[f32], weights: &[Lanes], out: &mut [Lanes]) {
    isa.enter(Mix { keys, weights, out });
}

/// A function of its own, as [`AllProducts`] is.
struct Mix<'a> {
    keys: &'a [f32],
    weights: &'a [Lanes],
    out: &'a mut [Lanes],
}

impl Kernel for Mix<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: VectorMath>(self, isa: S) {
        if S::REGISTERS >= MANY {
            mix_by::<S, { MANY / 2 }>(isa, self.keys, self.weights, self.out);
        } else {
            mix_by::<S, 4>(isa, self.keys, self.weights, self.out);
        }
    }
}

/// [`mix`], `N` columns at once.
#[inline(always)]
fn mix_by<S: VectorMath, const N: usize>(
    isa: S,
    keys: &[f32],
    weights: &[Lanes],
    out: &mut [Lanes],
) {
    let dim = out.len();
    let (blocks, rest) = out.as_chunks_mut::<N>();
    let whole = blocks.len() * N;
    for (block, out) in blocks.iter_mut().enumerate() {
        mix_of(isa, (keys, block * N, dim), weights, out);
    }
    for (i, out) in rest.iter_mut().enumerate() {
        let out = std::array::from_mut(out);
        mix_of(isa, (keys, whole + i, dim), weights, out);
    }
}

/// `N` columns of [`mix`], from `first`.
#[inline(always)]
fn mix_of<S: VectorMath, const N: usize>(
    isa: S,
    (keys, first, dim): (&[f32], usize, usize),
    weights: &[Lanes],
    out: &mut [Lanes; N],
) {
    let mut sums = [isa.splat(0.0); N];
    for (key, weight) in keys.chunks_exact(dim).zip(weights) {
        let weight = isa.load(weight);
        for (sum, value) in sums.iter_mut().zip(&key[first..first + N]) {
            *sum = isa.multiply_add(isa.splat(*value), weight, *sum);
        }
    }
    for (sum, out) in sums.iter().zip(out) {
        isa.store(*sum, out);
    }
}

/// Adds to every key's row (`into`, `[keys, dim]`) the sum of the block's rows by weight, in lane
/// order. `rows`: at most sixteen of `dim` columns.
#[inline(always)]
pub fn spread<S: VectorMath>(
    isa: S,
    weights: &[Lanes],
    rows: &[&[f32]],
    dim: usize,
    into: &mut [f32],
) {
    let whole = dim / LANES * LANES;
    for (weight, into) in weights.iter().zip(into.chunks_exact_mut(dim)) {
        let (chunks, rest) = into.split_at_mut(whole);
        for (i, chunk) in chunks.as_chunks_mut::<LANES>().0.iter_mut().enumerate() {
            let mut sum = isa.load(chunk);
            for (weight, row) in weight.iter().zip(rows) {
                let values = row[i * LANES..]
                    .first_chunk()
                    .expect("a whole vector is left");
                sum = isa.multiply_add(isa.splat(*weight), isa.load(values), sum);
            }
            isa.store(sum, chunk);
        }
        for (weight, row) in weight.iter().zip(rows) {
            for (into, value) in rest.iter_mut().zip(&row[whole..]) {
                *into = isa.multiply_add_one(*weight, *value, *into);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::entry::on_every_set;
    use super::*;

    #[derive(Clone, Copy)]
    struct Block<'a> {
        keys: &'a [f32],
        rows: &'a [&'a [f32]],
        dim: usize,
    }

    impl Kernel for Block<'_> {
        type Output = [Vec<Lanes>; 3];

        /// The columns, their products with the keys, and the keys mixed by these.
        #[inline(always)]
        fn run<S: VectorMath>(self, isa: S) -> Self::Output {
            let mut columns = vec![[0.0; LANES]; self.dim];
            let rows = std::array::from_fn(|i| self.rows.get(i).copied().unwrap_or_default());
            turn(isa, rows, 0.5, &mut columns);
            let mut out = vec![[0.0; LANES]; self.keys.len() / self.dim];
            products(isa, self.keys, &columns, &mut out);
            let mut mixed = vec![[0.0; LANES]; self.dim];
            mix(isa, self.keys, &out, &mut mixed);
            [columns, out, mixed]
        }
    }

    #[derive(Clone, Copy)]
    struct Back<'a> {
        block: Block<'a>,
        columns: &'a [Lanes],
        weights: &'a [Lanes],
    }

    impl Kernel for Back<'_> {
        type Output = (Vec<f32>, Vec<Vec<f32>>);

        /// The rows spread, and the columns turned back.
        #[inline(always)]
        fn run<S: VectorMath>(self, isa: S) -> Self::Output {
            let Block { keys, rows, dim } = self.block;
            let mut spreaded = vec![1.0; keys.len()];
            spread(isa, self.weights, rows, dim, &mut spreaded);
            let mut back = vec![vec![0.0; dim]; rows.len()];
            let mut into = back.iter_mut();
            let mut into =
                std::array::from_fn(|_| into.next().map_or(&mut [][..], Vec::as_mut_slice));
            let scales = std::array::from_fn(|lane| lane as f32);
            turn_back(isa, self.columns, &scales, &mut into);
            (spreaded, back)
        }
    }

    fn same<K: Kernel<Output: PartialEq + std::fmt::Debug> + Copy>(kernel: K) -> K::Output {
        let mut outputs = on_every_set(kernel);
        for output in &outputs {
            assert_eq!(output, &outputs[0]);
        }
        outputs.swap_remove(0)
    }

    fn value(i: usize) -> f32 {
        ((i * 37 % 101) as f32 - 50.0) / 25.0
    }

    #[test]
    fn products_mixes_and_spreads_equal_plain_sums() {
        for (dim, n_keys, n_rows) in [(8, 3, 16), (10, 21, 5), (32, 19, 13), (40, 8, 1)] {
            let keys: Vec<f32> = (0..n_keys * dim).map(value).collect();
            let rows: Vec<f32> = (0..n_rows * dim).map(|i| value(i + 7)).collect();
            let rows: Vec<&[f32]> = rows.chunks(dim).collect();
            let block = Block {
                keys: &keys,
                rows: &rows,
                dim,
            };
            let [columns, out, mixed] = same(block);
            let (columns, weights) = (&columns[..], &out[..]);
            let (spreaded, back) = same(Back {
                block,
                columns,
                weights,
            });
            let key = |key: usize, d: usize| keys[key * dim + d];
            for (k, out) in out.iter().enumerate() {
                for (lane, out) in out.iter().enumerate() {
                    let want: f32 = rows.get(lane).map_or(0.0, |row| {
                        row.iter()
                            .enumerate()
                            .map(|(d, x)| 0.5 * x * key(k, d))
                            .sum()
                    });
                    assert!((out - want).abs() < 1e-4);
                }
            }
            for d in 0..dim {
                for lane in 0..LANES {
                    let want: f32 = (0..n_keys).map(|k| out[k][lane] * key(k, d)).sum();
                    assert!((mixed[d][lane] - want).abs() < 1e-3);
                }
                for k in 0..n_keys {
                    let sum: f32 = rows.iter().zip(&out[k]).map(|(row, w)| row[d] * w).sum();
                    assert!((spreaded[k * dim + d] - 1.0 - sum).abs() < 1e-3);
                }
            }
            for (lane, (back, row)) in back.iter().zip(&rows).enumerate() {
                assert!(
                    back.iter()
                        .zip(*row)
                        .all(|(back, x)| *back == 0.5 * x * lane as f32)
                );
            }
        }
    }
}
