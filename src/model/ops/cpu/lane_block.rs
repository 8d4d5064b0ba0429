//! Products between sixteen query rows, one a vector lane, and any number of key rows.
//!
//! In: key rows side by side, query rows turned so that one column of all sixteen is one vector. Out:
//! the same. A lane never meets another lane, so a row's result does not depend on which rows share its
//! block; sums over keys run in key order. It must not know of masks or segments.

use super::lanes::fma;
use super::vector::{LANES, Lanes, REGISTERS, Vector, transpose};

/// Turns rows of equal length into columns, scaled; the lanes of empty rows are 0.
pub fn turn(rows: [&[f32]; LANES], scale: f32, columns: &mut [Lanes]) {
    let scale = Vector::splat(scale);
    for (tile, columns) in columns.chunks_mut(LANES).enumerate() {
        let first = tile * LANES;
        let part = |row: &&[f32]| match row.get(first..).unwrap_or_default() {
            [] => Vector::splat(0.0),
            rest => match rest.first_chunk() {
                Some(whole) => Vector::load(whole),
                None => Vector::load_part(rest),
            },
        };
        let vectors = transpose(std::array::from_fn(|lane| part(&rows[lane]).times(scale)));
        for (column, vector) in columns.iter_mut().zip(vectors) {
            vector.store(column);
        }
    }
}

/// The opposite of [`turn`], each lane scaled by its own number.
pub fn turn_back(columns: &[Lanes], scales: &Lanes, rows: &mut [&mut [f32]; LANES]) {
    let scales = Vector::load(scales);
    for (tile, columns) in columns.chunks(LANES).enumerate() {
        let column = |i: usize| columns.get(i).map_or(Vector::splat(0.0), Vector::load);
        let vectors = transpose(std::array::from_fn(|i| column(i).times(scales)));
        for (row, vector) in rows.iter_mut().zip(vectors) {
            if row.is_empty() {
                continue;
            }
            let mut lanes = [0.0; LANES];
            vector.store(&mut lanes);
            row[tile * LANES..][..columns.len()].copy_from_slice(&lanes[..columns.len()]);
        }
    }
}

/// For every key the dot product of its row with every lane: `out[key] = sum over d of
/// keys[key][d] * columns[d]`, summed as [`super::lanes::dot`] does, so that both give the same bits.
/// `keys`: `[keys, columns]`.
pub fn products(keys: &[f32], columns: &[Lanes], out: &mut [Lanes]) {
    // As many keys at once as leave the sums of the tree, which has four levels, in registers.
    const TOGETHER: usize = REGISTERS / 8;
    let dim = columns.len();
    let (whole, rest) = out.as_chunks_mut::<TOGETHER>();
    let (whole_keys, rest_keys) = keys.split_at(whole.len() * TOGETHER * dim);
    for (keys, out) in whole_keys.chunks_exact(TOGETHER * dim).zip(whole) {
        products_of::<TOGETHER>(keys, columns, out);
    }
    for (key, out) in rest_keys.chunks_exact(dim).zip(rest) {
        products_of::<1>(key, columns, std::array::from_mut(out));
    }
}

#[inline(always)]
fn products_of<const N: usize>(keys: &[f32], columns: &[Lanes], out: &mut [Lanes; N]) {
    let dim = columns.len();
    let keys: [&[f32]; N] = std::array::from_fn(|i| &keys[i * dim..(i + 1) * dim]);
    for (sum, out) in tree(&Products { keys, columns }).into_iter().zip(out) {
        sum.store(out);
    }
}

/// The terms of `N` keys' products.
struct Products<'a, const N: usize> {
    keys: [&'a [f32]; N],
    columns: &'a [Lanes],
}

impl<const N: usize> EverySixteenth<N> for Products<'_, N> {
    #[inline(always)]
    fn sum(&self, first: usize) -> [Vector; N] {
        let mut sums = [Vector::splat(0.0); N];
        let mut d = first;
        while d < self.columns.len() {
            let column = Vector::load(&self.columns[d]);
            for (sum, key) in sums.iter_mut().zip(&self.keys) {
                *sum = Vector::splat(key[d]).times_plus(column, *sum);
            }
            d += LANES;
        }
        sums
    }
}

/// `N` sums whose every sixteenth terms are added up first, as `lanes::dot` does.
pub trait EverySixteenth<const N: usize> {
    /// The sums of the terms `first`, `first + 16` and so on.
    fn sum(&self, first: usize) -> [Vector; N];
}

/// The sums of all terms, in the order of `lanes::total`. Written out, not as a loop over an array of
/// sums, which would live in memory.
#[inline(always)]
pub fn tree<const N: usize>(terms: &impl EverySixteenth<N>) -> [Vector; N] {
    plus(two(terms, 0), two(terms, 1))
}

#[inline(always)]
fn two<const N: usize>(terms: &impl EverySixteenth<N>, i: usize) -> [Vector; N] {
    plus(four(terms, i), four(terms, i + 2))
}

