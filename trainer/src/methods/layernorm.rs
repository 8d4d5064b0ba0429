//! LayerNorm tuning: norm values learn, and nothing is attached. The only method whose result the server
//! takes, since all that differs between its adapters is one row of the norm bank.
//!
//! Reference: arXiv:2404.16385.

use norma_adapters::Site;
use regex::Regex;
use serde::{Deserialize, Serialize};

use super::{Attach, Learns, MethodError};

/// Which norm values learn, within the scope.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LayerNorm {
    /// A regular expression found anywhere in a site's canonical name; all sites without one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sites: Option<String>,
    /// Gains, biases or both.
    #[serde(default)]
    pub values: NormValues,
}

/// Gains, biases or both.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NormValues {
    /// All.
    #[default]
    Both,
    /// What multiplies.
    Gain,
    /// What is added: norms without such stay as they are.
    Bias,
}

impl LayerNorm {
    pub(super) fn attach(&self) -> Result<NormRule, MethodError> {
        let sites = self.sites.as_deref().map(|one| pattern("sites", one));
        Ok(NormRule {
            sites: sites.transpose()?,
            values: self.values,
        })
    }
}

/// A regular expression, or which field holds none.
pub(super) fn pattern(field: &'static str, pattern: &str) -> Result<Regex, MethodError> {
    Regex::new(pattern).map_err(|source| MethodError::Pattern {
        field,
        pattern: pattern.into(),
        source: Box::new(source),
    })
}

pub(super) struct NormRule {
    sites: Option<Regex>,
    values: NormValues,
}

impl Attach for NormRule {
    fn norm(&self, site: &Site) -> Learns {
        if !(self.sites.as_ref()).is_none_or(|sites| sites.is_match(&site.name)) {
            return Learns::default();
        }
        Learns {
            gain: self.values != NormValues::Bias,
            bias: self.values != NormValues::Gain && site.kind.has_bias(),
        }
    }
}
