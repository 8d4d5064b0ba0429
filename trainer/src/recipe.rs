//! The recipe of an adapter: which data, which norms, how they learn.

use norma_adapters::manifest::Task as ManifestTask;
use serde::{Deserialize, Serialize};

use crate::phantom::Task;
use crate::tune::TuneRecipe;

/// All that is needed to tune an adapter again.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdapterRecipe {
    /// What is learnt.
    pub task: Task,
    /// Seed of the films.
    pub data_seed: u64,
    /// Films to learn from.
    pub train: u64,
    /// Films to measure on, none of which was learnt from.
    pub test: u64,
    /// How the values are found.
    pub tune: TuneRecipe,
}

impl AdapterRecipe {
    /// The task's word in a manifest.
    pub fn manifest_task(&self) -> ManifestTask {
        match self.task {
            Task::Urgent | Task::Codes => ManifestTask::Vqa,
            Task::House | Task::Template | Task::Foreign => ManifestTask::Report,
            Task::Pretrain | Task::Inverted | Task::LowDose => {
                ManifestTask::Other("vqa and report".into())
            }
        }
    }
}
