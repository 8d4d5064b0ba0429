//! Between a checkpoint and a model: every parameter is handed on frozen, as a variable, or with
//! something attached, as the method says. In: a choice, two views of the same checkpoint. Out:
//! parameters for a model, and the variables that were made. It must not know what a method is.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{DType, Device, Tensor, Var};
use norma::model::ops::frozen_linear::FrozenLinear;
use norma::model::parameters::{ParameterError, Parameters, Weight};
use norma_adapters::Part;

use super::{Attach, Choice, MethodError, part_of};
use crate::variables::{NamedVar, named_gaussian, named_uniform};

/// Parameters with a method at work.
pub struct Attachments<'a> {
    attach: Box<dyn Attach>,
    choice: &'a Choice,
    /// What is frozen comes from here.
    frozen: &'a dyn Parameters,
    /// What learns is copied from here: the same checkpoint, but nobody takes note.
    source: &'a dyn Parameters,
    made: Mutex<Made>,
}

#[derive(Default)]
struct Made {
    vars: BTreeMap<String, Var>,
    /// Values among them that stand for values of the checkpoint.
    n_copied: usize,
}

impl<'a> Attachments<'a> {
    /// Checks the choice's options.
    pub fn new(
        choice: &'a Choice,
        frozen: &'a dyn Parameters,
        source: &'a dyn Parameters,
    ) -> Result<Self, MethodError> {
        Ok(Self {
            attach: choice.attach()?,
            choice,
            frozen,
            source,
            made: Mutex::default(),
        })
    }

    /// The variables by name, and how many of their values are the checkpoint's.
    pub fn into_variables(self) -> (Vec<NamedVar>, usize) {
        let made = self.made.into_inner();
        let made = made.unwrap_or_else(PoisonError::into_inner);
        let vars = made.vars.into_iter();
        let vars = vars.map(|(name, var)| NamedVar { name, var }).collect();
        (vars, made.n_copied)
    }

    fn in_scope(&self, name: &str) -> bool {
        self.choice.scope.selects(part_of(name))
    }

    /// A variable of this name that starts at `first`.
    fn variable(&self, name: String, first: &Tensor) -> Result<Tensor, ParameterError> {
        let var = Var::from_tensor(first).map_err(ParameterError::reading(&name))?;
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(made.vars.entry(name).or_insert(var).as_tensor().clone())
    }

    /// A variable that starts at the checkpoint's values.
    fn copied(&self, name: &str, shape: &[usize]) -> Result<Tensor, ParameterError> {
        let first = self.source.tensor(name, shape)?;
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        made.n_copied += first.elem_count();
        drop(made);
        self.variable(name.into(), &first)
    }

    fn prefix(&self, name: &str, shape: &[usize]) -> Result<Tensor, ParameterError> {
        let values = named_gaussian(name, shape.iter().product(), self.choice.seed);
        let first = Tensor::from_vec(values, shape, self.device());
        self.variable(name.into(), &first.map_err(ParameterError::reading(name))?)
    }
}

impl Parameters for Attachments<'_> {
    fn device(&self) -> &Device {
        self.source.device()
    }

    fn activations(&self) -> DType {
        self.frozen.activations()
    }

    fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor, ParameterError> {
        if self.prefix_tokens() > 0 && name.contains(".self_attn.prefix_") {
            self.prefix(name, shape)
        } else if self.in_scope(name) && self.attach.trains_tensor() {
            self.copied(name, shape)
        } else {
            self.frozen.tensor(name, shape)
        }
    }

    fn table(&self, name: &str, shape: &[usize]) -> Result<Tensor, ParameterError> {
        if self.in_scope(name) && self.attach.trains_tensor() {
            self.copied(name, shape)
        } else {
            self.frozen.table(name, shape)
        }
    }

    fn prefix_tokens(&self) -> usize {
        if self.choice.scope.selects(Part::Language) {
            self.attach.prefix_tokens()
        } else {
            0
        }
    }

    fn read_linear(
        &self,
        name: &str,
        shape: &[usize],
        bias: bool,
    ) -> Result<Weight, ParameterError> {
        if !self.in_scope(name) {
            return self.frozen.read_linear(name, shape, bias);
        }
        self.attach.linear(&LinearMap {
            name,
            shape,
            has_bias: bias,
            all: self,
        })
    }

    fn tied_linear(&self, name: &str, table: &Tensor) -> Result<Weight, ParameterError> {
        if table.is_variable() {
            return Ok(Weight::Trainable {
                weight: table.clone(),
                bias: None,
            });
        }
        self.frozen.tied_linear(name, table)
    }

    fn linear(
        &self,
        name: &str,
        weight: Tensor,
        bias: Option<Tensor>,
    ) -> Result<Weight, ParameterError> {
        self.frozen.linear(name, weight, bias)
    }
}

/// A linear map that a method decides about.
pub(super) struct LinearMap<'a> {
    /// Its canonical name.
    pub name: &'a str,
    /// `[out, ...]`: trailing dimensions are all inputs.
    pub shape: &'a [usize],
    /// Whether the checkpoint has a bias.
    pub has_bias: bool,
    all: &'a Attachments<'a>,
}

impl LinearMap<'_> {
    pub fn n_out(&self) -> usize {
        self.shape.first().copied().unwrap_or(1)
    }

    pub fn n_in(&self) -> usize {
        self.shape.iter().skip(1).product()
    }

    /// The map as it is in the checkpoint, with its bias or without.
    pub fn frozen(&self, bias: bool) -> Result<Weight, ParameterError> {
        self.all.frozen.read_linear(self.name, self.shape, bias)
    }

    /// The same, to attach something to.
    pub fn frozen_map(&self, bias: bool) -> Result<Arc<dyn FrozenLinear>, ParameterError> {
        match self.frozen(bias)? {
            Weight::Frozen(map) => Ok(map),
            Weight::Trainable { .. } => Err(self.failed()(candle_core::Error::Msg(
                "a method is attached to frozen maps only".into(),
            ))),
        }
    }

    /// A variable that starts at the checkpoint's tensor.
    pub fn copied(&self, what: &str, shape: &[usize]) -> Result<Tensor, ParameterError> {
        self.all.copied(&format!("{}.{what}", self.name), shape)
    }

    /// The bias as a variable, if there is one.
    pub fn bias_that_learns(&self) -> Result<Option<Tensor>, ParameterError> {
        let bias = || self.copied("bias", &self.shape[..1]);
        self.has_bias.then(bias).transpose()
    }

    /// A variable that the checkpoint has not.
    pub fn added(&self, what: &str, first: &Tensor) -> Result<Tensor, ParameterError> {
        self.all.variable(format!("{}.{what}", self.name), first)
    }

    /// Values of a uniform distribution within `bound`; the same for the same seed and name.
    pub fn uniform(
        &self,
        what: &str,
        shape: &[usize],
        bound: f64,
    ) -> Result<Tensor, ParameterError> {
        let name = format!("{}.{what}", self.name);
        let values = named_uniform(&name, shape.iter().product(), self.all.choice.seed, bound);
        Tensor::from_vec(values, shape, self.all.device()).map_err(self.failed())
    }

    /// One value everywhere.
    pub fn filled(&self, shape: &[usize], value: f32) -> Result<Tensor, ParameterError> {
        let full = Tensor::full(value, shape, self.all.device());
        let full = full.and_then(|full| full.to_dtype(DType::F32)?.contiguous());
        full.map_err(self.failed())
    }

    /// Says of a failure which map it concerns.
    pub fn failed(&self) -> impl Fn(candle_core::Error) -> ParameterError + '_ {
        ParameterError::reading(self.name)
    }
}
