//! The configuration of a base small enough to be trained from nothing: its sizes are free, all else is
//! the same for every such base.

use norma::model::config::{
    DecoderConfig, LlavaConfig, ProjectorConfig, RopeScaling, VisionConfig,
};
use norma::model::ops::activation::Activation;

/// The sizes. `head` divides both widths.
#[derive(Clone, Copy, Debug)]
pub struct SmallLlava {
    /// Side of the square image in pixels.
    pub image: usize,
    /// Side of a patch in pixels.
    pub patch: usize,
    /// Width of the tower.
    pub tower_width: usize,
    /// Tower layers; all are used.
    pub tower_layers: usize,
    /// Width inside the tower's MLPs.
    pub tower_inner: usize,
    /// Width of the decoder.
    pub decoder_width: usize,
    /// Decoder layers.
    pub decoder_layers: usize,
    /// Width inside the decoder's MLPs.
    pub decoder_inner: usize,
    /// Width of a head, in both.
    pub head: usize,
    /// Tokens of the vocabulary.
    pub vocab_size: usize,
    /// Positions that a sequence may have.
    pub max_positions: usize,
}

impl SmallLlava {
    /// The configuration.
    pub fn config(&self) -> LlavaConfig {
        let decoder_heads = self.decoder_width / self.head;
        LlavaConfig {
            vision: VisionConfig {
                hidden_size: self.tower_width,
                intermediate_size: self.tower_inner,
                num_hidden_layers: self.tower_layers,
                num_attention_heads: self.tower_width / self.head,
                image_size: self.image,
                patch_size: self.patch,
                hidden_act: Activation::QuickGelu,
                layer_norm_eps: 1e-5,
                feature_layers: vec![self.tower_layers],
                keeps_class_token: false,
            },
            projector: ProjectorConfig {
                hidden_act: Some(Activation::Gelu),
                bias: true,
            },
            decoder: DecoderConfig {
                vocab_size: self.vocab_size,
                hidden_size: self.decoder_width,
                intermediate_size: self.decoder_inner,
                num_hidden_layers: self.decoder_layers,
                num_attention_heads: decoder_heads,
                num_key_value_heads: decoder_heads,
                head_dim: self.head,
                hidden_act: Activation::Silu,
                max_position_embeddings: self.max_positions,
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
}
