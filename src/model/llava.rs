//! LLaVA: CLIP tower, MLP projector, Llama or Mistral decoder.
//!
//! Reference: `LlavaForConditionalGeneration` of transformers 5.23.

use candle_core::{DType, Device, Result, Tensor, bail};
use norma_adapters::{SiteTable, SiteTableError};
use thiserror::Error;

use super::bank::NormBank;
use super::clip::VisionTower;
use super::config::{LlavaConfig, ProjectorConfig};
use super::decoder::Decoder;
use super::key_values::KeyValues;
use super::linear::Linear;
use super::norm_site::{NormContext, SiteList};
use super::ops::activation::activate;
use super::ops::{Kernels, RowIndex};
use super::parameters::{ParameterError, Parameters};
use super::step::Step;
use super::{ImageEncoding, MedVlm, ModelShape};

const PROJECTOR: &str = "multi_modal_projector";

/// A LLaVA ready to run.
#[derive(Clone, Debug)]
pub struct Llava {
    pub(super) tower: VisionTower,
    projector: Projector,
    pub(super) decoder: Decoder,
    sites: SiteTable,
    shape: ModelShape,
    device: Device,
    kernels: Kernels,
    activations: DType,
}

/// Why a model could not be built.
#[derive(Debug, Error)]
pub enum ModelError {
    /// A parameter is missing or does not fit.
    #[error(transparent)]
    Parameter(#[from] ParameterError),
    /// The sites make no table.
    #[error(transparent)]
    Sites(#[from] SiteTableError),
}

impl Llava {
    /// Builds the model from its parameters. `kernels`: usually [`Kernels::for_device`].
    pub fn new(
        config: &LlavaConfig,
        parameters: &dyn Parameters,
        kernels: Kernels,
    ) -> std::result::Result<Self, ModelError> {
        let mut sites = SiteList::default();
        let tower = VisionTower::new(&config.vision, parameters, &mut sites)?;
        let projector = Projector::new(config, parameters)?;
        let decoder = Decoder::new(&config.decoder, parameters, &mut sites, kernels)?;
        let mut shape = ModelShape::of(config);
        shape.max_positions = shape.max_positions.saturating_sub(decoder.prefix_tokens());
        Ok(Self {
            tower,
            projector,
            decoder,
            sites: SiteTable::new(sites.into_sites())?,
            shape,
            device: parameters.device().clone(),
            kernels,
            activations: parameters.activations(),
        })
    }

    /// Which implementation of the operations it runs.
    pub fn kernels(&self) -> Kernels {
        self.kernels
    }

    /// The tower's selected hidden states, before the projector: `[n * image_tokens, width]`. Arguments
    /// as for [`MedVlm::encode_images`].
    pub fn tower_features(
        &self,
        pixels: &Tensor,
        slots: &[u32],
        bank: &NormBank,
    ) -> Result<Tensor> {
        let slots = self.tower_slots(pixels, slots)?;
        self.tower.forward(pixels, self.context(&slots, bank))
    }

    /// The slot of every row in the tower.
    pub(super) fn tower_slots(&self, pixels: &Tensor, slots: &[u32]) -> Result<RowIndex> {
        let (n, channels, height, width) = pixels.dims4()?;
        let size = self.shape.image_size;
        if n != slots.len() || (channels, height, width) != (3, size, size) {
            bail!(
                "pixels {:?} for {} images of [3, {size}, {size}]",
                pixels.shape(),
                slots.len()
            );
        }
        let rows = self.shape.tower_rows;
        let slots: Vec<u32> = slots.iter().flat_map(|slot| vec![*slot; rows]).collect();
        RowIndex::new(&slots, &self.device)
    }

    pub(super) fn context<'a>(&self, slots: &'a RowIndex, bank: &'a NormBank) -> NormContext<'a> {
        NormContext {
            bank,
            slots,
            kernels: self.kernels,
            activations: self.activations,
        }
    }

    /// Maps tower features to decoder inputs, `[rows, hidden]`.
    pub fn project(&self, features: &Tensor) -> Result<Tensor> {
        self.projector.forward(features, self.kernels)
    }
}

impl MedVlm for Llava {
    fn sites(&self) -> &SiteTable {
        &self.sites
    }

    fn shape(&self) -> &ModelShape {
        &self.shape
    }

    fn device(&self) -> &Device {
        &self.device
    }

    fn encode_images(&self, pixels: &Tensor, slots: &[u32], bank: &NormBank) -> Result<Tensor> {
        self.project(&self.tower_features(pixels, slots, bank)?)
    }

    fn continue_images(
        &self,
        encoding: &mut ImageEncoding,
        n_layers: usize,
        bank: &NormBank,
    ) -> Result<Option<Tensor>> {
        let ImageEncoding {
            pixels,
            slots,
            pass,
        } = encoding;
        let slots = self.tower_slots(pixels, slots)?;
        let context = self.context(&slots, bank);
        let pass = match pass {
            Some(pass) => pass,
            None => pass.insert(self.tower.begin(pixels, context)?),
        };
        if !self.tower.go_on(pass, n_layers, context)? {
            return Ok(None);
        }
        self.project(&self.tower.selected(pass)?).map(Some)
    }

    fn forward(
        &self,
        step: &Step,
        bank: &NormBank,
        cache: Option<&dyn KeyValues>,
    ) -> Result<Tensor> {
        if step.is_empty() || step.logits_rows.is_empty() {
            bail!("a step needs at least one row and one row whose logits are wanted");
        }
        self.decoder.forward(step, bank, cache)
    }
}

#[derive(Clone, Debug)]
struct Projector {
    config: ProjectorConfig,
    linear_1: Linear,
    linear_2: Option<Linear>,
}

impl Projector {
    fn new(
        config: &LlavaConfig,
        parameters: &dyn Parameters,
    ) -> std::result::Result<Self, ParameterError> {
        let n_in = config.vision.hidden_size * config.vision.feature_layers.len();
        let hidden = config.decoder.hidden_size;
        let linear = |name: &str, n_in: usize| {
            let name = format!("{PROJECTOR}.{name}");
            Linear::new(parameters, &name, &[hidden, n_in], config.projector.bias)
        };
        let two_layers = config.projector.hidden_act.is_some();
        Ok(Self {
            config: config.projector.clone(),
            linear_1: linear("linear_1", n_in)?,
            linear_2: two_layers.then(|| linear("linear_2", hidden)).transpose()?,
        })
    }

    fn forward(&self, features: &Tensor, kernels: Kernels) -> Result<Tensor> {
        let x = self.linear_1.forward(features)?;
        match (&self.linear_2, self.config.hidden_act) {
            (Some(linear_2), Some(act)) => linear_2.forward(&activate(&x, act, kernels)?),
            _ => Ok(x),
        }
    }
}
