//! A frozen base as a trainer sees it: the model, its norm row, and proof that nothing else moves.
//!
//! In: a source of parameters, and perhaps a method that attaches something to them. Out: the same
//! parameters, remembered, so that their bytes in memory can be compared before and after, and the
//! variables beside them. It must not know files.

use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Result, ensure};
use candle_core::backprop::GradStore;
use candle_core::{DType, Device, Tensor, TensorId};
use norma::model::MedVlm;
use norma::model::config::LlavaConfig;
use norma::model::llava::Llava;
use norma::model::ops::Kernels;
use norma::model::ops::frozen_linear::FrozenLinear;
use norma::model::parameters::{ParameterError, Parameters, Weight};
use norma_adapters::{Digest, Hasher};

use crate::methods::Choice;
use crate::methods::attachments::Attachments;
use crate::variables::NamedVar;

/// A frozen base in memory.
pub struct FrozenBase {
    /// The model over the frozen weights; an engine may share it.
    pub model: Arc<Llava>,
    /// The base's own norm values, `[row_len]`.
    pub row: Vec<f32>,
    /// The digest that adapters name their base by.
    pub digest: Digest,
    /// What a method attached or took out of the frozen weights, by name; no norm values. A run moves
    /// these in place.
    pub variables: Vec<NamedVar>,
    /// What the base was built for; `None` if nothing was attached.
    pub choice: Option<Choice>,
    n_copied: usize,
    seen: Seen,
}

impl FrozenBase {
    /// Builds the model from `parameters`. `row` and `digest` are the base's.
    pub fn new(
        config: &LlavaConfig,
        parameters: &dyn Parameters,
        row: Vec<f32>,
        digest: Digest,
    ) -> Result<Self> {
        Self::build(config, parameters, (row, digest), None)
    }

    /// The same, for a method: what it trains beside norm values are variables.
    pub fn with_method(
        config: &LlavaConfig,
        parameters: &dyn Parameters,
        row: Vec<f32>,
        digest: Digest,
        choice: &Choice,
    ) -> Result<Self> {
        Self::build(config, parameters, (row, digest), Some(choice))
    }

    fn build(
        config: &LlavaConfig,
        parameters: &dyn Parameters,
        (row, digest): (Vec<f32>, Digest),
        choice: Option<&Choice>,
    ) -> Result<Self> {
        let remembered = Remember {
            inner: parameters,
            seen: Mutex::default(),
        };
        let kernels = Kernels::for_device(parameters.device());
        let (model, (variables, n_copied)) = match choice {
            None => (Llava::new(config, &remembered, kernels)?, (Vec::new(), 0)),
            Some(choice) => {
                let attachments = Attachments::new(choice, &remembered, parameters)?;
                let model = Llava::new(config, &attachments, kernels)?;
                (model, attachments.into_variables())
            }
        };
        let wanted = model.sites().row_len();
        ensure!(
            row.len() == wanted,
            "a norm row of {} for a base of {wanted}",
            row.len()
        );
        let seen = remembered.seen.into_inner();
        let seen = seen.unwrap_or_else(PoisonError::into_inner);
        Ok(Self {
            model: Arc::new(model),
            row,
            digest,
            variables,
            choice: choice.cloned(),
            n_copied,
            seen,
        })
    }

    /// Values of the whole base, norms included, what a method added left out.
    pub fn n_values(&self) -> usize {
        self.seen.n_values + self.n_copied + self.row.len()
    }

    /// A digest over the frozen weights as they are in memory now. A linear map keeps its weight in its
    /// own order and type, so it is asked for its outputs on two fixed rows, in which every weight has
    /// a part.
    pub fn weights_digest(&self) -> Result<Digest> {
        let mut hasher = Hasher::new();
        for (name, tensor) in &self.seen.tensors {
            hasher.update(name.as_bytes());
            // Some rows at a time: a table may be narrower than f32, and large.
            let n_rows = tensor.dims().first().copied().unwrap_or(1);
            let rows = tensor.reshape((n_rows, tensor.elem_count() / n_rows.max(1)))?;
            for first in (0..n_rows).step_by(ROWS_AT_ONCE) {
                let n = ROWS_AT_ONCE.min(n_rows - first);
                let values = rows.narrow(0, first, n)?.to_dtype(DType::F32)?;
                let values = values.flatten_all()?.to_vec1::<f32>()?;
                hasher.update(&Digest::of_f32(&values).0);
            }
        }
        for (name, linear, n_in) in &self.seen.linears {
            let rows: Vec<f32> = (0..2 * n_in)
                .map(|i| 1.0 + (i * 37 % 101) as f32 / 64.0)
                .collect();
            let rows = Tensor::from_vec(rows, (2, *n_in), self.model.device())?;
            let outputs = linear.forward(&rows)?.flatten_all()?.to_vec1::<f32>()?;
            hasher.update(name.as_bytes());
            hasher.update(&Digest::of_f32(&outputs).0);
        }
        Ok(hasher.finish())
    }

