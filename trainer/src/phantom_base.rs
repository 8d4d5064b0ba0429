//! The phantom base's configuration: a LLaVA small enough to be embedded.

use norma::model::config::{
    DecoderConfig, LlavaConfig, ProjectorConfig, RopeScaling, VisionConfig,
};
use norma::model::ops::activation::Activation;
use serde::{Deserialize, Serialize};

use crate::phantom::draw::{PATCH, SIDE};
use crate::phantom::tokenizer::VOCABULARY_SIZE;

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
    let n_heads = sizes.width / sizes.head;
    LlavaConfig {
        vision: VisionConfig {
            hidden_size: sizes.width,
            intermediate_size: sizes.tower_inner,
            num_hidden_layers: sizes.tower_layers,
            num_attention_heads: n_heads,
            image_size: SIDE,
            patch_size: PATCH,
            hidden_act: Activation::QuickGelu,
            layer_norm_eps: 1e-5,
            feature_layers: vec![sizes.tower_layers],
            keeps_class_token: false,
        },
        projector: ProjectorConfig {
            hidden_act: Some(Activation::Gelu),
            bias: true,
        },
        decoder: DecoderConfig {
            vocab_size: VOCABULARY_SIZE,
            hidden_size: sizes.width,
            intermediate_size: sizes.decoder_inner,
            num_hidden_layers: sizes.decoder_layers,
            num_attention_heads: n_heads,
            num_key_value_heads: n_heads,
            head_dim: sizes.head,
            hidden_act: Activation::Silu,
            max_position_embeddings: MAX_POSITIONS,
            rms_norm_eps: 1e-5,
            rope_theta: 10_000.0,
            rope_scaling: RopeScaling::Default,
            attention_bias: false,
            mlp_bias: false,
            sliding_window: None,
            tie_word_embeddings: true,
        },
    }
}