#[inline(always)]
fn four<const N: usize>(terms: &impl EverySixteenth<N>, i: usize) -> [Vector; N] {
    plus(eight(terms, i), eight(terms, i + 4))
}

#[inline(always)]
fn eight<const N: usize>(terms: &impl EverySixteenth<N>, i: usize) -> [Vector; N] {
    plus(terms.sum(i), terms.sum(i + 8))
}

#[inline(always)]
fn plus<const N: usize>(one: [Vector; N], other: [Vector; N]) -> [Vector; N] {
    std::array::from_fn(|i| one[i].plus(other[i]))
}

/// For every lane the sum of key rows by weight: `out[d] = sum over keys of keys[key][d] *
/// weights[key]`. `keys`: `[keys, out]`.
pub fn mix(keys: &[f32], weights: &[Lanes], out: &mut [Lanes]) {
    const TOGETHER: usize = REGISTERS / 2;
    let dim = out.len();
    let (blocks, rest) = out.as_chunks_mut::<TOGETHER>();
    let whole = blocks.len() * TOGETHER;
    for (block, out) in blocks.iter_mut().enumerate() {
        mix_of::<TOGETHER>(keys, block * TOGETHER, weights, (dim, out));
    }
    for (i, out) in rest.iter_mut().enumerate() {
        mix_of::<1>(keys, whole + i, weights, (dim, std::array::from_mut(out)));
    }
}

/// `N` columns of [`mix`], from `first`.
#[inline(always)]
fn mix_of<const N: usize>(
    keys: &[f32],
    first: usize,
    weights: &[Lanes],
    (dim, out): (usize, &mut [Lanes; N]),
) {
    let mut sums = [Vector::splat(0.0); N];
    for (key, weight) in keys.chunks_exact(dim).zip(weights) {
        let weight = Vector::load(weight);
        for (sum, value) in sums.iter_mut().zip(&key[first..first + N]) {
            *sum = Vector::splat(*value).times_plus(weight, *sum);
        }
    }
    for (sum, out) in sums.into_iter().zip(out) {
        sum.store(out);
    }
}

/// Adds to every key's row (`into`, `[keys, dim]`) the sum of the block's rows by weight, in lane
/// order. `rows`: at most sixteen of `dim` columns.
pub fn spread(weights: &[Lanes], rows: &[&[f32]], dim: usize, into: &mut [f32]) {
    let whole = dim / LANES * LANES;
    for (weight, into) in weights.iter().zip(into.chunks_exact_mut(dim)) {
        let (chunks, rest) = into.split_at_mut(whole);
        for (i, chunk) in chunks.as_chunks_mut::<LANES>().0.iter_mut().enumerate() {
            let mut sum = Vector::load(chunk);
            for (weight, row) in weight.iter().zip(rows) {
                let values = row[i * LANES..]
                    .first_chunk()
                    .expect("a whole vector is left");
                sum = Vector::splat(*weight).times_plus(Vector::load(values), sum);
            }
            sum.store(chunk);
        }
        for (weight, row) in weight.iter().zip(rows) {
            for (into, value) in rest.iter_mut().zip(&row[whole..]) {
                *into = fma(*weight, *value, *into);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(i: usize) -> f32 {
        ((i * 37 % 101) as f32 - 50.0) / 25.0
    }

    #[test]
    fn products_mixes_and_spreads_equal_plain_sums() {
        for (dim, n_keys, n_rows) in [(8, 3, 16), (10, 21, 5), (32, 19, 13), (40, 8, 1)] {
            let keys: Vec<f32> = (0..n_keys * dim).map(value).collect();
            let rows: Vec<f32> = (0..n_rows * dim).map(|i| value(i + 7)).collect();
            let rows: Vec<&[f32]> = rows.chunks(dim).collect();
            let mut columns = vec![[0.0; LANES]; dim];
            let lane_rows = std::array::from_fn(|i| rows.get(i).copied().unwrap_or_default());
            turn(lane_rows, 0.5, &mut columns);
            let mut out = vec![[0.0; LANES]; n_keys];
            products(&keys, &columns, &mut out);
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
            let mut mixed = vec![[0.0; LANES]; dim];
            mix(&keys, &out, &mut mixed);
            let mut spreaded = vec![1.0; n_keys * dim];
            spread(&out, &rows, dim, &mut spreaded);
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
            let mut back = vec![vec![0.0; dim]; n_rows];
            let mut into = back.iter_mut();
            let mut into =
                std::array::from_fn(|_| into.next().map_or(&mut [][..], Vec::as_mut_slice));
            let scales = std::array::from_fn(|lane| lane as f32);
            turn_back(&columns, &scales, &mut into);
            for ((back, row), scale) in back.iter().zip(&rows).zip(scales) {
                assert!(
                    back.iter()
                        .zip(*row)
                        .all(|(back, x)| *back == 0.5 * x * scale)
                );
            }
        }
    }
}
