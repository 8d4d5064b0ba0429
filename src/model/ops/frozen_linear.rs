//! Linear maps whose weights never change: forward, and the gradient of the input only.
//!
//! candle's own matmul would also compute, store and accumulate the gradient of the frozen weight: a
//! second copy of the base. [`FrozenLinear`] is the one door behind which frozen weights live, so that
//! their storage (f32 here, quantised types through `mistralrs-quant`) is nobody else's business.

use std::fmt::Debug;
use std::sync::Arc;

use candle_core::backend::BackendStorage;
use candle_core::op::Add;
use candle_core::{
    CpuStorage, CudaStorage, CustomOp1, DType, Layout, MetalStorage, Result, Shape, Storage,
    Tensor, bail,
};
use mistralrs_quant::QuantMethod;

/// A frozen weight of shape `[out, in]`, with its bias if it has one.
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
    bias: Option<Tensor>,
}

impl DenseLinear {
    /// `weight`: `[out, in]`; `bias`: `[out]`.
    pub fn new(weight: &Tensor, bias: Option<&Tensor>) -> Result<Self> {
        let (n_out, _) = weight.dims2()?;
        if let Some(bias) = bias
            && bias.dims() != [n_out]
        {
            bail!("a bias of {:?} for {n_out} outputs", bias.shape());
        }
        let frozen = |tensor: &Tensor| tensor.detach().contiguous();
        Ok(Self {
            weight: frozen(weight)?,
            bias: bias.map(frozen).transpose()?,
        })
    }
}

impl FrozenLinear for DenseLinear {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        x.contiguous()?.apply_op1(DenseProduct(self.clone()))
    }

    fn bytes(&self) -> usize {
        let bytes = |tensor: &Tensor| tensor.elem_count() * tensor.dtype().size_in_bytes();
        bytes(&self.weight) + self.bias.as_ref().map_or(0, bytes)
    }
}

struct DenseProduct(DenseLinear);

impl DenseProduct {
    /// `x weight^T + bias` by the storage's own matrix product. `storage` unwraps a tensor's storage
    /// to the kind that `x` has.
    fn product<S: BackendStorage>(
        &self,
        x: &S,
        layout: &Layout,
        storage: impl Fn(&Storage) -> Option<&S>,
    ) -> Result<(S, Shape)> {
        let DenseLinear { weight, bias } = &self.0;
        let (rows, n_in) = layout.shape().dims2()?;
        let (n_out, expected) = weight.dims2()?;
        if n_in != expected {
            bail!("a linear map of {expected} inputs got rows of {n_in}");
        }
        let transposed = weight.layout().transpose(0, 1)?;
        let shape = Shape::from((rows, n_out));
        let (weight, _) = weight.storage_and_layout();
        let Some(weight) = storage(&weight) else {
            bail!("the weight is on another device")
        };
        let y = x.matmul(weight, (1, rows, n_out, n_in), layout, &transposed)?;
        let Some(bias) = bias else {
            return Ok((y, shape));
        };
        let (bias, bias_layout) = bias.storage_and_layout();
        let Some(bias) = storage(&bias) else {
            bail!("the bias is on another device")
        };
        let y_layout = Layout::contiguous(&shape);
        let sum = y.binary_impl::<Add>(bias, &y_layout, &bias_layout.broadcast_as(&shape)?)?;
        Ok((sum, shape))
    }
}

impl CustomOp1 for DenseProduct {
    fn name(&self) -> &'static str {
        "frozen-linear"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        self.product(x, layout, |storage| match storage {
            Storage::Cpu(storage) => Some(storage),
            _ => None,
        })
    }

    fn cuda_fwd(&self, x: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        self.product(x, layout, |storage| match storage {
            Storage::Cuda(storage) => Some(storage),
            _ => None,
        })
    }

    fn metal_fwd(&self, x: &MetalStorage, layout: &Layout) -> Result<(MetalStorage, Shape)> {
        self.product(x, layout, |storage| match storage {
            Storage::Metal(storage) => Some(storage),
            _ => None,
        })
    }

    fn bwd(&self, _x: &Tensor, _y: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        // Neither side is tracked here: candle detaches gradients, and the weight is no variable.
        Ok(Some(grad.contiguous()?.matmul(&self.0.weight)?))
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
            super::cpu::contiguous_slice(x, layout)?,
            layout.shape(),
            &candle_core::Device::Cpu,
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
