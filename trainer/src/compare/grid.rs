//! What is compared, as a JSON file says it.

use anyhow::{Result, ensure};
use norma_adapters::Scope;
use serde::{Deserialize, Serialize};

use super::tasks::TaskSpec;
use crate::extras::Extras;
use crate::methods::Method;
use crate::optimizer::{AdamConfig, Schedule};
use crate::tune::TuneRecipe;

/// Methods x learning rates x seeds x shares of the data, on one task.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Grid {
    /// What is learnt, and measured on its own validation and test part.
    pub task: TaskSpec,
    /// Where a method is measured that never saw it: zero-shot.
    #[serde(default)]
    pub zero_shot: Option<TaskSpec>,
    /// What the base could do before: how much of it is forgotten.
    #[serde(default)]
    pub base_task: Option<TaskSpec>,
    /// The measure that chooses rates and is compared; the task's first one if nothing is said.
    #[serde(default)]
    pub primary: Option<String>,
    /// The methods.
    pub methods: Vec<Entry>,
    /// Seeds; the first is the one that rates are chosen with.
    pub seeds: Vec<u64>,
    /// Shares of the training images.
    #[serde(default = "whole")]
    pub shares: Vec<f64>,
    /// What all runs have in common.
    pub run: RunPlan,
}

fn whole() -> Vec<f64> {
    vec![1.0]
}

/// A method of a grid.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// Its name in the table.
    pub label: String,
    /// What learns.
    pub method: Method,
    /// Where.
    #[serde(default = "everywhere")]
    pub scope: Scope,
    /// Learning rates to choose from.
    pub rates: Vec<f64>,
}

fn everywhere() -> Scope {
    Scope::All
}

/// What all runs have in common.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunPlan {
    /// Images a step.
    pub images: usize,
    /// Shards that a step's images are dealt to.
    pub shards: usize,
    /// Steps.
    pub steps: usize,
    /// Steps in which the rate rises.
    pub warm_up: usize,
    /// The last rate as a share of the highest.
    pub floor: f64,
    /// The optimiser's constants.
    pub adam: AdamConfig,
    /// Highest norm of all gradients together.
    pub clip: f64,
}

impl Grid {
    /// Refuses a grid that compares nothing, and options that no method takes.
    pub fn check(&self) -> Result<()> {
        ensure!(!self.methods.is_empty(), "`methods` of the grid is empty");
        ensure!(!self.seeds.is_empty(), "`seeds` of the grid is empty");
        ensure!(!self.shares.is_empty(), "`shares` of the grid is empty");
        for share in &self.shares {
            ensure!(
                *share > 0.0 && *share <= 1.0,
                "`shares` has {share}, a share lies above 0 and is at most 1"
            );
        }
        for (at, entry) in self.methods.iter().enumerate() {
            let label = &entry.label;
            ensure!(!entry.rates.is_empty(), "`rates` of `{label}` is empty");
            for rate in &entry.rates {
                ensure!(
                    *rate > 0.0 && rate.is_finite(),
                    "`rates` of `{label}` has {rate}, a rate is positive and finite"
                );
            }
            let twice = self.methods[..at].iter().any(|other| other.label == *label);
            ensure!(!twice, "two methods have the label `{label}`");
            self.recipe(entry, entry.rates[0], 0)
                .choice()
                .norm_rule()
                .map(drop)?;
        }
        Ok(())
    }

    /// The recipe of a run.
    pub fn recipe(&self, entry: &Entry, rate: f64, seed: u64) -> TuneRecipe {
        let run = &self.run;
        TuneRecipe {
            seed,
            scope: entry.scope,
            method: entry.method.clone(),
            images: run.images,
            shards: run.shards,
            schedule: Schedule {
                peak: rate,
                warm_up: run.warm_up,
                steps: run.steps,
                floor: run.floor,
            },
            adam: run.adam,
            clip: run.clip,
            checkpoint_layers: false,
            extras: Extras::default(),
        }
    }
}
