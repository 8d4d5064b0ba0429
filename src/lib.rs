//! Norma serves one frozen medical vision-language model with many LayerNorm adapters.
//!
//! - [`base`]: a checkpoint folder in, everything that identifies and builds the model out.
//! - [`model`]: the frozen base as a computation whose norms read their values from a bank.

pub mod base;
pub mod model;
