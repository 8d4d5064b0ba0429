//! A linear map of a model: one wiring, whether its weight is frozen or trained.

use candle_core::{Result, Tensor};

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
        Ok(Self { weight: parameters.weight(name, shape, bias)? })
    }

    /// The map of a head that shares the token embedding, `[vocab, hidden]`.
    pub fn from_weight(weight: Weight) -> Self {
        Self { weight }
    }

    /// `[rows, in]` to `[rows, out]`.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match &self.weight {
            Weight::Frozen(linear) => linear.forward(x),
            Weight::Trainable { weight, bias } => {
                let y = x.matmul(&weight.t()?)?;
                match bias {
                    Some(bias) => y.broadcast_add(bias),
                    None => Ok(y),
                }
            }
        }
    }
}
