//! Keys and values on a device, in pages of sixteen rows.
//!
//! In: a step's rows and each layer's queries, keys and values. Out: attention. The memory has the layout that
//! the kernels of `mistralrs-paged-attn` read; a row's number is its page and its place in it.
//! - `table`: that layout, in numbers: which pages a sequence has, where a value lies.
//! - `plan`: what a step asks of the kernels, sorted by what they can do.
//! - `kernels`: the wall to them, and a composition of candle's operations behind it, by which the CPU's
//!   tests check all the rest. `cuda`: the kernels themselves.
//!
//! A row that is alone in its segment (the next token of an answer) reads its keys where they lie. For longer
//! segments the keys are gathered first, as for rows whose sliding window is shorter than their sequence, which
//! the paged kernel does not know, and for sequences whose rows do not fill pages.
//!
//! Which kernel a row takes depends on its own sequence only, never on its neighbours.

#[cfg(feature = "cuda")]
mod cuda;
#[cfg(not(feature = "cuda"))]
#[path = "no_cuda.rs"]
mod cuda;
mod kernels;
mod plan;
mod table;

use candle_core::{D, DType, Device, Result, Tensor, bail};

use self::kernels::{Composition, PageKernels, Pages};
use self::plan::Plan;
pub use self::table::PAGE_ROWS;
use self::table::PageShape;
use super::ModelShape;
use super::key_values::{Attend, KeyValues, StepOfHeads};
use super::kv_cache::KvType;
use super::ops::attention::Heads;

/// Pages for every decoder layer.
#[derive(Debug)]
pub struct PagedCache {
    layers: Vec<Pages>,
    shape: PageShape,
    dtype: DType,
    kernels: Box<dyn PageKernels>,
}

impl PagedCache {
    /// At least `capacity` rows, in whole pages. Memory: [`token_bytes`] a row.
    pub fn new(
        shape: &ModelShape,
        capacity: usize,
        kv_type: KvType,
        device: &Device,
    ) -> Result<Self> {
        let dtype = kv_type.dtype();
        let n_pages = capacity.div_ceil(PAGE_ROWS);
        let n_kv_heads = shape.kv_width / shape.head_dim.max(1);
        let shape_of_pages = PageShape::new(n_pages, n_kv_heads, shape.head_dim, dtype)?;
        let layers = (0..shape.n_layers)
            .map(|_| Pages::new(shape_of_pages, dtype, device))
            .collect::<Result<_>>()?;
        Ok(Self {
            layers,
            shape: shape_of_pages,
            dtype,
            kernels: kernels_for(device),
        })
    }
}

/// Bytes of a token's keys and values, all layers, heads padded.
pub fn token_bytes(shape: &ModelShape, kv_type: KvType) -> usize {
    let width = table::stored_head_dim(shape.head_dim).unwrap_or(shape.head_dim);
    let n_kv_heads = shape.kv_width / shape.head_dim.max(1);
    shape.n_layers * n_kv_heads * width * 2 * kv_type.dtype().size_in_bytes()
}

fn kernels_for(device: &Device) -> Box<dyn PageKernels> {
    if device.is_cuda() {
        Box::new(cuda::Cuda)
    } else {
        Box::new(Composition)
    }
}

impl KeyValues for PagedCache {
    fn begin<'a>(&'a self, of: StepOfHeads<'a>) -> Result<Box<dyn Attend + 'a>> {
        let heads = of.heads;
        if heads.n_kv_heads != self.shape.n_kv_heads || heads.head_dim > self.shape.head_dim {
            bail!("{heads:?} for pages of {:?}", self.shape);
        }
        let Some(into) = &of.step.cache_rows else {
            bail!("a step without cache rows needs no cache")
        };
        let Some(device) = self.layers.first().map(Pages::device) else {
            bail!("a cache of no layers")
        };
        let n_rows = self.shape.n_pages * PAGE_ROWS;
        let mut rows = into.iter().copied().chain(last_rows(of));
        if let Some(row) = rows.find(|row| *row as usize >= n_rows) {
            bail!("row {row} is beyond the {n_rows} of the cache");
        }
        Ok(Box::new(Paged {
            cache: self,
            heads,
            plan: Plan::new(of, into, device)?,
        }))
    }
}

/// The last row of each span of keys.
fn last_rows(of: StepOfHeads<'_>) -> impl Iterator<Item = u32> {
    let spans = of
        .layout
        .segments()
        .iter()
        .flat_map(|segment| &segment.keys);
    spans
        .filter(|span| !span.is_empty())
        .map(|span| span.end as u32 - 1)
}

struct Paged<'a> {
    cache: &'a PagedCache,
    heads: Heads,
    plan: Plan,
}

impl Paged<'_> {
    /// `[rows, heads * head_dim]` to `[rows, heads, head_dim of the pages]`, in the pages' type.
    fn by_head(&self, x: &Tensor, n_heads: usize) -> Result<Tensor> {
        let (rows, _) = x.dims2()?;
        let missing = self.cache.shape.head_dim - self.heads.head_dim;
        let x = x.reshape((rows, n_heads, self.heads.head_dim))?;
        let x = x.to_dtype(self.cache.dtype)?;
        // Zeros add nothing to scores, and give columns of zeros.
        if missing == 0 {
            x.contiguous()
        } else {
            x.pad_with_zeros(D::Minus1, 0, missing)?.contiguous()
        }
    }
}

impl Attend for Paged<'_> {
    fn attend(&self, layer: usize, [q, k, v]: [&Tensor; 3]) -> Result<Tensor> {
        let Some(pages) = self.cache.layers.get(layer) else {
            bail!("no cache for layer {layer}")
        };
        let kernels = &*self.cache.kernels;
        let (dtype, n_heads, n_kv_heads) = (q.dtype(), self.heads.n_heads, self.heads.n_kv_heads);
        let (rows, width) = q.dims2()?;
        let (k, v) = (self.by_head(k, n_kv_heads)?, self.by_head(v, n_kv_heads)?);
        kernels.store(pages, [&k, &v], &self.plan.slots)?;
        let q = self.by_head(q, n_heads)?; // [rows, heads, head_dim]
        // The scale stays that of the true width.
        let heads = Heads {
            head_dim: self.cache.shape.head_dim,
            ..self.heads
        };
        let mut parts = Vec::with_capacity(self.plan.singles.len() + self.plan.runs.len());
        for group in &self.plan.singles {
            let q = q.index_select(&group.rows, 0)?;
            parts.push(kernels.singles(&q, pages, group, heads)?);
        }
        for run in &self.plan.runs {
            let q = q.narrow(0, run.rows.start, run.rows.len())?;
            let keys = pages.gather(&run.keys)?;
            parts.push(kernels.run(&q, keys, run, heads)?);
        }
        let y = Tensor::cat(&parts, 0)?;
        let y = match &self.plan.places {
            Some(places) => y.index_select(places, 0)?,
            None => y,
        };
        y.narrow(D::Minus1, 0, self.heads.head_dim)?
            .reshape((rows, width))?
            .to_dtype(dtype)
    }
}
