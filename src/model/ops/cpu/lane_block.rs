//! Products between sixteen query rows, one a vector lane, and any number of key rows.
//!
//! In: key rows where they lie in memory, query rows turned so that one column of all sixteen is one
//! vector. Out: the same. A lane never meets another lane, so a row's result does not depend on which
//! rows share its block; sums over keys run in key order. It must not know of masks or segments.

use super::lanes::fma;

/// Query rows in a block.
pub const LANES: usize = 16;

/// One number of each row of a block.
pub type Lanes = [f32; LANES];

/// Key rows of a matrix: where each begins, and how many of its columns are used.
#[derive(Clone, Copy)]
pub struct KeyRows<'a> {
    /// The whole matrix.
    pub matrix: &'a [f32],
    /// The first used element of each key's row.
    pub starts: &'a [usize],
    /// Columns used.
    pub dim: usize,
}

impl<'a> KeyRows<'a> {
    fn row(&self, key: usize) -> &'a [f32] {
        &self.matrix[self.starts[key]..][..self.dim]
    }
}

/// Turns `rows` (at most sixteen slices of equal length) into columns, scaled; missing lanes are 0.
pub fn turn<'a>(rows: impl Iterator<Item = &'a [f32]>, scale: f32, columns: &mut [Lanes]) {
    columns.fill([0.0; LANES]);
    for (lane, row) in rows.enumerate() {
        for (column, value) in columns.iter_mut().zip(row) {
            column[lane] = value * scale;
        }
    }
}

/// The opposite of [`turn`], without scale.
pub fn turn_back<'a>(columns: &[Lanes], rows: impl Iterator<Item = &'a mut [f32]>) {
    for (lane, row) in rows.enumerate() {
        for (column, value) in columns.iter().zip(row) {
            *value = column[lane];
        }
    }
}

/// For every key the dot product of its row with every lane: `out[key] = sum over d of
/// keys[key][d] * columns[d]`, summed as [`super::lanes::dot`] does, so that both give the same bits.
pub fn products(keys: KeyRows, columns: &[Lanes], out: &mut [Lanes]) {
    for (key, out) in out.iter_mut().enumerate() {
        *out = product(keys.row(key), columns);
    }
}

#[inline(always)]
fn product(row: &[f32], columns: &[Lanes]) -> Lanes {
    let row = &row[..columns.len()];
    // The tree of `lanes::total`, written out: a loop over an array of sums keeps them in memory.
    let sum = |first: usize| strided(row, columns, first);
    let eight = |i: usize| plus(sum(i), sum(i + 8));
    let four = |i: usize| plus(eight(i), eight(i + 4));
    let two = |i: usize| plus(four(i), four(i + 2));
    plus(two(0), two(1))
}

/// The sum of every sixteenth product, from `first`.
#[inline(always)]
fn strided(row: &[f32], columns: &[Lanes], first: usize) -> Lanes {
    let mut sum = [0f32; LANES];
    let mut d = first;
    while d < row.len() {
        add(&mut sum, row[d], &columns[d]);
        d += LANES;
    }
    sum
}

#[inline(always)]
fn plus(mut one: Lanes, other: Lanes) -> Lanes {
    for (one, other) in one.iter_mut().zip(&other) {
        *one += *other;
    }
    one
}

#[inline(always)]
fn add(sum: &mut Lanes, value: f32, column: &Lanes) {
    for (sum, column) in sum.iter_mut().zip(column) {
        *sum = fma(value, *column, *sum);
    }
}

/// For every lane the sum of key rows by weight: `out[d] = sum over keys of keys[key][d] *
/// weights[key]`.
pub fn mix(keys: KeyRows, weights: &[Lanes], out: &mut [Lanes]) {
    const TOGETHER: usize = 8;
    let whole = out.len() / TOGETHER * TOGETHER;
    let (blocks, rest) = out.split_at_mut(whole);
    for (block, out) in blocks.as_chunks_mut::<TOGETHER>().0.iter_mut().enumerate() {
        *out = mix_of::<TOGETHER>(keys, block * TOGETHER, weights);
    }
    for (i, out) in rest.iter_mut().enumerate() {
        [*out] = mix_of::<1>(keys, whole + i, weights);
    }
}

#[inline(always)]
fn mix_of<const N: usize>(keys: KeyRows, first: usize, weights: &[Lanes]) -> [Lanes; N] {
    // One slice a column: from one slice for all, the compiler makes a loop over columns with
    // scattered sums.
    let columns: [&[f32]; N] = std::array::from_fn(|i| &keys.matrix[first + i..]);
    let mut sums = [[0f32; LANES]; N];
    for (weight, start) in weights.iter().zip(keys.starts) {
        for (sum, column) in sums.iter_mut().zip(&columns) {
            let value = column[*start];
            for (sum, weight) in sum.iter_mut().zip(weight) {
                *sum = fma(value, *weight, *sum);
            }
        }
    }
    sums
}

/// Adds to every key's row (`into`, `[keys, dim]`) the sum of the block's rows by weight, in lane
/// order. `rows`: at most sixteen of `dim` columns.
pub fn spread(weights: &[Lanes], rows: &[&[f32]], dim: usize, into: &mut [f32]) {
    let whole = dim / LANES * LANES;
    for (weight, into) in weights.iter().zip(into.chunks_exact_mut(dim)) {
        let (chunks, rest) = into.split_at_mut(whole);
        for (i, chunk) in chunks.as_chunks_mut::<LANES>().0.iter_mut().enumerate() {
            let mut sum = *chunk;
            for (weight, row) in weight.iter().zip(rows) {
                let row = &row[i * LANES..][..LANES];
                for (sum, value) in sum.iter_mut().zip(row) {
                    *sum = fma(*weight, *value, *sum);
                }
            }
            *chunk = sum;
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
            let matrix: Vec<f32> = (0..n_keys * (dim + 3)).map(value).collect();
            let starts: Vec<usize> = (0..n_keys).rev().map(|key| key * (dim + 3) + 2).collect();
            let keys = KeyRows {
                matrix: &matrix,
                starts: &starts,
                dim,
            };
            let rows: Vec<f32> = (0..n_rows * dim).map(|i| value(i + 7)).collect();
            let rows: Vec<&[f32]> = rows.chunks(dim).collect();
            let mut columns = vec![[0.0; LANES]; dim];
            turn(rows.iter().copied(), 0.5, &mut columns);
            let mut out = vec![[0.0; LANES]; n_keys];
            products(keys, &columns, &mut out);
            let key = |key: usize, d: usize| matrix[starts[key] + d];
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
            mix(keys, &out, &mut mixed);
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
            turn_back(&columns, back.iter_mut().map(Vec::as_mut_slice));
            for (back, row) in back.iter().zip(&rows) {
                assert!(back.iter().zip(*row).all(|(back, x)| *back == 0.5 * x));
            }
        }
    }
}
