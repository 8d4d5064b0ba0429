//! Norma serves one frozen medical vision-language model with many LayerNorm adapters.
//!
//! - [`model`]: the frozen base as a computation whose norms read their values from a bank.
//! - [`preprocess`]: pictures to pixels, messages to prompt tokens, tokens to text.
//! - [`engine`]: the thread that owns the model and answers many requests at once.

pub mod engine;
pub mod model;
pub mod preprocess;
