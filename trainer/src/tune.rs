//! LayerNorm tuning: the norm values of a frozen base learn a task, nothing else moves.
//!
//! In: a frozen base, lessons, a recipe. Out: the tuned norm values and the losses on the way. A run
//! that would train nothing, or whose frozen tensors changed, fails. It must not know files or text.

use anyhow::{Result, bail, ensure};
use candle_core::Tensor;
use norma::model::MedVlm;
use norma_adapters::{Part, Scope};
use serde::{Deserialize, Serialize};

use crate::batch::{Packed, pack};
use crate::frozen::FrozenBase;
use crate::learner::{Shards, answer_loss};
use crate::lesson::{Lesson, pixels};
use crate::optimizer::{AdamConfig, AdamW, Group, Schedule, clip};
use crate::order::Order;
use crate::variables::{NamedVar, NormVariables};

/// How the values are found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TuneRecipe {
    /// Seed of the order of lessons.
    pub seed: u64,
    /// Which norms learn.
    pub scope: Scope,
    /// Images a step.
    pub images: usize,
    /// Shards that a step's images are dealt to.
    pub shards: usize,
    /// The learning rate.
    pub schedule: Schedule,
    /// The optimiser's constants.
    pub adam: AdamConfig,
    /// Highest norm of all gradients together.
    pub clip: f64,
}

/// A run under way: the variables, the optimiser, and features that do not change.
pub struct Tuner<'a> {
    base: &'a FrozenBase,
    norms: NormVariables,
    optimizer: AdamW,
    variables: Vec<NamedVar>,
    shards: Shards,
    scope: Scope,
}

/// What a shard works on.
struct Shard {
    packed: Packed,
    images: Images,
}

enum Images {
    /// Pixels: the tower's norms learn.
    Pixels(Tensor, usize),
    /// Image features that no variable has a part in.
    Features(Tensor),
}

/// A lesson with its image features where they stay the same during the run.
pub struct Prepared<'l> {
    lesson: &'l Lesson,
    features: Option<Tensor>,
}

impl<'a> Tuner<'a> {
    /// Variables at the base's own values.
    pub fn new(
        base: &'a FrozenBase,
        scope: Scope,
        adam: AdamConfig,
        shards: usize,
    ) -> Result<Self> {
        let (model, sites) = (&base.model, base.model.sites());
        let norms = NormVariables::new(sites, &base.row, Some(scope), model.device())?;
        let variables = norms.all().to_vec();
        if variables.is_empty() {
            bail!("the base has no norm in scope `{scope}`: nothing would be trained");
        }
        // Gains decay towards 0, not towards the base; so they do not decay.
        let group = Group {
            rate_scale: 1.0,
            weight_decay: 0.0,
        };
        let optimizer = AdamW::new(variables.iter().cloned(), |_| group, adam);
        Ok(Self {
            base,
            norms,
            optimizer,
            variables,
            shards: Shards::new(shards)?,
            scope,
        })
    }

    /// Values that learn.
    pub fn n_trainable(&self) -> usize {
        self.optimizer.n_values()
    }

    /// The norm values.
    pub fn norms(&self) -> &NormVariables {
        &self.norms
    }

