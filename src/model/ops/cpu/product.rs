//! Products with packed weights: `x W^T + b` and `y W`.
//!
//! Every result is one sum over the inputs in ascending order, each term added by one fused
//! multiply-add, whatever the number of rows and however the work is split. So a row's result is the same
//! to the bit alone and in any batch. (Without fused multiply-add in the machine, products are rounded
//! before they are added: equal among themselves, but not to those of other machines.)
//!
//! This file shares the work; [`super::tile`] does it.

use std::cell::RefCell;
use std::ops::Range;

use super::packed::Packed;
use super::packed_weight::PackedWeight;
use super::stored::Stored;
use super::tile::{Block, COLUMNS, Edge, GROUP, Operand, Output, PANEL, Row, multiply, widen};

/// Inputs of one pass: a group's share of them stays in the second-level cache for all rows.
const BLOCK: usize = 512;
/// Rows of one task, where there are more tasks than column groups alone would give.
const ROWS: usize = 192;
/// Multiplications below which a second thread costs more than it brings.
pub(super) const SERIAL: usize = 1 << 17;
/// Multiplications from which on work is cut finer than into one piece a thread.
const LARGE: usize = 1 << 25;

/// `x W^T (+ bias)`: `[rows, n_in]` to `[rows, n_out]`.
pub(super) fn forward<W: Stored>(weight: &Packed<W>, x: &[f32], bias: Option<&[f32]>) -> Vec<f32> {
    let (n_out, n_in) = weight.dims();
    let rows = x.len() / n_in;
    let n_groups = n_out.div_ceil(COLUMNS);
    split(rows, n_groups, (n_in, n_out), |group, rows, out| {
        for first in (0..n_in).step_by(BLOCK) {
            let inputs = first..(first + BLOCK).min(n_in);
            let a = Operand {
                data: x,
                stride: n_in,
                first: inputs.start,
            };
            let last = inputs.end == n_in;
            let edge = Edge {
                first: first == 0,
                bias: bias.filter(|_| last),
            };
            let block = weight.block(group, &inputs);
            // Many rows: widen once for all of them. The values are the same either way.
            if rows.len() >= W::MANY {
                with_scratch(|scratch| {
                    widen(block, &mut scratch[..inputs.len()]);
                    multiply(a, in_f32(scratch, inputs.len()), edge, &rows, out);
                });
            } else {
                multiply(a, block, edge, &rows, out);
            }
        }
    })
}

/// `y W` for a weight `[n_out, n_in]` that `transpose` writes in f32 between some inputs (a group's columns)
/// and some outputs, one row an output: tile by tile into cache, so that no second packed copy exists.
pub(super) fn backward(
    y: &[f32],
    (n_out, n_in): (usize, usize),
    transpose: impl Fn(&Range<usize>, &Range<usize>, &mut [Row<f32>]) + Sync,
) -> Vec<f32> {
    let rows = y.len() / n_out;
    let n_groups = n_in.div_ceil(COLUMNS);
    split(rows, n_groups, (n_out, n_in), |group, rows, out| {
        let columns = group * COLUMNS..((group + 1) * COLUMNS).min(n_in);
        for first in (0..n_out).step_by(BLOCK) {
            let outputs = first..(first + BLOCK).min(n_out);
            let a = Operand {
                data: y,
                stride: n_out,
                first,
            };
            let edge = Edge {
                first: first == 0,
                bias: None,
            };
            with_scratch(|tile| {
                transpose(&columns, &outputs, tile);
                multiply(a, in_f32(tile, outputs.len()), edge, &rows, out);
            });
        }
    })
}

thread_local! {
    /// A block in f32. Kept, because a place of this size is costly to get from the system every time.
    static SCRATCH: RefCell<Vec<Row<f32>>> = const { RefCell::new(Vec::new()) };
}

fn with_scratch(then: impl FnOnce(&mut [Row<f32>])) {
    SCRATCH.with_borrow_mut(|scratch| {
        scratch.resize(BLOCK, [[0.0; PANEL]; GROUP]);
        then(scratch);
    });
}

/// The first `n` rows of a block in f32.
fn in_f32(scratch: &[Row<f32>], n: usize) -> Block<'_, f32> {
    Block {
        rows: &scratch[..n],
        scales: &[],
    }
}

/// Runs `task` for every column group and run of rows of a `[rows, width]` result, on all threads where
/// that pays. `depth`: the length of a sum.
pub(super) fn split(
    rows: usize,
    n_groups: usize,
    (depth, width): (usize, usize),
    task: impl Fn(usize, Range<usize>, Output) + Sync,
) -> Vec<f32> {
    let mut out = vec![0f32; rows * width];
    let work = rows * depth * width;
    let n_threads = rayon::current_num_threads();
    let (chunk, n_pieces) = match work {
        0..SERIAL => (rows.max(1), 1),
        // Each thread one run of groups: weights are read in one go, and threads meet once.
        SERIAL..LARGE => (rows.max(1), n_threads),
        // Threads that are held up give work away.
        _ if n_groups >= 4 * n_threads => (rows.max(1), 4 * n_threads),
        _ => (ROWS, 4 * n_threads),
    };
    let n_chunks = rows.div_ceil(chunk);
    let shared = SharedOutput(out.as_mut_ptr());
    pieces(0..n_groups * n_chunks, n_pieces, &|at| {
        let (group, first) = (at / n_chunks, at % n_chunks * chunk);
        let out = Output {
            data: shared.pointer(),
            stride: width,
            first: group * COLUMNS,
            n_columns: COLUMNS.min(width - group * COLUMNS),
        };
        task(group, first..(first + chunk).min(rows), out);
    });
    out
}

