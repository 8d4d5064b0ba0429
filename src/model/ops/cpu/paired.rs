//! A weight in bf16 for products whose other side is bf16 too, and these products: `x W^T + b` and `y W`.
//!
//! In: a weight in f32, once, then rows in f32, which are rounded to bf16 before they are multiplied. Out:
//! sums in f32. Weights lie as in [`super::packed`], but two neighbouring inputs of a column lie together;
//! where the number of inputs is odd, the last pair's second one is zero.
//!
//! Every result is one sum over the pairs in ascending order, whatever the number of rows and however the
//! work is split, so a row's result is the same to the bit alone and in any batch. Gradients are those of
//! the rounded weight in f32; rows are not rounded for them.

use std::cell::Cell;
use std::io;
use std::ops::Range;

use rayon::prelude::*;

use super::dot_bf16::{DotBf16, Pair, PairOperand, PairPanel, PairRow, pair, widen_pair};
use super::memory::filled;
use super::packed_weight::PackedWeight;
use super::product::{SERIAL, backward, split};
use super::tile::{COLUMNS, Edge, GROUP, PANEL, Row};

/// Pairs of one pass: a group's share of them stays in the second-level cache for all rows.
const BLOCK: usize = 512;
/// Rows that are rounded at once.
const ROUNDED: usize = 32;

/// A weight `[n_out, n_in]` in groups of columns, inputs in pairs.
#[derive(Clone)]
pub struct Paired {
    machine: DotBf16,
    n_in: usize,
    n_out: usize,
    /// `[groups, pairs, GROUP, PANEL]`.
    weights: Vec<PairRow>,
}

impl PackedWeight for Paired {
    fn pack_rows(
        n_out: usize,
        n_in: usize,
        read: impl Fn(usize, &mut [f32]) -> io::Result<()> + Sync,
    ) -> io::Result<Self> {
        let machine = DotBf16::here().ok_or(io::ErrorKind::Unsupported)?;
        let n_pairs = n_in.div_ceil(2);
        let empty = [PairPanel([0; PANEL]); GROUP];
        let mut weights = filled(empty, n_out.div_ceil(COLUMNS) * n_pairs);
        let panels = |index: usize| {
            let firsts = (0..GROUP).map(move |p| index * COLUMNS + p * PANEL);
            firsts.enumerate().filter(move |(_, first)| *first < n_out)
        };
        weights
            .par_chunks_mut(n_pairs.max(1))
            .enumerate()
            .try_for_each(|(index, group)| {
                for (p, first) in panels(index) {
                    let n = PANEL.min(n_out - first);
                    let mut values = vec![0f32; n * n_in];
                    read(first, &mut values)?;
                    for (column, values) in values.chunks(n_in.max(1)).enumerate() {
                        for (row, inputs) in group.iter_mut().zip(values.chunks(2)) {
                            let second = inputs.get(1).copied().unwrap_or(0.0);
                            row[p].0[column] = pair(inputs[0], second);
                        }
                    }
                }
                Ok::<(), io::Error>(())
            })?;
        Ok(Self {
            machine,
            n_in,
            n_out,
            weights,
        })
    }

    fn dims(&self) -> (usize, usize) {
        (self.n_out, self.n_in)
    }

    fn bytes_of(n_out: usize, n_in: usize) -> usize {
        n_out.div_ceil(COLUMNS) * n_in.div_ceil(2) * size_of::<PairRow>()
    }

    fn forward(&self, x: &[f32], bias: Option<&[f32]>) -> Vec<f32> {
        let rows = x.len() / self.n_in;
        let n_pairs = self.n_in.div_ceil(2);
        let n_groups = self.n_out.div_ceil(COLUMNS);
        let x = self.round(x, rows);
        let y = split(rows, n_groups, self.shape(), |group, rows, out| {
            for first in (0..n_pairs).step_by(BLOCK) {
                let last = (first + BLOCK).min(n_pairs);
                let a = PairOperand {
                    data: &x,
                    stride: n_pairs,
                    first,
                };
                let edge = Edge {
                    first: first == 0,
                    bias: bias.filter(|_| last == n_pairs),
                };
                let weights = &self.weights[group * n_pairs..][first..last];
                self.machine.multiply(a, weights, edge, &rows, out);
            }
        });
        ROUNDED_ROWS.set(x);
        y
    }

