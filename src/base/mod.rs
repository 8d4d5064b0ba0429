//! The base on disk: a checkpoint folder in, everything that identifies and builds the model out.
//!
//! - [`config`] (and `original`): `config.json` in its two kinds, as one configuration.
//! - [`checkpoint`] (and `shard`): the safetensors files under canonical names.
//! - [`weights`]: the types that weights are held in; `loader`: how they become that.
//! - [`digest`]: what identifies the base. [`memory`]: what it takes.
//!
//! [`Base::open`] reads headers only and finds every fault that shows without reading weights: a missing
//! file, a truncated one, a tensor that does not fit the configuration.

pub mod checkpoint;
pub mod config;
pub mod device;
pub mod digest;
pub mod error;
mod fields;
mod loader;
pub mod memory;
mod original;
mod shard;
pub mod weights;

use std::fs;
use std::path::{Path, PathBuf};

use candle_core::Device;
use norma_adapters::{Digest, SiteTable};
use serde_json::Value;

pub use self::config::Flavour;
pub use self::error::BaseError;
pub use self::weights::WeightType;

use self::checkpoint::Checkpoint;
use self::loader::Loader;
use crate::model::MedVlm;
use crate::model::config::LlavaConfig;
use crate::model::llava::Llava;
use crate::model::ops::Kernels;
use crate::model::outline::Outline;
use crate::model::parameters::{ParameterError, Parameters};

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
    pub fn weight_bytes(&self, weights: WeightType) -> u64 {
        memory::weight_bytes(&self.outline, weights, self.kernels())
    }

    /// The type of weights where nobody chose one: f32 for bases of less than 1 GiB in f32, where it costs
    /// little, and bf16 above.
    pub fn default_weights(&self) -> WeightType {
        let large = self.weight_bytes(WeightType::F32) >= 1 << 30;
        if large {
            WeightType::Bf16
        } else {
            WeightType::F32
        }
    }

    fn kernels(&self) -> Kernels {
        Kernels::for_device(self.checkpoint.device())
    }

    /// The base's own norm values as a bank row: effective gains and biases, `row_len` values.
    pub fn row(&self) -> Result<Vec<f32>, BaseError> {
        base_row(&self.outline.sites, &self.checkpoint).map_err(BaseError::from)
    }

    /// The parameters in the form in which `kernels` compute with them, for who builds a model of their
    /// own. Refuses what the device has too little memory for, and types that the kernels or the processor
    /// do not have.
    pub fn parameters(
        &self,
        kernels: Kernels,
        weights: WeightType,
    ) -> Result<impl Parameters + '_, BaseError> {
        if kernels == Kernels::Composed && weights.needs_fused_kernels() {
            let device = format!("{:?}", self.checkpoint.device().location());
            return Err(BaseError::NoKernels { weights, device });
        }
        if !weights.runs_here() {
            return Err(BaseError::NoInstructions { weights });
        }
        let bytes = memory::weight_bytes(&self.outline, weights, kernels);
        memory::require("the base", bytes, self.checkpoint.device())?;
        Ok(Loader::new(&self.checkpoint, kernels, weights, bytes))
    }

    /// Loads the model, unless the device has too little memory.
    pub fn load(&self, kernels: Kernels, weights: WeightType) -> Result<Llava, BaseError> {
        let parameters = self.parameters(kernels, weights)?;
        Ok(Llava::new(&self.config, &parameters, kernels)?)
    }

    /// Loads the model for an engine, with the kernels that its device wants.
    pub fn load_boxed(&self, weights: WeightType) -> Result<Box<dyn MedVlm>, BaseError> {
        Ok(Box::new(self.load(self.kernels(), weights)?))
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
