//! Pre-training: the phantom base from nothing.
//!
//! In: a recipe. Out: a model with its variables and norm values. First the tower learns the
//! generator's labels, then everything learns to answer, the labels kept as a second loss. The same
//! recipe gives the same weights. It must not know files.

use std::fmt;
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result};
use candle_core::Device;
use norma::model::MedVlm;
use norma::model::config::LlavaConfig;
use norma::model::llava::Llava;
use norma::model::ops::Kernels;
use norma_adapters::Scope;
use serde::{Deserialize, Serialize};

use crate::auxiliary::LabelHeads;
use crate::batch::{Packed, pack};
use crate::learner::{Shards, answer_loss};
use crate::lesson::{Lesson, Teacher, pixels};
use crate::optimizer::{AdamConfig, AdamW, Group, Schedule, clip};
use crate::phantom::dataset::image_seed;
use crate::phantom::draw::{Labels, SIDE};
use crate::phantom::turns::Mix;
use crate::phantom::{Example, Split, Task};
use crate::phantom_base::{Sizes, config};
use crate::variables::{NamedVar, NormVariables, Source, Variables, neutral_row};

/// All that determines a pre-training run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PretrainRecipe {
    /// Seed of weights and data.
    pub seed: u64,
    /// The model's sizes.
    pub sizes: Sizes,
    /// Films a step.
    pub films: usize,
    /// Shards that a step's films are dealt to.
    pub shards: usize,
    /// Turns a film.
    pub mix: Mix,
    /// The tower alone, on labels.
    pub warm_up: Schedule,
    /// Everything.
    pub joint: Schedule,
    /// Weight of the labels' loss beside the answers'.
    pub label_weight: f64,
    /// The tower's learning rate in the joint phase, as a share.
    pub tower_rate: f64,
    /// Weight decay of matrices.
    pub weight_decay: f64,
    /// The optimiser's constants.
    pub adam: AdamConfig,
    /// Highest norm of all gradients together.
    pub clip: f64,
}

/// What a run tells while it goes on.
pub struct Progress {
    /// Steps done of both phases.
    pub step: usize,
    /// All steps.
    pub steps: usize,
    /// Loss of the answers; none while the tower warms up.
    pub answers: Option<f64>,
    /// The whole loss.
    pub loss: f64,
}

impl fmt::Display for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.answers {
            None => write!(f, "warm-up, labels {:.4}", self.loss),
            Some(answers) => write!(f, "answers {answers:.4}, with labels {:.4}", self.loss),
        }
    }
}

/// A pre-trained base.
pub struct Pretrained {
    /// Its configuration.
    pub config: LlavaConfig,
    /// The model over the variables.
    pub model: Llava,
    /// Its weights, norms not included.
    pub weights: Vec<NamedVar>,
    /// Its norm values.
    pub norms: NormVariables,
}

/// One shard of a step's data.
struct Shard {
    pixels: Vec<Lesson>,
    packed: Packed,
    labels: Vec<Labels>,
    /// This shard's share of the step's films and of its answer tokens.
    share: (f64, f64),
}