    fn backward(&self, y: &[f32]) -> Vec<f32> {
        backward(y, self.dims(), |inputs, outputs, tile| {
            self.transpose(inputs, outputs, tile);
        })
    }
}

impl Paired {
    /// Whether this machine can multiply such weights.
    pub fn runs_here() -> bool {
        DotBf16::here().is_some()
    }

    /// Length of a sum and number of results of a row.
    fn shape(&self) -> (usize, usize) {
        (self.n_in, self.n_out)
    }

    /// Rows in pairs, rounded once for all columns, by all threads where that pays.
    fn round(&self, x: &[f32], rows: usize) -> Vec<Pair> {
        let n_pairs = self.n_in.div_ceil(2);
        let mut pairs = ROUNDED_ROWS.take();
        pairs.resize(rows * n_pairs, 0);
        let round = |x: &[f32], pairs: &mut [Pair]| {
            let rows = x.chunks(self.n_in).zip(pairs.chunks_mut(n_pairs));
            rows.for_each(|(row, pairs)| self.machine.narrow(row, pairs));
        };
        if x.len() < SERIAL {
            round(x, &mut pairs);
        } else {
            pairs
                .par_chunks_mut(ROUNDED * n_pairs)
                .zip(x.par_chunks(ROUNDED * self.n_in))
                .for_each(|(pairs, x)| round(x, pairs));
        }
        pairs
    }

    /// Writes the weights between some inputs (a group's columns) and some outputs, one row an output.
    fn transpose(&self, inputs: &Range<usize>, outputs: &Range<usize>, to: &mut [Row<f32>]) {
        let n_pairs = self.n_in.div_ceil(2);
        for first in outputs.clone().step_by(PANEL) {
            let (group, p) = (first / COLUMNS, first / PANEL % GROUP);
            let n = PANEL.min(outputs.end - first);
            let to = &mut to[first - outputs.start..][..n];
            for (i, input) in inputs.clone().enumerate() {
                let PairPanel(pairs) = &self.weights[group * n_pairs + input / 2][p];
                for (to, pair) in to.iter_mut().zip(pairs) {
                    to[i / PANEL][i % PANEL] = widen_pair(*pair)[input % 2];
                }
            }
        }
    }

    /// The value of one weight.
    #[cfg(test)]
    fn value(&self, out: usize, k: usize) -> f32 {
        let (group, p, column) = (out / COLUMNS, out / PANEL % GROUP, out % PANEL);
        let row = &self.weights[group * self.n_in.div_ceil(2) + k / 2];
        widen_pair(row[p].0[column])[k % 2]
    }
}

thread_local! {
    /// Where rows are rounded to. Kept, because a place of this size is costly to get from the system every
    /// time; taken out while in use, because a thread that waits for others may begin another product.
    static ROUNDED_ROWS: Cell<Vec<Pair>> = const { Cell::new(Vec::new()) };
}

/// Without AVX512_BF16 there is nothing to test: that such weights are refused then, the suite knows.
#[cfg(test)]
mod tests {
    use half::bf16;
    use proptest::prelude::*;

    use super::super::product::tests::{bound, difference, values};
    use super::*;

    fn pack(weight: &[f32], n_out: usize, n_in: usize) -> Paired {
        let read = |first: usize, to: &mut [f32]| {
            to.copy_from_slice(&weight[first * n_in..][..to.len()]);
            Ok(())
        };
        Paired::pack_rows(n_out, n_in, read).unwrap()
    }

