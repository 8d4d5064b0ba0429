//! What a configuration asks for, without loading anything: every parameter's name and shape, every
//! norm site. A folder is checked, sized and digested by this list.

use std::cell::{Cell, RefCell};
use std::sync::Arc;

use candle_core::{DType, Device, Result, Tensor, bail};
use norma_adapters::SiteTable;

use super::config::LlavaConfig;
use super::llava::{Llava, ModelError};
use super::ops::Kernels;
use super::ops::frozen_linear::FrozenLinear;
use super::parameters::{ParameterError, Parameters, Weight};
use super::{MedVlm, ModelShape};

/// The parameters and sites of a model.
#[derive(Clone, Debug)]
pub struct Outline {
    /// Canonical name and shape of every parameter that the computation reads, norms not included.
    pub parameters: Vec<(String, Vec<usize>)>,
    /// `[out, in]` of every linear map; a tied head is one of its own.
    pub linears: Vec<(usize, usize)>,
    /// Values of the tables whose rows are looked up.
    pub n_table_values: usize,
    /// Values of all other parameters.
    pub n_other_values: usize,
    /// The norm sites.
    pub sites: SiteTable,
    /// The numbers.
    pub shape: ModelShape,
}

impl Outline {
    /// Walks the construction of the model with parameters that have no storage.
    pub fn of(config: &LlavaConfig) -> std::result::Result<Self, ModelError> {
        let recorder = Recorder::default();
        let model = Llava::new(config, &recorder, Kernels::Composed)?;
        Ok(Self {
            parameters: recorder.asked.into_inner(),
            linears: recorder.linears.into_inner(),
            n_table_values: recorder.n_table_values.into_inner(),
            n_other_values: recorder.n_other_values.into_inner(),
            sites: model.sites().clone(),
            shape: *model.shape(),
        })
    }
}

#[derive(Default)]
struct Recorder {
    asked: RefCell<Vec<(String, Vec<usize>)>>,
    linears: RefCell<Vec<(usize, usize)>>,
    n_table_values: Cell<usize>,
    n_other_values: Cell<usize>,
}

impl Recorder {
    /// Notes a parameter; gives one zero, viewed as many.
    fn ask(&self, name: &str, shape: &[usize]) -> std::result::Result<Tensor, ParameterError> {
        self.asked.borrow_mut().push((name.into(), shape.into()));
        Tensor::zeros((), DType::F32, &Device::Cpu)
            .and_then(|zero| zero.broadcast_as(shape))
            .map_err(ParameterError::reading(name))
    }

    fn note(&self, n_out: usize, n_in: usize) -> Weight {
        self.linears.borrow_mut().push((n_out, n_in));
        Weight::Frozen(Arc::new(Nothing))
    }
}

fn add(to: &Cell<usize>, shape: &[usize]) {
    to.set(to.get() + shape.iter().product::<usize>());
}

impl Parameters for Recorder {
    fn device(&self) -> &Device {
        &Device::Cpu
    }

    fn tensor(&self, name: &str, shape: &[usize]) -> std::result::Result<Tensor, ParameterError> {
        add(&self.n_other_values, shape);
        self.ask(name, shape)
    }

    fn table(&self, name: &str, shape: &[usize]) -> std::result::Result<Tensor, ParameterError> {
        add(&self.n_table_values, shape);
        self.ask(name, shape)
    }

    fn read_linear(
        &self,
        name: &str,
        shape: &[usize],
        bias: bool,
    ) -> std::result::Result<Weight, ParameterError> {
        self.ask(&format!("{name}.weight"), shape)?;
        if bias {
            self.tensor(&format!("{name}.bias"), &shape[..1])?;
        }
        let n_in = shape.iter().skip(1).product();
        Ok(self.note(shape.first().copied().unwrap_or(1), n_in))
    }

    fn linear(
        &self,
        name: &str,
        weight: Tensor,
        _bias: Option<Tensor>,
    ) -> std::result::Result<Weight, ParameterError> {
        let (n_out, n_in) = weight.dims2().map_err(ParameterError::reading(name))?;
        Ok(self.note(n_out, n_in))
    }
}

#[derive(Debug)]
struct Nothing;

impl FrozenLinear for Nothing {
    fn forward(&self, _x: &Tensor) -> Result<Tensor> {
        bail!("an outline has no weights to compute with")
    }

    fn bytes(&self) -> usize {
        0
    }
}
