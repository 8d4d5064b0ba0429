//! Prefix tuning: keys and values, of every decoder layer, that each sequence sees before its own. The
//! model asks for them by name (`norma::model::prefix`); here is how many, and from where they start:
//! from a normal distribution, as in PEFT.
//!
//! Reference: X. L. Li, P. Liang, arXiv:2101.00190, without the network that the paper makes them with.

use serde::{Deserialize, Serialize};

use super::{Attach, MethodError};

/// How long the prefix is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Prefix {
    /// Tokens; every sequence has that many positions less.
    pub tokens: usize,
}

impl Default for Prefix {
    fn default() -> Self {
        Self { tokens: 16 }
    }
}

impl Prefix {
    pub(super) fn checked(self) -> Result<Self, MethodError> {
        if self.tokens == 0 {
            return Err(MethodError::Zero {
                method: "prefix",
                field: "tokens",
            });
        }
        Ok(self)
    }
}

impl Attach for Prefix {
    fn prefix_tokens(&self) -> usize {
        self.tokens
    }
}
