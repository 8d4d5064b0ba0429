//! Tuning, step by step: what a method trains of a frozen base learns a task, nothing else moves.
//!
//! In: a frozen base, lessons, a recipe. Out: losses and moved values. It has the checks that everything
//! that learns gets a gradient and moves, and that no frozen tensor does; [`crate::run`] has the loop.
//! It must not know files, text or what a method does.

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
use crate::checkpoint::SlotState;
use crate::extras::Extras;
use crate::frozen::FrozenBase;
use crate::learner::{Shards, add_all, answer_loss};
use crate::lesson::{Lesson, pixels};
use crate::methods::{Choice, Method, part_of};
use crate::optimizer::{AdamConfig, AdamW, Gradients, Group, Schedule, clip};
use crate::run::Diverged;
pub use crate::run::{Event, Tuned, tune};
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
    /// What else the run does.
    #[serde(default, skip_serializing_if = "Extras::is_default")]
    pub extras: Extras,
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

impl Prepared<'_> {
    /// Tokens that are learnt.
    pub fn answer_tokens(&self) -> usize {
        let branches = self.lesson.dialogue.branches.iter();
        branches.map(|branch| branch.answer.len()).sum()
    }
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

    /// Whether image features change as the run goes on.
    pub fn learns_vision(&self) -> bool {
        let mut variables = self.variables.iter();
        variables.any(|variable| part_of(&variable.name) != Part::Language)
    }

    /// Loss and gradients of some lessons, as their share of a mean over `tokens` answer tokens.
    fn gradients(&self, lessons: &[&Prepared], tokens: usize) -> Result<(f64, Gradients)> {
        let shards = (0..self.shards.count().min(lessons.len()))
            .map(|shard| self.shard(lessons.iter().skip(shard).step_by(self.shards.count())))
            .collect::<Result<Vec<Shard>>>()?;
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
        Ok(self.step_in_parts(lessons, 1, (rate, limit))?.0)
    }

    /// The same, worked out in `parts` parts one after the other, which needs a part's memory. Returns
    /// the loss, the mean over all answer tokens, and the norm of its gradients.
    pub fn step_in_parts(
        &mut self,
        lessons: &[&Prepared],
        parts: usize,
        (rate, limit): (f64, f64),
    ) -> Result<(f64, f64)> {
        let tokens = lessons.iter().map(|one| one.answer_tokens()).sum();
        let mut parts = lessons.chunks(lessons.len().div_ceil(parts.max(1)).max(1));
        let first = parts.next().unwrap_or_default();
        let (mut loss, mut gradients) = self.gradients(first, tokens)?;
        for part in parts {
            let (more, others) = self.gradients(part, tokens)?;
            loss += more;
            add_all(&mut gradients, others);
        }
        Diverged::check("loss", loss)?;
        let norm = clip(&mut gradients, limit);
        self.optimizer.step(&gradients, rate)?;
        Ok((loss, norm))
    }

    /// The loss of some lessons.
    pub fn evaluate(&self, lessons: &[&Prepared]) -> Result<f64> {
        let loss = self.loss(&self.shard(lessons.iter())?)?;
        Ok(f64::from(loss.to_scalar::<f32>()?))
    }

    /// The same of many, `together` of them at a time.
    pub fn mean_loss(&self, lessons: &[Prepared], together: usize) -> Result<f64> {
        let (mut sum, mut tokens) = (0.0, 0);
        for chunk in lessons.chunks(together.max(1)) {
            let n: usize = chunk.iter().map(Prepared::answer_tokens).sum();
            sum += self.evaluate(&chunk.iter().collect::<Vec<_>>())? * n as f64;
            tokens += n;
        }
        Ok(sum / tokens as f64)
    }

    /// Decay pulls towards the values as they are now.
    pub fn decay_to_start(&mut self, share: f64) -> Result<()> {
        Ok(self.optimizer.decay_to_start(share)?)
    }

    /// Names and lengths of the variables.
    pub fn names(&self) -> Vec<(String, usize)> {
        let variables = self.variables.iter();
        let name = |one: &NamedVar| (one.name.clone(), one.var.elem_count());
        variables.map(name).collect()
    }

    /// The values of the variables.
    pub fn values(&self) -> Result<Vec<Vec<f32>>> {
        let variables = self.variables.iter();
        let values = |one: &NamedVar| Ok(one.var.flatten_all()?.to_vec1()?);
        variables.map(values).collect()
    }

    /// Sets the variables, in their order.
    pub fn set_values<'v>(&self, values: impl IntoIterator<Item = &'v [f32]>) -> Result<()> {
        for (variable, values) in self.variables.iter().zip(values) {
            let var = &variable.var;
            var.set(&Tensor::from_slice(values, var.dims(), var.device())?)?;
        }
        Ok(())
    }

    /// Values and moments, as they are kept on disk.
    pub fn slots(&self) -> Result<Vec<SlotState>> {
        let values = self.values()?.into_iter();
        let parts = values.zip(self.optimizer.moments());
        let mut slots = Vec::with_capacity(self.variables.len());
        for (variable, (value, (mean, square))) in self.variables.iter().zip(parts) {
            slots.push(SlotState {
                name: variable.name.clone(),
                value,
                mean: mean.to_vec(),
                square: square.to_vec(),
                average: None,
                best: None,
            });
        }
        Ok(slots)
    }

    /// Goes on from values and moments that `steps` steps left.
    pub fn restore(&mut self, steps: usize, slots: &[SlotState]) -> Result<()> {
        let moments = slots
            .iter()
            .map(|slot| (slot.mean.clone(), slot.square.clone()));
        self.optimizer.restore(steps, moments.collect())?;
        self.set_values(slots.iter().map(|slot| slot.value.as_slice()))
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
