//! What determines a model's computation, in one form for every way a checkpoint may say it.
//!
//! These structures are part of the base digest: a value belongs here exactly if changing it changes
//! the answer.

use serde::Serialize;

use super::ops::activation::Activation;

/// A LLaVA: vision tower, projector, decoder.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LlavaConfig {
    /// The CLIP vision tower.
    pub vision: VisionConfig,
    /// What maps tower features to decoder inputs.
    pub projector: ProjectorConfig,
    /// The Llama or Mistral decoder.
    pub decoder: DecoderConfig,
}

/// A CLIP vision transformer and which of its layers is read.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct VisionConfig {
    /// Width of a patch's row.
    pub hidden_size: usize,
    /// Width inside the MLP.
    pub intermediate_size: usize,
    /// Layers in the checkpoint, read or not. Does not change the answer.
    #[serde(skip)]
    pub num_hidden_layers: usize,
    /// Attention heads.
    pub num_attention_heads: usize,
    /// Side of the square image in pixels.
    pub image_size: usize,
    /// Side of a square patch in pixels.
    pub patch_size: usize,
    /// The MLP's activation.
    pub hidden_act: Activation,
    /// Added to the variance.
    pub layer_norm_eps: f32,
    /// The hidden states that are read, joined along their width: 0 is the tower's input, `n` the
    /// output of layer `n`.
    pub feature_layers: Vec<usize>,
    /// Whether the class token's row is read too (`full`) or dropped (`default`, `patch`).
    pub keeps_class_token: bool,
}

impl VisionConfig {
    /// Patches of an image.
    pub fn n_patches(&self) -> usize {
        (self.image_size / self.patch_size).pow(2)
    }

    /// Rows that one image gives to the decoder.
    pub fn image_tokens(&self) -> usize {
        self.n_patches() + usize::from(self.keeps_class_token)
    }

    /// Layers that the selected features depend on.
    pub fn used_layers(&self) -> usize {
        self.feature_layers.iter().copied().max().unwrap_or(0)
    }
}

/// An MLP of one or two layers.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ProjectorConfig {
    /// The activation between two layers; `None` for a single linear layer.
    pub hidden_act: Option<Activation>,
    /// Whether the layers have biases.
    pub bias: bool,
}

/// A Llama or Mistral decoder.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct DecoderConfig {
    /// Tokens in the vocabulary.
    pub vocab_size: usize,
    /// Width of a token's row.
    pub hidden_size: usize,
    /// Width inside the MLP.
    pub intermediate_size: usize,
    /// Layers.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key and value heads.
    pub num_key_value_heads: usize,
    /// Width of a head; need not be `hidden_size / num_attention_heads`.
    pub head_dim: usize,
    /// The gate's activation.
    pub hidden_act: Activation,
    /// Positions that the rotary table holds. Bounds the length of a sequence, not its answer.
    #[serde(skip)]
    pub max_position_embeddings: usize,
    /// Added to the mean square.
    pub rms_norm_eps: f32,
    /// The base of the rotary frequencies.
    pub rope_theta: f32,
    /// How rotary frequencies are stretched.
    pub rope_scaling: RopeScaling,
    /// Whether attention projections have biases.
    pub attention_bias: bool,
    /// Whether MLP projections have biases.
    pub mlp_bias: bool,
    /// Positions that a token sees at most, itself included.
    pub sliding_window: Option<usize>,
    /// Whether the head is the token embedding.
    pub tie_word_embeddings: bool,
}

/// How rotary frequencies are stretched beyond the context of pre-training.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "rope_type", rename_all = "lowercase")]
pub enum RopeScaling {
    /// Not at all.
    Default,
    /// All by one factor.
    Linear {
        /// Divides every frequency.
        factor: f32,
    },
    /// Long wavelengths by `factor`, short ones not, those between smoothly (Llama 3.1).
    Llama3 {
        /// Divides the frequencies of long wavelengths.
        factor: f32,
        /// Wavelengths above `original / low` are long.
        low_freq_factor: f32,
        /// Wavelengths below `original / high` are short.
        high_freq_factor: f32,
        /// The context of pre-training in positions.
        original_max_position_embeddings: usize,
    },
}

impl DecoderConfig {
    /// The angle that each pair of columns turns by from one position to the next, in radians;
    /// `head_dim / 2` values.
    pub fn inverse_frequencies(&self) -> Vec<f32> {
        let dim = self.head_dim as f32;
        (0..self.head_dim / 2)
            .map(|pair| 1.0 / self.rope_theta.powf(2.0 * pair as f32 / dim))
            .map(|frequency| self.rope_scaling.scale(frequency))
            .collect()
    }

    /// Width of a key or value row.
    pub fn kv_width(&self) -> usize {
        self.num_key_value_heads * self.head_dim
    }
}

impl RopeScaling {
    fn scale(&self, frequency: f32) -> f32 {
        match *self {
            Self::Default => frequency,
            Self::Linear { factor } => frequency / factor,
            Self::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_max_position_embeddings,
            } => {
                let wavelength = 2.0 * std::f32::consts::PI / frequency;
                let original = original_max_position_embeddings as f32;
                if wavelength > original / low_freq_factor {
                    frequency / factor
                } else if wavelength < original / high_freq_factor {
                    frequency
                } else {
                    let smooth = (original / wavelength - low_freq_factor)
                        / (high_freq_factor - low_freq_factor);
                    (1.0 - smooth) * frequency / factor + smooth * frequency
                }
            }
        }
    }
}
