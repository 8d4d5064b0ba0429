//! Products with weights that were packed once: `x W^T + b` and `y W`.
//!
//! Weights lie in panels of sixteen output columns, input by input, so that a vector register takes a
//! row of a panel in one load. Four panels make a group; the last group is padded with zeros.
//!
//! Every result is one sum over the inputs in ascending order, each term added by one fused
//! multiply-add, whatever the number of rows and however the work is split. So a row's result is the same
//! to the bit alone and in any batch. (Without fused multiply-add in the machine, products are rounded
//! before they are added: equal among themselves, but not to those of other machines.)
//!
//! This file lays weights out and shares the work; [`super::tile`] does it.

use rayon::prelude::*;

pub use super::tile::Stored;
use super::tile::{COLUMNS, Edge, GROUP, Operand, Output, PANEL, multiply};

/// Inputs of one pass: a group's share of them stays in the second-level cache for all rows.
const BLOCK: usize = 512;
/// Rows of one task, where there are more tasks than column groups alone would give.
const ROWS: usize = 192;
/// Multiplications below which a second thread costs more than it brings.
const SERIAL: usize = 1 << 16;

/// A weight `[n_out, n_in]` in panels.
#[derive(Clone)]
pub struct Packed<W> {
    n_in: usize,
    n_out: usize,
    /// `[groups, GROUP, n_in, PANEL]`.
    panels: Vec<[W; PANEL]>,
}

impl<W: Stored> Packed<W> {
    /// Packs `weight`, `[n_out, n_in]` row by row.
    pub fn pack(weight: &[f32], n_out: usize, n_in: usize) -> Self {
        assert_eq!(
            weight.len(),
            n_out * n_in,
            "a weight has n_out * n_in values"
        );
        let n_panels = n_out.div_ceil(COLUMNS) * GROUP;
        let mut panels = vec![[W::default(); PANEL]; n_panels * n_in];
        panels
            .par_chunks_mut(n_in.max(1))
            .enumerate()
            .for_each(|(panel, rows)| {
                let first = panel * PANEL;
                for column in 0..PANEL.min(n_out.saturating_sub(first)) {
                    let source = &weight[(first + column) * n_in..][..n_in];
                    for (row, value) in rows.iter_mut().zip(source) {
                        row[column] = W::narrow(*value);
                    }
                }
            });
        Self {
            n_in,
            n_out,
            panels,
        }
    }

    /// `[n_out, n_in]`.
    pub fn dims(&self) -> (usize, usize) {
        (self.n_out, self.n_in)
    }

    /// Bytes of the panels.
    pub fn bytes(&self) -> usize {
        std::mem::size_of_val(self.panels.as_slice())
    }

    /// The panels of a group, each `[n_in, PANEL]`.
    fn group(&self, group: usize) -> [&[[W; PANEL]]; GROUP] {
        std::array::from_fn(|p| &self.panels[(group * GROUP + p) * self.n_in..][..self.n_in])
    }

    /// `x W^T (+ bias)`: `[rows, n_in]` to `[rows, n_out]`.
    pub fn forward(&self, x: &[f32], bias: Option<&[f32]>) -> Vec<f32> {
        let rows = x.len() / self.n_in;
        let n_groups = self.n_out.div_ceil(COLUMNS);
        let width = self.n_out;
        split(rows, n_groups, (self.n_in, width), |group, rows, out| {
            let panels = self.group(group);
            let mut scratch = Vec::new();
            for first in (0..self.n_in).step_by(BLOCK) {
                let inputs = first..(first + BLOCK).min(self.n_in);
                let a = Operand {
                    data: x,
                    stride: self.n_in,
                    first: inputs.start,
                };
                let last = inputs.end == self.n_in;
                let edge = Edge {
                    first: first == 0,
                    bias: bias.filter(|_| last),
                };
                let block = panels.map(|panel| &panel[inputs.clone()]);
                // Many rows: widen once for all of them. The values are the same either way.
                if !W::IS_F32 && rows.len() > 2 * GROUP {
                    scratch.clear();
                    scratch.extend(
                        block
                            .iter()
                            .flat_map(|panel| panel.iter().map(|row| row.map(Stored::widen))),
                    );
                    let n = inputs.len();
                    let block = std::array::from_fn(|p| &scratch[p * n..(p + 1) * n]);
                    multiply(a, block, edge, &rows, out);
                } else {
                    multiply(a, block, edge, &rows, out);
                }
            }
        })
    }

