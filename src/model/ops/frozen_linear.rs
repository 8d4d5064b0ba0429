//! Linear maps whose weights never change: forward, and the gradient of the input only.
//!
//! candle's own matmul would also compute, store and accumulate the gradient of the frozen weight: a
//! second copy of the base. [`FrozenLinear`] is the one door behind which frozen weights live, so that
//! their storage (f32 here, quantised types through `mistralrs-quant`) is nobody else's business.

use std::fmt::Debug;
use std::sync::Arc;

use candle_core::backend::BackendStorage;
use candle_core::{
    CpuStorage, CudaStorage, CustomOp1, DType, Layout, MetalStorage, Result, Shape, Storage, Tensor,
    bail,
};
use mistralrs_quant::QuantMethod;

/// A frozen weight of shape `[out, in]`.
pub trait FrozenLinear: Debug + Send + Sync {
    /// `[rows, in]` to `[rows, out]`; the result carries the gradient of `x` if `x` is tracked.
    fn forward(&self, x: &Tensor) -> Result<Tensor>;

    /// Bytes that the weight takes in memory.
    fn bytes(&self) -> usize;
}

/// A frozen weight kept as a plain tensor, on any device.
#[derive(Clone, Debug)]
pub struct DenseLinear {
    weight: Tensor,
}

impl DenseLinear {
    /// `weight`: `[out, in]`.
    pub fn new(weight: Tensor) -> Result<Self> {
        weight.dims2()?;
        Ok(Self { weight: weight.detach().contiguous()? })
    }
}

impl FrozenLinear for DenseLinear {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        x.contiguous()?.apply_op1(DenseMatmul { weight: self.weight.clone() })
    }

    fn bytes(&self) -> usize {
        self.weight.elem_count() * self.weight.dtype().size_in_bytes()
    }
}

struct DenseMatmul {
    weight: Tensor,
}

impl DenseMatmul {
    /// `x weight^T` by the storage's own matrix product.
    fn product<S: BackendStorage>(&self, x: &S, layout: &Layout, weight: &S) -> Result<(S, Shape)> {
        let (rows, n_in) = layout.shape().dims2()?;
        let (n_out, expected) = self.weight.dims2()?;
        if n_in != expected {
            bail!("a linear map of {expected} inputs got rows of {n_in}");
        }
        let transposed = self.weight.layout().transpose(0, 1)?;
        let product = x.matmul(weight, (1, rows, n_out, n_in), layout, &transposed)?;
        Ok((product, Shape::from((rows, n_out))))
    }
}

impl CustomOp1 for DenseMatmul {
    fn name(&self) -> &'static str {
        "frozen-linear"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (weight, _) = self.weight.storage_and_layout();
        let Storage::Cpu(weight) = &*weight else { bail!("the weight is not on the CPU") };
        self.product(x, layout, weight)
    }

    fn cuda_fwd(&self, x: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        let (weight, _) = self.weight.storage_and_layout();
        let Storage::Cuda(weight) = &*weight else { bail!("the weight is not on the GPU") };
        self.product(x, layout, weight)
    }

    fn metal_fwd(&self, x: &MetalStorage, layout: &Layout) -> Result<(MetalStorage, Shape)> {
        let (weight, _) = self.weight.storage_and_layout();
        let Storage::Metal(weight) = &*weight else { bail!("the weight is not on the GPU") };
        self.product(x, layout, weight)
    }

    fn bwd(&self, _x: &Tensor, _y: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        // Neither side is tracked here: candle detaches gradients, and the weight is no variable.
        Ok(Some(grad.contiguous()?.matmul(&self.weight)?))
    }
}

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
        x.contiguous()?.apply_op1(QuantisedMatmul { method: self.method.clone() })
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
            super::cpu::contiguous_slice(x, layout)?,
            layout.shape(),
            &candle_core::Device::Cpu,
        )?;
        let y = self.method.forward_autocast(&x)?.to_dtype(DType::F32)?.contiguous()?;
        let shape = y.shape().clone();
        Ok((CpuStorage::F32(y.flatten_all()?.to_vec1::<f32>()?), shape))
    }

    fn bwd(&self, _x: &Tensor, _y: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        // mistralrs-quant's product has no backward; one weight is widened for the moment of use.
        let weight = self.method.dequantize_w()?.to_dtype(grad.dtype())?;
        Ok(Some(grad.contiguous()?.matmul(&weight)?))
    }
}
