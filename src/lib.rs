//! Norma serves one frozen medical vision-language model with many LayerNorm adapters.
//!
//! - [`base`]: a checkpoint folder in, everything that identifies and builds the model out.
//! - [`preprocess`]: a client's bytes and messages in, the model's inputs out.
//! - [`model`]: the frozen base as a computation whose norms read their values from a bank.
//! - [`engine`]: one thread that runs the model for many requests at once.

pub mod base;
pub mod engine;
pub mod model;
pub mod preprocess;
