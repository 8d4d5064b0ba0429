//! A linear map of a model: one wiring, whether its weight is frozen or trained.

use candle_core::{Result, Tensor};

use super::ops::trained_linear::trained_linear;
use super::parameters::{ParameterError, Parameters, Weight};

/// `y = x W^T (+ b)`.
#[derive(Clone, Debug)]
pub struct Linear {
    weight: Weight,
}

impl Linear {
    /// Asks for `name.weight` of `shape` (`[out, ...]`, trailing dimensions flattened) and, with
    /// `bias`, for `name.bias`.
    pub fn new(
        parameters: &dyn Parameters,
        name: &str,
        shape: &[usize],
        bias: bool,
    ) -> std::result::Result<Self, ParameterError> {
        Ok(Self {
            weight: parameters.read_linear(name, shape, bias)?,
        })
    }

    /// A map that shares a table (`[out, in]`) that the model already has: a tied head.
    pub fn shared(
        parameters: &dyn Parameters,
        name: &str,
        table: &Tensor,
    ) -> std::result::Result<Self, ParameterError> {
        Ok(Self {
            weight: parameters.tied_linear(name, table)?,
        })
    }

    /// `[rows, in]` to `[rows, out]`.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match &self.weight {
            Weight::Frozen(linear) => linear.forward(x),
            Weight::Trainable { weight, bias } => trained_linear(x, weight, bias.as_ref()),
        }
    }
}