    /// `y W`: `[rows, n_out]` to `[rows, n_in]`, the gradient of the input. Panels are transposed tile by
    /// tile into cache, so that no second packed copy exists.
    pub fn backward(&self, y: &[f32]) -> Vec<f32> {
        let rows = y.len() / self.n_out;
        let n_groups = self.n_in.div_ceil(COLUMNS);
        split(
            rows,
            n_groups,
            (self.n_out, self.n_in),
            |group, rows, out| {
                let columns = group * COLUMNS..((group + 1) * COLUMNS).min(self.n_in);
                let mut tile = vec![[0f32; PANEL]; GROUP * BLOCK];
                for first in (0..self.n_out).step_by(BLOCK) {
                    let outputs = first..(first + BLOCK).min(self.n_out);
                    for (i, input) in columns.clone().enumerate() {
                        let (panel, lane) = (i / PANEL, i % PANEL);
                        for (n, output) in outputs.clone().enumerate().step_by(PANEL) {
                            let source = &self.panels[output / PANEL * self.n_in + input];
                            for (offset, value) in
                                source.iter().take(outputs.end - output).enumerate()
                            {
                                tile[panel * BLOCK + n + offset][lane] = value.widen();
                            }
                        }
                    }
                    let a = Operand {
                        data: y,
                        stride: self.n_out,
                        first,
                    };
                    let block = std::array::from_fn(|p| &tile[p * BLOCK..][..outputs.len()]);
                    multiply(
                        a,
                        block,
                        Edge {
                            first: first == 0,
                            bias: None,
                        },
                        &rows,
                        out,
                    );
                }
            },
        )
    }
}

/// Runs `task` for every column group and run of rows of a `[rows, width]` result, on all threads where
/// that pays. `depth`: the length of a sum.
fn split(
    rows: usize,
    n_groups: usize,
    (depth, width): (usize, usize),
    task: impl Fn(usize, std::ops::Range<usize>, Output) + Sync,
) -> Vec<f32> {
    let mut out = vec![0f32; rows * width];
    let output = |group: usize, out: *mut f32| Output {
        data: out,
        stride: width,
        first: group * COLUMNS,
        n_columns: COLUMNS.min(width - group * COLUMNS),
    };
    if rows * depth * width < SERIAL {
        for group in 0..n_groups {
            task(group, 0..rows, output(group, out.as_mut_ptr()));
        }
        return out;
    }
    let chunk = if n_groups >= 2 * rayon::current_num_threads() {
        rows.max(1)
    } else {
        ROWS
    };
    let tasks: Vec<(usize, usize)> = (0..n_groups)
        .flat_map(|group| (0..rows).step_by(chunk).map(move |first| (group, first)))
        .collect();
    let shared = SharedOutput(out.as_mut_ptr());
    tasks.into_par_iter().for_each(|(group, first)| {
        task(
            group,
            first..(first + chunk).min(rows),
            output(group, shared.pointer()),
        );
    });
    out
}

/// The result's memory, which all tasks write: each its own rows and columns.
struct SharedOutput(*mut f32);

impl SharedOutput {
    fn pointer(&self) -> *mut f32 {
        self.0
    }
}