    /// Whether a gradient store holds a gradient of a frozen tensor.
    pub fn appears_in(&self, store: &GradStore) -> bool {
        store.get_ids().any(|id| self.seen.ids.contains(id))
    }
}

/// Rows of a tensor that a digest widens at a time.
const ROWS_AT_ONCE: usize = 1024;

/// What a model was built from.
#[derive(Default)]
struct Seen {
    /// The tensors that the model reads as they are, by canonical name.
    tensors: Vec<(String, Tensor)>,
    /// The linear maps, by canonical name, with their number of inputs.
    linears: Vec<(String, Arc<dyn FrozenLinear>, usize)>,
    ids: Vec<TensorId>,
    n_values: usize,
}

/// Passes parameters on and remembers them.
struct Remember<'a> {
    inner: &'a dyn Parameters,
    seen: Mutex<Seen>,
}

impl Remember<'_> {
    fn remembered(&self, name: &str, tensor: Tensor) -> Tensor {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.ids.push(tensor.id());
        seen.n_values += tensor.elem_count();
        seen.tensors.push((name.into(), tensor.clone()));
        tensor
    }

    fn map(&self, name: &str, shape: &[usize], n_bias: usize, made: &Weight) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.n_values += shape.iter().product::<usize>() + n_bias;
        if let Weight::Frozen(linear) = made {
            let n_in = shape.iter().skip(1).product();
            seen.linears.push((name.into(), linear.clone(), n_in));
        }
    }
}

impl Parameters for Remember<'_> {
    fn device(&self) -> &Device {
        self.inner.device()
    }

    fn activations(&self) -> DType {
        self.inner.activations()
    }

    fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor, ParameterError> {
        Ok(self.remembered(name, self.inner.tensor(name, shape)?))
    }

    fn table(&self, name: &str, shape: &[usize]) -> Result<Tensor, ParameterError> {
        Ok(self.remembered(name, self.inner.table(name, shape)?))
    }

    fn linear(
        &self,
        name: &str,
        weight: Tensor,
        bias: Option<Tensor>,
    ) -> Result<Weight, ParameterError> {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.ids.push(weight.id());
        seen.ids.extend(bias.as_ref().map(Tensor::id));
        // The map has its own copy. Keeping the tensor too would double the base.
        let own = [format!("{name}.weight"), format!("{name}.bias")];
        seen.tensors.retain(|(name, _)| !own.contains(name));
        let n_in = weight.elem_count() / weight.dims().first().copied().unwrap_or(1).max(1);
        let made = self.inner.linear(name, weight, bias)?;
        if let Weight::Frozen(linear) = &made {
            seen.linears.push((name.into(), linear.clone(), n_in));
        }
        Ok(made)
    }

    /// Where the source packs weights straight from its files, no tensor of them is ever made.
    fn read_linear(
        &self,
        name: &str,
        shape: &[usize],
        bias: bool,
    ) -> Result<Weight, ParameterError> {
        let made = self.inner.read_linear(name, shape, bias)?;
        let n_out = shape.first().copied().unwrap_or(1);
        let n_bias = if bias { n_out } else { 0 };
        self.map(name, shape, n_bias, &made);
        Ok(made)
    }

    /// The table is remembered as a tensor already; its values count once.
    fn tied_linear(&self, name: &str, table: &Tensor) -> Result<Weight, ParameterError> {
        let made = self.inner.tied_linear(name, table)?;
        self.map(name, table.dims(), 0, &made);
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.n_values -= table.elem_count();
        Ok(made)
    }
}
