//! What the subcommands do: read files, call the library, write files, print what was measured.

#![expect(clippy::print_stdout, reason = "the output of a command")]

use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result};
use indicatif::{ProgressBar, ProgressStyle};
use norma::model::kv_cache::KvType;
use norma_trainer::adapter::{self, Card, Surroundings};
use norma_trainer::asking::{Asker, adapter_of};
use norma_trainer::atomic_file;
use norma_trainer::eval::phantom::evaluate;
use norma_trainer::folder::{self, Beside};
use norma_trainer::frozen::FrozenBase;
use norma_trainer::lesson::{Lesson, Teacher};
use norma_trainer::methods::trained;
use norma_trainer::opened;
use norma_trainer::phantom::metrics::Summary;
use norma_trainer::phantom::score::Score;
use norma_trainer::phantom::{Example, Split, Task, dataset};
use norma_trainer::pretrain::{PretrainRecipe, Progress};
use norma_trainer::recipe::AdapterRecipe;
use norma_trainer::run::Lessons;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::{Export, Pretrain, Tune};

/// Trains a base, writes it, reads it back and measures what was written.
pub fn pretrain(arguments: &Pretrain) -> Result<()> {
    let recipe: PretrainRecipe = read_json(&arguments.recipe)?;
    let steps = recipe.warm_up.steps + recipe.joint.steps;
    let base = watched(steps, |report| {
        norma_trainer::pretrain::pretrain(&recipe, report)
    })?;
    folder::write(&base, Beside::phantom()?, arguments.storage, &arguments.out)?;
    if arguments.test > 0 {
        let (base, around) = opened::to_train(&arguments.out, None)?;
        let examples = examples(Task::Pretrain, Split::Test, 0, arguments.test)?;
        let asker = Asker::of(&base, &around, KvType::F32)?;
        print_summary(&evaluate(&asker, None, &examples)?);
    }
    Ok(())
}

/// Tunes norms, measures before and after, writes the adapter.
pub fn tune(arguments: &Tune) -> Result<()> {
    let mut recipe: AdapterRecipe = read_json(&arguments.recipe)?;
    arguments.method.apply(&mut recipe.tune)?;
    arguments.training.apply(&mut recipe.tune)?;
    let keeper = arguments.training.keeper(&arguments.out)?;
    let choice = arguments.training.choice(&recipe.tune);
    let (base, around) = opened::to_train_as(&arguments.base, arguments.weights, choice.as_ref())?;
    let teacher = Teacher::new()?;
    let train = examples(recipe.task, Split::Train, recipe.data_seed, recipe.train)?;
    let test = examples(recipe.task, Split::Test, recipe.data_seed, recipe.test)?;
    let lessons = train
        .iter()
        .map(|one| teacher.lesson(one))
        .collect::<Result<Vec<_>>>()?;
    let validation = validation(&recipe, &teacher)?;
    let lessons = Lessons::new(&lessons, &validation);
    let tuned = arguments
        .training
        .run(&keeper, &base, &lessons, &mut recipe.tune)?;
    let untouched = untouched(arguments, &base)?;
    let untouched = untouched.as_ref().unwrap_or(&base);
    let before = evaluate(&Asker::of(untouched, &around, KvType::F32)?, None, &test)?;
    let adapter = adapter_of(&base, &tuned.row)?;
    let asker = Asker::of(&base, &around, KvType::F32)?;
    let after = evaluate(&asker, Some(&adapter), &test)?;
    drop(asker);
    println!("before");
    print_summary(&before);
    println!("after");
    print_summary(&after);
    let card = Card {
        task: recipe.manifest_task(),
        scope: recipe.tune.scope,
        recipe: serde_json::to_value(&recipe)?,
        data_digest: Some(dataset::digest(&train)?.parse()?),
        metrics: json!({
            "set": "phantom films, test split",
            "films": test.len(),
            "before": before,
            "after": after,
        }),
        licence: Some("Apache-2.0".into()),
    };
    let told = (&card, Vec::new());
    arguments
        .training
        .write_report(&keeper, &base, &tuned, told)?;
    keep(arguments, (&base, &around), tuned.row, card)?;
    keeper.clear()
}

/// Films for a validation loss.
const VALIDATION_FILMS: u64 = 64;

/// The lessons of a validation loss, if the recipe asks for one. No film is learnt from or measured.
fn validation(recipe: &AdapterRecipe, teacher: &Teacher) -> Result<Vec<Lesson>> {
    if recipe.tune.extras.validation.is_none() {
        return Ok(Vec::new());
    }
    let (task, seed) = (recipe.task, recipe.data_seed);
    let films = examples(task, Split::Validation, seed, VALIDATION_FILMS)?;
    films.iter().map(|one| teacher.lesson(one)).collect()
}

