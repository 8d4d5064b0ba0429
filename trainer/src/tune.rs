//! Tuning: what a method trains of a frozen base learns a task, nothing else moves.
//!
//! In: a frozen base, lessons, a recipe. Out: the tuned norm values and the losses on the way; what the
//! base has attached has moved in place. A run that would train nothing, or in which a trained tensor
//! stood still or a frozen one changed, fails. It must not know files, text or what a method does.

use std::time::Instant;

use anyhow::{Result, ensure};
use candle_core::Tensor;
use candle_core::backprop::GradStore;
use norma::model::MedVlm;
use norma::model::ops::cross_entropy::cross_entropy;
use norma::model::ops::{Kernels, RowIndex};
use norma::model::stages::Stages;
use norma_adapters::{Digest, Part, Scope};
use serde::{Deserialize, Serialize};

use crate::batch::{Packed, pack};
use crate::frozen::FrozenBase;
use crate::learner::{Shards, answer_loss};
use crate::lesson::{Lesson, pixels};
use crate::methods::{Choice, Method, part_of};
use crate::optimizer::{AdamConfig, AdamW, Gradients, Group, Schedule, clip};
use crate::order::Order;
use crate::staged::{self, Keep};
use crate::variables::{NamedVar, NormVariables};

/// How the values are found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TuneRecipe {
    /// Seed of the order of lessons.
    pub seed: u64,
    /// Which part of the base may learn.
    pub scope: Scope,
    /// What learns there; norm values if nothing is said.
    #[serde(default, skip_serializing_if = "is_default")]
    pub method: Method,
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
    /// See [`Tuner::checkpoint_layers`].
    #[serde(default, skip_serializing_if = "is_default")]
    pub checkpoint_layers: bool,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

impl TuneRecipe {
    /// What learns.
    pub fn choice(&self) -> Choice {
        Choice {
            method: self.method.clone(),
            scope: self.scope,
            seed: self.seed,
        }
    }
}

