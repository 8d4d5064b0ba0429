//! Norma serves one frozen medical vision-language model with many LayerNorm adapters.
//!
//! - [`preprocess`]: what lies between a client's bytes and the model's inputs.

pub mod preprocess;
