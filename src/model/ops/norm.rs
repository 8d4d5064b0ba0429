//! LayerNorm and RMSNorm whose gain and bias are chosen for every row by its adapter slot.
//!
//! `y = normalise(x) * gain[slot] (+ bias[slot])`: this is where an adapter enters the computation, and
//! the only place. Rows of any number of adapters share one call.

use std::ops::Range;
use std::sync::Arc;

use candle_core::{
    CpuStorage, CustomOp1, CustomOp2, CustomOp3, D, Device, Layout, Result, Shape, Tensor,
};

pub use super::cpu::norm::Statistic;
use super::cpu::{self, Rows, contiguous_slice};
use super::{Kernels, RowIndex};

/// The values of one site for every slot, as tensors: a trainer's variables, or a bank on a GPU.
#[derive(Clone, Debug)]
pub struct SiteValues {
    /// What multiplies the normalised row, `[slots, width]`.
    pub gain: Tensor,
    /// What is added (LayerNorm only), `[slots, width]`.
    pub bias: Option<Tensor>,
    /// Whether a backward pass needs the gradients of gain and bias.
    pub trainable: bool,
}

/// The values of one site for every slot, as parts of whole adapters' rows that lie anywhere in the CPU's
/// memory. They never change.
#[derive(Clone, Debug)]
pub struct SiteRows {
    /// By slot.
    pub rows: Arc<Vec<Arc<[f32]>>>,
    /// Where in a row the gain lies.
    pub gain: Range<usize>,
    /// Where the bias lies (LayerNorm only).
    pub bias: Option<Range<usize>>,
}

impl SiteRows {
    fn part(&self, range: &Range<usize>) -> Rows<'_> {
        Rows::Shared {
            rows: &self.rows,
            first: range.start,
            width: range.len(),
        }
    }

    /// The same as tensors.
    pub fn to_values(&self) -> Result<SiteValues> {
        let tensor = |range: &Range<usize>| {
            let values: Vec<f32> = self
                .rows
                .iter()
                .flat_map(|row| &row[range.clone()])
                .copied()
                .collect();
            Tensor::from_vec(values, (self.rows.len(), range.len()), &Device::Cpu)
        };
        Ok(SiteValues {
            gain: tensor(&self.gain)?,
            bias: self.bias.as_ref().map(tensor).transpose()?,
            trainable: false,
        })
    }
}

/// As [`norm`], with values that lie in adapters' own rows.
pub fn norm_of_rows(
    x: &Tensor,
    values: SiteRows,
    slots: &RowIndex,
    (statistic, eps): (Statistic, f32),
    kernels: Kernels,
) -> Result<Tensor> {
    if kernels == Kernels::Composed {
        return composed(x, &values.to_values()?, slots, (statistic, eps));
    }
    x.contiguous()?.apply_op1(NormOfRows {
        values,
        slots: slots.host().clone(),
        kind: (statistic, eps),
    })
}

struct NormOfRows {
    values: SiteRows,
    slots: Arc<[u32]>,
    kind: (Statistic, f32),
}

