//! What one forward pass works on: a ragged batch of rows.
//!
//! Serving and training describe their batches the same way; they differ in where keys live.

use candle_core::{Device, Result, Tensor, bail};

use super::kv_cache::KvCache;
use super::ops::RowIndex;
use super::ops::attention::{AttentionLayout, Mask, Segment};

/// What a row of the batch is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RowInput {
    /// A token of the vocabulary.
    Token(u32),
    /// A row of the step's image features.
    Feature(u32),
}

/// A ragged batch: the rows of many sequences, each row with its position and its adapter slot.
#[derive(Clone, Debug, Default)]
pub struct Step {
    /// What each row is.
    pub inputs: Vec<RowInput>,
    /// Each row's position in its sequence.
    pub positions: Vec<u32>,
    /// Each row's adapter slot.
    pub slots: Vec<u32>,
    /// The segments of rows and the keys they see: rows of the KV cache if `cache_rows` is given, rows
    /// of this batch otherwise.
    pub segments: Vec<Segment>,
    /// Where the new keys and values go in the KV cache, one a row.
    pub cache_rows: Option<Vec<u32>>,
    /// `[features, hidden]`, which [`RowInput::Feature`] indexes.
    pub image_features: Option<Tensor>,
    /// The rows whose logits are wanted.
    pub logits_rows: Vec<u32>,
}

/// The parts of a checked step on the model's device.
#[derive(Debug)]
pub struct StepTensors {
    /// Positions.
    pub positions: RowIndex,
    /// Slots.
    pub slots: RowIndex,
    /// Slots of the rows whose logits are wanted.
    pub logits_slots: RowIndex,
    /// The rows whose logits are wanted.
    pub logits_rows: RowIndex,
    /// Causal attention over the segments.
    pub layout: AttentionLayout,
}

impl Step {
    /// The number of rows.
    pub fn len(&self) -> usize {
        self.inputs.len()
    }

    /// Whether there is nothing to compute.
    pub fn is_empty(&self) -> bool {
        self.inputs.is_empty()
    }

    /// Whether the logits of every row are wanted, in row order.
    pub fn wants_all_logits(&self) -> bool {
        self.logits_rows.iter().copied().eq(0..self.len() as u32)
    }

    /// Checks that the parts fit each other and moves them to `device`.
    pub fn tensors(
        &self,
        window: Option<usize>,
        n_slots: usize,
        device: &Device,
    ) -> Result<StepTensors> {
        let rows = self.len();
        if self.positions.len() != rows || self.slots.len() != rows {
            bail!(
                "{rows} rows, {} positions, {} slots",
                self.positions.len(),
                self.slots.len()
            );
        }
        if self
            .cache_rows
            .as_ref()
            .is_some_and(|into| into.len() != rows)
        {
            bail!("cache rows do not match the {rows} rows");
        }
        if let Some(slot) = self.slots.iter().find(|slot| **slot as usize >= n_slots) {
            bail!("slot {slot} is beyond the {n_slots} of the bank");
        }
        let mut logits_slots = Vec::with_capacity(self.logits_rows.len());
        for row in &self.logits_rows {
            let Some(slot) = self.slots.get(*row as usize) else {
                bail!("logits of row {row} are wanted, the batch has {rows}")
            };
            logits_slots.push(*slot);
        }
        Ok(StepTensors {
            positions: RowIndex::new(&self.positions, device)?,
            slots: RowIndex::new(&self.slots, device)?,
            logits_slots: RowIndex::new(&logits_slots, device)?,
            logits_rows: RowIndex::new(&self.logits_rows, device)?,
            layout: AttentionLayout::new(self.segments.clone(), Mask::Causal { window })?,
        })
    }

    /// The keys and values that attention reads: the batch's own, or the cache's after storing them.
    pub fn keys_and_values(
        &self,
        layer: usize,
        (k, v): (Tensor, Tensor),
        cache: Option<&KvCache>,
    ) -> Result<(Tensor, Tensor)> {
        match (&self.cache_rows, cache) {
            (Some(into), Some(cache)) => cache.store(layer, (&k, &v), into),
            (None, _) => Ok((k, v)),
            (Some(_), None) => bail!("a step with cache rows needs a cache"),
        }
    }
}
