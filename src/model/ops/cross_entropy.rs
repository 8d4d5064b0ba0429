//! Mean cross-entropy of rows of logits against target tokens.

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, D, DType, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use super::cpu::lanes::{exp, max};
use super::cpu::{self, contiguous_slice};
use super::{Kernels, RowIndex};

/// The mean of `-log softmax(logits)[target]` over the rows, a scalar. `logits`: `[rows, vocab]`.
pub fn cross_entropy(logits: &Tensor, targets: &RowIndex, kernels: Kernels) -> Result<Tensor> {
    let (rows, vocab) = logits.dims2()?;
    if rows != targets.len() || rows == 0 {
        bail!("{} targets for {rows} rows of logits", targets.len());
    }
    if let Some(target) = targets
        .host()
        .iter()
        .find(|target| **target as usize >= vocab)
    {
        bail!("target {target} is beyond the vocabulary of {vocab}");
    }
    match kernels {
        Kernels::Fused => logits.contiguous()?.apply_op1(CrossEntropy {
            targets: targets.host().clone(),
        }),
        Kernels::Composed => composed(logits, targets),
    }
}

fn composed(logits: &Tensor, targets: &RowIndex) -> Result<Tensor> {
    let logits = logits.to_dtype(DType::F32)?;
    let shifted = logits.broadcast_sub(&logits.max_keepdim(D::Minus1)?.detach())?;
    let log_total = shifted.exp()?.sum_keepdim(D::Minus1)?.log()?;
    let chosen = shifted.gather(&targets.device().unsqueeze(1)?, 1)?; // [rows, 1]
    (log_total - chosen)?.mean_all()
}

struct CrossEntropy {
    targets: Arc<[u32]>,
}

fn exp_total(row: &[f32]) -> (f32, f64) {
    let largest = max(row);
    (
        largest,
        row.iter().map(|x| f64::from(exp(x - largest))).sum(),
    )
}

impl CustomOp1 for CrossEntropy {
    fn name(&self) -> &'static str {
        "cross-entropy"
    }

    fn cpu_fwd(&self, logits: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (rows, vocab) = layout.shape().dims2()?;
        let losses: Vec<f64> = contiguous_slice(logits, layout)?
            .par_chunks(vocab)
            .zip(&*self.targets)
            .map(|(row, target)| {
                let (largest, total) = exp_total(row);
                total.ln() - f64::from(row[*target as usize] - largest)
            })
            .collect();
        let mean = losses.iter().sum::<f64>() / rows as f64;
        Ok((CpuStorage::F32(vec![mean as f32]), Shape::from(())))
    }

    fn bwd(&self, logits: &Tensor, _loss: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let (rows, vocab) = logits.dims2()?;
        let scale = grad.to_scalar::<f32>()? / rows as f32;
        let out = cpu::with_slices([logits], |[logits]| {
            let mut out = vec![0f32; logits.len()];
            out.par_chunks_mut(vocab)
                .zip(logits.par_chunks(vocab))
                .zip(&*self.targets)
                .for_each(|((out, row), target)| {
                    let (largest, total) = exp_total(row);
                    let factor = scale / total as f32;
                    for (out, x) in out.iter_mut().zip(row) {
                        *out = exp(x - largest) * factor;
                    }
                    out[*target as usize] -= scale;
                });
            Ok(out)
        })?;
        Ok(Some(Tensor::from_vec(
            out,
            logits.shape(),
            logits.device(),
        )?))
    }
}
