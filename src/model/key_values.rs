//! The wall between a model and the place where keys and values of running sequences are kept.
//!
//! In: a step, and each layer's new queries, keys and values. Out: what attention gives. A model does not
//! know whether keys lie row by row in the CPU's memory ([`KvCache`]), in pages of a device
//! ([`super::paged::PagedCache`]), or in the batch only.

use std::fmt::Debug;

use candle_core::{Device, Result, Tensor};

use super::kv_cache::{self, KvCache, KvType};
use super::ops::Kernels;
use super::ops::attention::{AttentionLayout, Heads, attention};
use super::paged::{self, PagedCache};
use super::step::Step;
use super::{MedVlm, ModelShape};

/// Keeps the keys and values of running sequences. Which rows belong to which sequence is the engine's
/// business; a step names them.
pub trait KeyValues: Debug + Send {
    /// Prepares a step, once for all layers.
    fn begin<'a>(&'a self, step: StepOfHeads<'a>) -> Result<Box<dyn Attend + 'a>>;

    /// The rows themselves, where each lies in one piece: for models whose attention is their own.
    fn as_rows(&self) -> Option<&KvCache> {
        None
    }
}

/// One step's attention, layer by layer.
pub trait Attend {
    /// Keeps a layer's new keys and values (`[rows, kv_width]`) and gives the attention of its queries
    /// (`[rows, n_heads * head_dim]`) over all that they see, in the shape and type of the queries.
    fn attend(&self, layer: usize, qkv: [&Tensor; 3]) -> Result<Tensor>;
}

/// A step with what its attention needs.
#[derive(Clone, Copy, Debug)]
pub struct StepOfHeads<'a> {
    /// The step.
    pub step: &'a Step,
    /// Its segments and their mask.
    pub layout: &'a AttentionLayout,
    /// The model's heads.
    pub heads: Heads,
    /// Fused or composed.
    pub kernels: Kernels,
}

/// A step's attention over the cache's rows or, without a cache, over the batch's own.
pub fn begin<'a>(
    of: StepOfHeads<'a>,
    cache: Option<&'a dyn KeyValues>,
) -> Result<Box<dyn Attend + 'a>> {
    match cache {
        Some(cache) if of.step.cache_rows.is_some() => cache.begin(of),
        _ => Ok(Box::new(Rows { of, cache: None })),
    }
}

/// A cache of `capacity` rows, empty, on the model's device and in its way.
pub fn cache_of(
    model: &dyn MedVlm,
    capacity: usize,
    kv_type: KvType,
) -> Result<Box<dyn KeyValues>> {
    let (shape, device) = (model.shape(), model.device());
    Ok(if device.is_cpu() {
        Box::new(KvCache::new(shape, capacity, kv_type)?)
    } else {
        Box::new(PagedCache::new(shape, capacity, kv_type, device)?)
    })
}

/// Bytes of a token's keys and values in such a cache, all layers.
pub fn token_bytes(shape: &ModelShape, kv_type: KvType, device: &Device) -> usize {
    if device.is_cpu() {
        kv_cache::token_bytes(shape, kv_type)
    } else {
        paged::token_bytes(shape, kv_type)
    }
}

impl KeyValues for KvCache {
    fn begin<'a>(&'a self, of: StepOfHeads<'a>) -> Result<Box<dyn Attend + 'a>> {
        let cache = Some(self);
        Ok(Box::new(Rows { of, cache }))
    }

    fn as_rows(&self) -> Option<&KvCache> {
        Some(self)
    }
}

struct Rows<'a> {
    of: StepOfHeads<'a>,
    cache: Option<&'a KvCache>,
}

impl Attend for Rows<'_> {
    fn attend(&self, layer: usize, [q, k, v]: [&Tensor; 3]) -> Result<Tensor> {
        let StepOfHeads {
            step,
            layout,
            heads,
            kernels,
        } = self.of;
        let (k, v) = step.keys_and_values(layer, (k.clone(), v.clone()), self.cache)?;
        attention((q, &k, &v), heads, layout, kernels)
    }
}
