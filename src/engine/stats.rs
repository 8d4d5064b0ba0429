//! What an engine is doing and has done, as numbers for metrics.
//!
//! Written by the engine's thread once a step, read by anybody.

use norma_adapters::Generation;

use super::request::FinishReason;

/// A snapshot of an engine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EngineStats {
    /// Sequences that run.
    pub running: usize,
    /// Requests that wait.
    pub waiting: usize,
    /// Rows of the KV cache in blocks of running sequences.
    pub kv_rows_used: usize,
    /// Rows of the KV cache in blocks kept of ended sequences.
    pub kv_rows_kept: usize,
    /// Rows of the KV cache.
    pub kv_rows_total: usize,
    /// Bank slots that running sequences use.
    pub slots_used: usize,
    /// Bank slots that can hold an adapter.
    pub slots_total: usize,
    /// The adapters of the running sequences, each once, in no order.
    pub running_adapters: Vec<Generation>,
    /// The adapters of the waiting requests, each once, in no order.
    pub waiting_adapters: Vec<Generation>,
    /// Prompt rows computed since the start.
    pub prompt_tokens: u64,
    /// Tokens given out since the start.
    pub generated_tokens: u64,
    /// Steps since the start.
    pub steps: u64,
    /// Bank slots filled since the start.
    pub slots_filled: u64,
    /// Prompt rows looked up in the KV cache since the start.
    pub prefix_queries: u64,
    /// Prompt rows found there.
    pub prefix_hits: u64,
    /// Images looked up in the cache of features since the start.
    pub image_queries: u64,
    /// Images found there.
    pub image_hits: u64,
    /// Bytes of image features kept.
    pub image_bytes: usize,
    /// Sequences that had to give their cache blocks back and wait, since the start.
    pub preemptions: u64,
    /// Panics caught since the start.
    pub panics: u64,
    /// Requests ended since the start, by reason.
    pub finished: FinishedCounts,
}

/// Requests ended, by reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FinishedCounts {
    /// [`FinishReason::Stop`].
    pub stop: u64,
    /// [`FinishReason::Length`].
    pub length: u64,
    /// [`FinishReason::Cancelled`].
    pub cancelled: u64,
    /// [`FinishReason::Deadline`].
    pub deadline: u64,
    /// Ended by [`super::Event::Failed`].
    pub failed: u64,
}

impl FinishedCounts {
    pub(super) fn count(&mut self, reason: FinishReason) {
        match reason {
            FinishReason::Stop => self.stop += 1,
            FinishReason::Length => self.length += 1,
            FinishReason::Cancelled => self.cancelled += 1,
            FinishReason::Deadline => self.deadline += 1,
        }
    }

    /// All of them.
    pub fn total(&self) -> u64 {
        self.stop + self.length + self.cancelled + self.deadline + self.failed
    }
}
