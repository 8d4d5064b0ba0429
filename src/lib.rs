//! One frozen medical vision-language model, thousands of LayerNorm adapters.

pub mod preprocess;
