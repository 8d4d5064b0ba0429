//! The subcommands on real sets: read records, call the library, write files, print what was measured.

#![expect(clippy::print_stdout, reason = "the output of commands")]

use anyhow::{Result, ensure};
use norma::model::MedVlm;
use norma::model::kv_cache::KvType;
use norma_adapters::manifest::Task;
use norma_trainer::adapter::Card;
use norma_trainer::asking::{Asker, adapter_of};
use norma_trainer::bpe;
use norma_trainer::data::folds::Fold;
use norma_trainer::data::{AnswerType, DataSet, Image, Record, Split, digest, questions};
use norma_trainer::folder::{self, Beside};
use norma_trainer::lesson::Lesson;
use norma_trainer::model_card;
use norma_trainer::opened;
use norma_trainer::pretrain::learn;
use norma_trainer::records::base::{RecordRecipe, config, processor_values, surroundings};
use norma_trainer::records::by_image;
use norma_trainer::records::curriculum::Rounds;
use norma_trainer::records::eval::marks;
use norma_trainer::records::lesson::{Look, RecordTeacher};
use norma_trainer::run::Lessons;
use norma_trainer::tune::TuneRecipe;
use serde_json::json;

use crate::commands::{keep, read_json, untouched, watched, write};
use crate::set_options::Set;
use crate::{Held, Pretrain, Questions, Tune};

/// Trains a base on a set's training part, writes it, reads it back, measures it on the validation
/// part with the pictures and without.
pub fn pretrain(arguments: &Pretrain, source: &Set) -> Result<()> {
    let recipe: RecordRecipe = read_json(&arguments.recipe)?;
    let set = source.read_checked()?;
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
    let teacher = RecordTeacher::new(&around, shape)?;
    let train = fitting(source, &teacher, train)?;
    let rounds = Rounds::new(&recipe, &teacher, &train)?;

    let base = watched(recipe.schedule.steps, |report| {
        learn(config, &recipe.plan(), rounds, report)
    })?;
    folder::write(&base, beside, arguments.storage, &arguments.out)?;

    let (base, around) = opened::to_train(&arguments.out, None)?;
    println!(
        "{} values, {} of them in norms",
        base.n_values(),
        base.row.len()
    );
    let teacher = RecordTeacher::new(&around, *base.model.shape())?;
    let held_out = fitting(source, &teacher, set.split(Split::Validation))?;
    let asker = Asker::of(&base, &around, KvType::F32)?;
    let seen = marks(&asker, None, &held_out, Look::Picture)?;
    let blank = marks(&asker, None, &held_out, Look::Blank)?;
    println!("validation: {seen}\n     blank: {blank}");
    let card = model_card::text(&model_card::Facts {
        citation: &set.about.cited(),
        records: train.len(),
        digest: &digest(train.iter().copied())?,
        recipe: &recipe,
        n_values: base.n_values(),
        validation: &seen,
        blank: &blank,
    })?;
    write(&arguments.out.join("README.md"), card.as_bytes())
}

