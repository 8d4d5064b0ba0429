//! Where a model's parameters come from: a checkpoint (frozen) or a trainer (variables).
//!
//! A model asks for parameters by canonical name and shape, and does not know which of the two it
//! gets. Norm values are not parameters in this sense: they live in the bank.

use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use thiserror::Error;

use super::ops::frozen_linear::{DenseLinear, FrozenLinear};

/// Why a parameter could not be had.
#[derive(Debug, Error)]
pub enum ParameterError {
    /// The checkpoint has no such tensor.
    #[error("tensor `{name}` is missing{}", place(.file.as_ref()))]
    Missing {
        /// Canonical name.
        name: String,
        /// The file that should hold it, where one is known.
        file: Option<String>,
    },
    /// The tensor has another shape than the configuration says.
    #[error("tensor `{name}`{} has shape {got:?}, the configuration wants {want:?}", place(.file.as_ref()))]
    Shape {
        /// Canonical name.
        name: String,
        /// The file that holds it, where one is known.
        file: Option<String>,
        /// The shape in the file.
        got: Vec<usize>,
        /// The shape that the configuration implies.
        want: Vec<usize>,
    },
    /// The tensor's element type is none that a base may have.
    #[error("tensor `{name}`{} has dtype {got}, only F32, F16 and BF16 are read", place(.file.as_ref()))]
    Dtype {
        /// Canonical name.
        name: String,
        /// The file that holds it, where one is known.
        file: Option<String>,
        /// The dtype in the file.
        got: String,
    },
    /// The tensor library failed.
    #[error("tensor `{name}` could not be read")]
    Tensor {
        /// Canonical name.
        name: String,
        /// What failed.
        source: candle_core::Error,
    },
}

impl ParameterError {
    /// Says of a failure of the tensor library which parameter it concerns.
    pub fn reading(name: &str) -> impl Fn(candle_core::Error) -> Self + '_ {
        move |source| Self::Tensor {
            name: name.into(),
            source,
        }
    }
}

fn place(file: Option<&String>) -> String {
    file.map(|file| format!(" of `{file}`")).unwrap_or_default()
}

/// A weight `[out, in]` with its bias, and whether it is trained.
#[derive(Clone, Debug)]
pub enum Weight {
    /// Never changes; its backward goes to the input only.
    Frozen(Arc<dyn FrozenLinear>),
    /// Gets gradients.
    Trainable {
        /// `[out, in]`.
        weight: Tensor,
        /// `[out]`.
        bias: Option<Tensor>,
    },
}

/// A source of parameters by canonical name.
pub trait Parameters {
    /// The device that parameters are made on.
    fn device(&self) -> &Device;

    /// The type in which its linear maps take and give rows: f32, or bf16 where a device multiplies that.
    fn activations(&self) -> DType {
        DType::F32
    }

    /// A tensor of this shape in f32.
    fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor, ParameterError>;

    /// A table of this shape whose rows are looked up: f32, or a narrower float that is widened on lookup.
    fn table(&self, name: &str, shape: &[usize]) -> Result<Tensor, ParameterError> {
        self.tensor(name, shape)
    }

    /// Tokens of learned keys and values that every sequence sees before its own (prefix tuning). Each
    /// decoder layer asks for them as the tensors `prefix_keys` and `prefix_values`, `[tokens, kv_width]`,
    /// of its attention. The default is none.
    fn prefix_tokens(&self) -> usize {
        0
    }

    /// What runs the linear map `name`: its weight of `shape` (`[out, ...]`, trailing dimensions are all
    /// inputs) and, with `bias`, its bias.
    fn read_linear(
        &self,
        name: &str,
        shape: &[usize],
        bias: bool,
    ) -> Result<Weight, ParameterError> {
        let weight = self.tensor(&format!("{name}.weight"), shape)?;
        let weight = weight.flatten_from(1);
        let weight = weight.map_err(ParameterError::reading(name))?;
        let bias = bias
            .then(|| self.tensor(&format!("{name}.bias"), &shape[..1]))
            .transpose()?;
        self.linear(name, weight, bias)
    }

    /// What runs a linear map whose weight is the table `name.weight` that the model has already.
    fn tied_linear(&self, name: &str, table: &Tensor) -> Result<Weight, ParameterError> {
        self.linear(name, table.clone(), None)
    }

    /// What runs the linear map of `weight` (`[out, in]`) and `bias` (`[out]`), both made by
    /// [`Parameters::tensor`] as `name.weight` and `name.bias`. The default is frozen.
    fn linear(
        &self,
        name: &str,
        weight: Tensor,
        bias: Option<Tensor>,
    ) -> Result<Weight, ParameterError> {
        let linear = DenseLinear::new(&weight, bias.as_ref());
        let linear = linear.map_err(ParameterError::reading(name))?;
        Ok(Weight::Frozen(Arc::new(linear)))
    }
}
