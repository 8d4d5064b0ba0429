//! The keys and values of running sequences: one arena of rows a layer.
//!
//! Which rows belong to which sequence is the engine's business; a step names them.

use std::fmt;
use std::str::FromStr;

use candle_core::{CpuStorage, DType, Device, InplaceOp2, Layout, Result, Tensor, WithDType, bail};
use half::bf16;
use thiserror::Error;

use super::ModelShape;
use super::ops::cpu::contiguous_slice;
use super::ops::cpu::element::Element;
use super::ops::cpu::memory::prefer_large_pages;

/// Rows below which a second thread costs more than it brings.
const MIN_SHARED: usize = 64;

/// What keys and values are kept as.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KvType {
    /// As they are computed.
    #[default]
    F32,
    /// Rounded to the nearest bf16: half the memory, and half the reading where many tokens are behind each
    /// answer. A chunk of a prompt meets its own keys rounded too, so that no result depends on chunking.
    Bf16,
}

/// A word that names no type of keys and values.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("`{word}` is no type of keys and values; choose f32 or bf16")]
pub struct UnknownKvType {
    word: String,
}

impl FromStr for KvType {
    type Err = UnknownKvType;

    fn from_str(word: &str) -> std::result::Result<Self, Self::Err> {
        match word {
            "f32" => Ok(Self::F32),
            "bf16" => Ok(Self::Bf16),
            _ => Err(UnknownKvType { word: word.into() }),
        }
    }
}

impl fmt::Display for KvType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.dtype().as_str())
    }
}

/// Bytes of a token's keys and values, all layers.
pub fn token_bytes(shape: &ModelShape, kv_type: KvType) -> usize {
    shape.n_layers * shape.kv_width * 2 * kv_type.dtype().size_in_bytes()
}

impl KvType {
    /// The type of its tensors.
    pub fn dtype(self) -> DType {
        match self {
            Self::F32 => DType::F32,
            Self::Bf16 => DType::BF16,
        }
    }
}

/// Arenas of `capacity` rows for every decoder layer, in the CPU's memory.
#[derive(Debug)]
pub struct KvCache {
    layers: Vec<(Tensor, Tensor)>,
}

impl KvCache {
    /// Memory: `capacity` times [`token_bytes`].
    pub fn new(shape: &ModelShape, capacity: usize, kv_type: KvType) -> Result<Self> {
        let size = (capacity, shape.kv_width);
        let arena = || match kv_type {
            KvType::F32 => zeros::<f32>(size),
            KvType::Bf16 => zeros::<bf16>(size),
        };
        let layers = (0..shape.n_layers)
            .map(|_| Ok((arena()?, arena()?)))
            .collect::<Result<_>>()?;
        Ok(Self { layers })
    }

    /// Stores a layer's new keys and values (`[rows, width]`) in the arena rows `into`, and returns the
    /// layer's whole arenas.
    pub fn store(
        &self,
        layer: usize,
        (k, v): (&Tensor, &Tensor),
        into: &[u32],
    ) -> Result<(Tensor, Tensor)> {
        let Some((keys, values)) = self.layers.get(layer) else {
            bail!("no cache for layer {layer}")
        };
        let write_keys = || write_rows(keys, k, into);
        let write_values = || write_rows(values, v, into);
        if into.len() < MIN_SHARED {
            write_keys()?;
            write_values()?;
        } else {
            let (keys, values) = rayon::join(write_keys, write_values);
            keys.and(values)?;
        }
        Ok((keys.clone(), values.clone()))
    }
}

/// An arena in large pages. The system gives memory when it is first written.
fn zeros<E: Element + WithDType>(size: (usize, usize)) -> Result<Tensor> {
    let rows = vec![E::ZERO; size.0 * size.1];
    prefer_large_pages(&rows);
    Tensor::from_vec(rows, size, &Device::Cpu)
}

fn write_rows(arena: &Tensor, rows: &Tensor, into: &[u32]) -> Result<()> {
    let (capacity, _) = arena.dims2()?;
    if rows.dims2()?.0 != into.len() || into.iter().any(|row| *row as usize >= capacity) {
        bail!(
            "{:?} rows cannot be stored in {} arena rows",
            rows.shape(),
            into.len()
        );
    }
    let rows = rows.contiguous()?;
    arena.inplace_op2(&rows, &Scatter { into })
}

struct Scatter<'a> {
    into: &'a [u32],
}

impl InplaceOp2 for Scatter<'_> {
    fn name(&self) -> &'static str {
        "kv-scatter"
    }

    fn cpu_fwd(
        &self,
        arena: &mut CpuStorage,
        arena_layout: &Layout,
        rows: &CpuStorage,
        rows_layout: &Layout,
    ) -> Result<()> {
        let (_, width) = arena_layout.shape().dims2()?;
        let rows = contiguous_slice(rows, rows_layout)?.chunks_exact(width);
        match arena {
            CpuStorage::F32(arena) => scatter(rows.zip(self.into), arena),
            CpuStorage::BF16(arena) => scatter(rows.zip(self.into), arena),
            _ => bail!("a cache holds f32 or bf16"),
        }
        Ok(())
    }
}

fn scatter<'a, E: Element>(rows: impl Iterator<Item = (&'a [f32], &'a u32)>, arena: &mut [E]) {
    for (row, into) in rows {
        let first = *into as usize * row.len();
        for (value, into) in row.iter().zip(&mut arena[first..]) {
            *into = E::nearest(*value);
        }
    }
}
