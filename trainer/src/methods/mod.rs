//! The methods of the study: which values of a base learn, and what is attached to it for that. In: a
//! method's name and options. Out: what each parameter of a base becomes. It must not know lessons,
//! losses or files.
//!
//! One file a method: [`layernorm`], `linear_parts` (FFN, attention and full tuning), `bias`, `lora`,
//! `ia3`, `prefix`. [`attachments`] stands between a checkpoint and the model and does what
//! the method says; [`trained`] is the file of what was learnt. Everything that a method does not name
//! stays frozen: no gradient, no optimiser state, no product for a weight's gradient.
//!
//! Only LayerNorm tuning makes an adapter that the server takes. The others are there to be compared.

pub mod attachments;
mod bias;
mod error;
mod ia3;
pub mod layernorm;
mod linear_parts;
mod lora;
mod prefix;
pub mod trained;

use norma::model::parameters::{ParameterError, Weight};
use norma_adapters::{Part, Scope, Site};
use serde::{Deserialize, Serialize};

use attachments::LinearMap;
pub use error::MethodError;
pub use layernorm::{LayerNorm, NormValues};
pub use lora::Lora;
pub use prefix::Prefix;

/// What learns.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "name", rename_all = "snake_case", deny_unknown_fields)]
pub enum Method {
    /// Norm values.
    #[serde(rename = "layernorm")]
    LayerNorm(LayerNorm),
    /// Weights and biases of the MLPs in the layers of tower and decoder.
    Ffn,
    /// Weights and biases of the attention projections.
    Attention,
    /// Everything that the base's answer depends on.
    Full,
    /// All biases, of linear maps and norms.
    Bias,
    /// A low-rank path beside linear maps.
    Lora(Lora),
    /// Factors of keys, values and what is inside the MLPs.
    Ia3,
    /// Keys and values before every sequence.
    Prefix(Prefix),
}

impl Default for Method {
    fn default() -> Self {
        Self::LayerNorm(LayerNorm::default())
    }
}

impl Method {
    /// The word for the method.
    pub fn name(&self) -> &'static str {
        match self {
            Self::LayerNorm(_) => "layernorm",
            Self::Ffn => "ffn",
            Self::Attention => "attention",
            Self::Full => "full",
            Self::Bias => "bias",
            Self::Lora(_) => "lora",
            Self::Ia3 => "ia3",
            Self::Prefix(_) => "prefix",
        }
    }

    /// Whether what it learns is an adapter that the server takes.
    pub fn makes_adapter(&self) -> bool {
        matches!(self, Self::LayerNorm(_))
    }
}

/// A method, the part of the base that it may touch, and the seed of what it adds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Choice {
    /// What learns.
    pub method: Method,
    /// Where.
    pub scope: Scope,
    /// Seed of first values that the base does not give.
    pub seed: u64,
}

impl Choice {
    /// Norm values of a scope.
    pub fn layernorm(scope: Scope) -> Self {
        Self {
            method: Method::default(),
            scope,
            seed: 0,
        }
    }

    /// Which values of a norm learn.
    pub fn norm_rule(&self) -> Result<impl Fn(&Site) -> Learns, MethodError> {
        let (attach, scope) = (self.attach()?, self.scope);
        Ok(move |site: &Site| {
            if site.used && scope.selects(site.part) {
                attach.norm(site)
            } else {
                Learns::default()
            }
        })
    }

    /// The method with its options checked.
    fn attach(&self) -> Result<Box<dyn Attach>, MethodError> {
        Ok(match &self.method {
            Method::LayerNorm(options) => Box::new(options.attach()?),
            Method::Ffn => Box::new(linear_parts::Ffn),
            Method::Attention => Box::new(linear_parts::Attention),
            Method::Full => Box::new(linear_parts::Full),
            Method::Bias => Box::new(bias::Bias),
            Method::Lora(options) => Box::new(options.attach()?),
            Method::Ia3 => Box::new(ia3::Ia3),
            Method::Prefix(options) => Box::new(options.checked()?),
        })
    }

    /// The error for a choice that trains nothing, with the reason as far as it is known.
    pub fn nothing(&self) -> MethodError {
        let scope = self.scope;
        let pattern = match &self.method {
            Method::LayerNorm(LayerNorm { sites, .. }) => sites.clone().map(|one| ("sites", one)),
            Method::Lora(Lora { targets, .. }) => Some(("targets", targets.clone())),
            _ => None,
        };
        match pattern {
            Some((field, pattern)) => MethodError::NoMatch {
                field,
                pattern,
                scope,
            },
            None => MethodError::Nothing {
                method: self.method.name(),
                scope,
            },
        }
    }
}

/// Which values of a norm learn.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Learns {
    /// What multiplies.
    pub gain: bool,
    /// What is added, where there is such.
    pub bias: bool,
}

impl Learns {
    /// Whether any does.
    pub fn any(self) -> bool {
        self.gain || self.bias
    }
}

/// What a method does with a base. Only what its scope selects is shown to it.
trait Attach: Send + Sync {
    /// What runs a linear map.
    fn linear(&self, map: &LinearMap) -> Result<Weight, ParameterError> {
        map.frozen(map.has_bias)
    }

    /// Whether a tensor that belongs to no linear map (an embedding, a table of positions) is trained.
    fn trains_tensor(&self) -> bool {
        false
    }

    /// Which values of a norm learn.
    fn norm(&self, _site: &Site) -> Learns {
        Learns::default()
    }

    /// Tokens of keys and values before every sequence.
    fn prefix_tokens(&self) -> usize {
        0
    }
}

/// The part of a base that a canonical tensor name belongs to.
pub fn part_of(name: &str) -> Part {
    if name.starts_with("vision_tower.") {
        Part::Vision
    } else if name.starts_with("multi_modal_projector.") {
        Part::Projector
    } else {
        Part::Language
    }
}

#[cfg(test)]
mod tests;
