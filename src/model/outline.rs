//! What a configuration asks for, without loading anything: every parameter's name and shape, every
//! norm site. A folder is checked, sized and digested by this list.

use std::cell::RefCell;
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
            sites: model.sites().clone(),
            shape: *model.shape(),
        })
    }

    /// Elements of all parameters.
    pub fn n_parameters(&self) -> usize {
        self.parameters
            .iter()
            .map(|(_, shape)| shape.iter().product::<usize>())
            .sum()
    }
}

#[derive(Default)]
struct Recorder {
    asked: RefCell<Vec<(String, Vec<usize>)>>,
}

impl Parameters for Recorder {
    fn device(&self) -> &Device {
        &Device::Cpu
    }

    fn tensor(&self, name: &str, shape: &[usize]) -> std::result::Result<Tensor, ParameterError> {
        self.asked.borrow_mut().push((name.into(), shape.into()));
        // One zero, viewed as many.
        Tensor::zeros((), DType::F32, &Device::Cpu)
            .and_then(|zero| zero.broadcast_as(shape))
            .map_err(ParameterError::reading(name))
    }

    fn linear(
        &self,
        _name: &str,
        _weight: Tensor,
        _bias: Option<Tensor>,
    ) -> std::result::Result<Weight, ParameterError> {
        Ok(Weight::Frozen(Arc::new(Nothing)))
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