/// Calls `task` with all numbers of a range, cut into `n` pieces of about the same length that threads may
/// share.
fn pieces(range: Range<usize>, n: usize, task: &(impl Fn(usize) + Sync)) {
    if n <= 1 || range.len() <= 1 {
        return range.for_each(task);
    }
    let middle = range.start + range.len() * (n / 2) / n;
    rayon::join(
        || pieces(range.start..middle, n / 2, task),
        || pieces(middle..range.end, n - n / 2, task),
    );
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
pub(super) mod tests {
    use half::bf16;
    use proptest::prelude::*;

    use super::super::instruction_set::{Machine, Portable};
    use super::super::stored::RUN;
    use super::super::tile::multiply_narrow;
    use super::*;

    pub fn values(n: usize, seed: usize) -> Vec<f32> {
        (0..n)
            .map(|i| (((i * 7919 + seed * 104_729) % 2003) as f32 * 0.61).sin())
            .collect()
    }

    /// How far a sum in f32 is from the exact one, as a share of its terms' magnitudes.
    pub fn difference(got: f32, terms: impl Iterator<Item = f64>, bias: f64) -> f64 {
        let (sum, magnitude) = terms.fold((bias, bias.abs() + 1.0), |(sum, all), term| {
            (sum + term, all + term.abs())
        });
        (f64::from(got) - sum).abs() / magnitude
    }

    /// What is computed with, `[n_out, n_in]`, widened one by one.
    fn stored<W: Stored>(packed: &Packed<W>) -> Vec<f32> {
        let (n_out, n_in) = packed.dims();
        (0..n_out * n_in)
            .map(|at| packed.value(at / n_in, at % n_in))
            .collect()
    }

    /// What the roundings of a sum of `depth` terms explain.
    pub fn bound(depth: usize) -> f64 {
        1e-6 * (1.0 + depth as f64 / 512.0)
    }

    fn check<W: Stored>(rows: usize, n_in: usize, n_out: usize) {
        let (x, weight, bias) = (
            values(rows * n_in, 1),
            values(n_out * n_in, 2),
            values(n_out, 3),
        );
        let packed = Packed::<W>::pack(&weight, n_out, n_in);
        let stored = stored::<W>(&packed);
        let y = packed.forward(&x, Some(&bias));
        assert_eq!(y.len(), rows * n_out);
        for row in 0..rows {
            for out in 0..n_out {
                let products = (0..n_in)
                    .map(|k| f64::from(x[row * n_in + k]) * f64::from(stored[out * n_in + k]));
                let error = difference(y[row * n_out + out], products, f64::from(bias[out]));
                assert!(error < bound(n_in), "{rows}x{n_in}x{n_out}: {error}");
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
                assert!(
                    error < bound(n_out),
                    "{rows}x{n_in}x{n_out}: gradient: {error}"
                );
            }
        }
    }

    #[test]
    fn products_of_every_edge_agree_with_double_precision_and_do_not_depend_on_the_batch() {
        for rows in [1, 2, 3, 4, 5, 6, 7, 8, 9, 13, 17] {
            for (n_in, n_out) in [(1, 1), (3, 15), (16, 16), (17, 33), (64, 65), (130, 200)] {
                check::<f32>(rows, n_in, n_out);
                check::<bf16>(rows, n_in, n_out);
                check::<i8>(rows, n_in, n_out);
            }
        }
        // More than one block of inputs, several tasks of rows.
        check::<f32>(5, BLOCK + 3, 70);
        check::<bf16>(20, 2 * BLOCK + 1, 40);
        check::<i8>(5, BLOCK + RUN + 3, 70);
        check::<i8>(30, 2 * BLOCK + 1, 40);
        check::<f32>(ROWS + 5, 40, 64);
    }

    fn narrow_equals_wide<W: Stored>() {
        let (n_in, n_out) = (100, COLUMNS);
        let packed = Packed::<W>::pack(&values(n_in * n_out, 2), n_out, n_in);
        for rows in 1..30 {
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
            let block = packed.block(0, &(0..n_in));
            multiply_narrow(Portable::<true>, a, block, (0..rows, edge, out));
            let fused =
                !matches!(Machine::here(), Machine::Portable(_)) || cfg!(target_arch = "aarch64");
            if fused {
                assert_eq!(packed.forward(&x, None), narrow);
            }
        }
    }

    #[test]
    fn the_narrow_kernels_give_the_same_bits_as_the_wide_ones() {
        narrow_equals_wide::<f32>();
        narrow_equals_wide::<bf16>();
        narrow_equals_wide::<i8>();
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn products_of_any_shape_agree_with_double_precision_and_do_not_depend_on_the_batch(
            rows in 1usize..50,
            n_in in 1usize..600,
            n_out in 1usize..140,
        ) {
            check::<f32>(rows, n_in, n_out);
            check::<bf16>(rows, n_in, n_out);
            check::<i8>(rows, n_in, n_out);
        }
    }
}
