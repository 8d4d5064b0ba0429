//! Learned keys and values that every sequence sees before its own: prefix tuning.
//!
//! In: a step as its maker built it, and a layer's keys and values. Out: the step moved behind the
//! prefix, and the keys with the prefix in front. Neither the step's maker nor the KV cache knows of it.
//!
//! Reference: X. L. Li, P. Liang, arXiv:2101.00190. As in PEFT, keys are learned as attention meets
//! them (already rotated), and the positions of a sequence start behind them.

use candle_core::{Result, Tensor};

use super::parameters::{ParameterError, Parameters};
use super::step::Step;

/// The prefix of one decoder layer.
#[derive(Clone, Debug)]
pub struct LayerPrefix {
    /// `[tokens, kv_width]`.
    keys: Tensor,
    /// `[tokens, kv_width]`.
    values: Tensor,
}

impl LayerPrefix {
    /// Asks for the prefix of the attention `name`, if there is one.
    pub fn read(
        parameters: &dyn Parameters,
        name: &str,
        kv_width: usize,
    ) -> std::result::Result<Option<Self>, ParameterError> {
        let tokens = parameters.prefix_tokens();
        if tokens == 0 {
            return Ok(None);
        }
        let read = |what: &str| parameters.tensor(&format!("{name}.{what}"), &[tokens, kv_width]);
        Ok(Some(Self {
            keys: read("prefix_keys")?,
            values: read("prefix_values")?,
        }))
    }

    /// Keys and values with the prefix's in the first rows.
    pub fn before(&self, (k, v): (Tensor, Tensor)) -> Result<(Tensor, Tensor)> {
        let join = |prefix: &Tensor, own: &Tensor| {
            Tensor::cat(&[&prefix.to_dtype(own.dtype())?, own], 0) // [tokens + rows, kv_width]
        };
        Ok((join(&self.keys, &k)?, join(&self.values, &v)?))
    }
}

/// The same step with all positions and key rows `tokens` further on, and every segment seeing the
/// first `tokens` key rows before its own.
pub fn behind(step: &Step, tokens: usize) -> Step {
    let mut step = step.clone();
    for position in &mut step.positions {
        *position += tokens as u32;
    }
    for segment in &mut step.segments {
        for span in &mut segment.keys {
            *span = span.start + tokens..span.end + tokens;
        }
        segment.keys.insert(0, 0..tokens);
    }
    step
}
