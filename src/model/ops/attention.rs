//! Attention over a ragged batch: every segment of query rows sees its own list of key rows.
//!
//! The keys of a segment are spans of rows of one key tensor. While training that tensor holds the
//! batch's own keys, and several segments may share a span (questions behind one image); while serving
//! it is the KV cache, and the spans are a sequence's blocks. Nothing is padded.

use std::ops::Range;
use std::sync::Arc;

use candle_core::{
    CpuStorage, CustomOp3, D, DType, Device, Layout, Result, Shape, Tensor, WithDType, bail,
};
use half::bf16;

use super::Kernels;
use super::cpu::attention::Input;
use super::cpu::element::Element;
use super::cpu::{self, contiguous_slice};

/// The shape of the heads: `n_heads` queries share `n_kv_heads` keys in equal groups.
#[derive(Clone, Copy, Debug)]
pub struct Heads {
    /// Query heads.
    pub n_heads: usize,
    /// Key and value heads; divides `n_heads`.
    pub n_kv_heads: usize,
    /// The width of one head.
    pub head_dim: usize,
    /// What multiplies the scores before the softmax.
    pub scale: f32,
}

impl Heads {
    /// The usual scale, `1 / sqrt(head_dim)`.
    pub fn new(n_heads: usize, n_kv_heads: usize, head_dim: usize) -> Self {
        Self {
            n_heads,
            n_kv_heads,
            head_dim,
            scale: (head_dim as f32).sqrt().recip(),
        }
    }

    /// The width of a query row.
    pub(super) fn width(&self) -> usize {
        self.n_heads * self.head_dim
    }

    /// The width of a key (and a value) row.
    pub(super) fn kv_width(&self) -> usize {
        self.n_kv_heads * self.head_dim
    }

    /// How many query heads share a key-value head.
    pub(super) fn group(&self) -> usize {
        self.n_heads / self.n_kv_heads
    }

    /// The query heads that share `kv_head`.
    pub(super) fn sharing(&self, kv_head: usize) -> Range<usize> {
        kv_head * self.group()..(kv_head + 1) * self.group()
    }
}

/// Which keys of its segment a query sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mask {
    /// All of them.
    Bidirectional,
    /// Those at its own position and before; with a window, only the last `window` of them.
    Causal {
        /// Mistral's sliding window, in positions.
        window: Option<usize>,
    },
}

/// Query rows that see the same keys, up to the mask.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// The query rows.
    pub rows: Range<usize>,
    /// The key rows in the order of their positions. The last `rows.len()` positions are the queries' own.
    pub keys: Vec<Range<usize>>,
}

impl Segment {
    /// The number of keys.
    pub fn n_keys(&self) -> usize {
        self.keys.iter().map(Range::len).sum()
    }
}

/// The segments of a batch and their mask.
#[derive(Clone, Debug)]
pub struct AttentionLayout {
    segments: Arc<[Segment]>,
    /// The keys' rows by position, segment after segment.
    keys: Arc<[u32]>,
    mask: Mask,
}

impl AttentionLayout {
    /// Segments must cover the query rows in order, without gaps, and hold at least as many keys as rows.
    pub fn new(segments: Vec<Segment>, mask: Mask) -> Result<Self> {
        let mut next = 0;
        for segment in &segments {
            if segment.rows.start != next || segment.rows.is_empty() {
                bail!("segment {:?} does not follow row {next}", segment.rows);
            }
            if segment.n_keys() < segment.rows.len() {
                bail!(
                    "segment {:?} has fewer keys ({}) than rows",
                    segment.rows,
                    segment.n_keys()
                );
            }
            next = segment.rows.end;
        }
        let spans = segments.iter().flat_map(|segment| segment.keys.clone());
        Ok(Self {
            keys: spans.flatten().map(|row| row as u32).collect(),
            segments: segments.into(),
            mask,
        })
    }

    /// Equal runs of `rows` rows that see themselves only: the images of a vision tower.
    pub fn blocks(n: usize, rows: usize) -> Result<Self> {
        let block = |i: usize| i * rows..(i + 1) * rows;
        let segments = (0..n)
            .map(|i| Segment {
                rows: block(i),
                keys: vec![block(i)],
            })
            .collect();
        Self::new(segments, Mask::Bidirectional)
    }

