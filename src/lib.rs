//! Norma serves one frozen medical vision-language model with many LayerNorm adapters.
//!
//! - [`model`]: the frozen base as a computation whose norms read their values from a bank.

pub mod model;
