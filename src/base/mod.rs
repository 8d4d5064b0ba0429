//! The base on disk: a checkpoint folder in, everything that identifies and builds the model out.
//!
//! - [`config`] (and `original`): `config.json` in its two kinds, as one configuration.
//! - [`checkpoint`]: the safetensors files under canonical names.
//! - [`digest`]: what identifies the base. [`memory`]: what it takes.
//!
//! [`Base::open`] reads headers only and finds every fault that shows without reading weights: a missing
//! file, a truncated one, a tensor that does not fit the configuration.

pub mod checkpoint;
pub mod config;
pub mod digest;
pub mod error;
mod fields;
pub mod memory;
mod original;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::{Device, Tensor};
use norma_adapters::{Digest, SiteTable};
use serde_json::Value;

pub use self::config::Flavour;
pub use self::error::BaseError;

use self::checkpoint::Checkpoint;
use crate::model::MedVlm;
use crate::model::config::LlavaConfig;
use crate::model::llava::Llava;
use crate::model::ops::Kernels;
use crate::model::ops::frozen_linear::PackedLinear;
use crate::model::outline::Outline;
use crate::model::parameters::{ParameterError, Parameters, Weight};

/// What a folder alone does not say.
#[derive(Clone, Debug)]
pub struct OpenOptions {
    /// Where the model will live.
    pub device: Device,
    /// A folder with the tower's `config.json`, for an original LLaVA whose tower is not built in.
    pub vision_config: Option<PathBuf>,
    /// The file that remembers digests of large bases.
    pub digest_cache: Option<PathBuf>,
}

impl Default for OpenOptions {
    fn default() -> Self {
        Self {
            device: Device::Cpu,
            vision_config: None,
            digest_cache: None,
        }
    }
}

/// An opened base: checked, not yet loaded.
pub struct Base {
    folder: PathBuf,
    config: LlavaConfig,
    flavour: Flavour,
    outline: Outline,
    checkpoint: Checkpoint,
    digest: Digest,
}

impl Base {
    /// Opens a checkpoint folder in any of the four layouts.
    pub fn open(folder: &Path, options: &OpenOptions) -> Result<Self, BaseError> {
        let json = read_json(folder, config::CONFIG_FILE)?;
        let vision = match &options.vision_config {
            Some(folder) => Some(read_json(folder, config::CONFIG_FILE)?),
            None => None,
        };
        let (config, flavour) = config::parse(&json, vision.as_ref())?;
        let outline = Outline::of(&config)?;
        let checkpoint = Checkpoint::open(folder, &options.device)?;
        check_tensors(&outline, &checkpoint, &flavour)?;
        let digest = digest::cached(folder, options.digest_cache.as_deref(), || {
            digest::compute(&config, &outline, &checkpoint)
        })?;
        Ok(Self {
            folder: folder.into(),
            config,
            flavour,
            outline,
            checkpoint,
            digest,
        })
    }

    /// The checkpoint's folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The configuration of the computation.
    pub fn config(&self) -> &LlavaConfig {
        &self.config
    }

    /// Who wrote the folder.
    pub fn flavour(&self) -> &Flavour {
        &self.flavour
    }

    /// Parameters and sites.
    pub fn outline(&self) -> &Outline {
        &self.outline
    }

    /// The tensors.
    pub fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }

    /// What identifies the base.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// Bytes that the loaded parameters take.
    pub fn weight_bytes(&self) -> u64 {
        memory::weight_bytes(&self.outline)
    }

    /// The base's own norm values as a bank row: effective gains and biases, `row_len` values.
    pub fn row(&self) -> Result<Vec<f32>, BaseError> {
        base_row(&self.outline.sites, &self.checkpoint).map_err(BaseError::from)
    }

    /// Loads the model, unless the machine has too little memory.
    pub fn load(&self, kernels: Kernels) -> Result<Llava, BaseError> {
        memory::require("the base", self.weight_bytes())?;
        let loader = Loader {
            checkpoint: &self.checkpoint,
            kernels,
        };
        Ok(Llava::new(&self.config, &loader, kernels)?)
    }

    /// Loads the model for an engine, with the kernels that its device wants.
    pub fn load_boxed(&self) -> Result<Box<dyn MedVlm>, BaseError> {
        let kernels = Kernels::for_device(self.checkpoint.device());
        Ok(Box::new(self.load(kernels)?))
    }
}

/// Loads frozen parameters in the form that the kernels want.
struct Loader<'a> {
    checkpoint: &'a Checkpoint,
    kernels: Kernels,
}

impl Parameters for Loader<'_> {
    fn device(&self) -> &Device {
        self.checkpoint.device()
    }

    fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor, ParameterError> {
        self.checkpoint.tensor(name, shape)
    }

    fn linear(
        &self,
        name: &str,
        weight: Tensor,
        bias: Option<Tensor>,
    ) -> Result<Weight, ParameterError> {
        match self.kernels {
            Kernels::Composed => self.checkpoint.linear(name, weight, bias),
            Kernels::Fused => PackedLinear::<f32>::new(&weight, bias.as_ref())
                .map(|linear| Weight::Frozen(Arc::new(linear)))
                .map_err(ParameterError::reading(name)),
        }
    }
}

/// The norm values that a source of parameters holds, as a bank row.
pub fn base_row(table: &SiteTable, source: &dyn Parameters) -> Result<Vec<f32>, ParameterError> {
    let mut row = vec![0f32; table.row_len()];
    let read = |name: &str, width: usize| {
        let tensor = source.tensor(name, &[width])?;
        tensor
            .to_vec1::<f32>()
            .map_err(ParameterError::reading(name))
    };
    for (idx, site) in table
        .sites()
        .iter()
        .enumerate()
        .filter(|(_, site)| site.used)
    {
        let range = table.range(idx);
        let offset = site.kind.gain_offset();
        let gain = read(&site.weight_name(), site.width)?;
        for (value, gain) in row[range.gain].iter_mut().zip(gain) {
            *value = gain + offset;
        }
        if let (Some(range), Some(name)) = (range.bias, site.bias_name()) {
            row[range].copy_from_slice(&read(&name, site.width)?);
        }
    }
    Ok(row)
}

fn check_tensors(
    outline: &Outline,
    checkpoint: &Checkpoint,
    flavour: &Flavour,
) -> Result<(), BaseError> {
    const TOWER_PROBE: &str = "vision_tower.vision_model.embeddings.class_embedding";
    if let (Flavour::Original { vision_tower, .. }, false) = (flavour, checkpoint.has(TOWER_PROBE))
    {
        return Err(BaseError::NoTower {
            tower: vision_tower.clone(),
        });
    }
    for (name, shape) in &outline.parameters {
        checkpoint.check(name, shape)?;
    }
    for site in outline.sites.sites().iter().filter(|site| site.used) {
        checkpoint.check(&site.weight_name(), &[site.width])?;
        if let Some(name) = site.bias_name() {
            checkpoint.check(&name, &[site.width])?;
        }
    }
    Ok(())
}

/// Reads a JSON file of a folder.
pub fn read_json(folder: &Path, file: &str) -> Result<Value, BaseError> {
    let bytes = fs::read(folder.join(file)).map_err(|source| BaseError::Read {
        file: file.into(),
        source,
    })?;
    serde_json::from_slice(&bytes).map_err(|source| BaseError::Json {
        file: file.into(),
        source,
    })
}
