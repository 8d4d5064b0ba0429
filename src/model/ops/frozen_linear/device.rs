//! A frozen weight in bf16 on a device, multiplied by `mistralrs-quant`: its own kernel for a few rows, cuBLAS for
//! more.

use std::sync::Arc;

use candle_core::{DType, Result, Tensor};
use mistralrs_quant::{QuantMethod, QuantMethodConfig, UnquantLinear};

use super::{DenseLinear, FrozenLinear};

/// A frozen weight in bf16. Takes rows of any type, gives rows of bf16; sums are in f32.
#[derive(Clone, Debug)]
pub struct DeviceLinear {
    weight: Tensor,
    bias: Option<Tensor>,
    method: Arc<dyn QuantMethod>,
}

impl DeviceLinear {
    /// `weight`: `[out, in]`; `bias`: `[out]`. Rounds both to bf16.
    pub fn new(weight: &Tensor, bias: Option<&Tensor>) -> Result<Self> {
        let narrow = |tensor: &Tensor| tensor.detach().to_dtype(DType::BF16)?.contiguous();
        let (weight, bias) = (narrow(weight)?, bias.map(narrow).transpose()?);
        // Without the bias: with it `mistralrs-quant` 0.8.1 asks for batches of three dimensions.
        let linear = candle_nn::Linear::new(weight.clone(), None);
        let method = UnquantLinear::new(QuantMethodConfig::Unquantized(linear))?;
        Ok(Self {
            weight,
            bias,
            method: Arc::new(method),
        })
    }

    fn product(&self, x: &Tensor) -> Result<Tensor> {
        if x.device().is_cpu() {
            // candle has no product of bf16 on the CPU, where this path serves tests: the same roundings.
            let (x, weight) = (x.to_dtype(DType::F32)?, self.weight.to_dtype(DType::F32)?);
            return x.matmul(&weight.t()?)?.to_dtype(DType::BF16);
        }
        self.method.forward(x)
    }
}

impl FrozenLinear for DeviceLinear {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let x = x.to_dtype(DType::BF16)?.contiguous()?;
        if x.track_op() {
            // The product of `mistralrs-quant` would also give the frozen weight a gradient.
            return DenseLinear::new(&self.weight, self.bias.as_ref())?.forward(&x);
        }
        let y = self.product(&x)?;
        match &self.bias {
            Some(bias) => y.broadcast_add(bias),
            None => Ok(y),
        }
    }

    fn bytes(&self) -> usize {
        let bias = self.bias.as_ref().map_or(0, Tensor::elem_count);
        (self.weight.elem_count() + bias) * DType::BF16.size_in_bytes()
    }
}