/// Tunes norms on a set's training part, or on all but a fold of it; measures the validation part, or
/// the fold, before and after; writes the adapter.
pub fn tune(arguments: &Tune, source: &Set) -> Result<()> {
    let mut recipe: TuneRecipe = read_json(&arguments.recipe)?;
    arguments.method.apply(&mut recipe)?;
    arguments.training.apply(&mut recipe)?;
    let keeper = arguments.training.keeper(&arguments.out)?;
    let choice = arguments.training.choice(&recipe);
    let set = source.read_checked()?;
    let (train, held_out) = match arguments.held.fold()? {
        Some(fold) => fold.part(set.split(Split::Train)),
        None => (
            set.split(Split::Train).collect(),
            set.split(Split::Validation).collect(),
        ),
    };
    ensure!(
        !train.is_empty() && !held_out.is_empty(),
        "{} records to learn from and {} to measure on: name a held-out part with --folds, or split \
         the set with --split-by",
        train.len(),
        held_out.len()
    );
    let (base, around) = opened::to_train_as(&arguments.base, arguments.weights, choice.as_ref())?;
    let teacher = RecordTeacher::new(&around, *base.model.shape())?;
    let train = fitting(source, &teacher, train)?;
    let held_out = fitting(source, &teacher, held_out)?;
    // What the validation loss chooses by is not what is measured afterwards.
    let (train, validation) = match recipe.extras.validation {
        None => (train, Vec::new()),
        Some(_) => Fold::new(VALIDATION_PARTS, 0, VALIDATION_SEED)?.part(train),
    };
    let images = by_image(train.iter().copied());
    println!(
        "{} records of {} images to learn from, {} of {} held out",
        train.len(),
        images.len(),
        held_out.len(),
        by_image(held_out.iter().copied()).len()
    );
    let lessons = lessons_of(&teacher, &images)?;
    let validation = lessons_of(&teacher, &by_image(validation))?;
    let lessons = Lessons::new(&lessons, &validation);
    let tuned = arguments
        .training
        .run(&keeper, &base, &lessons, &mut recipe)?;
    let untouched = untouched(arguments, &base)?;
    let untouched = untouched.as_ref().unwrap_or(&base);
    let asker = Asker::of(untouched, &around, KvType::F32)?;
    let before = marks(&asker, None, &held_out, Look::Picture)?;
    let adapter = adapter_of(&base, &tuned.row)?;
    let asker = Asker::of(&base, &around, KvType::F32)?;
    let after = marks(&asker, Some(&adapter), &held_out, Look::Picture)?;
    let blank = marks(&asker, Some(&adapter), &held_out, Look::Blank)?;
    drop(asker);
    println!("before: {before}\n after: {after}\n blank: {blank}");
    let card = Card {
        task: task(&train),
        scope: recipe.scope,
        recipe: json!({
            "set": set.about.cited(),
            "held_out": { "folds": arguments.held.folds, "part": arguments.held.hold_out,
                          "seed": arguments.held.fold_seed },
            "tune": recipe,
        }),
        data_digest: Some(digest(train.iter().copied())?.parse()?),
        metrics: json!({
            "set": "the held-out records, exact match",
            "before": before, "after": after, "after_blank": blank,
        }),
        licence: None,
    };
    let told = (&card, Vec::new());
    arguments
        .training
        .write_report(&keeper, &base, &tuned, told)?;
    keep(arguments, (&base, &around), tuned.row, card)?;
    keeper.clear()
}

/// A validation loss is taken on one of so many parts of the training images.
const VALIDATION_PARTS: usize = 10;
/// Deals the images otherwise than `--folds` does.
const VALIDATION_SEED: u64 = 0x76_616c;

fn lessons_of(teacher: &RecordTeacher, images: &[(&Image, Vec<&Record>)]) -> Result<Vec<Lesson>> {
    let images = images.iter();
    images
        .map(|(image, records)| teacher.lesson(image, records, Look::Picture))
        .collect()
}

/// Writes the held-out questions for a program that asks a server.
pub fn list_questions(arguments: &Questions) -> Result<()> {
    let set = arguments.set.read_checked()?;
    let records = arguments.held.of(&set, arguments.part.into())?;
    let images = arguments.out.with_extension("images");
    let files = questions::image_files(records.iter().copied(), &images)?;
    let source = arguments.set.to_string();
    let text = questions::to_json(&source, records.iter().copied(), &files)?;
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

/// The manifest's word for what records teach.
fn task(records: &[&Record]) -> Task {
    let reports = records
        .iter()
        .filter(|record| record.answer_type == AnswerType::Report);
    match reports.count() {
        0 => Task::Vqa,
        all if all == records.len() => Task::Report,
        _ => Task::Other("vqa and report".into()),
    }
}

/// The records that a base can take; the others are printed, or refused if the set may have none.
pub(crate) fn fitting<'a>(
    set: &Set,
    teacher: &RecordTeacher,
    records: impl IntoIterator<Item = &'a Record>,
) -> Result<Vec<&'a Record>> {
    let (fit, faults) = teacher.fitting(records);
    for fault in &faults {
        println!("{fault}");
    }
    ensure!(
        faults.is_empty() || !set.is_strict(),
        "{} records do not fit the base",
        faults.len()
    );
    ensure!(!fit.is_empty(), "no record fits the base");
    Ok(fit)
}
