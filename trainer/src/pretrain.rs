//! Pre-training: a base from nothing.
//!
//! In: a recipe, and a curriculum that gives every step its lessons. Out: a model with its variables
//! and norm values. Where lessons have labels, the tower first learns those alone, then everything
//! learns to answer, the labels kept as a second loss. The same recipe gives the same weights. It must
//! not know files.

use std::fmt;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result, bail, ensure};
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
use crate::phantom::draw::Labels;
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
    /// Films a step of the warm-up, and of the joint phase.
    pub films: (usize, usize),
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

impl PretrainRecipe {
    /// The part that says how the values are found.
    pub fn plan(&self) -> Plan {
        Plan {
            seed: self.seed,
            shards: self.shards,
            warm_up: self.warm_up,
            joint: self.joint,
            label_weight: self.label_weight,
            tower_rate: self.tower_rate,
            weight_decay: self.weight_decay,
            adam: self.adam,
            clip: self.clip,
        }
    }
}

/// How values are found, whatever is learnt.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Plan {
    /// Seed of the first values.
    pub seed: u64,
    /// Shards that a step's lessons are dealt to.
    pub shards: usize,
    /// The tower alone, on labels; no steps where lessons have none.
    pub warm_up: Schedule,
    /// Everything.
    pub joint: Schedule,
    /// Weight of the labels' loss beside the answers'; 0 where lessons have none.
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

impl Plan {
    /// Whether the lessons' labels are learnt.
    fn uses_labels(&self) -> bool {
        self.warm_up.steps > 0 || self.label_weight > 0.0
    }
}

/// What is taught, one step after the other.
pub trait Curriculum: Send {
    /// The lessons of the next step; at least one.
    fn next_step(&mut self) -> Result<Vec<Taught>>;
}

/// A lesson, and what lies where in its picture if that is known.
#[derive(Clone, Debug)]
pub struct Taught {
    /// Picture, questions and answers.
    pub lesson: Lesson,
    /// What the tower's auxiliary loss wants.
    pub labels: Option<Labels>,
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
            Some(answers) if answers == self.loss => write!(f, "answers {answers:.4}"),
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
    /// This shard's share of the step's images and of its answer tokens.
    share: (f64, f64),
}

/// Trains the phantom base by a recipe.
pub fn pretrain(recipe: &PretrainRecipe, report: impl FnMut(&Progress)) -> Result<Pretrained> {
    let films = Films {
        teacher: Teacher::new()?,
        recipe: recipe.clone(),
        step: 0,
        seen: 0,
    };
    learn(config(&recipe.sizes), &recipe.plan(), films, report)
}

/// Trains a base of this configuration on a curriculum.
pub fn learn(
    config: LlavaConfig,
    plan: &Plan,
    curriculum: impl Curriculum,
    mut report: impl FnMut(&Progress),
) -> Result<Pretrained> {
    let device = Device::Cpu;
    let variables = Variables::new(Source::Seed(plan.seed), &device);
    let model = Llava::new(&config, &variables, Kernels::for_device(&device))?;
    let weights = variables.all();
    let heads = plan
        .uses_labels()
        .then(|| LabelHeads::new(&variables, config.vision.hidden_size))
        .transpose()?;
    let row = neutral_row(model.sites());
    let norms = NormVariables::new(model.sites(), &row, Some(Scope::All), &device)?;

    let trained: Vec<NamedVar> = variables
        .all()
        .into_iter()
        .chain(norms.all().iter().cloned())
        .collect();
    let shards = Shards::new(plan.shards)?;
    let phases = [(Phase::WarmUp, plan.warm_up), (Phase::Joint, plan.joint)];
    let steps = plan.warm_up.steps + plan.joint.steps;
    let mut done = 0;
    std::thread::scope(|scope| {
        let (sender, data) = sync_channel(4);
        scope.spawn(move || produce(curriculum, plan, steps, &sender));
        for (phase, schedule) in phases {
            // Moments of the warm-up belong to another loss.
            let group = |variable: &NamedVar| phase.group(plan, variable);
            let mut optimizer = AdamW::new(trained.iter().cloned(), group, plan.adam);
            for step in 0..schedule.steps {
                let batch = data.recv().context("the data thread has stopped")??;
                let answer_losses = Mutex::new(Vec::new());
                let loss = |shard: &Shard| {
                    let size = config.vision.image_size;
                    let pixels = pixels(shard.pixels.iter(), size, &device)?;
                    let slots = vec![0; shard.pixels.len()];
                    let features = model.tower_features(&pixels, &slots, norms.bank())?;
                    let labels = match &heads {
                        Some(heads) => Some(heads.loss(&features, &shard.labels)?),
                        None => None,
                    };
                    let answers = match phase {
                        Phase::WarmUp => None,
                        Phase::Joint => {
                            let features = Some(model.project(&features)?);
                            let loss = answer_loss(&model, norms.bank(), &shard.packed, features)?;
                            let loss = (loss * shard.share.1)?;
                            let value = f64::from(loss.to_scalar::<f32>()?);
                            answer_losses
                                .lock()
                                .unwrap_or_else(PoisonError::into_inner)
                                .push(value);
                            Some(loss)
                        }
                    };
                    match (answers, labels) {
                        (Some(answers), Some(labels)) => {
                            Ok((answers + (labels * (shard.share.0 * plan.label_weight))?)?)
                        }
                        (Some(answers), None) => Ok(answers),
                        (None, Some(labels)) => Ok((labels * shard.share.0)?),
                        (None, None) => bail!("a tower without labels has nothing to warm up on"),
                    }
                };
                let (loss, mut gradients) = shards.gradients(&trained, &batch, loss)?;
                ensure!(loss.is_finite(), "the loss of step {} is {loss}", done + 1);
                clip(&mut gradients, plan.clip);
                optimizer.step(&gradients, schedule.rate(step))?;
                done += 1;
                let answers = answer_losses
                    .into_inner()
                    .unwrap_or_else(PoisonError::into_inner);
                let answers = (phase == Phase::Joint).then(|| answers.iter().sum());
                report(&Progress {
                    step: done,
                    steps,
                    answers,
                    loss,
                });
            }
        }
        Ok::<_, anyhow::Error>(())
    })?;
    Ok(Pretrained {
        config,
        model,
        weights,
        norms,
    })
}

