//! One run of a comparison: training, or measuring what was trained. Jobs and results are JSON, so that
//! they pass between processes and stay on disk.

use std::fmt;

use anyhow::{Result, bail};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::grid::{Entry, Grid};
use super::statistics::Measure;
use super::tasks::TaskSpec;
use crate::tune::TuneRecipe;

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Job {
    /// Train, and score on validation.
    Train(TrainJob),
    /// Measure on held-out parts.
    Measure(MeasureJob),
}

/// A training run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TrainJob {
    /// What is learnt.
    pub task: TaskSpec,
    /// The share of its training images.
    pub share: f64,
    /// How.
    pub recipe: TuneRecipe,
    /// The measure that validation is scored by.
    pub primary: Option<String>,
}

/// A measurement.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MeasureJob {
    /// Key of the training run whose file is measured; the base itself without one.
    pub trained: Option<String>,
    /// Measured on its test part.
    pub task: TaskSpec,
    /// Measured on its test part, if it is there.
    pub zero_shot: Option<TaskSpec>,
    /// Measured on its test part, if it is there.
    pub base_task: Option<TaskSpec>,
}

/// The result of a job.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Of training.
    Trained(Trained),
    /// Of measuring.
    Measured(Measured),
}

/// What a training run was like.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Trained {
    /// Values that learnt.
    pub trainable: usize,
    /// Values of the base.
    pub total: usize,
    /// Bytes of the file of what was learnt.
    pub file_bytes: usize,
    /// The median step in milliseconds.
    pub step_ms: f64,
    /// All of training in seconds.
    pub seconds: f64,
    /// The process's highest use of memory up to the last step, in bytes, where the system tells it.
    pub peak_bytes: Option<u64>,
    /// The first and the last loss.
    pub losses: (f64, f64),
    /// The primary measure on validation.
    pub validation: f64,
}

/// Held-out measures.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// Of the task that was learnt.
    pub task: Vec<Measure>,
    /// Of a task that was never seen.
    pub zero_shot: Vec<Measure>,
    /// Of what the base could do before.
    pub base_task: Vec<Measure>,
}

impl TrainJob {
    /// A run of a grid.
    pub fn new(grid: &Grid, entry: &Entry, share: f64, (rate, seed): (f64, u64)) -> Self {
        Self {
            task: grid.task.clone(),
            share,
            recipe: grid.recipe(entry, rate, seed),
            primary: grid.primary.clone(),
        }
    }
}

impl MeasureJob {
    /// A measurement of a grid.
    pub fn new(grid: &Grid, trained: Option<String>) -> Self {
        Self {
            trained,
            task: grid.task.clone(),
            zero_shot: grid.zero_shot.clone(),
            base_task: grid.base_task.clone(),
        }
    }
}

impl Job {
    /// What the job is known by: a digest of all that it says.
    pub fn key(&self) -> String {
        let text = serde_json::to_vec(self).expect("a job is plain data");
        format!("{:x}", Sha256::digest(text))[..16].to_owned()
    }
}

impl fmt::Display for Job {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Train(job) => {
                let recipe = &job.recipe;
                let share = 100.0 * job.share;
                write!(
                    f,
                    "{} ({}), rate {}, seed {}, {share} % of the images",
                    recipe.method.name(),
                    recipe.scope,
                    recipe.schedule.peak,
                    recipe.seed
                )
            }
            Self::Measure(job) => match &job.trained {
                None => f.write_str("measured as it is"),
                Some(key) => write!(f, "measured ({key})"),
            },
        }
    }
}

impl Outcome {
    /// The result of training.
    pub fn trained(self) -> Result<Trained> {
        match self {
            Self::Trained(one) => Ok(one),
            Self::Measured(_) => bail!("a training run gave a measurement"),
        }
    }

    /// The result of measuring.
    pub fn measured(self) -> Result<Measured> {
        match self {
            Self::Measured(one) => Ok(one),
            Self::Trained(_) => bail!("a measurement gave a training run"),
        }
    }
}
