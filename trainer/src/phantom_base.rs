//! The phantom base's configuration: a LLaVA small enough to be embedded.

use norma::model::config::LlavaConfig;
use serde::{Deserialize, Serialize};

use crate::phantom::draw::{PATCH, SIDE};
use crate::phantom::tokenizer::VOCABULARY_SIZE;
use crate::small_llava::SmallLlava;

/// The sizes that a recipe chooses.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sizes {
    /// Width of tower and decoder.
    pub width: usize,
    /// Width of a head.
    pub head: usize,
    /// Tower layers that are used.
    pub tower_layers: usize,
    /// Width inside the tower's MLPs.
    pub tower_inner: usize,
    /// Decoder layers.
    pub decoder_layers: usize,
    /// Width inside the decoder's MLPs.
    pub decoder_inner: usize,
}

/// Positions that a sequence may have: 68 rows of prefix, a long question and a long report.
const MAX_POSITIONS: usize = 256;

/// The configuration of these sizes.
pub fn config(sizes: &Sizes) -> LlavaConfig {
    let small = SmallLlava {
        image: SIDE,
        patch: PATCH,
        tower_width: sizes.width,
        tower_layers: sizes.tower_layers,
        tower_inner: sizes.tower_inner,
        decoder_width: sizes.width,
        decoder_layers: sizes.decoder_layers,
        decoder_inner: sizes.decoder_inner,
        head: sizes.head,
        vocab_size: VOCABULARY_SIZE,
        max_positions: MAX_POSITIONS,
    };
    small.config()
}