    /// The segments, in row order.
    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// Which keys of its segment a query sees.
    pub fn mask(&self) -> Mask {
        self.mask
    }

    /// The segments, each with the rows of its keys by position.
    pub(super) fn parts(&self) -> impl Iterator<Item = (&Segment, &[u32])> {
        let mut rest = &*self.keys;
        self.segments.iter().map(move |segment| {
            let (keys, tail) = rest.split_at(segment.n_keys());
            rest = tail;
            (segment, keys)
        })
    }

    /// The positions of a segment's keys that its query `row` sees.
    pub fn visible(&self, segment: &Segment, row: usize) -> Range<usize> {
        let n_keys = segment.n_keys();
        match self.mask {
            Mask::Bidirectional => 0..n_keys,
            Mask::Causal { window } => {
                let end = n_keys + row + 1 - segment.rows.end;
                end.saturating_sub(window.unwrap_or(end))..end
            }
        }
    }

    fn check(&self, q: &Tensor, k: &Tensor, v: &Tensor, heads: Heads) -> Result<()> {
        let (rows, q_width) = q.dims2()?;
        let (n_keys, kv_width) = k.dims2()?;
        if v.dims2()? != (n_keys, kv_width)
            || q_width != heads.width()
            || kv_width != heads.kv_width()
        {
            bail!(
                "attention got q {:?}, k {:?}, v {:?} for {heads:?}",
                q.shape(),
                k.shape(),
                v.shape()
            );
        }
        let covered = self.segments.last().map_or(0, |segment| segment.rows.end);
        let spans = self.segments.iter().flat_map(|segment| &segment.keys);
        let keys_end = spans.map(|span| span.end).max().unwrap_or(0);
        if covered != rows || keys_end > n_keys {
            bail!("segments cover {covered} rows of {rows}, keys to {keys_end} of {n_keys}");
        }
        Ok(())
    }
}

/// `softmax(q k^T * scale) v` by segment. `q`: `[rows, n_heads * head_dim]`; `k` and `v`:
/// `[keys, n_kv_heads * head_dim]`, f32 or, without gradients, bf16; the result has the shape of `q`.
pub fn attention(
    (q, k, v): (&Tensor, &Tensor, &Tensor),
    heads: Heads,
    layout: &AttentionLayout,
    kernels: Kernels,
) -> Result<Tensor> {
    layout.check(q, k, v, heads)?;
    match kernels {
        Kernels::Fused => {
            let op = Attention {
                heads,
                layout: layout.clone(),
            };
            q.contiguous()?
                .apply_op3(&k.contiguous()?, &v.contiguous()?, op)
        }
        Kernels::Composed => composed((q, k, v), heads, layout),
    }
}

fn composed(
    (q, k, v): (&Tensor, &Tensor, &Tensor),
    heads: Heads,
    layout: &AttentionLayout,
) -> Result<Tensor> {
    let dtype = q.dtype();
    let group = heads.group();
    let outputs = layout.segments.iter().map(|segment| {
        let (n_rows, n_keys) = (segment.rows.len(), segment.n_keys());
        let q = q
            .narrow(0, segment.rows.start, n_rows)?
            .reshape((n_rows, heads.n_kv_heads, group, heads.head_dim))?
            .permute((1, 2, 0, 3))?
            .contiguous()?
            .reshape((heads.n_kv_heads, group * n_rows, heads.head_dim))?
            .to_dtype(DType::F32)?; // [kv_heads, group * rows, head_dim]
        let gather = |t: &Tensor| {
            let spans: Vec<Tensor> = segment
                .keys
                .iter()
                .map(|span| t.narrow(0, span.start, span.len()))
                .collect::<Result<_>>()?;
            Tensor::cat(&spans, 0)?
                .reshape((n_keys, heads.n_kv_heads, heads.head_dim))?
                .transpose(0, 1)?
                .contiguous()?
                .to_dtype(DType::F32) // [kv_heads, keys, head_dim]
        };
        let (k, v) = (gather(k)?, gather(v)?);
        let scores = (q.matmul(&k.t()?)? * f64::from(heads.scale))?;
        let scores = match hidden_keys(layout, segment, q.device())? {
            None => scores,
            Some(mask) => scores
                .reshape((heads.n_kv_heads, group, n_rows, n_keys))?
                .broadcast_add(&mask)?
                .reshape((heads.n_kv_heads, group * n_rows, n_keys))?,
        };
        // The largest score is a constant of the softmax, so it needs no gradient.
        let scores = scores
            .broadcast_sub(&scores.max_keepdim(D::Minus1)?.detach())?
            .exp()?;
        let p = scores.broadcast_div(&scores.sum_keepdim(D::Minus1)?)?;
        p.matmul(&v)?
            .reshape((heads.n_kv_heads, group, n_rows, heads.head_dim))?
            .permute((2, 0, 1, 3))?
            .reshape((n_rows, heads.n_heads * heads.head_dim)) // [rows, heads * head_dim]
    });
    Tensor::cat(&outputs.collect::<Result<Vec<_>>>()?, 0)?.to_dtype(dtype)
}