    /// Computes, once, the image features of lessons if no norm in them learns.
    pub fn prepare<'l>(&self, lessons: &'l [Lesson]) -> Result<Vec<Prepared<'l>>> {
        const TOGETHER: usize = 32;
        if self.learns_vision() {
            return Ok(lessons
                .iter()
                .map(|lesson| Prepared {
                    lesson,
                    features: None,
                })
                .collect());
        }
        let model = &self.base.model;
        let (size, rows) = (model.shape().image_size, model.shape().image_tokens);
        let mut prepared = Vec::with_capacity(lessons.len());
        for chunk in lessons.chunks(TOGETHER) {
            let pixels = pixels(chunk.iter(), size, model.device())?;
            let features =
                model.encode_images(&pixels, &vec![0; chunk.len()], self.norms.bank())?;
            for (i, lesson) in chunk.iter().enumerate() {
                let features = Some(features.narrow(0, i * rows, rows)?);
                prepared.push(Prepared { lesson, features });
            }
        }
        Ok(prepared)
    }

    fn learns_vision(&self) -> bool {
        let sites = self.base.model.sites();
        sites
            .selected(self.scope)
            .any(|site| sites.sites()[site].part != Part::Language)
    }

    /// Loss and gradients of some lessons; the loss is the mean over all their answer tokens.
    fn gradients(&self, lessons: &[&Prepared]) -> Result<(f64, crate::optimizer::Gradients)> {
        let shards = (0..self.shards.count().min(lessons.len()))
            .map(|shard| self.shard(lessons.iter().skip(shard).step_by(self.shards.count())))
            .collect::<Result<Vec<Shard>>>()?;
        let tokens: usize = shards.iter().map(|shard| shard.packed.targets.len()).sum();
        self.shards.gradients(&self.variables, &shards, |shard| {
            let share = shard.packed.targets.len() as f64 / tokens as f64;
            Ok((self.loss(shard)? * share)?)
        })
    }

    fn shard<'p>(&self, lessons: impl Iterator<Item = &'p &'p Prepared<'p>>) -> Result<Shard> {
        let lessons: Vec<&Prepared> = lessons.copied().collect();
        let packed = pack(lessons.iter().map(|one| &one.lesson.dialogue));
        let features: Option<Vec<&Tensor>> =
            lessons.iter().map(|one| one.features.as_ref()).collect();
        let images = if let Some(features) = features {
            Images::Features(Tensor::cat(&features, 0)?)
        } else {
            let model = &self.base.model;
            let lessons: Vec<&Lesson> = lessons.iter().map(|one| one.lesson).collect();
            let (n, size) = (lessons.len(), model.shape().image_size);
            Images::Pixels(pixels(lessons.into_iter(), size, model.device())?, n)
        };
        Ok(Shard { packed, images })
    }

    fn loss(&self, shard: &Shard) -> Result<Tensor> {
        let (model, bank) = (&self.base.model, self.norms.bank());
        let features = match &shard.images {
            Images::Pixels(pixels, n) => model.encode_images(pixels, &vec![0; *n], bank)?,
            Images::Features(features) => features.clone(),
        };
        answer_loss(model, bank, &shard.packed, Some(features))
    }

    /// Fails unless every value in scope gets a gradient from these lessons and no frozen tensor does.
    pub fn check_reach(&self, lessons: &[&Prepared]) -> Result<()> {
        let store = self.loss(&self.shard(lessons.iter())?)?.backward()?;
        ensure!(
            !self.base.appears_in(&store),
            "a frozen tensor got a gradient"
        );
        for variable in &self.variables {
            let gradient = store.get(variable.var.as_tensor());
            let largest = gradient
                .map(|gradient| gradient.abs()?.max_all()?.to_scalar::<f32>())
                .transpose()?
                .unwrap_or(0.0);
            ensure!(
                largest > 0.0 && largest.is_finite(),
                "`{}` is in scope `{}` but its gradient is {largest}",
                variable.name,
                self.scope
            );
        }
        Ok(())
    }

    /// One step on some lessons; returns their loss before it.
    pub fn step(&mut self, lessons: &[&Prepared], rate: f64, limit: f64) -> Result<f64> {
        let (loss, mut gradients) = self.gradients(lessons)?;
        ensure!(loss.is_finite(), "the loss is {loss}");
        clip(&mut gradients, limit);
        self.optimizer.step(&gradients, rate)?;
        Ok(loss)
    }

    /// The loss of some lessons.
    pub fn evaluate(&self, lessons: &[&Prepared]) -> Result<f64> {
        Ok(f64::from(
            self.loss(&self.shard(lessons.iter())?)?
                .to_scalar::<f32>()?,
        ))
    }
}

/// What a run tells while it goes on.
#[derive(Clone, Copy, Debug)]
pub enum Event {
    /// Before the first step.
    Start {
        /// Values that learn.
        trainable: usize,
        /// Values of the base.
        total: usize,
    },
    /// After every step.
    Step {
        /// Steps done.
        done: usize,
        /// The loss before the step.
        loss: f64,
    },
}

/// A finished run.
pub struct Tuned {
    /// The whole norm row, `[row_len]`: the base's values outside the scope.
    pub row: Vec<f32>,
    /// Loss of each step.
    pub losses: Vec<f64>,
    /// The values that the run moved, and all that it trained.
    pub moved: (usize, usize),
}

/// Runs a recipe on lessons.
pub fn tune(
    base: &FrozenBase,
    lessons: &[Lesson],
    recipe: &TuneRecipe,
    mut report: impl FnMut(Event),
) -> Result<Tuned> {
    ensure!(
        !lessons.is_empty(),
        "there is nothing to learn from: no lessons"
    );
    ensure!(
        recipe.images > 0 && recipe.schedule.steps > 0,
        "a run needs images and steps"
    );
    let mut tuner = Tuner::new(base, recipe.scope, recipe.adam, recipe.shards)?;
    report(Event::Start {
        trainable: tuner.n_trainable(),
        total: base.n_values(),
    });
    let before = base.weights_digest()?;
    let prepared = tuner.prepare(lessons)?;
    let mut order = Order::new(prepared.len(), recipe.seed);
    let batch = |order: &mut Order| -> Vec<&Prepared> {
        (0..recipe.images)
            .map(|_| &prepared[order.draw()])
            .collect()
    };
    tuner.check_reach(&batch(&mut order))?;
    let mut losses = Vec::with_capacity(recipe.schedule.steps);
    for step in 0..recipe.schedule.steps {
        let rate = recipe.schedule.rate(step);
        losses.push(tuner.step(&batch(&mut order), rate, recipe.clip)?);
        report(Event::Step {
            done: step + 1,
            loss: losses[step],
        });
    }
    ensure!(
        base.weights_digest()? == before,
        "a frozen tensor changed while the norms were tuned"
    );
    let sites = base.model.sites();
    let row = tuner.norms.row(sites)?;
    ensure!(
        row.iter().all(|value| value.is_finite()),
        "a norm value is no longer finite"
    );
    let moved = row
        .iter()
        .zip(&base.row)
        .filter(|(now, before)| now != before)
        .count();
    ensure!(moved > 0, "no norm value moved");
    Ok(Tuned {
        row,
        losses,
        moved: (moved, tuner.n_trainable()),
    })
}