    fn check(rows: usize, n_in: usize, n_out: usize) {
        let (x, weight, bias) = (
            values(rows * n_in, 1),
            values(n_out * n_in, 2),
            values(n_out, 3),
        );
        let packed = pack(&weight, n_out, n_in);
        let rounded = |value: f32| bf16::from_f32(value).to_f32();
        for out in 0..n_out {
            for k in 0..n_in {
                assert_eq!(packed.value(out, k), rounded(weight[out * n_in + k]));
            }
        }
        let y = packed.forward(&x, Some(&bias));
        assert_eq!(y.len(), rows * n_out);
        for (row, x) in x.chunks(n_in).enumerate() {
            let y = &y[row * n_out..][..n_out];
            for (out, y) in y.iter().enumerate() {
                let weights = &weight[out * n_in..][..n_in];
                let products = x.iter().zip(weights);
                let products = products.map(|(x, w)| f64::from(rounded(*x) * rounded(*w)));
                let error = difference(*y, products, f64::from(bias[out]));
                assert!(error < bound(n_in), "{rows}x{n_in}x{n_out}: {error}");
            }
            let alone = packed.forward(x, Some(&bias));
            assert_eq!(alone, y, "row {row} depends on the batch");
        }
        let grad = values(rows * n_out, 4);
        let dx = packed.backward(&grad);
        for (grad, dx) in grad.chunks(n_out).zip(dx.chunks(n_in)) {
            for (k, dx) in dx.iter().enumerate() {
                let weights = (0..n_out).map(|out| rounded(weight[out * n_in + k]));
                let products = grad.iter().zip(weights);
                let products = products.map(|(grad, w)| f64::from(*grad) * f64::from(w));
                let error = difference(*dx, products, 0.0);
                assert!(error < bound(n_out), "{rows}x{n_in}x{n_out}: {error}");
            }
        }
    }

    #[test]
    fn products_of_every_edge_agree_with_double_precision_and_do_not_depend_on_the_batch() {
        if !Paired::runs_here() {
            return;
        }
        for rows in [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 13, 17] {
            for (n_in, n_out) in [(1, 1), (3, 15), (15, 16), (17, 33), (64, 65), (130, 200)] {
                check(rows, n_in, n_out);
            }
        }
        // More than one block of pairs, several tasks of rows, rows rounded by several threads.
        check(20, 4 * BLOCK + 1, 40);
        check(197, 40, 64);
        check(ROUNDED + 2, SERIAL / ROUNDED + 1, 3);
    }

    #[test]
    fn sums_are_of_one_rounding_a_product_the_second_of_each_pair_first() {
        if !Paired::runs_here() {
            return;
        }
        let (n_in, n_out) = (75, 70);
        let (x, weight) = (values(n_in, 1), values(n_in * n_out, 2));
        let rounded = |value: f32| bf16::from_f32(value).to_f32();
        let sum = |weights: &[f32]| {
            let pairs = x.chunks(2).zip(weights.chunks(2));
            pairs.fold(0f32, |sum, (x, w)| {
                let terms = x.iter().zip(w).rev();
                terms.fold(sum, |sum, (x, w)| rounded(*x).mul_add(rounded(*w), sum))
            })
        };
        let want: Vec<f32> = weight.chunks(n_in).map(sum).collect();
        assert_eq!(pack(&weight, n_out, n_in).forward(&x, None), want);
    }

    #[test]
    fn rows_are_rounded_as_weights_are() {
        let Some(machine) = DotBf16::here() else {
            return;
        };
        for length in 1..70 {
            let mut row = values(length, length);
            // Halfway between two bf16: to the even one, whichever side that is.
            row[0] = 1.0 + [1.0, 3.0][length % 2] / 256.0;
            let mut got = vec![u32::MAX; length.div_ceil(2)];
            machine.narrow(&row, &mut got);
            row.resize(got.len() * 2, 0.0);
            let want: Vec<Pair> = row.chunks(2).map(|two| pair(two[0], two[1])).collect();
            assert_eq!(got, want, "{length}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn products_of_any_shape_agree_with_double_precision_and_do_not_depend_on_the_batch(
            rows in 1usize..50,
            n_in in 1usize..600,
            n_out in 1usize..140,
        ) {
            if Paired::runs_here() {
                check(rows, n_in, n_out);
            }
        }
    }
}
