//! The keys and values of running sequences: one arena of rows a layer.
//!
//! Which rows belong to which sequence is the engine's business; a step names them.

use candle_core::{CpuStorage, DType, Device, InplaceOp2, Layout, Result, Tensor, bail};

use super::ops::cpu::memory::prefer_large_pages;

/// Rows below which a second thread costs more than it brings.
const MIN_SHARED: usize = 64;

/// Arenas of `capacity` rows for every decoder layer.
#[derive(Debug)]
pub struct KvCache {
    layers: Vec<(Tensor, Tensor)>,
}

impl KvCache {
    /// `width`: of a key (and a value) row. Memory: `n_layers * 2 * capacity * width * 4` bytes.
    pub fn new(n_layers: usize, capacity: usize, width: usize, device: &Device) -> Result<Self> {
        let arena = || {
            if !device.is_cpu() {
                return Tensor::zeros((capacity, width), DType::F32, device);
            }
            // The system gives memory when it is first written.
            let rows = vec![0f32; capacity * width];
            prefer_large_pages(&rows);
            Tensor::from_vec(rows, (capacity, width), device)
        };
        let layers = (0..n_layers)
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
    if arena.device().is_cpu() {
        return arena.inplace_op2(&rows, &Scatter { into });
    }
    // Elsewhere: one copy for every run of neighbouring rows.
    let mut first = 0;
    while first < into.len() {
        let run = (first..into.len())
            .take_while(|i| into[*i] as usize == into[first] as usize + (i - first))
            .count();
        arena.slice_set(
            &rows.narrow(0, first, run)?.contiguous()?,
            0,
            into[first] as usize,
        )?;
        first += run;
    }
    Ok(())
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
        let CpuStorage::F32(arena) = arena else {
            bail!("the cache holds f32")
        };
        let rows = super::ops::cpu::contiguous_slice(rows, rows_layout)?;
        for (row, into) in rows.chunks_exact(width).zip(self.into) {
            arena[*into as usize * width..][..width].copy_from_slice(row);
        }
        Ok(())
    }
}
