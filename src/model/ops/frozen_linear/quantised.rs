//! A frozen weight in one of `mistralrs-quant`'s types.

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, DType, Device, Layout, Result, Shape, Tensor};
use mistralrs_quant::QuantMethod;

use super::FrozenLinear;
use crate::model::ops::cpu::contiguous_slice;

/// A frozen weight in one of `mistralrs-quant`'s types.
#[derive(Clone, Debug)]
pub struct QuantisedLinear {
    method: Arc<dyn QuantMethod>,
    bytes: usize,
}

impl QuantisedLinear {
    /// `bytes`: what the quantised weight takes in memory.
    pub fn new(method: Arc<dyn QuantMethod>, bytes: usize) -> Self {
        Self { method, bytes }
    }
}

impl FrozenLinear for QuantisedLinear {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        x.contiguous()?.apply_op1(QuantisedMatmul {
            method: self.method.clone(),
        })
    }

    fn bytes(&self) -> usize {
        self.bytes
    }
}

struct QuantisedMatmul {
    method: Arc<dyn QuantMethod>,
}

impl CustomOp1 for QuantisedMatmul {
    fn name(&self) -> &'static str {
        "quantised-linear"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = Tensor::from_slice(contiguous_slice(x, layout)?, layout.shape(), &Device::Cpu)?;
        let y = self
            .method
            .forward_autocast(&x)?
            .to_dtype(DType::F32)?
            .contiguous()?;
        let shape = y.shape().clone();
        Ok((CpuStorage::F32(y.flatten_all()?.to_vec1::<f32>()?), shape))
    }

    fn bwd(&self, _x: &Tensor, _y: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        // mistralrs-quant's product has no backward; one weight is widened for the moment of use.
        let weight = self.method.dequantize_w()?.to_dtype(grad.dtype())?;
        Ok(Some(grad.contiguous()?.matmul(&weight)?))
    }
}
