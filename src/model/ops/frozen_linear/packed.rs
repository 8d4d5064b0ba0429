//! A frozen weight on the CPU, packed once into the order in which its kernel reads it.

use std::fmt;
use std::io;
use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};

use super::FrozenLinear;
pub use crate::model::ops::cpu::packed::Packed;
use crate::model::ops::cpu::packed::Stored;
pub use crate::model::ops::cpu::paired::Paired;
use crate::model::ops::cpu::{contiguous_slice, with_slices};

/// A packed weight `[n_out, n_in]` with its kernel: [`Packed`] or [`Paired`].
pub trait PackedWeight: Send + Sync + Sized + 'static {
    /// Packs a weight whose rows are read when they are wanted, by all threads: `read` gets the number of
    /// the first of some rows and their place. `Unsupported` where the machine lacks the kernel.
    fn pack(
        shape: (usize, usize),
        read: impl Fn(usize, &mut [f32]) -> io::Result<()> + Sync,
    ) -> io::Result<Self>;

    /// Bytes of a weight of this shape once packed.
    fn bytes_of(shape: (usize, usize)) -> usize;

    /// `[n_out, n_in]`.
    fn shape(&self) -> (usize, usize);

    /// `x W^T (+ bias)`: `[rows, n_in]` to `[rows, n_out]`.
    fn product(&self, x: &[f32], bias: Option<&[f32]>) -> Vec<f32>;

    /// `y W`: `[rows, n_out]` to `[rows, n_in]`, the gradient of the input.
    fn gradient(&self, y: &[f32]) -> Vec<f32>;
}

impl<W: Stored> PackedWeight for Packed<W> {
    fn pack(
        (n_out, n_in): (usize, usize),
        read: impl Fn(usize, &mut [f32]) -> io::Result<()> + Sync,
    ) -> io::Result<Self> {
        Self::pack_rows(n_out, n_in, read)
    }

    fn bytes_of((n_out, n_in): (usize, usize)) -> usize {
        Self::bytes_of(n_out, n_in)
    }

    fn shape(&self) -> (usize, usize) {
        self.dims()
    }

    fn product(&self, x: &[f32], bias: Option<&[f32]>) -> Vec<f32> {
        self.forward(x, bias)
    }

    fn gradient(&self, y: &[f32]) -> Vec<f32> {
        self.backward(y)
    }
}

impl PackedWeight for Paired {
    fn pack(
        (n_out, n_in): (usize, usize),
        read: impl Fn(usize, &mut [f32]) -> io::Result<()> + Sync,
    ) -> io::Result<Self> {
        Self::pack_rows(n_out, n_in, read)
    }

    fn bytes_of((n_out, n_in): (usize, usize)) -> usize {
        Self::bytes_of(n_out, n_in)
    }

    fn shape(&self) -> (usize, usize) {
        self.dims()
    }

    fn product(&self, x: &[f32], bias: Option<&[f32]>) -> Vec<f32> {
        self.forward(x, bias)
    }

    fn gradient(&self, y: &[f32]) -> Vec<f32> {
        self.backward(y)
    }
}

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
        let weight = P::pack((n_out, n_in), read)?;
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
        P::bytes_of(self.inner.weight.shape()) + bias.map_or(0, |bias| bias.len() * 4)
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
        let (n_out, expected) = self.inner.weight.shape();
        if n_in != expected {
            bail!("a linear map of {expected} inputs got rows of {n_in}");
        }
        let x = contiguous_slice(x, layout)?;
        let y = self.inner.weight.product(x, self.inner.bias.as_deref());
        Ok((CpuStorage::F32(y), Shape::from((rows, n_out))))
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let dx = with_slices([grad], |[grad]| Ok(self.inner.weight.gradient(grad)))?;
        Ok(Some(Tensor::from_vec(dx, x.shape(), x.device())?))
    }
}