impl CustomOp1 for NormOfRows {
    fn name(&self) -> &'static str {
        "norm-of-rows"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = contiguous_slice(x, layout)?;
        let gain = self.values.part(&self.values.gain);
        let bias = self.values.bias.as_ref().map(|bias| self.values.part(bias));
        let y = cpu::norm::forward(x, gain, bias, &self.slots, self.kind);
        Ok((CpuStorage::F32(y), layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let gain = self.values.part(&self.values.gain);
        let grad_x = cpu::with_slices([x, grad], |[x, grad]| {
            Ok(cpu::norm::backward_input(
                x,
                gain,
                grad,
                &self.slots,
                self.kind,
            ))
        })?;
        Ok(Some(Tensor::from_vec(grad_x, x.shape(), x.device())?))
    }
}

/// Normalises `x` (`[rows, width]`) with each row's own values; `slots` names a slot for every row.
pub fn norm(
    x: &Tensor,
    values: &SiteValues,
    slots: &RowIndex,
    (statistic, eps): (Statistic, f32),
    kernels: Kernels,
) -> Result<Tensor> {
    if kernels == Kernels::Composed {
        return composed(x, values, slots, (statistic, eps));
    }
    let op = Norm {
        slots: slots.host().clone(),
        statistic,
        eps,
        trainable: values.trainable,
    };
    let x = x.contiguous()?;
    match &values.bias {
        Some(bias) => x.apply_op3(&values.gain, bias, op),
        None => x.apply_op2(&values.gain, op),
    }
}

fn composed(
    x: &Tensor,
    values: &SiteValues,
    slots: &RowIndex,
    (statistic, eps): (Statistic, f32),
) -> Result<Tensor> {
    let dtype = x.dtype();
    let x = x.to_dtype(candle_core::DType::F32)?;
    let x = match statistic {
        Statistic::Centred => x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?,
        Statistic::Uncentred => x,
    };
    let scale = (x.sqr()?.mean_keepdim(D::Minus1)? + f64::from(eps))?
        .sqrt()?
        .recip()?;
    let gain = values.gain.contiguous()?.index_select(slots.device(), 0)?; // [rows, width]
    let y = x.broadcast_mul(&scale)?.mul(&gain)?;
    let y = match &values.bias {
        Some(bias) => y.add(&bias.contiguous()?.index_select(slots.device(), 0)?)?,
        None => y,
    };
    y.to_dtype(dtype)
}

struct Norm {
    slots: Arc<[u32]>,
    statistic: Statistic,
    eps: f32,
    trainable: bool,
}

impl Norm {
    fn gradients(
        &self,
        x: &Tensor,
        gain: &Tensor,
        grad: &Tensor,
    ) -> Result<(Tensor, Option<Tensor>, Option<Tensor>)> {
        let (n_slots, width) = gain.dims2()?;
        let kind = (self.statistic, self.eps);
        let grad_x = cpu::with_slices([x, gain, grad], |[x, gain, grad]| {
            let gain = Rows::contiguous(gain, width);
            Ok(cpu::norm::backward_input(x, gain, grad, &self.slots, kind))
        })?;
        let grad_x = Tensor::from_vec(grad_x, x.shape(), x.device())?;
        if !self.trainable {
            return Ok((grad_x, None, None));
        }
        let (grad_gain, grad_bias) = cpu::with_slices([x, grad], |[x, grad]| {
            Ok(cpu::norm::backward_values(
                x,
                grad,
                &self.slots,
                n_slots,
                kind,
            ))
        })?;
        let shape = (n_slots, width);
        let grad_gain = Tensor::from_vec(grad_gain, shape, x.device())?;
        let grad_bias = Tensor::from_vec(grad_bias, shape, x.device())?;
        Ok((grad_x, Some(grad_gain), Some(grad_bias)))
    }
}

impl CustomOp2 for Norm {
    fn name(&self) -> &'static str {
        "norm"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        gain: &CpuStorage,
        gain_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let gain = Rows::new(gain, gain_layout)?;
        let x = contiguous_slice(x, x_layout)?;
        let y = cpu::norm::forward(x, gain, None, &self.slots, (self.statistic, self.eps));
        Ok((CpuStorage::F32(y), x_layout.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        gain: &Tensor,
        _y: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (grad_x, grad_gain, _) = self.gradients(x, gain, grad)?;
        Ok((Some(grad_x), grad_gain))
    }
}

impl CustomOp3 for Norm {
    fn name(&self) -> &'static str {
        "norm"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        gain: &CpuStorage,
        gain_layout: &Layout,
        bias: &CpuStorage,
        bias_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (gain, bias) = (Rows::new(gain, gain_layout)?, Rows::new(bias, bias_layout)?);
        let x = contiguous_slice(x, x_layout)?;
        let y = cpu::norm::forward(x, gain, Some(bias), &self.slots, (self.statistic, self.eps));
        Ok((CpuStorage::F32(y), x_layout.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        gain: &Tensor,
        _bias: &Tensor,
        _y: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let (grad_x, grad_gain, grad_bias) = self.gradients(x, gain, grad)?;
        Ok((Some(grad_x), grad_gain, grad_bias))
    }
}
