//! Rotary position embedding in the half-split form that Llama and Mistral checkpoints use.

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, DType, Device, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use super::cpu::contiguous_slice;
use super::cpu::lanes::fma;
use super::{Kernels, RowIndex};

/// Cosines and sines of every position, `[max_positions, head_dim / 2]` each.
#[derive(Clone, Debug)]
pub struct RopeTable {
    half: usize,
    cos: Arc<[f32]>,
    sin: Arc<[f32]>,
    device: (Tensor, Tensor),
}

impl RopeTable {
    /// `inverse_frequencies`: one for each pair of columns, in radians a position.
    pub fn new(inverse_frequencies: &[f32], max_positions: usize, device: &Device) -> Result<Self> {
        let half = inverse_frequencies.len();
        let angles = (0..max_positions)
            .flat_map(|position| inverse_frequencies.iter().map(move |f| position as f32 * f));
        let (cos, sin): (Vec<f32>, Vec<f32>) =
            angles.map(|angle| (angle.cos(), angle.sin())).unzip();
        let tensor = |values: &[f32]| Tensor::from_slice(values, (max_positions, half), device);
        let device = (tensor(&cos)?, tensor(&sin)?);
        Ok(Self {
            half,
            cos: cos.into(),
            sin: sin.into(),
            device,
        })
    }

    /// The number of positions.
    pub fn max_positions(&self) -> usize {
        self.cos.len() / self.half.max(1)
    }
}

/// Rotates every head of `x` (`[rows, heads * head_dim]`) by its row's position.
pub fn rope(
    x: &Tensor,
    positions: &RowIndex,
    table: &RopeTable,
    kernels: Kernels,
) -> Result<Tensor> {
    let (rows, width) = x.dims2()?;
    let head_dim = 2 * table.half;
    if rows != positions.len() || width % head_dim != 0 {
        bail!(
            "rope got {:?} for {} positions and heads of {head_dim}",
            x.shape(),
            positions.len()
        );
    }
    if let Some(position) = positions
        .host()
        .iter()
        .find(|p| **p as usize >= table.max_positions())
    {
        bail!(
            "position {position} is beyond the {} of the base",
            table.max_positions()
        );
    }
    match kernels {
        Kernels::Composed => {
            let (cos, sin) = &table.device;
            composed(x, positions, (cos, sin), head_dim)
        }
        Kernels::Fused => {
            let op = Rope {
                table: table.clone(),
                positions: positions.host().clone(),
                sign: 1.0,
            };
            x.contiguous()?.apply_op1(op)
        }
    }
}

fn composed(
    x: &Tensor,
    positions: &RowIndex,
    (cos, sin): (&Tensor, &Tensor),
    head_dim: usize,
) -> Result<Tensor> {
    let (rows, width) = x.dims2()?;
    let half = head_dim / 2;
    let dtype = x.dtype();
    let x = x
        .to_dtype(DType::F32)?
        .reshape((rows, width / head_dim, head_dim))?;
    let (low, high) = (x.narrow(2, 0, half)?, x.narrow(2, half, half)?);
    let cos = cos.index_select(positions.device(), 0)?.unsqueeze(1)?; // [rows, 1, half]
    let sin = sin.index_select(positions.device(), 0)?.unsqueeze(1)?;
    let rotated_low = (low.broadcast_mul(&cos)? - high.broadcast_mul(&sin)?)?;
    let rotated_high = (high.broadcast_mul(&cos)? + low.broadcast_mul(&sin)?)?;
    Tensor::cat(&[rotated_low, rotated_high], 2)?
        .reshape((rows, width))?
        .to_dtype(dtype)
}

struct Rope {
    table: RopeTable,
    positions: Arc<[u32]>,
    /// 1 rotates, -1 rotates back, which is the gradient.
    sign: f32,
}

impl CustomOp1 for Rope {
    fn name(&self) -> &'static str {
        "rope"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (rows, width) = layout.shape().dims2()?;
        let half = self.table.half;
        let x = contiguous_slice(x, layout)?;
        let mut out = vec![0f32; x.len()];
        if rows > 0 {
            out.par_chunks_mut(width)
                .zip(x.par_chunks(width))
                .zip(&*self.positions)
                .with_min_len(16)
                .for_each(|((out, x), position)| {
                    let at = *position as usize * half..(*position as usize + 1) * half;
                    let (cos, sin) = (&self.table.cos[at.clone()], &self.table.sin[at]);
                    let heads = out.chunks_exact_mut(2 * half).zip(x.chunks_exact(2 * half));
                    for (out, x) in heads {
                        rotate(x, (cos, sin), self.sign, out);
                    }
                });
        }
        Ok((CpuStorage::F32(out), layout.shape().clone()))
    }

    fn bwd(&self, _x: &Tensor, _y: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let back = Rope {
            table: self.table.clone(),
            positions: self.positions.clone(),
            sign: -self.sign,
        };
        Ok(Some(grad.contiguous()?.apply_op1(back)?))
    }
}

/// Rotates one head by the angles whose cosines and sines are given.
fn rotate(x: &[f32], (cos, sin): (&[f32], &[f32]), sign: f32, out: &mut [f32]) {
    let (x_low, x_high) = x.split_at(cos.len());
    let (low, high) = out.split_at_mut(cos.len());
    let pairs = low.iter_mut().zip(high).zip(x_low.iter().zip(x_high));
    for (((low, high), (x, y)), (cos, sin)) in pairs.zip(cos.iter().zip(sin)) {
        let sin = sign * sin;
        *low = fma(*x, *cos, -(y * sin));
        *high = fma(*y, *cos, x * sin);
    }
}
