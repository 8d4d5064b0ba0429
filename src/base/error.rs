//! Why a folder is no base. Every message names the file, and the field or tensor in it.

use std::io;

use norma_adapters::SiteTableError;
use thiserror::Error;

use super::weights::WeightType;
use crate::model::llava::ModelError;
use crate::model::parameters::ParameterError;

/// What can be wrong with a checkpoint folder.
#[derive(Debug, Error)]
pub enum BaseError {
    /// A file could not be read.
    #[error("`{file}` could not be read")]
    Read {
        /// The file's name within the folder.
        file: String,
        /// What failed.
        source: io::Error,
    },
    /// A file is not JSON of the expected form.
    #[error("`{file}` is no valid JSON")]
    Json {
        /// The file's name.
        file: String,
        /// What failed.
        source: serde_json::Error,
    },
    /// A configuration field is missing or has a value that Norma cannot compute with.
    #[error("`{file}`: field `{field}` {problem}")]
    Field {
        /// The file's name.
        file: String,
        /// The field, with dots for nesting.
        field: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The folder holds no safetensors weights.
    #[error(
        "no weights found: the folder has neither `model.safetensors` nor `model.safetensors.index.json`{}",
        pickle_hint(*.pickled)
    )]
    NoWeights {
        /// Whether it holds weights in Python's pickle format instead.
        pickled: bool,
    },
    /// A safetensors file is truncated or otherwise broken.
    #[error("`{file}` is no valid safetensors file: {problem}")]
    Weights {
        /// The file's name.
        file: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The index names a tensor that its file does not hold.
    #[error("`{index}` says that tensor `{tensor}` is in `{file}`, but it is not")]
    Index {
        /// The index file.
        index: String,
        /// The tensor, as the index spells it.
        tensor: String,
        /// The file that should hold it.
        file: String,
    },
    /// Two tensors have the same canonical name.
    #[error("tensor `{name}` occurs twice, as `{first}` and as `{second}`")]
    Twice {
        /// Canonical name.
        name: String,
        /// One spelling, with its file.
        first: String,
        /// The other.
        second: String,
    },
    /// The checkpoint has no tower of its own, so that one has to be given.
    #[error(
        "the checkpoint holds no vision tower; `config.json` names `{tower}` (field `mm_vision_tower`): \
         use a checkpoint that holds its tower"
    )]
    NoTower {
        /// What the configuration names.
        tower: String,
    },
    /// The machine has too little memory.
    #[error("{what} needs {need} MB of memory, the machine has {have} MB free")]
    Memory {
        /// What would be loaded.
        what: String,
        /// Megabytes needed.
        need: u64,
        /// Megabytes free.
        have: u64,
    },
    /// The device's kernels have no such type of weights.
    #[error(
        "weights cannot be `{weights}` on {device}: `bf16-dot` and `int8` are types of the CPU's kernels"
    )]
    NoKernels {
        /// The type that was asked for.
        weights: WeightType,
        /// The device.
        device: String,
    },
    /// The processor cannot multiply this type of weights.
    #[error(
        "weights cannot be `{weights}` on this processor, which has no AVX512_BF16: `bf16` rounds weights \
         alike and runs everywhere"
    )]
    NoInstructions {
        /// The type that was asked for.
        weights: WeightType,
    },
    /// A tensor is missing or does not fit the configuration.
    #[error(transparent)]
    Parameter(#[from] ParameterError),
    /// The sites make no table.
    #[error(transparent)]
    Sites(#[from] SiteTableError),
}

impl From<ModelError> for BaseError {
    fn from(error: ModelError) -> Self {
        match error {
            ModelError::Parameter(error) => Self::Parameter(error),
            ModelError::Sites(error) => Self::Sites(error),
        }
    }
}

fn pickle_hint(pickled: bool) -> &'static str {
    if pickled {
        " (it has `pytorch_model*.bin`: save it as safetensors first)"
    } else {
        ""
    }
}
