//! A frozen weight kept as a plain tensor, on any device, multiplied by the device's own product.

use candle_core::backend::BackendStorage;
use candle_core::op::Add;
use candle_core::{
    CpuStorage, CudaStorage, CustomOp1, Layout, MetalStorage, Result, Shape, Storage, Tensor, bail,
};

use super::FrozenLinear;

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
