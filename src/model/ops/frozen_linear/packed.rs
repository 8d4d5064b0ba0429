//! A frozen weight on the CPU, packed once into the order in which its kernel reads it.

use std::fmt;
use std::io;
use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};

use super::FrozenLinear;
pub use crate::model::ops::cpu::packed::Packed;
pub use crate::model::ops::cpu::packed_weight::PackedWeight;
pub use crate::model::ops::cpu::paired::Paired;
use crate::model::ops::cpu::{contiguous_slice, with_slices};

/// A linear map whose weight is packed as `P`, with its bias in f32.
#[derive(Clone)]
pub struct PackedLinear<P> {
    inner: Arc<Inner<P>>,
}

struct Inner<P> {
    weight: P,
    bias: Option<Vec<f32>>,
}

impl<P: PackedWeight> PackedLinear<P> {
    /// `weight`: `[out, in]`; `bias`: `[out]`. Both f32 on the CPU.
    pub fn new(weight: &Tensor, bias: Option<&Tensor>) -> Result<Self> {
        let (n_out, n_in) = weight.dims2()?;
        with_slices([weight], |[weight]| {
            Self::from_rows((n_out, n_in), bias, |first, to| {
                to.copy_from_slice(&weight[first * n_in..][..to.len()]);
                Ok(())
            })
        })
    }

    /// A weight `[n_out, n_in]` whose rows are read when they are wanted, by all threads: `read` gets the
    /// number of the first of some rows and their place.
    pub fn from_rows(
        (n_out, n_in): (usize, usize),
        bias: Option<&Tensor>,
        read: impl Fn(usize, &mut [f32]) -> io::Result<()> + Sync,
    ) -> Result<Self> {
        let weight = P::pack_rows(n_out, n_in, read)?;
        let bias = bias.map(Tensor::to_vec1::<f32>).transpose()?;
        if bias.as_ref().is_some_and(|bias| bias.len() != n_out) {
            bail!("a bias for {n_out} outputs has another length");
        }
        Ok(Self {
            inner: Arc::new(Inner { weight, bias }),
        })
    }
}

impl<P> fmt::Debug for PackedLinear<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PackedLinear")
    }
}

impl<P: PackedWeight> FrozenLinear for PackedLinear<P> {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        x.contiguous()?.apply_op1(PackedProduct {
            inner: self.inner.clone(),
        })
    }

    fn bytes(&self) -> usize {
        let bias = self.inner.bias.as_ref();
        let (n_out, n_in) = self.inner.weight.dims();
        P::bytes_of(n_out, n_in) + bias.map_or(0, |bias| bias.len() * 4)
    }
}

struct PackedProduct<P> {
    inner: Arc<Inner<P>>,
}

impl<P: PackedWeight> CustomOp1 for PackedProduct<P> {
    fn name(&self) -> &'static str {
        "packed-linear"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (rows, n_in) = layout.shape().dims2()?;
        let (n_out, expected) = self.inner.weight.dims();
        if n_in != expected {
            bail!("a linear map of {expected} inputs got rows of {n_in}");
        }
        let x = contiguous_slice(x, layout)?;
        let y = self.inner.weight.forward(x, self.inner.bias.as_deref());
        Ok((CpuStorage::F32(y), Shape::from((rows, n_out))))
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let dx = with_slices([grad], |[grad]| Ok(self.inner.weight.backward(grad)))?;
        Ok(Some(Tensor::from_vec(dx, x.shape(), x.device())?))
    }
}
