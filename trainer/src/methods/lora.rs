//! LoRA: a path of low rank beside frozen linear maps, `y = W x + (alpha / rank) B A x`. A starts as in
//! PEFT, uniform within `1 / sqrt(inputs)`; B at zero, so that the first answer is the base's. There is
//! no dropout. A head that is tied to the token embedding gets none.
//!
//! Reference: E. J. Hu et al., arXiv:2106.09685; the start is PEFT's (`init_lora_weights=True`).

use std::sync::Arc;

use candle_core::{Result, Tensor};
use norma::model::ops::frozen_linear::FrozenLinear;
use norma::model::ops::trained_linear::trained_linear;
use norma::model::parameters::{ParameterError, Weight};
use regex::Regex;
use serde::{Deserialize, Serialize};

use super::attachments::LinearMap;
use super::layernorm::pattern;
use super::{Attach, MethodError};

/// How wide the path is, and where it lies.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Lora {
    /// Rows of A.
    pub rank: usize,
    /// The path is multiplied by `alpha / rank`.
    pub alpha: f64,
    /// A regular expression found anywhere in a linear map's canonical name.
    pub targets: String,
}

impl Default for Lora {
    fn default() -> Self {
        Self {
            rank: 8,
            alpha: 16.0,
            targets: r"self_attn\.(q|v)_proj$".into(),
        }
    }
}

impl Lora {
    pub(super) fn attach(&self) -> std::result::Result<LoraRule, MethodError> {
        if self.rank == 0 {
            return Err(MethodError::Zero {
                method: "lora",
                field: "rank",
            });
        }
        if !(self.alpha > 0.0 && self.alpha.is_finite()) {
            return Err(MethodError::NotPositive {
                method: "lora",
                field: "alpha",
                got: self.alpha,
            });
        }
        Ok(LoraRule {
            rank: self.rank,
            scale: self.alpha / self.rank as f64,
            targets: pattern("targets", &self.targets)?,
        })
    }
}

pub(super) struct LoraRule {
    rank: usize,
    scale: f64,
    targets: Regex,
}

impl Attach for LoraRule {
    fn linear(&self, map: &LinearMap) -> std::result::Result<Weight, ParameterError> {
        if !self.targets.is_match(map.name) {
            return map.frozen(map.has_bias);
        }
        let bound = (map.n_in() as f64).sqrt().recip();
        let a = [self.rank, map.n_in()];
        let b = [map.n_out(), self.rank];
        Ok(Weight::Frozen(Arc::new(LoraLinear {
            inner: map.frozen_map(map.has_bias)?,
            a: map.added("lora_A.weight", &map.uniform("lora_A.weight", &a, bound)?)?,
            b: map.added("lora_B.weight", &map.filled(&b, 0.0)?)?,
            scale: self.scale,
        })))
    }
}

/// A frozen map with its path.
#[derive(Debug)]
struct LoraLinear {
    inner: Arc<dyn FrozenLinear>,
    /// `[rank, in]`.
    a: Tensor,
    /// `[out, rank]`.
    b: Tensor,
    scale: f64,
}

impl FrozenLinear for LoraLinear {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        // Multiplied where rows are narrow: backward keeps every tensor.
        let low = (trained_linear(x, &self.a, None)? * self.scale)?; // [rows, rank]
        self.inner.forward(x)? + trained_linear(&low, &self.b, None)?
    }

    fn bytes(&self) -> usize {
        self.inner.bytes() + (self.a.elem_count() + self.b.elem_count()) * 4
    }
}
