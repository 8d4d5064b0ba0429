//! The loops behind the fused CPU operations: plain slices in, plain vectors out.
//!
//! Nothing here knows of gradients, sites or sequences beyond the numbers it is given. Every sum runs
//! in an order that depends on the shape of one row alone, so a row's result does not depend on what
//! else is in the batch.

pub mod attention;
pub mod attention_gradient;
mod dot_bf16;
pub mod element;
mod entry;
mod instruction_set;
mod lane_block;
mod lane_rows;
pub mod lanes;
mod lone_rows;
pub mod memory;
pub mod norm;
mod online_softmax;
pub mod packed;
pub mod packed_weight;
pub mod paired;
mod product;
mod stored;
mod sum_tree;
mod tile;
mod vector_functions;
mod vector_math;

use std::array;
use std::sync::Arc;

use candle_core::{CpuStorage, Layout, Result, Storage, Tensor, WithDType, bail};

/// Runs `f` over the contiguous `f32` contents of CPU tensors.
pub fn with_slices<const N: usize, R>(
    tensors: [&Tensor; N],
    f: impl FnOnce([&[f32]; N]) -> Result<R>,
) -> Result<R> {
    let contiguous: Vec<Tensor> = tensors
        .iter()
        .map(|tensor| tensor.contiguous())
        .collect::<Result<_>>()?;
    let guards: Vec<_> = contiguous.iter().map(Tensor::storage_and_layout).collect();
    let mut slices: [&[f32]; N] = array::from_fn(|_| &[][..]);
    for (slice, (storage, layout)) in slices.iter_mut().zip(&guards) {
        let Storage::Cpu(storage) = &**storage else {
            bail!("a fused operation met a tensor that is not on the CPU")
        };
        *slice = contiguous_slice(storage, layout)?;
    }
    f(slices)
}

/// The elements of a contiguous tensor.
pub fn contiguous_slice<'a, T: WithDType>(
    storage: &'a CpuStorage,
    layout: &Layout,
) -> Result<&'a [T]> {
    let Some((start, end)) = layout.contiguous_offsets() else {
        bail!(
            "a fused operation wants contiguous tensors, got strides {:?}",
            layout.stride()
        )
    };
    Ok(&storage.as_slice()?[start..end])
}

/// The values of one site by slot.
#[derive(Clone, Copy)]
pub enum Rows<'a> {
    /// A matrix whose rows are contiguous and a constant distance apart.
    Matrix {
        data: &'a [f32],
        stride: usize,
        width: usize,
    },
    /// These columns of rows that lie anywhere.
    Shared {
        rows: &'a [Arc<[f32]>],
        first: usize,
        width: usize,
    },
}

impl<'a> Rows<'a> {
    /// Views a two-dimensional tensor whose last dimension is contiguous.
    pub fn new(storage: &'a CpuStorage, layout: &Layout) -> Result<Self> {
        let (_, width) = layout.shape().dims2()?;
        let [stride, 1] = *layout.stride() else {
            bail!("rows must be contiguous, got strides {:?}", layout.stride())
        };
        Ok(Self::Matrix {
            data: &storage.as_slice::<f32>()?[layout.start_offset()..],
            stride,
            width,
        })
    }

    /// Views a contiguous matrix of rows of `width`.
    pub fn contiguous(data: &'a [f32], width: usize) -> Self {
        Self::Matrix {
            data,
            stride: width,
            width,
        }
    }

    /// Row `index`, `[width]`.
    pub fn row(&self, index: usize) -> &'a [f32] {
        match *self {
            Self::Matrix {
                data,
                stride,
                width,
            } => &data[index * stride..index * stride + width],
            Self::Shared { rows, first, width } => &rows[index][first..first + width],
        }
    }
}
