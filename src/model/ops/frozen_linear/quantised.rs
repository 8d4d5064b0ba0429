//! A frozen weight in one of `mistralrs-quant`'s types.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use candle_core::quantized::GgmlDType;
use candle_core::{CpuStorage, CustomOp1, DType, Device, Layout, Result, Shape, Tensor, bail};
use mistralrs_quant::{IsqType, QuantMethod, QuantMethodConfig, QuantizeOntoGuard, UnquantLinear};

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

    /// Quantises `weight` (`[out, in]`, f32) to a block type on `device`; `bias`: `[out]`, there. Where the
    /// weight is on the CPU, it is quantised there. Blocks must divide the inputs: `mistralrs-quant` would
    /// silently take another type.
    pub fn quantise(
        weight: &Tensor,
        bias: Option<&Tensor>,
        to: IsqType,
        device: &Device,
    ) -> Result<Self> {
        let dtype = GgmlDType::try_from(to)?;
        let (n_out, n_in) = weight.dims2()?;
        let (block, size) = (dtype.block_size(), dtype.type_size());
        if !n_in.is_multiple_of(block) {
            bail!("{n_in} inputs are no multiple of {to}'s blocks of {block}");
        }
        let linear = candle_nn::Linear::new(weight.contiguous()?, bias.cloned());
        let plain = UnquantLinear::new(QuantMethodConfig::Unquantized(linear))?;
        let (count, guard) = (AtomicUsize::new(0), QuantizeOntoGuard::new());
        let method = Arc::new(plain).apply_isq(Some(to), device.clone(), &count, None, guard)?;
        let bias = bias.map_or(0, |bias| bias.elem_count() * 4);
        Ok(Self::new(method, n_out * n_in / block * size + bias))
    }
}

impl FrozenLinear for QuantisedLinear {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        if !x.device().is_cpu() && !x.track_op() {
            // Straight through: an operation of ours would have to copy rows in and out.
            return self.method.forward_autocast(&x.contiguous()?);
        }
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
        let x = Tensor::from_slice(
            contiguous_slice::<f32>(x, layout)?,
            layout.shape(),
            &Device::Cpu,
        )?;
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
