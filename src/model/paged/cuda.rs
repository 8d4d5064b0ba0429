//! The kernels of `mistralrs-paged-attn`.
//!
//! `paged_attention` for single rows; for runs `flash_attn_sinks_varlen`, which knows sliding windows and keeps no
//! scores in memory. Its "sinks" are left out. Both multiply in the rows' type and sum in f32.

use candle_core::{Result, Tensor};
use mistralrs_paged_attn::{flash_attn_sinks_varlen, paged_attention, reshape_and_cache};

use super::kernels::{PageKernels, Pages};
use super::plan::{Run, Singles};
use crate::model::ops::attention::Heads;

/// What `paged_attention` takes for "no soft capping".
const NO_SOFTCAPPING: f32 = 1.0;

/// See the module.
#[derive(Debug)]
pub struct Cuda;

impl PageKernels for Cuda {
    fn store(&self, pages: &Pages, [k, v]: [&Tensor; 2], slots: &Tensor) -> Result<()> {
        let (keys, values) = (&pages.keys, &pages.values);
        reshape_and_cache(k, v, None, None, keys, values, slots)
    }

    fn singles(&self, q: &Tensor, pages: &Pages, of: &Singles, heads: Heads) -> Result<Tensor> {
        paged_attention(
            &q.contiguous()?,
            None,
            None,
            &pages.keys,
            &pages.values,
            &of.tables,
            &of.lens,
            None,
            of.longest,
            heads.scale,
            NO_SOFTCAPPING,
            None,
        )
    }

    fn run(&self, q: &Tensor, [k, v]: [Tensor; 2], of: &Run, heads: Heads) -> Result<Tensor> {
        let q = q.transpose(0, 1)?.unsqueeze(0)?; // [1, heads, rows, head_dim]
        let [rows, keys] = &of.ends;
        let window = of.window.unwrap_or(0);
        flash_attn_sinks_varlen(&q, &k, &v, None, rows, keys, heads.scale, window)?
            .squeeze(0)?
            .transpose(0, 1)?
            .contiguous() // [rows, heads, head_dim]
    }
}
