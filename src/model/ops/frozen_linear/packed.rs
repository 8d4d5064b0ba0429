//! A frozen weight on the CPU, packed once into the order in which its kernel reads it.

use std::fmt;
use std::io;
use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};

use super::FrozenLinear;
use crate::model::ops::cpu::contiguous_slice;
use crate::model::ops::cpu::packed::{Packed, Stored};
use crate::model::ops::cpu::with_slices;

/// A packed weight whose elements are stored as `W` (f32, bf16 or i8), with its bias in f32.
#[derive(Clone)]
pub struct PackedLinear<W> {
    inner: Arc<Inner<W>>,
}

struct Inner<W> {
    weight: Packed<W>,
    bias: Option<Vec<f32>>,
}

impl<W: Stored> PackedLinear<W> {
    /// `weight`: `[out, in]`; `bias`: `[out]`. Both f32 on the CPU.
    pub fn new(weight: &Tensor, bias: Option<&Tensor>) -> Result<Self> {
        let (n_out, n_in) = weight.dims2()?;
        let weight = with_slices([weight], |[weight]| Ok(Packed::pack(weight, n_out, n_in)))?;
        Self::of(weight, bias)
    }

    /// A weight `[n_out, n_in]` whose rows are read when they are wanted, by all threads: `read` gets the
    /// number of the first of some rows and their place.
    pub fn from_rows(
        (n_out, n_in): (usize, usize),
        bias: Option<&Tensor>,
        read: impl Fn(usize, &mut [f32]) -> io::Result<()> + Sync,
    ) -> Result<Self> {
        Self::of(Packed::pack_rows(n_out, n_in, read)?, bias)
    }

    fn of(weight: Packed<W>, bias: Option<&Tensor>) -> Result<Self> {
        let (n_out, _) = weight.dims();
        let bias = bias.map(Tensor::to_vec1::<f32>).transpose()?;
        if bias.as_ref().is_some_and(|bias| bias.len() != n_out) {
            bail!("a bias for {n_out} outputs has another length");
        }
        Ok(Self {
            inner: Arc::new(Inner { weight, bias }),
        })
    }
}

/// Bytes of a packed weight `[n_out, n_in]`, without its bias.
pub fn packed_bytes<W: Stored>(n_out: usize, n_in: usize) -> usize {
    Packed::<W>::bytes_of(n_out, n_in)
}

impl<W> fmt::Debug for PackedLinear<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PackedLinear")
    }
}

impl<W: Stored> FrozenLinear for PackedLinear<W> {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        x.contiguous()?.apply_op1(PackedProduct {
            inner: self.inner.clone(),
        })
    }

    fn bytes(&self) -> usize {
        self.inner.weight.bytes() + self.inner.bias.as_ref().map_or(0, |bias| bias.len() * 4)
    }
}

struct PackedProduct<W> {
    inner: Arc<Inner<W>>,
}

impl<W: Stored> CustomOp1 for PackedProduct<W> {
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
