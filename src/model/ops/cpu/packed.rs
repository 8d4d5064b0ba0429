//! A weight in the order in which the kernels read it.
//!
//! Weights lie in groups of sixty-four output columns, input by input, so that the weights of a group are
//! read from memory in one go and a vector register takes a quarter of an input's row, a panel, in one load.
//! The last group is padded with zeros. Integers have their scales beside the weights.
//!
//! It knows how to pack and to find weights; [`super::product`] computes with them.

use std::io;
use std::ops::Range;

use rayon::prelude::*;

use super::memory::filled;
use super::packed_weight::PackedWeight;
use super::product;
use super::stored::RUN;
pub use super::stored::Stored;
use super::tile::{Block, COLUMNS, GROUP, PANEL, Row};

/// A weight `[n_out, n_in]` in groups of columns.
#[derive(Clone)]
pub struct Packed<W> {
    pub(super) n_in: usize,
    pub(super) n_out: usize,
    /// `[groups, n_in, GROUP, PANEL]`.
    weights: Vec<Row<W>>,
    /// `[groups, runs, GROUP, PANEL]`; empty if the type has no scales.
    scales: Vec<Row<f32>>,
}

impl<W: Stored> PackedWeight for Packed<W> {
    fn pack_rows(
        n_out: usize,
        n_in: usize,
        read: impl Fn(usize, &mut [f32]) -> io::Result<()> + Sync,
    ) -> io::Result<Self> {
        let (n_groups, n_runs) = (n_out.div_ceil(COLUMNS), runs::<W>(n_in));
        let mut weights = filled([[W::default(); PANEL]; GROUP], n_groups * n_in);
        let pack_panel = |group: &mut [Row<W>], scales: &mut [Row<f32>], first: usize, p: usize| {
            let n = PANEL.min(n_out.saturating_sub(first));
            let mut values = vec![0f32; n * n_in];
            read(first, &mut values)?;
            let mut run = [[0f32; PANEL]; RUN];
            let mut stored = [[W::default(); PANEL]; RUN];
            for (index, rows) in group.chunks_mut(RUN).enumerate() {
                for column in 0..n {
                    let values = &values[column * n_in + index * RUN..][..rows.len()];
                    for (row, value) in run.iter_mut().zip(values) {
                        row[column] = *value;
                    }
                }
                let stored = &mut stored[..rows.len()];
                let scale = W::narrow(&run[..rows.len()], stored);
                if W::SCALED {
                    scales[index][p] = scale;
                }
                for (row, stored) in rows.iter_mut().zip(stored) {
                    row[p] = *stored;
                }
            }
            Ok::<(), io::Error>(())
        };
        let scales: Vec<Vec<Row<f32>>> = weights
            .par_chunks_mut(n_in.max(1))
            .enumerate()
            .map(|(index, group)| {
                let mut scales = vec![[[0f32; PANEL]; GROUP]; n_runs];
                let firsts = (0..GROUP).map(|p| index * COLUMNS + p * PANEL);
                for (p, first) in firsts.enumerate().filter(|(_, first)| *first < n_out) {
                    pack_panel(group, &mut scales, first, p)?;
                }
                Ok(scales)
            })
            .collect::<io::Result<_>>()?;
        Ok(Self {
            n_in,
            n_out,
            weights,
            scales: scales.concat(),
        })
    }

    fn dims(&self) -> (usize, usize) {
        (self.n_out, self.n_in)
    }

    fn bytes_of(n_out: usize, n_in: usize) -> usize {
        let rows = n_in * size_of::<Row<W>>() + runs::<W>(n_in) * size_of::<Row<f32>>();
        n_out.div_ceil(COLUMNS) * rows
    }

    fn forward(&self, x: &[f32], bias: Option<&[f32]>) -> Vec<f32> {
        product::forward(self, x, bias)
    }

    fn backward(&self, y: &[f32]) -> Vec<f32> {
        product::backward(y, self.dims(), |inputs, outputs, tile| {
            self.transpose(inputs, outputs, tile);
        })
    }
}

impl<W: Stored> Packed<W> {
    /// Packs `weight`, `[n_out, n_in]` row by row.
    #[cfg(test)]
    pub fn pack(weight: &[f32], n_out: usize, n_in: usize) -> Self {
        assert_eq!(
            weight.len(),
            n_out * n_in,
            "a weight has n_out * n_in values"
        );
        let rows = |first: usize, to: &mut [f32]| {
            to.copy_from_slice(&weight[first * n_in..][..to.len()]);
            Ok(())
        };
        Self::pack_rows(n_out, n_in, rows).expect("memory can be read")
    }

    /// Some inputs (from a multiple of `RUN` on) of a group.
    pub(super) fn block(&self, group: usize, inputs: &Range<usize>) -> Block<'_, W> {
        let scales = if W::SCALED {
            let wanted = inputs.start / RUN..inputs.end.div_ceil(RUN);
            &self.scales[group * runs::<W>(self.n_in)..][wanted]
        } else {
            &[]
        };
        Block {
            rows: &self.weights[group * self.n_in..][inputs.clone()],
            scales,
        }
    }

    /// The value of one weight.
    #[cfg(test)]
    pub(super) fn value(&self, out: usize, k: usize) -> f32 {
        let (group, p, column) = (out / COLUMNS, out / PANEL % GROUP, out % PANEL);
        let scales = self.scales.get(group * self.n_in.div_ceil(RUN) + k / RUN);
        let scale = scales.map_or(1.0, |scales| scales[p][column]);
        self.weights[group * self.n_in + k][p][column].widen(scale)
    }

    /// Writes the weights between some inputs (a group's columns) and some outputs, one row an output.
    pub(super) fn transpose(
        &self,
        inputs: &Range<usize>,
        outputs: &Range<usize>,
        to: &mut [Row<f32>],
    ) {
        for first in outputs.clone().step_by(PANEL) {
            let (group, p) = (first / COLUMNS, first / PANEL % GROUP);
            let n = PANEL.min(outputs.end - first);
            let to = &mut to[first - outputs.start..][..n];
            for (i, input) in inputs.clone().enumerate() {
                let row = &self.weights[group * self.n_in + input][p];
                let scales = if W::SCALED {
                    self.scales[group * runs::<W>(self.n_in) + input / RUN][p]
                } else {
                    [1.0; PANEL]
                };
                for ((to, value), scale) in to.iter_mut().zip(row).zip(scales) {
                    to[i / PANEL][i % PANEL] = value.widen(scale);
                }
            }
        }
    }
}

/// Rows of scales that a group has.
fn runs<W: Stored>(n_in: usize) -> usize {
    if W::SCALED { n_in.div_ceil(RUN) } else { 0 }
}
