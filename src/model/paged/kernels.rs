//! The wall to the kernels that work on pages, and a composition of candle's operations behind it.

use std::fmt::Debug;

use candle_core::{CpuStorage, DType, Device, InplaceOp2, Layout, Result, Tensor, bail};

use super::plan::{Gather, GatheredRows, Run, Singles};
use super::table::{PAGE_ROWS, PageShape};
use crate::model::ops::Kernels;
use crate::model::ops::attention::{AttentionLayout, Heads, Mask, Segment, attention};

/// One layer's pages.
#[derive(Debug)]
pub struct Pages {
    pub shape: PageShape,
    /// See [`PageShape::keys`].
    pub keys: Tensor,
    /// See [`PageShape::values`].
    pub values: Tensor,
}

impl Pages {
    /// Zeros.
    pub fn new(shape: PageShape, dtype: DType, device: &Device) -> Result<Self> {
        Ok(Self {
            shape,
            keys: Tensor::zeros(&shape.keys()[..], dtype, device)?,
            values: Tensor::zeros(&shape.values()[..], dtype, device)?,
        })
    }

    /// Where they are.
    pub fn device(&self) -> &Device {
        self.keys.device()
    }

    /// Copies of keys and values, `[keys, kv_heads, head_dim]` each.
    pub fn gather(&self, what: &Gather) -> Result<[Tensor; 2]> {
        let keys = self.keys.index_select(&what.pages, 0)?;
        let values = self.values.index_select(&what.pages, 0)?;
        let keys = keys.permute([0, 3, 1, 2, 4])?; // [pages, rows, kv_heads, columns, lanes]
        let values = values.permute([0, 3, 1, 2])?; // [pages, rows, kv_heads, head_dim]
        let rows = |pages: Tensor| {
            let n = what.pages.elem_count() * PAGE_ROWS;
            let rows =
                pages
                    .contiguous()?
                    .reshape((n, self.shape.n_kv_heads, self.shape.head_dim))?;
            match &what.rows {
                GatheredRows::From(first, n) => rows.narrow(0, *first, *n),
                GatheredRows::Each(each) => rows.index_select(each, 0),
            }
        };
        Ok([rows(keys)?, rows(values)?])
    }
}

/// Works on pages. Rows are `[rows, heads, head_dim]`, in the pages' type and with the pages' width.
pub trait PageKernels: Debug + Send + Sync {
    /// Puts new keys and values in their places.
    fn store(&self, pages: &Pages, rows: [&Tensor; 2], slots: &Tensor) -> Result<()>;

    /// Attention of rows that are alone in their segments over keys in pages.
    fn singles(&self, q: &Tensor, pages: &Pages, of: &Singles, heads: Heads) -> Result<Tensor>;

    /// Causal attention of a segment's rows over gathered keys and values.
    fn run(&self, q: &Tensor, keys: [Tensor; 2], of: &Run, heads: Heads) -> Result<Tensor>;
}

/// The same from candle's operations; stores on the CPU only.
#[derive(Debug)]
pub struct Composition;

impl PageKernels for Composition {
    fn store(&self, pages: &Pages, [k, v]: [&Tensor; 2], slots: &Tensor) -> Result<()> {
        let slots = slots.to_vec1::<i64>()?;
        let scatter = |is_key| Scatter {
            shape: pages.shape,
            slots: &slots,
            is_key,
        };
        pages.keys.inplace_op2(k, &scatter(true))?;
        pages.values.inplace_op2(v, &scatter(false))
    }

    fn singles(&self, q: &Tensor, pages: &Pages, of: &Singles, heads: Heads) -> Result<Tensor> {
        let (tables, lens) = (of.tables.to_vec2::<u32>()?, of.lens.to_vec1::<u32>()?);
        let (mut keys, mut values, mut segments) = (Vec::new(), Vec::new(), Vec::new());
        if lens.iter().any(|n| *n as usize > of.longest) {
            bail!(
                "{lens:?} keys, of which {} are said to be the most",
                of.longest
            );
        }
        let mut first = 0;
        for (row, (table, n)) in tables.iter().zip(lens).enumerate() {
            let n = n as usize;
            let [k, v] = pages.gather(&Gather::first(table, n, pages.device())?)?;
            keys.push(k);
            values.push(v);
            segments.push(Segment {
                rows: row..row + 1,
                keys: vec![first..first + n],
            });
            first += n;
        }
        let keys = [Tensor::cat(&keys, 0)?, Tensor::cat(&values, 0)?];
        let layout = AttentionLayout::new(segments, Mask::Causal { window: None })?;
        composed(q, keys, heads, &layout)
    }

    fn run(&self, q: &Tensor, keys: [Tensor; 2], of: &Run, heads: Heads) -> Result<Tensor> {
        let end = |ends: &Tensor| -> Result<usize> { Ok(ends.to_vec1::<u32>()?[1] as usize) };
        let own = Segment {
            rows: 0..end(&of.ends[0])?,
            keys: vec![0..end(&of.ends[1])?],
        };
        let window = of.window;
        let layout = AttentionLayout::new(vec![own], Mask::Causal { window })?;
        composed(q, keys, heads, &layout)
    }
}

fn composed(
    q: &Tensor,
    [k, v]: [Tensor; 2],
    heads: Heads,
    layout: &AttentionLayout,
) -> Result<Tensor> {
    let (q, k, v) = (q.flatten_from(1)?, k.flatten_from(1)?, v.flatten_from(1)?);
    let rows = q.dim(0)?;
    attention((&q, &k, &v), heads, layout, Kernels::Composed)?.reshape((
        rows,
        heads.n_heads,
        heads.head_dim,
    ))
}

struct Scatter<'a> {
    shape: PageShape,
    slots: &'a [i64],
    is_key: bool,
}

impl Scatter<'_> {
    fn scatter<T: Copy>(&self, rows: &[T], pages: &mut [T]) {
        let shape = self.shape;
        let width = shape.n_kv_heads * shape.head_dim;
        for (values, slot) in rows.chunks_exact(width).zip(self.slots) {
            for (i, value) in values.iter().enumerate() {
                let (head, column) = (i / shape.head_dim, i % shape.head_dim);
                let row = *slot as usize;
                let at = if self.is_key {
                    shape.key_at(row, head, column)
                } else {
                    shape.value_at(row, head, column)
                };
                pages[at] = *value;
            }
        }
    }
}

impl InplaceOp2 for Scatter<'_> {
    fn name(&self) -> &'static str {
        "page-scatter"
    }

    fn cpu_fwd(
        &self,
        pages: &mut CpuStorage,
        _: &Layout,
        rows: &CpuStorage,
        rows_layout: &Layout,
    ) -> Result<()> {
        let Some((start, end)) = rows_layout.contiguous_offsets() else {
            bail!("rows are not contiguous")
        };
        match (pages, rows) {
            (CpuStorage::F32(pages), CpuStorage::F32(rows)) => {
                self.scatter(&rows[start..end], pages);
            }
            (CpuStorage::BF16(pages), CpuStorage::BF16(rows)) => {
                self.scatter(&rows[start..end], pages);
            }
            _ => bail!("pages and rows hold f32 or bf16, both the same"),
        }
        Ok(())
    }
}
