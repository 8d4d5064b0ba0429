//! The subcommands on real sets: read records, call the library, write files, print what was measured.

#![expect(clippy::print_stdout, reason = "the output of commands")]

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use norma::model::MedVlm;
use norma::model::kv_cache::KvType;
use norma_adapters::manifest::Task;
use norma_trainer::adapter::{self, Card};
use norma_trainer::asking::{Asker, adapter_of};
use norma_trainer::bpe;
use norma_trainer::data::folds::Fold;
use norma_trainer::data::source::Source;
use norma_trainer::data::{DataSet, Record, Split, digest, questions};
use norma_trainer::folder::{self, Beside};
use norma_trainer::lesson::Lesson;
use norma_trainer::model_card;
use norma_trainer::pretrain::learn;
use norma_trainer::records::base::{RecordRecipe, config, processor_values, surroundings};
use norma_trainer::records::by_image;
use norma_trainer::records::curriculum::Rounds;
use norma_trainer::records::eval::marks;
use norma_trainer::records::lesson::{Look, RecordTeacher};
use norma_trainer::tune::{Event, TuneRecipe, tune as run_tuning};
use serde_json::json;

use crate::commands::{bar, open, read_json, watched, write};
use crate::{Held, Pretrain, Questions, Tune};

/// Trains a base on a set's training part, writes it, reads it back, measures it on the validation
/// part with the pictures and without.
pub fn pretrain(arguments: &Pretrain, source: &Source) -> Result<()> {
    let recipe: RecordRecipe = read_json(&arguments.recipe)?;
    let set = read(source)?;
    let train: Vec<&Record> = set.split(Split::Train).collect();
    ensure!(!train.is_empty(), "{source} has no training records");
    let texts = train
        .iter()
        .flat_map(|record| [record.question.as_str(), &record.answer]);
    let tokenizer = bpe::learn(texts, recipe.sizes.vocabulary)?;
    let config = config(&recipe.sizes, tokenizer.get_vocab_size(true))?;
    let beside = Beside {
        processor: processor_values(recipe.sizes.image),
        tokenizer: bpe::files(&tokenizer)?,
    };
    let around = surroundings(&recipe.sizes, tokenizer)?;
    let shape = norma::model::ModelShape::of(&config);
    let rounds = Rounds::new(&recipe, &RecordTeacher::new(&around, shape)?, &train)?;

    let base = watched(recipe.schedule.steps, |report| {
        learn(config, &recipe.plan(), rounds, report)
    })?;
    folder::write(&base, beside, arguments.storage, &arguments.out)?;

    let (base, around) = open(&arguments.out)?;
    println!(
        "{} values, {} of them in norms",
        base.n_values(),
        base.row.len()
    );
    let held_out: Vec<&Record> = set.split(Split::Validation).collect();
    let asker = Asker::of(&base, &around, KvType::F32)?;
    let seen = marks(&asker, None, &held_out, Look::Picture)?;
    let blank = marks(&asker, None, &held_out, Look::Blank)?;
    println!("validation: {seen}\n     blank: {blank}");
    let card = model_card::text(&model_card::Facts {
        source,
        records: train.len(),
        digest: &digest(train.iter().copied())?,
        recipe: &recipe,
        n_values: base.n_values(),
        validation: &seen,
        blank: &blank,
    })?;
    write(&arguments.out.join("README.md"), card.as_bytes())
}

