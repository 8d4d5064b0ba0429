//! The engine's limits, and why an engine could not start.
//!
//! In: numbers an operator chooses. Out: the same, checked. Knows no model.

use thiserror::Error;

use crate::model::kv_cache::KvType;

/// Limits of an engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EngineConfig {
    /// Sequences that run at once, at most.
    pub max_sequences: usize,
    /// Rows (tokens and image rows) of one step, at most. A longer prompt is read in several steps.
    pub max_step_tokens: usize,
    /// Rows of prompts in a step in which answers go on, at most: fewer let answers flow more evenly, more
    /// read prompts faster. Requests in the background get half of them.
    pub max_rows_beside_answers: usize,
    /// Images encoded before one step, at most; a request with more of them is encoded alone.
    /// Few, because running answers wait meanwhile.
    pub max_step_images: usize,
    /// Rows of the KV cache: what all running sequences together may hold, in whole blocks, and what is
    /// kept of ended ones.
    pub kv_rows: usize,
    /// What keys and values are kept as.
    pub kv_type: KvType,
    /// Rows of one block of the KV cache.
    pub block_rows: usize,
    /// Slots of the norm bank, the base's included; so one less than the adapters in use at once.
    pub bank_slots: usize,
    /// Requests that wait, at most; more are refused.
    pub queue_len: usize,
    /// Whether a prompt that begins like an earlier one of the same tenant and adapter takes its keys and
    /// values over.
    pub prefix_cache: bool,
    /// Bytes of image features kept for further questions about the same images; 0 keeps none.
    pub image_cache_bytes: usize,
}

impl Default for EngineConfig {
    fn default() -> Self {
        Self {
            max_sequences: 32,
            max_step_tokens: 512,
            max_rows_beside_answers: 64,
            max_step_images: 2,
            kv_rows: 16_384,
            kv_type: KvType::F32,
            block_rows: 16,
            bank_slots: 64,
            queue_len: 256,
            prefix_cache: true,
            image_cache_bytes: 256 << 20,
        }
    }
}

/// Why an engine could not start.
#[derive(Debug, Error)]
pub enum EngineError {
    /// A number of the configuration is out of its range.
    #[error("`{field}` is {got}, it must be at least {least}")]
    TooSmall {
        /// The field of [`EngineConfig`].
        field: &'static str,
        /// Its value.
        got: usize,
        /// The least value that would work.
        least: usize,
    },
    /// The base's row does not fit the model's sites.
    #[error("the base's row has {got} values, the model's sites want {want}")]
    BaseRow {
        /// Values given.
        got: usize,
        /// Values wanted.
        want: usize,
    },
    /// The bank or the KV cache could not be made.
    #[error("the {what} could not be allocated")]
    Allocate {
        /// Which of them.
        what: &'static str,
        /// Why.
        source: candle_core::Error,
    },
    /// The operating system gave no thread.
    #[error("the engine's thread could not be started")]
    Thread(#[source] std::io::Error),
}

impl EngineConfig {
    /// Checks every number.
    pub fn check(&self) -> Result<(), EngineError> {
        let at_least = |field, got, least| {
            if got < least {
                Err(EngineError::TooSmall { field, got, least })
            } else {
                Ok(())
            }
        };
        at_least("max_sequences", self.max_sequences, 1)?;
        // Every running answer gets its token in every step.
        at_least("max_step_tokens", self.max_step_tokens, self.max_sequences)?;
        at_least("max_rows_beside_answers", self.max_rows_beside_answers, 1)?;
        at_least("max_step_images", self.max_step_images, 1)?;
        at_least("block_rows", self.block_rows, 1)?;
        at_least("kv_rows", self.kv_rows, self.block_rows)?;
        at_least("bank_slots", self.bank_slots, 1)?;
        at_least("queue_len", self.queue_len, 1)
    }

    /// Blocks of the KV cache.
    pub fn n_blocks(&self) -> usize {
        self.kv_rows / self.block_rows
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::paged::PAGE_ROWS;

    #[test]
    fn defaults_are_valid_and_each_number_has_its_least() {
        let config = EngineConfig::default();
        config.check().unwrap();
        // On a device a block is a page, or its keys would have to be gathered for every token.
        assert_eq!(config.block_rows, PAGE_ROWS);
        let field_of = |config: EngineConfig| match config.check() {
            Err(EngineError::TooSmall { field, .. }) => field,
            other => panic!("{other:?}"),
        };
        assert_eq!(
            field_of(EngineConfig {
                max_sequences: 0,
                ..config
            }),
            "max_sequences"
        );
        let few = EngineConfig {
            max_step_tokens: config.max_sequences - 1,
            ..config
        };
        assert_eq!(field_of(few), "max_step_tokens");
        assert_eq!(
            field_of(EngineConfig {
                max_rows_beside_answers: 0,
                ..config
            }),
            "max_rows_beside_answers"
        );
        assert_eq!(
            field_of(EngineConfig {
                max_step_images: 0,
                ..config
            }),
            "max_step_images"
        );
        assert_eq!(
            field_of(EngineConfig {
                block_rows: 0,
                ..config
            }),
            "block_rows"
        );
        let few = EngineConfig {
            kv_rows: config.block_rows - 1,
            ..config
        };
        assert_eq!(field_of(few), "kv_rows");
        assert_eq!(
            field_of(EngineConfig {
                bank_slots: 0,
                ..config
            }),
            "bank_slots"
        );
        assert_eq!(
            field_of(EngineConfig {
                queue_len: 0,
                ..config
            }),
            "queue_len"
        );
    }
}
