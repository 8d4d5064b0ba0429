//! A LLaVA's forward cut between its layers, so that a trainer can go back through it piece by piece and
//! need not keep what lies inside of a layer.
//!
//! In: a step without a cache and, where the tower takes part, pixels. Out: stages, each of which takes
//! results of earlier ones; the last gives the logits. All of them one after another are the operations of
//! [`super::MedVlm::encode_images`] and [`super::MedVlm::forward`]. It must not know gradients.

use candle_core::{Result, Tensor, bail};

use super::bank::NormBank;
use super::decoder::ReadyStep;
use super::llava::Llava;
use super::ops::RowIndex;
use super::ops::attention::AttentionLayout;
use super::step::Step;

/// The stages of one forward pass.
#[derive(Debug)]
pub struct Stages<'a> {
    model: &'a Llava,
    bank: &'a NormBank,
    images: Option<Images<'a>>,
    /// Where the decoder's image features come from if no tower takes part.
    features: Option<&'a Tensor>,
    step: ReadyStep<'a>,
}

#[derive(Debug)]
struct Images<'a> {
    pixels: &'a Tensor,
    slots: RowIndex,
    layout: AttentionLayout,
}

/// What a stage computes.
enum Kind<'s, 'a> {
    Pixels(&'s Images<'a>),
    TowerLayer(&'s Images<'a>, usize),
    Projector(&'s Images<'a>),
    Embedding,
    DecoderLayer(usize),
    Head,
}

impl<'a> Stages<'a> {
    /// `pixels`: `[n, 3, size, size]` of images whose features the step's rows index, all with slot 0;
    /// without them these are the step's own.
    pub fn new(
        model: &'a Llava,
        bank: &'a NormBank,
        step: &'a Step,
        pixels: Option<&'a Tensor>,
    ) -> Result<Self> {
        if step.is_empty() || step.logits_rows.is_empty() {
            bail!("a step needs at least one row and one row whose logits are wanted");
        }
        let images = |pixels: &'a Tensor| -> Result<Images<'a>> {
            let (n, _, _, _) = pixels.dims4()?;
            Ok(Images {
                pixels,
                slots: model.tower_slots(pixels, &vec![0; n])?,
                layout: model.tower.layout(n)?,
            })
        };
        Ok(Self {
            model,
            bank,
            images: pixels.map(images).transpose()?,
            features: step.image_features.as_ref(),
            step: model.decoder.prepare(step, bank)?,
        })
    }

    /// The number of stages.
    pub fn len(&self) -> usize {
        self.n_image_stages() + self.model.decoder.n_layers() + 2
    }

    /// There is always a head.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// The earlier stages whose results a stage takes, in this order.
    pub fn inputs(&self, stage: usize) -> Vec<usize> {
        match self.kind(stage) {
            Kind::Pixels(_) => Vec::new(),
            Kind::Projector(_) => self.model.tower.selection().to_vec(),
            Kind::Embedding if self.images.is_none() => Vec::new(),
            _ => vec![stage - 1],
        }
    }

    /// A stage's result from those of its [`Self::inputs`].
    pub fn run(&self, stage: usize, inputs: &[Tensor]) -> Result<Tensor> {
        let (model, bank) = (self.model, self.bank);
        let kind = self.kind(stage);
        let wanted = self.inputs(stage).len();
        if inputs.len() != wanted {
            bail!("stage {stage} takes {wanted} results, got {}", inputs.len());
        }
        match kind {
            Kind::Pixels(images) => {
                let context = model.context(&images.slots, bank);
                model.tower.first(images.pixels, context)
            }
            Kind::TowerLayer(images, layer) => {
                let context = model.context(&images.slots, bank);
                model
                    .tower
                    .layer(layer, &inputs[0], &images.layout, context)
            }
            Kind::Projector(images) => {
                let n_images = images.pixels.dim(0)?;
                model.project(&model.tower.join(inputs.iter(), n_images)?)
            }
            Kind::Embedding => {
                let features = inputs.first().or(self.features);
                model.decoder.embed(&self.step, features)
            }
            Kind::DecoderLayer(layer) => model.decoder.layer(layer, &inputs[0], &self.step, bank),
            Kind::Head => model.decoder.head(&inputs[0], &self.step, bank),
        }
    }

    /// Pixels, the tower's layers and the projector.
    fn n_image_stages(&self) -> usize {
        self.images
            .as_ref()
            .map_or(0, |_| self.model.tower.n_layers() + 2)
    }

    fn kind(&self, stage: usize) -> Kind<'_, 'a> {
        let before = self.n_image_stages();
        if let (Some(images), true) = (&self.images, stage < before) {
            return match stage {
                0 => Kind::Pixels(images),
                _ if stage + 1 == before => Kind::Projector(images),
                _ => Kind::TowerLayer(images, stage - 1),
            };
        }
        match stage - before {
            0 => Kind::Embedding,
            layer if layer <= self.model.decoder.n_layers() => Kind::DecoderLayer(layer - 1),
            _ => Kind::Head,
        }
    }
}