/// The base as it was, to be measured beside one whose weights a run has moved; `None` where only norm
/// values learnt.
pub(crate) fn untouched(arguments: &Tune, tuned: &FrozenBase) -> Result<Option<FrozenBase>> {
    let moved = !tuned.variables.is_empty();
    let as_it_was = || opened::without_surroundings(&arguments.base, arguments.weights, None);
    moved.then(as_it_was).transpose()
}

/// Writes an adapter, or, of a method that makes none, the trained tensors.
pub(crate) fn keep(
    arguments: &Tune,
    (base, around): (&FrozenBase, &Surroundings),
    row: Vec<f32>,
    card: Card,
) -> Result<()> {
    let method = base
        .choice
        .as_ref()
        .filter(|one| !one.method.makes_adapter());
    let bytes = match method {
        None => adapter::write(base, around, row, card)?,
        Some(choice) => {
            let header = trained::Header {
                base_digest: base.digest,
                choice: choice.clone(),
                recipe: card.recipe,
                metrics: card.metrics,
            };
            trained::write(base, &row, &header)?
        }
    };
    write(&arguments.out, &bytes)?;
    println!("{} ({} bytes)", arguments.out.display(), bytes.len());
    if let Some(choice) = method {
        println!(
            "what {} learnt, for `eval --trained`; it is no adapter, the server does not take it",
            choice.method.name()
        );
    }
    Ok(())
}

/// A base with its norms as they are.
pub(crate) fn open(folder: &Path) -> Result<(FrozenBase, Surroundings)> {
    opened::to_train(folder, None)
}

/// Writes what the demo shows.
pub fn export(arguments: &Export) -> Result<()> {
    norma_trainer::showcase::export(&arguments.out, arguments.seed, arguments.count)
}

/// Runs a pre-training of `steps` steps under a progress bar, or with a line every fifty steps where
/// there is no terminal.
pub(crate) fn watched<T>(
    steps: usize,
    train: impl FnOnce(&mut dyn FnMut(&Progress)) -> Result<T>,
) -> Result<T> {
    let start = Instant::now();
    let bar = bar(steps as u64);
    let trained = train(&mut |progress| {
        bar.set_position(progress.step as u64);
        bar.set_message(progress.to_string());
        if progress.step % 50 == 0 && bar.is_hidden() {
            println!(
                "{:>6.0} s  {:>5}  {progress}",
                start.elapsed().as_secs_f64(),
                progress.step
            );
        }
    })?;
    bar.finish_and_clear();
    println!("trained in {:.0} s", start.elapsed().as_secs_f64());
    Ok(trained)
}

pub(crate) fn examples(task: Task, split: Split, seed: u64, count: u64) -> Result<Vec<Example>> {
    Ok(dataset::examples(task, split, seed, count).collect::<Result<_, _>>()?)
}

pub(crate) fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let text = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    serde_json::from_slice(&text).with_context(|| format!("{} is no recipe", path.display()))
}

pub(crate) fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    atomic_file::replace(path, |file| file.write_all(bytes))
        .with_context(|| format!("cannot write {}", path.display()))
}

pub(crate) fn bar(steps: u64) -> ProgressBar {
    let style = ProgressStyle::with_template("{bar:40} {pos}/{len} {eta} {msg}")
        .expect("the template is well-formed");
    ProgressBar::new(steps).with_style(style)
}

pub(crate) fn print_summary(summary: &Summary) {
    let line = |name: &str, score: &Score, prior: Option<f64>| {
        let percent = [score.value, score.low, score.high].map(|share| 100.0 * share);
        let prior = prior
            .map(|prior| format!("   prior {:.1}", 100.0 * prior))
            .unwrap_or_default();
        let [value, low, high] = percent;
        println!(
            "  {name:<16} {value:>5.1} %  [{low:.1}, {high:.1}]  n = {}{prior}",
            score.n
        );
    };
    for (name, score) in [("closed", &summary.closed), ("open", &summary.open)] {
        if let Some(score) = score {
            line(name, score, None);
        }
    }
    for (kind, score) in &summary.by_kind {
        let name = serde_json::to_value(kind).ok();
        let name = name.as_ref().and_then(Value::as_str).unwrap_or_default();
        line(
            name,
            score,
            summary.priors.get(kind).map(|prior| prior.score.value),
        );
    }
    if let Some(reports) = &summary.reports {
        line("report exact", &reports.exact, None);
        line("report form", &reports.form, None);
        line("finding F1 kind", &reports.f1_kind, None);
        line("finding F1 full", &reports.f1_full, None);
    }
}