/// Tunes norms on a set's training part less a fold, measures the fold before and after, writes the
/// adapter.
pub fn tune(arguments: &Tune, source: &Source) -> Result<()> {
    let recipe: TuneRecipe = read_json(&arguments.recipe)?;
    let fold = arguments
        .held
        .fold()?
        .context("name the held-out part with --folds")?;
    let set = read(source)?;
    let (train, held_out) = fold.part(set.split(Split::Train));
    ensure!(
        !train.is_empty() && !held_out.is_empty(),
        "{source} is too small for these folds"
    );
    let (base, around) = open(&arguments.base)?;
    let teacher = RecordTeacher::new(&around, *base.model.shape())?;
    let images = by_image(train.iter().copied());
    println!(
        "{} records of {} images to learn from, {} of {} held out",
        train.len(),
        images.len(),
        held_out.len(),
        by_image(held_out.iter().copied()).len()
    );
    let lessons: Vec<Lesson> = images
        .iter()
        .map(|(path, records)| teacher.lesson(path, records, Look::Picture))
        .collect::<Result<_>>()?;
    let start = Instant::now();
    let bar = bar(recipe.schedule.steps as u64);
    let tuned = run_tuning(&base, &lessons, &recipe, |event| match event {
        Event::Start { trainable, total } => {
            let share = 100.0 * trainable as f64 / total as f64;
            println!("trainable values: {trainable} of {total} ({share:.3} %)");
        }
        Event::Step { done, loss } => {
            bar.set_position(done as u64);
            bar.set_message(format!("loss {loss:.4}"));
            if done % 50 == 0 && bar.is_hidden() {
                println!(
                    "{:>6.0} s  {done:>5}  loss {loss:.4}",
                    start.elapsed().as_secs_f64()
                );
            }
        }
    })?;
    bar.finish_and_clear();
    let (moved, trained) = tuned.moved;
    let seconds = start.elapsed().as_secs_f64();
    println!("tuned in {seconds:.0} s; {moved} of {trained} values moved, no frozen tensor did");
    let asker = Asker::of(&base, &around, KvType::F32)?;
    let adapter = adapter_of(&base, &tuned.row)?;
    let before = marks(&asker, None, &held_out, Look::Picture)?;
    let after = marks(&asker, Some(&adapter), &held_out, Look::Picture)?;
    let blank = marks(&asker, Some(&adapter), &held_out, Look::Blank)?;
    drop(asker);
    println!("before: {before}\n after: {after}\n blank: {blank}");
    let card = Card {
        task: Task::Vqa,
        scope: recipe.scope,
        recipe: json!({
            "set": source.layout.citation(),
            "held_out": { "folds": arguments.held.folds, "part": arguments.held.hold_out,
                          "seed": arguments.held.fold_seed },
            "tune": recipe,
        }),
        data_digest: Some(digest(train.iter().copied())?.parse()?),
        metrics: json!({
            "set": "the held-out fold, exact match",
            "before": before, "after": after, "after_blank": blank,
        }),
        licence: None,
    };
    let bytes = adapter::write(&base, &around, tuned.row, card)?;
    write(&arguments.out, &bytes)?;
    println!("{} ({} bytes)", arguments.out.display(), bytes.len());
    Ok(())
}

/// Writes the held-out questions for a program that asks a server.
pub fn list_questions(arguments: &Questions) -> Result<()> {
    let set = read(&arguments.data)?;
    let records = arguments.held.of(&set, arguments.part.into())?;
    let text = questions::to_json(&arguments.data.to_string(), records.iter().copied())?;
    write(&arguments.out, format!("{text}\n").as_bytes())?;
    println!("{} questions in {}", records.len(), arguments.out.display());
    Ok(())
}

impl Held {
    /// The held-out fold, if one was named.
    pub(crate) fn fold(&self) -> Result<Option<Fold>> {
        let fold = |folds| Fold::new(folds, self.hold_out, self.fold_seed);
        Ok(self.folds.map(fold).transpose()?)
    }

    /// The held-out fold of the training part, or, with no fold named, another part.
    pub(crate) fn of<'a>(&self, set: &'a DataSet, part: Split) -> Result<Vec<&'a Record>> {
        let records: Vec<&Record> = match self.fold()? {
            Some(fold) => fold.part(set.split(Split::Train)).1,
            None => set.split(part).collect(),
        };
        ensure!(!records.is_empty(), "there is no such record");
        Ok(records)
    }
}

/// Reads a set and says what was wrong with it.
pub(crate) fn read(source: &Source) -> Result<DataSet> {
    let set = source.read()?;
    for problem in &set.problems {
        println!("{problem}");
    }
    let leaks = set.leaks().len();
    if leaks > 0 {
        println!("{leaks} images occur in more than one of the set's own parts");
    }
    Ok(set)
}