/// A run under way: the variables, the optimiser, and features that do not change.
pub struct Tuner<'a> {
    base: &'a FrozenBase,
    norms: NormVariables,
    optimizer: AdamW,
    variables: Vec<NamedVar>,
    /// Of the variables before the first step.
    start: Vec<Digest>,
    shards: Shards,
    checkpoint_layers: bool,
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
    /// Norm values as they are in the base; attached variables as they are. The base must have been
    /// built for the choice.
    pub fn new(
        base: &'a FrozenBase,
        choice: &Choice,
        adam: AdamConfig,
        shards: usize,
    ) -> Result<Self> {
        let built_for = base.choice.as_ref().is_none_or(|one| one == choice);
        ensure!(
            built_for && (base.choice.is_some() || choice.method.makes_adapter()),
            "the base was not built for {} in scope `{}`",
            choice.method.name(),
            choice.scope
        );
        let (model, sites) = (&base.model, base.model.sites());
        let norms = NormVariables::choose(sites, &base.row, choice.norm_rule()?, model.device())?;
        let mut variables = base.variables.clone();
        variables.extend(norms.all().iter().cloned());
        if variables.is_empty() {
            return Err(choice.nothing().into());
        }
        let start = digests(&variables)?;
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
            start,
            shards: Shards::new(shards)?,
            checkpoint_layers: false,
        })
    }

    /// Whether only the inputs of layers are kept for the way back, and the rest is computed again: less
    /// memory for more time, the same gradients to the bit.
    pub fn checkpoint_layers(&mut self, yes: bool) {
        self.checkpoint_layers = yes;
    }

    /// Values that learn.
    pub fn n_trainable(&self) -> usize {
        self.optimizer.n_values()
    }

    /// The norm values.
    pub fn norms(&self) -> &NormVariables {
        &self.norms
    }

    /// Computes, once, the image features of lessons if nothing that they depend on learns.
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
        let mut variables = self.variables.iter();
        variables.any(|variable| part_of(&variable.name) != Part::Language)
    }

    /// Loss and gradients of some lessons; the loss is the mean over all their answer tokens.
    fn gradients(&self, lessons: &[&Prepared]) -> Result<(f64, Gradients)> {
        let shards = (0..self.shards.count().min(lessons.len()))
            .map(|shard| self.shard(lessons.iter().skip(shard).step_by(self.shards.count())))
            .collect::<Result<Vec<Shard>>>()?;
        let tokens: usize = shards.iter().map(|shard| shard.packed.targets.len()).sum();
        self.shards.sum(&shards, |shard| {
            let share = shard.packed.targets.len() as f64 / tokens as f64;
            self.gradients_of(shard, share, |_| Ok(()))
        })
    }

    /// A share of a shard's loss and its gradients, layer by layer. `watch` sees all that has a gradient.
    fn gradients_of(
        &self,
        shard: &Shard,
        share: f64,
        watch: impl FnMut(&GradStore) -> Result<()>,
    ) -> Result<(f64, Gradients)> {
        let model = &self.base.model;
        let mut step = shard.packed.step.clone();
        let pixels = match &shard.images {
            Images::Pixels(pixels, _) => Some(pixels),
            Images::Features(features) => {
                step.image_features = Some(features.clone());
                None
            }
        };
        let stages = Stages::new(model, self.norms.bank(), &step, pixels)?;
        let targets = RowIndex::new(&shard.packed.targets, model.device())?;
        let kernels = Kernels::for_device(model.device());
        let loss = |logits: &Tensor| Ok((cross_entropy(logits, &targets, kernels)? * share)?);
        let keep = if self.checkpoint_layers {
            Keep::Inputs
        } else {
            Keep::Graph
        };
        staged::gradients(&stages, loss, &self.variables, keep, watch)
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

    /// Fails unless every variable gets a gradient from these lessons and no frozen tensor does.
    pub fn check_reach(&self, lessons: &[&Prepared]) -> Result<()> {
        // What starts at zero would hide what lies before it (LoRA's A behind its B): it is moved off zero
        // for the moment of the check.
        let moved = self.off_zero()?;
        let found = self.gradients_of(&self.shard(lessons.iter())?, 1.0, |store| {
            ensure!(
                !self.base.appears_in(store),
                "a frozen tensor got a gradient"
            );
            Ok(())
        });
        for variable in moved {
            variable.var.set(&variable.var.zeros_like()?)?;
        }
        let (_, gradients) = found?;
        for (variable, gradient) in self.variables.iter().zip(&gradients) {
            let values = gradient.iter().flatten();
            // Not `f32::max`, which passes over what is no number.
            let largest = values.fold(0f32, |largest, value| {
                let value = value.abs();
                if value > largest || value.is_nan() {
                    value
                } else {
                    largest
                }
            });
            ensure!(
                largest > 0.0 && largest.is_finite(),
                "`{}` should learn but its gradient is {largest}",
                variable.name
            );
        }
        Ok(())
    }

    /// Moves the variables that are all zero, and returns them.
    fn off_zero(&self) -> Result<Vec<&NamedVar>> {
        let mut moved = Vec::new();
        for variable in &self.variables {
            let var = &variable.var;
            if var.abs()?.max_all()?.to_scalar::<f32>()? > 0.0 {
                continue;
            }
            let values: Vec<f32> = (0..var.elem_count())
                .map(|i| ((i * 37 % 101) as f32 - 50.0) / 1000.0)
                .collect();
            var.set(&Tensor::from_vec(values, var.dims(), var.device())?)?;
            moved.push(variable);
        }
        Ok(moved)
    }

    /// Fails if a variable stands where it started, or is no longer finite.
    pub fn check_moved(&self) -> Result<()> {
        for ((variable, start), now) in self
            .variables
            .iter()
            .zip(&self.start)
            .zip(digests(&self.variables)?)
        {
            let name = &variable.name;
            ensure!(now != *start, "`{name}` was trained and has not moved");
            let sum = variable.var.abs()?.sum_all()?.to_scalar::<f32>()?;
            ensure!(sum.is_finite(), "`{name}` is no longer finite");
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

/// One digest a variable: a copy of all values would double them.
fn digests(variables: &[NamedVar]) -> candle_core::Result<Vec<Digest>> {
    let one = |variable: &NamedVar| {
        let values = variable.var.flatten_all()?.to_vec1::<f32>()?;
        Ok(Digest::of_f32(&values))
    };
    variables.iter().map(one).collect()
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
    /// The values that the run moved, and all that it trained. Of what is attached to a base, tensors
    /// are taken as a whole.
    pub moved: (usize, usize),
    /// Seconds of each step.
    pub seconds: Vec<f64>,
}

/// Runs a recipe on lessons. What the base has attached is moved in place, so a second run needs a base
/// of its own.
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
    // A step of fewer images than shards would leave cores idle.
    let shards = recipe.shards.min(recipe.images);
    let mut tuner = Tuner::new(base, &recipe.choice(), recipe.adam, shards)?;
    tuner.checkpoint_layers(recipe.checkpoint_layers);
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
    let mut seconds = Vec::with_capacity(recipe.schedule.steps);
    for step in 0..recipe.schedule.steps {
        let rate = recipe.schedule.rate(step);
        let start = Instant::now();
        losses.push(tuner.step(&batch(&mut order), rate, recipe.clip)?);
        seconds.push(start.elapsed().as_secs_f64());
        report(Event::Step {
            done: step + 1,
            loss: losses[step],
        });
    }
    ensure!(
        base.weights_digest()? == before,
        "a frozen tensor changed while others were tuned"
    );
    tuner.check_moved()?;
    let sites = base.model.sites();
    let row = tuner.norms.row(sites)?;
    ensure!(
        row.iter().all(|value| value.is_finite()),
        "a norm value is no longer finite"
    );
    let norms_moved = (row.iter().zip(&base.row)).filter(|(now, before)| now != before);
    let attached: usize = base.variables.iter().map(|one| one.var.elem_count()).sum();
    let moved = norms_moved.count() + attached;
    Ok(Tuned {
        row,
        losses,
        moved: (moved, tuner.n_trainable()),
        seconds,
    })
}
