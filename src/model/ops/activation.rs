//! Activations of MLPs, alone or gating a second projection.

use candle_core::{CpuStorage, CustomOp1, CustomOp2, DType, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::Kernels;
use super::cpu::lanes::{exp, sigmoid};
use super::cpu::{self, contiguous_slice};

/// An activation by the name that configurations give it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Activation {
    /// `x * sigmoid(x)`.
    #[serde(rename = "silu", alias = "swish")]
    Silu,
    /// `x * sigmoid(1.702 x)`, CLIP's.
    #[serde(rename = "quick_gelu")]
    QuickGelu,
    /// The exact GELU, through the error function.
    #[serde(rename = "gelu")]
    Gelu,
    /// The GELU through tanh.
    #[serde(rename = "gelu_pytorch_tanh", alias = "gelu_new")]
    GeluTanh,
    /// `max(x, 0)`.
    #[serde(rename = "relu")]
    Relu,
}

const QUICK: f32 = 1.702;
const SQRT_2_OVER_PI: f32 = 0.797_884_6;
const CUBIC: f32 = 0.044_715;

impl Activation {
    /// The value and the derivative at `x`.
    #[inline(always)]
    fn at(self, x: f32) -> (f32, f32) {
        match self {
            Self::Silu => {
                let s = sigmoid(x);
                (x * s, s * (1.0 + x * (1.0 - s)))
            }
            Self::QuickGelu => {
                let s = sigmoid(QUICK * x);
                (x * s, s * (1.0 + QUICK * x * (1.0 - s)))
            }
            Self::Gelu => {
                let cdf = 0.5 * (1.0 + erf(x * std::f32::consts::FRAC_1_SQRT_2));
                (x * cdf, cdf + x * exp(-0.5 * x * x) * 0.398_942_3)
            }
            Self::GeluTanh => {
                // 0.5 (1 + tanh u) = sigmoid(2u)
                let s = sigmoid(2.0 * SQRT_2_OVER_PI * (x + CUBIC * x * x * x));
                let slope = 2.0 * SQRT_2_OVER_PI * (1.0 + 3.0 * CUBIC * x * x);
                (x * s, s + x * s * (1.0 - s) * slope)
            }
            Self::Relu => (x.max(0.0), if x > 0.0 { 1.0 } else { 0.0 }),
        }
    }

    fn composed(self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::Silu => x.silu(),
            Self::QuickGelu => x.mul(&sigmoid_of(&(x * f64::from(QUICK))?)?),
            Self::Gelu => x.gelu_erf(),
            Self::GeluTanh => x.gelu(),
            Self::Relu => x.relu(),
        }
    }
}

fn sigmoid_of(x: &Tensor) -> Result<Tensor> {
    (x.neg()?.exp()? + 1.0)?.recip()
}

/// The error function within 1.2e-7 (Numerical Recipes' `erfcc` has that bound for all arguments).
#[inline(always)]
fn erf(x: f32) -> f32 {
    const COEFFICIENTS: [f32; 10] = [
        -1.265_512_2,
        1.000_023_7,
        0.374_091_97,
        0.096_784_18,
        -0.186_288_06,
        0.278_868_07,
        -1.135_204,
        1.488_515_9,
        -0.822_152_23,
        0.170_872_77,
    ];
    let magnitude = x.abs();
    let t = 1.0 / (1.0 + 0.5 * magnitude);
    let polynomial = COEFFICIENTS.iter().rev().fold(0.0, |sum, c| sum * t + c);
    let complement = t * exp(-magnitude * magnitude + polynomial);
    if x >= 0.0 {
        1.0 - complement
    } else {
        complement - 1.0
    }
}

/// Applies `activation` to every element.
pub fn activate(x: &Tensor, activation: Activation, kernels: Kernels) -> Result<Tensor> {
    match kernels {
        Kernels::Fused => x.contiguous()?.apply_op1(Activate(activation)),
        Kernels::Composed => activation
            .composed(&x.to_dtype(DType::F32)?)?
            .to_dtype(x.dtype()),
    }
}

