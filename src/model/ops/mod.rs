//! The operations of every model, each with a forward and a backward.
//!
//! candle's own fused `layer_norm`, `rms_norm`, `softmax_last_dim` and `rope` drop gradients without a
//! word, and its matmul also computes the gradient of a frozen weight. So a forward that must serve
//! and train is written with the operations of this folder only. One file an operation; each holds
//! the public function, the candle `CustomOp` that runs on the CPU (its loops are in `cpu`), and a
//! composition of candle operations for every other device.
//!
//! The stream of a model, to which every layer adds, is f32 everywhere; the branches between a norm and that sum are
//! of one type a model, f32 with our own kernels and bf16 where a device's weights are.
//!
//! Activations are two-dimensional everywhere, `[rows, width]`: a row is one token (or one image
//! patch) of one sequence, whatever sequences share the batch.

pub mod activation;
pub mod attention;
pub(crate) mod cpu;
pub mod cross_entropy;
pub mod frozen_linear;
pub mod norm;
pub mod rope;
pub mod trained_linear;

use std::sync::Arc;

use candle_core::{Device, Result, Tensor};

/// Which implementation of the operations runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kernels {
    /// Fused loops over CPU memory.
    Fused,
    /// Compositions of candle's operations: right on every device. Can be forced on a CPU, which is
    /// how the path that GPUs take is tested without one.
    Composed,
}

impl Kernels {
    /// Fused where the tensors are on the CPU, composed elsewhere.
    pub fn for_device(device: &Device) -> Self {
        if device.is_cpu() {
            Self::Fused
        } else {
            Self::Composed
        }
    }
}

/// `x + branch`, where a branch may be narrower than the stream that it returns to.
pub fn add_branch(x: &Tensor, branch: &Tensor) -> Result<Tensor> {
    x + branch.to_dtype(x.dtype())?
}

/// One small integer a row (an adapter slot, a position), on the host and on the model's device.
#[derive(Clone, Debug)]
pub struct RowIndex {
    host: Arc<[u32]>,
    device: Tensor,
}

impl RowIndex {
    /// `values`: one a row.
    pub fn new(values: &[u32], device: &Device) -> Result<Self> {
        Ok(Self {
            host: values.into(),
            device: Tensor::new(values, device)?,
        })
    }

    /// The values on the host.
    pub fn host(&self) -> &Arc<[u32]> {
        &self.host
    }

    /// The values as a `u32` tensor, `[rows]`.
    pub fn device(&self) -> &Tensor {
        &self.device
    }

    /// The number of rows.
    pub fn len(&self) -> usize {
        self.host.len()
    }

    /// Whether there is no row.
    pub fn is_empty(&self) -> bool {
        self.host.is_empty()
    }
}
