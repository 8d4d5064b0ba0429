//! Normalisation of rows, each with the gain (and bias) of its own adapter slot, and its gradients.

use rayon::prelude::*;

use super::Rows;
use super::lanes::{dot, fma, squared_distance, sum};

/// What is subtracted and divided by before the gain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Statistic {
    /// LayerNorm: the mean is subtracted, the standard deviation divides.
    Centred,
    /// RMSNorm: the root mean square divides.
    Uncentred,
}

/// Columns that one task of the gain gradient owns: a cache line's worth, several times over.
const COLUMN_BLOCK: usize = 64;

fn statistics(x: &[f32], statistic: Statistic, eps: f32) -> (f32, f32) {
    let width = x.len() as f32;
    match statistic {
        Statistic::Centred => {
            let mean = sum(x) / width;
            (mean, 1.0 / (squared_distance(x, mean) / width + eps).sqrt())
        }
        Statistic::Uncentred => (0.0, 1.0 / (dot(x, x) / width + eps).sqrt()),
    }
}

/// `y = normalise(x) * gain[slot] (+ bias[slot])`. `x`: `[rows, width]`.
pub fn forward(
    x: &[f32],
    gain: Rows,
    bias: Option<Rows>,
    slots: &[u32],
    (statistic, eps): (Statistic, f32),
) -> Vec<f32> {
    let width = x.len() / slots.len().max(1);
    let mut out = vec![0f32; x.len()];
    out.par_chunks_mut(width.max(1))
        .zip(x.par_chunks(width.max(1)))
        .zip(slots)
        .with_min_len(16)
        .for_each(|((out, x), slot)| {
            let (mean, scale) = statistics(x, statistic, eps);
            let gain = gain.row(*slot as usize);
            match bias.map(|bias| bias.row(*slot as usize)) {
                Some(bias) => {
                    for (((out, x), gain), bias) in out.iter_mut().zip(x).zip(gain).zip(bias) {
                        *out = fma((x - mean) * scale, *gain, *bias);
                    }
                }
                None => {
                    for ((out, x), gain) in out.iter_mut().zip(x).zip(gain) {
                        *out = (x - mean) * scale * gain;
                    }
                }
            }
        });
    out
}

/// The gradient of `x`, `[rows, width]`.
pub fn backward_input(
    x: &[f32],
    gain: Rows,
    grad: &[f32],
    slots: &[u32],
    (statistic, eps): (Statistic, f32),
) -> Vec<f32> {
    let width = x.len() / slots.len().max(1);
    let mut out = vec![0f32; x.len()];
    out.par_chunks_mut(width)
        .zip(x.par_chunks(width))
        .zip(grad.par_chunks(width))
        .zip(slots)
        .with_min_len(16)
        .for_each(|(((out, x), grad), slot)| {
            let (mean, scale) = statistics(x, statistic, eps);
            let gain = gain.row(*slot as usize);
            for ((out, grad), gain) in out.iter_mut().zip(grad).zip(gain) {
                *out = grad * gain;
            }
            let along_mean = match statistic {
                Statistic::Centred => sum(out) / width as f32,
                Statistic::Uncentred => 0.0,
            };
            // sum(out * normalised x): the part of the gradient along the row itself.
            let along_row = (dot(out, x) - mean * sum(out)) * scale / width as f32;
            for (out, x) in out.iter_mut().zip(x) {
                *out = scale * (*out - along_mean - (x - mean) * scale * along_row);
            }
        });
    out
}

/// The gradients of gain and bias, both `[n_slots, width]`: rows of one slot are summed in row order.
pub fn backward_values(
    x: &[f32],
    grad: &[f32],
    slots: &[u32],
    n_slots: usize,
    (statistic, eps): (Statistic, f32),
) -> (Vec<f32>, Vec<f32>) {
    let width = x.len() / slots.len().max(1);
    let statistics: Vec<(f32, f32)> = x
        .par_chunks(width)
        .with_min_len(16)
        .map(|x| statistics(x, statistic, eps))
        .collect();
    let blocks: Vec<(usize, Vec<f32>, Vec<f32>)> = (0..width)
        .into_par_iter()
        .step_by(COLUMN_BLOCK)
        .map(|first| {
            let block = COLUMN_BLOCK.min(width - first);
            let mut gain = vec![0f32; n_slots * block];
            let mut bias = vec![0f32; n_slots * block];
            for (row, (slot, (mean, scale))) in slots.iter().zip(&statistics).enumerate() {
                let columns = row * width + first..row * width + first + block;
                let (x, grad) = (&x[columns.clone()], &grad[columns]);
                let target = *slot as usize * block..(*slot as usize + 1) * block;
                let (gain, bias) = (&mut gain[target.clone()], &mut bias[target]);
                for (((gain, bias), x), grad) in gain.iter_mut().zip(bias).zip(x).zip(grad) {
                    *gain = fma(*grad, (x - mean) * scale, *gain);
                    *bias += grad;
                }
            }
            (first, gain, bias)
        })
        .collect();
    let (mut gain, mut bias) = (vec![0f32; n_slots * width], vec![0f32; n_slots * width]);
    for (first, gain_block, bias_block) in blocks {
        let block = gain_block.len() / n_slots;
        for slot in 0..n_slots {
            let target = slot * width + first..slot * width + first + block;
            gain[target.clone()].copy_from_slice(&gain_block[slot * block..(slot + 1) * block]);
            bias[target].copy_from_slice(&bias_block[slot * block..(slot + 1) * block]);
        }
    }
    (gain, bias)
}