/// `activation(gate) * up`, both of one shape.
pub fn gated(
    gate: &Tensor,
    up: &Tensor,
    activation: Activation,
    kernels: Kernels,
) -> Result<Tensor> {
    if gate.shape() != up.shape() {
        bail!("a gate of {:?} cannot gate {:?}", gate.shape(), up.shape());
    }
    match kernels {
        Kernels::Fused => gate
            .contiguous()?
            .apply_op2(&up.contiguous()?, Gated(activation)),
        Kernels::Composed => {
            let (gate, wide) = (gate.to_dtype(DType::F32)?, up.to_dtype(DType::F32)?);
            activation.composed(&gate)?.mul(&wide)?.to_dtype(up.dtype())
        }
    }
}

/// Elements below which a second thread costs more than it brings.
const MIN_LEN: usize = 4096;

fn map(x: &[f32], f: impl Fn(f32) -> f32 + Sync) -> Vec<f32> {
    let mut out = vec![0f32; x.len()];
    out.par_chunks_mut(MIN_LEN)
        .zip(x.par_chunks(MIN_LEN))
        .for_each(|(out, x)| {
            for (out, x) in out.iter_mut().zip(x) {
                *out = f(*x);
            }
        });
    out
}

fn map2(x: &[f32], y: &[f32], f: impl Fn(f32, f32) -> f32 + Sync) -> Vec<f32> {
    let mut out = vec![0f32; x.len()];
    out.par_chunks_mut(MIN_LEN)
        .zip(x.par_chunks(MIN_LEN))
        .zip(y.par_chunks(MIN_LEN))
        .for_each(|((out, x), y)| {
            for ((out, x), y) in out.iter_mut().zip(x).zip(y) {
                *out = f(*x, *y);
            }
        });
    out
}

/// Calls `$body` with the activation as a constant, so that the loop inside has no branch.
macro_rules! specialised {
    ($activation:expr, |$constant:ident| $body:expr) => {
        match $activation {
            Activation::Silu => {
                const $constant: Activation = Activation::Silu;
                $body
            }
            Activation::QuickGelu => {
                const $constant: Activation = Activation::QuickGelu;
                $body
            }
            Activation::Gelu => {
                const $constant: Activation = Activation::Gelu;
                $body
            }
            Activation::GeluTanh => {
                const $constant: Activation = Activation::GeluTanh;
                $body
            }
            Activation::Relu => {
                const $constant: Activation = Activation::Relu;
                $body
            }
        }
    };
}

struct Activate(Activation);

impl CustomOp1 for Activate {
    fn name(&self) -> &'static str {
        "activation"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = contiguous_slice(x, layout)?;
        let out = specialised!(self.0, |A| map(x, |x| A.at(x).0));
        Ok((CpuStorage::F32(out), layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let dx = cpu::with_slices([x, grad], |[x, grad]| {
            Ok(specialised!(self.0, |A| map2(x, grad, |x, grad| grad * A.at(x).1)))
        })?;
        Ok(Some(Tensor::from_vec(dx, x.shape(), x.device())?))
    }
}

struct Gated(Activation);

impl CustomOp2 for Gated {
    fn name(&self) -> &'static str {
        "gated-activation"
    }

    fn cpu_fwd(
        &self,
        gate: &CpuStorage,
        gate_layout: &Layout,
        up: &CpuStorage,
        up_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (gate, up) = (
            contiguous_slice(gate, gate_layout)?,
            contiguous_slice(up, up_layout)?,
        );
        let out = specialised!(self.0, |A| map2(gate, up, |gate, up| A.at(gate).0 * up));
        Ok((CpuStorage::F32(out), gate_layout.shape().clone()))
    }

    fn bwd(
        &self,
        gate: &Tensor,
        up: &Tensor,
        _y: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (d_gate, d_up) = cpu::with_slices([gate, up, grad], |[gate, up, grad]| {
            let d_up = specialised!(self.0, |A| map2(gate, grad, |gate, grad| grad
                * A.at(gate).0));
            let slope = specialised!(self.0, |A| map2(gate, grad, |gate, grad| grad
                * A.at(gate).1));
            Ok((map2(&slope, up, |slope, up| slope * up), d_up))
        })?;
        Ok((
            Some(Tensor::from_vec(d_gate, gate.shape(), gate.device())?),
            Some(Tensor::from_vec(d_up, up.shape(), up.device())?),
        ))
    }
}
