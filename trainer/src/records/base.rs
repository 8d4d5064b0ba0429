//! A small LLaVA for pre-training on a real set: its configuration and its image processor. In: the
//! sizes that a recipe chooses. Out: what a checkpoint folder says beside the weights. It must not know
//! records.

use anyhow::{Result, ensure};
use norma::model::config::LlavaConfig;
use norma::preprocess::{ChatPrompt, ClipPreprocess};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokenizers::Tokenizer;

use crate::adapter::Surroundings;
use crate::augment::{Scale, Variation};
use crate::bpe::{self, CHAT_TEMPLATE, MAX_POSITIONS};
use crate::optimizer::{AdamConfig, Schedule};
use crate::pretrain::Plan;
use crate::small_llava::SmallLlava;

/// All that determines a pre-training run on records, beside the records.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RecordRecipe {
    /// Seed of weights and of the order of lessons.
    pub seed: u64,
    /// The model's sizes.
    pub sizes: RecordSizes,
    /// Images a step.
    pub images: usize,
    /// Questions about an image at most, drawn anew every time.
    pub questions: usize,
    /// How pictures are varied.
    pub variation: Variation,
    /// Shards that a step's images are dealt to.
    pub shards: usize,
    /// The learning rate.
    pub schedule: Schedule,
    /// The tower's learning rate as a share of it.
    pub tower_rate: f64,
    /// Weight decay of matrices.
    pub weight_decay: f64,
    /// The optimiser's constants.
    pub adam: AdamConfig,
    /// Highest norm of all gradients together.
    pub clip: f64,
}

impl RecordRecipe {
    /// The part that says how the values are found. Records have no labels for the tower.
    pub fn plan(&self) -> Plan {
        Plan {
            seed: self.seed,
            shards: self.shards,
            warm_up: Schedule {
                peak: 0.0,
                warm_up: 0,
                steps: 0,
                floor: 0.0,
            },
            joint: self.schedule,
            label_weight: 0.0,
            tower_rate: self.tower_rate,
            weight_decay: self.weight_decay,
            adam: self.adam,
            clip: self.clip,
        }
    }
}

/// The sizes of a model.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RecordSizes {
    /// Side of the square image in pixels.
    pub image: usize,
    /// Side of a patch in pixels.
    pub patch: usize,
    /// Width of the tower.
    pub tower_width: usize,
    /// Tower layers.
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
    /// Tokens of the vocabulary at most.
    pub vocabulary: usize,
}

/// The configuration of these sizes for a vocabulary of `vocab_size` tokens.
pub fn config(sizes: &RecordSizes, vocab_size: usize) -> Result<LlavaConfig> {
    let check = |name: &str, width: usize| {
        let fits =
            sizes.head > 0 && sizes.head.is_multiple_of(2) && width.is_multiple_of(sizes.head);
        ensure!(
            fits && width > 0,
            "{name} {width} is no multiple of an even head {}",
            sizes.head
        );
        Ok(())
    };
    let fits = sizes.patch > 0 && sizes.image > 0 && sizes.image.is_multiple_of(sizes.patch);
    ensure!(
        fits,
        "an image of {} is no whole number of patches of {}",
        sizes.image,
        sizes.patch
    );
    check("tower_width", sizes.tower_width)?;
    check("decoder_width", sizes.decoder_width)?;
    let small = SmallLlava {
        image: sizes.image,
        patch: sizes.patch,
        tower_width: sizes.tower_width,
        tower_layers: sizes.tower_layers,
        tower_inner: sizes.tower_inner,
        decoder_width: sizes.decoder_width,
        decoder_layers: sizes.decoder_layers,
        decoder_inner: sizes.decoder_inner,
        head: sizes.head,
        vocab_size,
        max_positions: MAX_POSITIONS,
    };
    Ok(small.config())
}

/// Mean and deviation of pixels: about those of radiographs, CT and MRI on black.
pub const SCALE: Scale = Scale {
    mean: 0.25,
    deviation: 0.25,
};

/// The image processor for square pictures of `side` pixels, as transformers writes it. A picture that
/// is not square is put on a square of the mean's colour, so that none of it is cut away.
pub fn processor_values(side: usize) -> Value {
    json!({
        "image_processor_type": "LlavaImageProcessor",
        "do_convert_rgb": true,
        "do_pad": true,
        "do_resize": true, "size": { "shortest_edge": side }, "resample": 3,
        "do_center_crop": true, "crop_size": { "height": side, "width": side },
        "do_rescale": true, "rescale_factor": 1.0 / 255.0,
        "do_normalize": true,
        "image_mean": vec![SCALE.mean; 3], "image_std": vec![SCALE.deviation; 3],
    })
}

/// How pictures and texts become inputs, before there is a folder to read that from.
pub fn surroundings(sizes: &RecordSizes, tokenizer: Tokenizer) -> Result<Surroundings> {
    Ok(Surroundings {
        preprocess: ClipPreprocess::from_json(&processor_values(sizes.image))?,
        chat: ChatPrompt::from_template(CHAT_TEMPLATE)?,
        tokenizer: bpe::text_tokenizer(tokenizer),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZES: RecordSizes = RecordSizes {
        image: 32,
        patch: 16,
        tower_width: 32,
        tower_layers: 1,
        tower_inner: 64,
        decoder_width: 48,
        decoder_layers: 1,
        decoder_inner: 64,
        head: 16,
        vocabulary: 300,
    };

    #[test]
    fn sizes_that_do_not_divide_are_refused() {
        let config =
            |sizes: RecordSizes| config(&sizes, 300).map(|config| config.vision.n_patches());
        assert_eq!(config(SIZES).unwrap(), 4);
        let refuse = |sizes| config(sizes).unwrap_err().to_string();
        assert!(refuse(RecordSizes { image: 33, ..SIZES }).contains("image of 33"));
        assert!(
            refuse(RecordSizes {
                decoder_width: 40,
                ..SIZES
            })
            .contains("decoder_width 40")
        );
        assert!(refuse(RecordSizes { head: 0, ..SIZES }).contains("tower_width"));
    }
}
