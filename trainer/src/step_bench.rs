//! What steps of LN-tuning take, on a base of any folder: time, losses, memory.
//!
//! In: a frozen base and lessons, drawn here (noise for pixels, random tokens of fixed lengths) or given.
//! Out: seconds and the loss of each step, and the process's peak of memory. No tokenizer and no image is
//! needed, so that it works on folders that have neither. It must not know files.

use std::time::Instant;

use anyhow::{Result, ensure};
use norma::model::ModelShape;
use norma::model::step::RowInput;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::Serialize;

use crate::batch::{Branch, Dialogue};
use crate::frozen::FrozenBase;
use crate::lesson::Lesson;
use crate::methods::Choice;
use crate::optimizer::AdamConfig;
use crate::peak;
use crate::tune::{Prepared, Tuner};

/// What is drawn.
#[derive(Clone, Copy, Debug)]
pub struct Drawn {
    /// Images a step.
    pub images: usize,
    /// Questions about each.
    pub questions: usize,
    /// Tokens between an image and an answer.
    pub prompt: usize,
    /// Tokens of an answer.
    pub answer: usize,
    /// Decides all values.
    pub seed: u64,
}

impl Drawn {
    /// One lesson an image.
    pub fn lessons(&self, shape: &ModelShape) -> Result<Vec<Lesson>> {
        ensure!(
            self.images * self.questions * self.prompt * self.answer > 0,
            "a step needs images, questions, and tokens of both sides"
        );
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
        let vocabulary = shape.vocab_size as u32;
        let lesson = |_| {
            let mut tokens = |n: usize| -> Vec<u32> {
                (0..n).map(|_| rng.random_range(0..vocabulary)).collect()
            };
            let first = tokens(1)[0];
            let branches = (0..self.questions)
                .map(|_| Branch {
                    prompt: tokens(self.prompt),
                    answer: tokens(self.answer),
                })
                .collect();
            let features = (0..shape.image_tokens as u32).map(RowInput::Feature);
            let prefix = std::iter::once(RowInput::Token(first)).chain(features);
            let n_pixels = 3 * shape.image_size * shape.image_size;
            Lesson {
                pixels: (0..n_pixels).map(|_| rng.random_range(-1.5..1.5)).collect(),
                dialogue: Dialogue {
                    prefix: prefix.collect(),
                    branches,
                },
            }
        };
        Ok((0..self.images).map(lesson).collect())
    }
}

/// How steps are made.
#[derive(Clone, Debug)]
pub struct Plan {
    /// What learns.
    pub choice: Choice,
    /// Steps, all on the same lessons.
    pub steps: usize,
    /// The learning rate of all of them.
    pub rate: f64,
    /// Shards that the images of a step are dealt to.
    pub shards: usize,
    /// Whether only the inputs of layers are kept for the way back.
    pub checkpoint_layers: bool,
}

/// What was measured.
#[derive(Clone, Debug, Serialize)]
pub struct Measured {
    /// Values that learn.
    pub trainable: usize,
    /// Questions of a step.
    pub questions: usize,
    /// Rows of a step in the decoder.
    pub rows: usize,
    /// Before each step.
    pub losses: Vec<f64>,
    /// Of each step.
    pub seconds: Vec<f64>,
    /// The fastest step.
    pub seconds_a_step: f64,
    /// The fastest step over its questions.
    pub seconds_a_question: f64,
    /// Seconds in which image features were computed that all steps share; 0 where the tower learns.
    pub seconds_of_features: f64,
    /// The most memory that the process took, loading included.
    pub peak_bytes: Option<u64>,
    /// What it took after loading.
    pub loaded_bytes: Option<u64>,
}

/// Takes the steps.
pub fn measure(base: &FrozenBase, lessons: &[Lesson], plan: &Plan) -> Result<Measured> {
    ensure!(plan.steps > 0, "there are no steps to measure");
    let loaded_bytes = peak::bytes();
    let mut tuner = Tuner::new(base, &plan.choice, AdamConfig::default(), plan.shards)?;
    tuner.checkpoint_layers(plan.checkpoint_layers);
    let start = Instant::now();
    let prepared = tuner.prepare(lessons)?;
    let seconds_of_features = start.elapsed().as_secs_f64();
    let batch: Vec<&Prepared> = prepared.iter().collect();
    let (mut losses, mut seconds) = (Vec::new(), Vec::new());
    for _ in 0..plan.steps {
        let start = Instant::now();
        losses.push(tuner.step(&batch, plan.rate, f64::INFINITY)?);
        seconds.push(start.elapsed().as_secs_f64());
    }
    let dialogues = || lessons.iter().map(|lesson| &lesson.dialogue);
    let questions: usize = dialogues().map(|one| one.branches.len()).sum();
    let fastest = seconds.iter().copied().fold(f64::INFINITY, f64::min);
    Ok(Measured {
        trainable: tuner.n_trainable(),
        questions,
        rows: crate::batch::pack(dialogues()).step.len(),
        losses,
        seconds_a_step: fastest,
        seconds_a_question: fastest / questions as f64,
        seconds,
        seconds_of_features,
        peak_bytes: peak::bytes(),
        loaded_bytes,
    })
}
