//! Does one job: opens the base, trains or measures. In: a job, the base's folder, the comparison's
//! folder. Out: its result, and, of training, the file of what was learnt in that folder. It must not
//! know the grid.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use norma::base::WeightType;
use serde_json::Value;

use super::job::{Job, MeasureJob, Measured, Outcome, TrainJob, Trained};
use super::statistics::{Measure, primary};
use super::tasks::{Part, TaskSpec};
use crate::methods::trained::{self, Header};
use crate::opened;
use crate::peak;
use crate::tune::{Event, tune};

/// Where a job finds its base and leaves its file.
#[derive(Clone, Debug)]
pub struct Workplace {
    /// The base's folder.
    pub base: PathBuf,
    /// The comparison's folder.
    pub out: PathBuf,
}

impl Workplace {
    /// Does a job. `progress` gets the steps that are done.
    pub fn work(&self, job: &Job, progress: impl FnMut(usize)) -> Result<Outcome> {
        match job {
            Job::Train(one) => self
                .train(one, &job.key(), progress)
                .map(Outcome::Trained)
                .with_context(|| job.to_string()),
            Job::Measure(one) => self.measure(one).map(Outcome::Measured),
        }
    }

    fn file(&self, key: &str) -> PathBuf {
        self.out.join("trained").join(format!("{key}.safetensors"))
    }

    fn train(&self, job: &TrainJob, key: &str, mut progress: impl FnMut(usize)) -> Result<Trained> {
        let choice = job.recipe.choice();
        let (base, around) = opened::to_train(&self.base, Some(&choice))?;
        let task = job.task.open(&around, &base)?;
        let lessons = task.lessons(job.share)?;
        let (start, mut trainable) = (Instant::now(), 0);
        let tuned = tune(&base, &lessons, &job.recipe, |event| match event {
            Event::Start { trainable: n, .. } => trainable = n,
            Event::Step { done, .. } => progress(done),
            _ => {}
        })?;
        let (seconds, peak_bytes) = (start.elapsed().as_secs_f64(), peak::bytes());
        drop(lessons);
        let header = Header {
            base_digest: base.digest,
            choice,
            recipe: serde_json::to_value(job)?,
            metrics: Value::Null,
        };
        let bytes = trained::write(&base, &tuned.row, &header)?;
        put(&self.file(key), &bytes)?;
        let measures = task.measure((&base, &around), &tuned.row, Part::Validation)?;
        let chosen = primary(&measures, job.primary.as_deref());
        let chosen = chosen.with_context(|| no_measure(job.primary.as_deref()))?;
        Ok(Trained {
            trainable,
            total: base.n_values(),
            file_bytes: bytes.len(),
            step_ms: 1e3 * median(tuned.seconds),
            seconds,
            peak_bytes,
            losses: (
                tuned.losses.first().copied().unwrap_or(f64::NAN),
                tuned.losses.last().copied().unwrap_or(f64::NAN),
            ),
            validation: chosen.value().context("the validation part is empty")?,
        })
    }

    fn measure(&self, job: &MeasureJob) -> Result<Measured> {
        let (base, around, row) = if let Some(key) = &job.trained {
            opened::with_trained(&self.base, WeightType::F32, &self.file(key))?
        } else {
            let (base, around) = opened::to_measure(&self.base, WeightType::F32)?;
            let row = base.row.clone();
            (base, around, row)
        };
        let of = |task: &TaskSpec| -> Result<Vec<Measure>> {
            let task = task.open(&around, &base)?;
            task.measure((&base, &around), &row, Part::Test)
        };
        let perhaps = |task: &Option<TaskSpec>| task.as_ref().map_or(Ok(Vec::new()), of);
        Ok(Measured {
            task: of(&job.task)?,
            zero_shot: perhaps(&job.zero_shot)?,
            base_task: perhaps(&job.base_task)?,
        })
    }
}

fn no_measure(name: Option<&str>) -> String {
    match name {
        Some(name) => format!("the task has no measure `{name}`, which is the grid's `primary`"),
        None => "the task's validation part has nothing to measure".into(),
    }
}

fn put(path: &Path, bytes: &[u8]) -> Result<()> {
    let folder = path.parent().unwrap_or(path);
    std::fs::create_dir_all(folder)
        .with_context(|| format!("cannot make the folder {}", folder.display()))?;
    std::fs::write(path, bytes).with_context(|| format!("cannot write {}", path.display()))?;
    ensure!(path.is_file(), "{} was not written", path.display());
    Ok(())
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
