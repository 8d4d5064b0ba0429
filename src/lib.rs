//! Norma serves one frozen medical vision-language model with many LayerNorm adapters.
//!
//! - [`base`]: a checkpoint folder in, everything that identifies and builds the model out.
//! - [`preprocess`]: a client's bytes and messages in, the model's inputs out.
//! - [`model`]: the frozen base as a computation whose norms read their values from a bank.
//! - [`engine`]: one thread that runs the model for many requests at once.
//! - [`probe`]: the images of adapters' self-tests. [`confidence`]: how sure an answer is.
//! - `http` (feature `serve`): the server around the engine.

pub mod base;
pub mod confidence;
pub mod engine;
#[cfg(feature = "serve")]
pub mod http;
pub mod model;
pub mod preprocess;
pub mod probe;
