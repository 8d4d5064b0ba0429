//! What a method refuses.

use norma_adapters::{Digest, Scope};
use thiserror::Error;

/// Why a method cannot be used, or its file not be read.
#[derive(Debug, Error)]
pub enum MethodError {
    /// A count that must be at least one.
    #[error("`{field}` of {method} is 0, the least is 1")]
    Zero {
        method: &'static str,
        field: &'static str,
    },
    /// A factor that would make the method do nothing or anything.
    #[error("`{field}` of {method} is {got}, it must be positive and finite")]
    NotPositive {
        method: &'static str,
        field: &'static str,
        got: f64,
    },
    /// No regular expression.
    #[error("`{field}` `{pattern}` is no regular expression")]
    Pattern {
        field: &'static str,
        pattern: String,
        source: Box<regex::Error>,
    },
    /// A regular expression that no name fits.
    #[error("`{field}` `{pattern}` matches nothing in scope `{scope}`: nothing would be trained")]
    NoMatch {
        field: &'static str,
        pattern: String,
        scope: Scope,
    },
    /// The base has nothing of the kind.
    #[error("the base has nothing for {method} in scope `{scope}`: nothing would be trained")]
    Nothing { method: &'static str, scope: Scope },
    /// The file is no safetensors file.
    #[error("the trained tensors cannot be read")]
    File(#[from] safetensors::SafeTensorError),
    /// The file says nothing about itself, or not in this form.
    #[error("the file has no `{field}` header that can be read")]
    Header { field: &'static str },
    /// Trained on another base.
    #[error("trained on the base {got}, this is {want}")]
    OtherBase { got: Digest, want: Digest },
    /// A tensor is not there, has another shape or type, or is one too many.
    #[error("tensor `{name}`: {problem}")]
    Tensor { name: String, problem: String },
}