#[derive(Clone, Copy, PartialEq)]
enum Phase {
    WarmUp,
    Joint,
}

impl Phase {
    fn group(self, plan: &Plan, variable: &NamedVar) -> Group {
        let tower = variable.name.starts_with("vision_tower");
        let rate_scale = if tower && self == Self::Joint {
            plan.tower_rate
        } else {
            1.0
        };
        let matrix = variable.var.dims().iter().filter(|dim| **dim > 1).count() > 1;
        let weight_decay = if matrix { plan.weight_decay } else { 0.0 };
        Group {
            rate_scale,
            weight_decay,
        }
    }
}

/// Makes the lessons of steps ahead of the training thread, until it stops listening.
fn produce(
    mut curriculum: impl Curriculum,
    plan: &Plan,
    steps: usize,
    sender: &SyncSender<Result<Vec<Shard>>>,
) {
    for _ in 0..steps {
        let batch = curriculum
            .next_step()
            .and_then(|lessons| deal(lessons, plan));
        let failed = batch.is_err();
        if sender.send(batch).is_err() || failed {
            return;
        }
    }
}

/// Deals a step's lessons to its shards.
fn deal(lessons: Vec<Taught>, plan: &Plan) -> Result<Vec<Shard>> {
    ensure!(!lessons.is_empty(), "a step has no lesson");
    let images = lessons.len();
    let count = plan.shards.clamp(1, images);
    let mut hands: Vec<Vec<Taught>> = (0..count).map(|_| Vec::new()).collect();
    for (at, lesson) in lessons.into_iter().enumerate() {
        hands[at % count].push(lesson);
    }
    let mut shards = Vec::with_capacity(count);
    for hand in hands {
        let packed = pack(hand.iter().map(|one| &one.lesson.dialogue));
        let labels: Option<Vec<Labels>> = if plan.uses_labels() {
            hand.iter().map(|one| one.labels.clone()).collect()
        } else {
            Some(Vec::new())
        };
        let labels = labels.context("the recipe wants labels, a lesson has none")?;
        let share = (hand.len() as f64 / images as f64, 0.0);
        let pixels = hand.into_iter().map(|one| one.lesson).collect();
        shards.push(Shard {
            pixels,
            packed,
            labels,
            share,
        });
    }
    let tokens: usize = shards.iter().map(|shard| shard.packed.targets.len()).sum();
    for shard in &mut shards {
        shard.share.1 = shard.packed.targets.len() as f64 / tokens as f64;
    }
    Ok(shards)
}

/// The phantom world's films, each seen once.
struct Films {
    teacher: Teacher,
    recipe: PretrainRecipe,
    step: usize,
    /// Films of the steps before.
    seen: u64,
}

impl Curriculum for Films {
    fn next_step(&mut self) -> Result<Vec<Taught>> {
        let Self {
            teacher,
            recipe,
            step,
            seen,
        } = self;
        let (warm_up, joint) = recipe.films;
        let films = if *step < recipe.warm_up.steps {
            warm_up
        } else {
            joint
        };
        let indices = *seen..*seen + films as u64;
        *step += 1;
        *seen = indices.end;
        let one = |index: u64| {
            let seed = image_seed(Task::Pretrain, Split::Train, recipe.seed, index)?;
            let example = Example::of_image(Task::Pretrain, seed, &recipe.mix);
            Ok(Taught {
                lesson: teacher.lesson(&example)?,
                labels: Some(example.labels()),
            })
        };
        indices.map(one).collect()
    }
}