/// What is added to the scores of a segment, `[rows, keys]`: minus infinity where a query does not see a key.
/// `None` where all queries see all keys. Made on the device from each row's first and last key.
fn hidden_keys(
    layout: &AttentionLayout,
    segment: &Segment,
    device: &Device,
) -> Result<Option<Tensor>> {
    let (n_rows, n_keys) = (segment.rows.len(), segment.n_keys());
    let visible = segment.rows.clone().map(|row| layout.visible(segment, row));
    let visible: Vec<Range<usize>> = visible.collect();
    if visible.iter().all(|visible| *visible == (0..n_keys)) {
        return Ok(None);
    }
    let column = |of: fn(&Range<usize>) -> usize| {
        let values: Vec<u32> = visible.iter().map(|visible| of(visible) as u32).collect();
        Tensor::from_vec(values, (n_rows, 1), device)
    };
    let keys = Tensor::arange(0, n_keys as u32, device)?.unsqueeze(0)?; // [1, keys]
    let begun = keys.broadcast_ge(&column(|visible| visible.start)?)?;
    let not_over = keys.broadcast_lt(&column(|visible| visible.end)?)?;
    let hidden = Tensor::new(f32::NEG_INFINITY, device)?.broadcast_as((n_rows, n_keys))?;
    let seen = hidden.zeros_like()?;
    let mask = (begun * not_over)?.where_cond(&seen, &hidden)?;
    Ok(Some(mask))
}

struct Attention {
    heads: Heads,
    layout: AttentionLayout,
}

impl Attention {
    fn forward<E: Element + WithDType>(
        &self,
        (q, q_layout): (&CpuStorage, &Layout),
        [(k, k_layout), (v, v_layout)]: [(&CpuStorage, &Layout); 2],
    ) -> Result<Vec<f32>> {
        let input = Input {
            q: contiguous_slice(q, q_layout)?,
            k: contiguous_slice::<E>(k, k_layout)?,
            v: contiguous_slice::<E>(v, v_layout)?,
            heads: self.heads,
        };
        Ok(cpu::attention::forward(input, &self.layout))
    }
}

impl CustomOp3 for Attention {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn cpu_fwd(
        &self,
        q: &CpuStorage,
        q_layout: &Layout,
        k: &CpuStorage,
        k_layout: &Layout,
        v: &CpuStorage,
        v_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let q = (q, q_layout);
        let kv = [(k, k_layout), (v, v_layout)];
        let out = match k {
            CpuStorage::BF16(_) => self.forward::<bf16>(q, kv)?,
            _ => self.forward::<f32>(q, kv)?,
        };
        Ok((CpuStorage::F32(out), q_layout.shape().clone()))
    }

    fn bwd(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        _out: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let [dq, dk, dv] = cpu::with_slices([q, k, v, grad], |slices| {
            let (heads, layout) = (self.heads, &self.layout);
            Ok(cpu::attention_gradient::backward(slices, heads, layout))
        })?;
        Ok((
            Some(Tensor::from_vec(dq, q.shape(), q.device())?),
            Some(Tensor::from_vec(dk, k.shape(), k.device())?),
            Some(Tensor::from_vec(dv, v.shape(), v.device())?),
        ))
    }
}