/// Runs a recipe.
pub fn pretrain(recipe: &PretrainRecipe, mut report: impl FnMut(&Progress)) -> Result<Pretrained> {
    let device = Device::Cpu;
    let config = config(&recipe.sizes);
    let variables = Variables::new(Source::Seed(recipe.seed), &device);
    let model = Llava::new(&config, &variables, Kernels::for_device(&device))?;
    let weights = variables.all();
    let heads = LabelHeads::new(&variables, config.vision.hidden_size)?;
    let row = neutral_row(model.sites());
    let norms = NormVariables::new(model.sites(), &row, Some(Scope::All), &device)?;

    let trained: Vec<NamedVar> =
        variables.all().into_iter().chain(norms.all().iter().cloned()).collect();
    let shards = Shards::new(recipe.shards)?;
    let phases = [(Phase::WarmUp, recipe.warm_up), (Phase::Joint, recipe.joint)];
    let steps = recipe.warm_up.steps + recipe.joint.steps;
    let data = produce(recipe.clone(), steps);
    let mut done = 0;
    for (phase, schedule) in phases {
        // Moments of the warm-up belong to another loss.
        let group = |variable: &NamedVar| phase.group(recipe, variable);
        let mut optimizer = AdamW::new(trained.iter().cloned(), group, recipe.adam);
        for step in 0..schedule.steps {
            let batch = data.recv().context("the data thread has stopped")??;
            let answer_losses = Mutex::new(Vec::new());
            let loss = |shard: &Shard| {
                let pixels = pixels(shard.pixels.iter(), SIDE, &device)?;
                let slots = vec![0; shard.pixels.len()];
                let features = model.tower_features(&pixels, &slots, norms.bank())?;
                let labels = heads.loss(&features, &shard.labels)?;
                match phase {
                    Phase::WarmUp => Ok((labels * shard.share.0)?),
                    Phase::Joint => {
                        let features = Some(model.project(&features)?);
                        let answers = answer_loss(&model, norms.bank(), &shard.packed, features)?;
                        let answers = (answers * shard.share.1)?;
                        let value = f64::from(answers.to_scalar::<f32>()?);
                        answer_losses.lock().unwrap_or_else(PoisonError::into_inner).push(value);
                        let labels = (labels * (shard.share.0 * recipe.label_weight))?;
                        Ok((answers + labels)?)
                    }
                }
            };
            let (loss, mut gradients) = shards.gradients(&trained, &batch, loss)?;
            clip(&mut gradients, recipe.clip);
            optimizer.step(&gradients, schedule.rate(step))?;
            done += 1;
            let answers = answer_losses.into_inner().unwrap_or_else(PoisonError::into_inner);
            let answers = (phase == Phase::Joint).then(|| answers.iter().sum());
            report(&Progress { step: done, steps, answers, loss });
        }
    }
    Ok(Pretrained { config, model, weights, norms })
}

#[derive(Clone, Copy, PartialEq)]
enum Phase {
    WarmUp,
    Joint,
}

impl Phase {
    fn group(self, recipe: &PretrainRecipe, variable: &NamedVar) -> Group {
        let tower = variable.name.starts_with("vision_tower");
        let rate_scale = if tower && self == Self::Joint { recipe.tower_rate } else { 1.0 };
        let matrix = variable.var.dims().iter().filter(|dim| **dim > 1).count() > 1;
        let weight_decay = if matrix { recipe.weight_decay } else { 0.0 };
        Group { rate_scale, weight_decay }
    }
}

/// Draws films and packs their turns ahead of the training thread.
fn produce(recipe: PretrainRecipe, steps: usize) -> Receiver<Result<Vec<Shard>>> {
    let (sender, receiver) = sync_channel(4);
    std::thread::spawn(move || {
        let teacher = match Teacher::new() {
            Ok(teacher) => teacher,
            Err(error) => {
                // The receiver is gone only if training has stopped.
                let _ = sender.send(Err(error));
                return;
            }
        };
        for step in 0..steps {
            let batch = step_data(&recipe, &teacher, step);
            if sender.send(batch).is_err() {
                return;
            }
        }
    });
    receiver
}

fn step_data(recipe: &PretrainRecipe, teacher: &Teacher, step: usize) -> Result<Vec<Shard>> {
    let mut shards = Vec::with_capacity(recipe.shards);
    for shard in 0..recipe.shards {
        let films = (shard..recipe.films).step_by(recipe.shards);
        let mut lessons = Vec::with_capacity(films.len());
        let mut labels = Vec::with_capacity(films.len());
        for film in films {
            let index = (step * recipe.films + film) as u64;
            let seed = image_seed(Task::Pretrain, Split::Train, recipe.seed, index)?;
            let example = Example::of_image(Task::Pretrain, seed, &recipe.mix);
            lessons.push(teacher.lesson(&example)?);
            labels.push(example.labels());
        }
        let packed = pack(lessons.iter().map(|lesson| &lesson.dialogue));
        shards.push(Shard { pixels: lessons, packed, labels, share: (0.0, 0.0) });
    }
    let films: usize = shards.iter().map(|shard| shard.labels.len()).sum();
    let tokens: usize = shards.iter().map(|shard| shard.packed.targets.len()).sum();
    for shard in &mut shards {
        shard.share = (
            shard.labels.len() as f64 / films as f64,
            shard.packed.targets.len() as f64 / tokens as f64,
        );
    }
    Ok(shards)
}