#[expect(
    unsafe_code,
    reason = "tasks write disjoint parts of one matrix, which no slice can express"
)]
// SAFETY: tasks differ in their column group or their rows, and an `Output` only hands out places of its
// own group and of rows that its task was given; the vector outlives the parallel loop.
unsafe impl Sync for SharedOutput {}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::super::tile::{InstructionSet, instruction_set, multiply_narrow};
    use super::*;

    fn values(n: usize, seed: usize) -> Vec<f32> {
        (0..n)
            .map(|i| (((i * 7919 + seed * 104_729) % 2003) as f32 * 0.61).sin())
            .collect()
    }

    /// How far a sum in f32 is from the exact one, as a share of its terms' magnitudes.
    fn difference(got: f32, terms: impl Iterator<Item = f64>, bias: f64) -> f64 {
        let (sum, magnitude) = terms.fold((bias, bias.abs() + 1.0), |(sum, all), term| {
            (sum + term, all + term.abs())
        });
        (f64::from(got) - sum).abs() / magnitude
    }

    fn check<W: Stored>(rows: usize, n_in: usize, n_out: usize) {
        let (x, weight, bias) = (
            values(rows * n_in, 1),
            values(n_out * n_in, 2),
            values(n_out, 3),
        );
        let stored: Vec<f32> = weight.iter().map(|w| W::narrow(*w).widen()).collect();
        let packed = Packed::<W>::pack(&weight, n_out, n_in);
        let y = packed.forward(&x, Some(&bias));
        assert_eq!(y.len(), rows * n_out);
        for row in 0..rows {
            for out in 0..n_out {
                let products = (0..n_in)
                    .map(|k| f64::from(x[row * n_in + k]) * f64::from(stored[out * n_in + k]));
                let error = difference(y[row * n_out + out], products, f64::from(bias[out]));
                assert!(error < 1e-6, "{rows}x{n_in}x{n_out}: {error}");
            }
            let alone = packed.forward(&x[row * n_in..(row + 1) * n_in], Some(&bias));
            assert_eq!(
                alone,
                y[row * n_out..(row + 1) * n_out],
                "row {row} depends on the batch"
            );
        }
        let grad = values(rows * n_out, 4);
        let dx = packed.backward(&grad);
        for row in 0..rows {
            for k in 0..n_in {
                let products = (0..n_out).map(|out| {
                    f64::from(grad[row * n_out + out]) * f64::from(stored[out * n_in + k])
                });
                let error = difference(dx[row * n_in + k], products, 0.0);
                assert!(error < 1e-6, "{rows}x{n_in}x{n_out}: gradient: {error}");
            }
        }
    }

    #[test]
    fn products_of_every_edge_agree_with_double_precision_and_do_not_depend_on_the_batch() {
        for rows in [1, 2, 3, 4, 5, 6, 7, 8, 9, 13, 17] {
            for (n_in, n_out) in [(1, 1), (3, 15), (16, 16), (17, 33), (64, 65), (130, 200)] {
                check::<f32>(rows, n_in, n_out);
                check::<bf16>(rows, n_in, n_out);
            }
        }
        // More than one block of inputs, several tasks of rows.
        check::<f32>(5, BLOCK + 3, 70);
        check::<bf16>(20, 2 * BLOCK + 1, 40);
        check::<f32>(ROWS + 5, 40, 64);
    }

    #[test]
    fn the_narrow_kernels_give_the_same_bits_as_the_wide_ones() {
        let (n_in, n_out) = (100, COLUMNS);
        let packed = Packed::<f32>::pack(&values(n_in * n_out, 2), n_out, n_in);
        for rows in 1..12 {
            let x = values(rows * n_in, 1);
            let mut narrow = vec![0f32; rows * n_out];
            let out = Output {
                data: narrow.as_mut_ptr(),
                stride: n_out,
                first: 0,
                n_columns: n_out,
            };
            let a = Operand {
                data: &x,
                stride: n_in,
                first: 0,
            };
            let edge = Edge {
                first: true,
                bias: None,
            };
            multiply_narrow::<f32, true>(a, packed.group(0), edge, 0..rows, out);
            let fused = !matches!(instruction_set(), InstructionSet::Portable)
                || cfg!(target_arch = "aarch64");
            if fused {
                assert_eq!(packed.forward(&x, None), narrow);
            }
        }
    }
}
