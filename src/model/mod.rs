//! The model: tensors in, tensors out. It knows no requests, channels or HTTP.
//!
//! One forward serves and trains. Everything but the norms is either frozen ([`ops::frozen_linear`]) or,
//! while a base is pre-trained, a variable; the norms read their values from the [`bank::NormBank`],
//! every row from the slot of its own adapter. A [`step::Step`] describes the batch: rows of many
//! sequences, prefill and decode mixed, without padding.
//!
//! - [`config`]: what determines the computation; [`parameters`]: where weights come from;
//!   [`outline`]: which of them a configuration asks for.
//! - [`ops`]: the operations, each with its backward.
//! - [`linear`], [`norm_site`]: the two building blocks of a layer.
//! - [`clip`], [`decoder`]: what families share. [`llava`]: one family's wiring.
//! - [`stages`]: the same forward layer by layer, for a trainer.
//! - [`key_values`]: the wall to where keys and values of running sequences are kept: in rows of the CPU's
//!   memory ([`kv_cache`]) or in pages of a device ([`paged`]). [`prefix`]: learned ones before them.

pub mod bank;
pub mod clip;
pub mod config;
pub mod decoder;
pub mod key_values;
pub mod kv_cache;
pub mod linear;
pub mod llava;
pub mod norm_site;
pub mod ops;
pub mod outline;
pub mod paged;
pub mod parameters;
pub mod prefix;
pub mod stages;
pub mod step;

use std::sync::Arc;

use candle_core::{Device, Result, Tensor};
use norma_adapters::SiteTable;

use bank::NormBank;
use config::LlavaConfig;
use key_values::KeyValues;
use step::Step;

/// The numbers of a model that its users need.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ModelShape {
    /// Tokens in the vocabulary.
    pub vocab_size: usize,
    /// Positions that a sequence may have.
    pub max_positions: usize,
    /// Side of the square image in pixels.
    pub image_size: usize,
    /// Rows that one image gives to the decoder.
    pub image_tokens: usize,
    /// Rows of one image inside the tower, class token included.
    pub tower_rows: usize,
    /// Layers that an image passes in the tower.
    pub tower_layers: usize,
    /// Decoder layers.
    pub n_layers: usize,
    /// Width of a key (and a value) row.
    pub kv_width: usize,
    /// Width of a head of the decoder; divides `kv_width`.
    pub head_dim: usize,
}

impl ModelShape {
    /// The numbers of a LLaVA.
    pub fn of(config: &LlavaConfig) -> Self {
        Self {
            vocab_size: config.decoder.vocab_size,
            max_positions: config.decoder.max_position_embeddings,
            image_size: config.vision.image_size,
            image_tokens: config.vision.image_tokens(),
            tower_rows: config.vision.n_patches() + 1,
            tower_layers: config.vision.used_layers(),
            n_layers: config.decoder.num_hidden_layers,
            kv_width: config.decoder.kv_width(),
            head_dim: config.decoder.head_dim,
        }
    }
}

/// Images whose encoding is not complete, so that other work can come between.
#[derive(Debug)]
pub struct ImageEncoding {
    /// `[n, 3, size, size]`, normalised.
    pub pixels: Tensor,
    /// The adapter slot of each image. Until the encoding is complete these must keep their values.
    pub slots: Vec<u32>,
    /// How far it has come.
    pub pass: Option<clip::TowerPass>,
}

/// A medical vision-language model whose norms read their values from a bank.
pub trait MedVlm: Send {
    /// Its norm sites in the fixed order of bank rows.
    fn sites(&self) -> &SiteTable;

    /// Its numbers.
    fn shape(&self) -> &ModelShape;

    /// The device that it lives on.
    fn device(&self) -> &Device;

    /// Features of `n` images, `[n * image_tokens, hidden]`. `pixels`: `[n, 3, size, size]`, normalised;
    /// `slots`: the adapter slot of each image.
    fn encode_images(&self, pixels: &Tensor, slots: &[u32], bank: &NormBank) -> Result<Tensor>;

    /// Goes on with at most so many of the tower's layers; the features, as [`Self::encode_images`] gives
    /// them, once all are done. A model that cannot stop on the way does all at once.
    fn continue_images(
        &self,
        encoding: &mut ImageEncoding,
        _n_layers: usize,
        bank: &NormBank,
    ) -> Result<Option<Tensor>> {
        self.encode_images(&encoding.pixels, &encoding.slots, bank)
            .map(Some)
    }

    /// Logits of the step's wanted rows, `[wanted, vocab]`, f32. `cache` is needed if the step stores its keys.
    fn forward(
        &self,
        step: &Step,
        bank: &NormBank,
        cache: Option<&dyn KeyValues>,
    ) -> Result<Tensor>;
}

/// A shared model is a model: an engine can ask it while its owner looks at its weights.
impl<M: MedVlm + Sync + ?Sized> MedVlm for Arc<M> {
    fn sites(&self) -> &SiteTable {
        (**self).sites()
    }

    fn shape(&self) -> &ModelShape {
        (**self).shape()
    }

    fn device(&self) -> &Device {
        (**self).device()
    }

    fn encode_images(&self, pixels: &Tensor, slots: &[u32], bank: &NormBank) -> Result<Tensor> {
        (**self).encode_images(pixels, slots, bank)
    }

    fn continue_images(
        &self,
        encoding: &mut ImageEncoding,
        n_layers: usize,
        bank: &NormBank,
    ) -> Result<Option<Tensor>> {
        (**self).continue_images(encoding, n_layers, bank)
    }

    fn forward(
        &self,
        step: &Step,
        bank: &NormBank,
        cache: Option<&dyn KeyValues>,
    ) -> Result<Tensor> {
        (**self).forward(step, bank, cache)
    }
}
