//! Tasks of a comparison: phantom films, or a real set. In: what the grid says. Out: lessons, and measures
//! of what a model answers on held-out parts. It must not know methods.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use norma::model::MedVlm;
use norma::model::kv_cache::KvType;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::statistics::Measure;
use crate::adapter::Surroundings;
use crate::asking::{Asker, adapter_of};
use crate::data::folds::Fold;
use crate::data::intake::Options;
use crate::data::source::Source;
use crate::data::{AnswerType, Record, Split as SetSplit, compare as same_form, images};
use crate::eval::phantom::answers as film_answers;
use crate::frozen::FrozenBase;
use crate::lesson::{Lesson, Teacher};
use crate::phantom::metrics::{Depth, is_exact, report_counts};
use crate::phantom::question::QuestionKind;
use crate::phantom::{Example, Split, Task, dataset};
use crate::records::by_image;
use crate::records::eval::answers as record_answers;
use crate::records::lesson::{Look, RecordTeacher};

/// What is learnt and measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TaskSpec {
    /// Films drawn by a program.
    Phantom(PhantomTask),
    /// A real set.
    Records(RecordTask),
}

/// Phantom films.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PhantomTask {
    /// What is asked.
    pub task: Task,
    /// Seed of the films.
    pub data_seed: u64,
    /// Films to learn from.
    #[serde(default)]
    pub train: u64,
    /// Films that choose learning rates.
    #[serde(default)]
    pub validation: u64,
    /// Films to measure on.
    pub test: u64,
}

/// A real set: the training part less the folds that are held out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RecordTask {
    /// As a command line names it.
    pub set: String,
    /// Parts that the training images are dealt to.
    #[serde(default = "two")]
    pub folds: usize,
    /// Deals them otherwise.
    #[serde(default)]
    pub fold_seed: u64,
    /// What chooses learning rates.
    #[serde(default)]
    pub validation: Option<Held>,
    /// What is measured.
    pub test: Held,
}

fn two() -> usize {
    2
}

/// A held-out part of a real set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Held {
    /// A fold of the training part.
    Fold(usize),
    /// The set's own validation part.
    Validation,
    /// The set's own test part.
    Test,
}

/// Which part of a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Chooses learning rates.
    Validation,
    /// Is looked at once, with what was chosen.
    Test,
}

impl TaskSpec {
    /// Reads or draws what is needed for this base.
    pub fn open<'a>(&'a self, around: &'a Surroundings, base: &FrozenBase) -> Result<Opened<'a>> {
        Ok(match self {
            Self::Phantom(task) => Opened::Phantom(task, Teacher::new()?),
            Self::Records(task) => {
                let source: Source = task.set.parse()?;
                let mut set = source.read(&Options::default())?;
                images::check(&mut set);
                let teacher = RecordTeacher::new(around, *base.model.shape())?;
                Opened::Records(task, set.records, teacher)
            }
        })
    }
}

/// A task that can be taught and measured.
pub enum Opened<'a> {
    /// Films and their teacher.
    Phantom(&'a PhantomTask, Teacher),
    /// All records of the set whose images can be decoded, and their teacher.
    Records(&'a RecordTask, Vec<Record>, RecordTeacher<'a>),
}

impl Opened<'_> {
    /// Lessons of a share of the training images: a smaller share is a part of a larger one.
    pub fn lessons(&self, share: f64) -> Result<Vec<Lesson>> {
        let lessons: Vec<Lesson> = match self {
            Self::Phantom(task, teacher) => {
                let count = (share * task.train as f64).ceil() as u64;
                dataset::examples(task.task, Split::Train, task.data_seed, count)
                    .map(|one| teacher.lesson(&one?))
                    .collect::<Result<_>>()?
            }
            Self::Records(task, records, teacher) => {
                let (train, _) = teacher.fitting(task.train(records)?);
                let images = by_image(train);
                let kept = first_share(&images, share, |(_, records)| {
                    format!("{} {}", records[0].group, records[0].id)
                });
                kept.into_iter()
                    .map(|(path, records)| teacher.lesson(path, &records, Look::Picture))
                    .collect::<Result<_>>()?
            }
        };
        ensure!(!lessons.is_empty(), "the task has nothing to learn from");
        Ok(lessons)
    }

    /// Measures of a part; the first one is what tells most.
    pub fn measure(
        &self,
        (base, around): (&FrozenBase, &Surroundings),
        row: &[f32],
        part: Part,
    ) -> Result<Vec<Measure>> {
        let asker = Asker::of(base, around, KvType::F32)?;
        let adapter = Some(&adapter_of(base, row)?);
        match self {
            Self::Phantom(task, _) => {
                let (split, count) = match part {
                    Part::Validation => (Split::Validation, task.validation),
                    Part::Test => (Split::Test, task.test),
                };
                let films: Vec<Example> =
                    dataset::examples(task.task, split, task.data_seed, count)
                        .collect::<std::result::Result<_, _>>()?;
                let answers = film_answers(&asker, adapter, &films)?;
                Ok(film_measures(&films, &answers))
            }
            Self::Records(task, records, teacher) => {
                let held = match part {
                    Part::Validation => task
                        .validation
                        .context("`validation` of the task is not given, rates need it")?,
                    Part::Test => task.test,
                };
                let (records, _) = teacher.fitting(task.held(records, held)?);
                let said = record_answers(&asker, adapter, &records, Look::Picture)?;
                let answers: Vec<String> = said.into_iter().map(|one| one.text).collect();
                Ok(record_measures(&records, &answers))
            }
        }
    }
}

impl RecordTask {
    fn fold(&self, part: usize) -> Result<Fold> {
        Ok(Fold::new(self.folds, part, self.fold_seed)?)
    }

    /// The training part less every fold that is held out.
    fn train<'r>(&self, records: &'r [Record]) -> Result<Vec<&'r Record>> {
        let held = [self.validation, Some(self.test)].into_iter().flatten();
        let folds = held
            .filter_map(|held| match held {
                Held::Fold(part) => Some(self.fold(part)),
                _ => None,
            })
            .collect::<Result<Vec<Fold>>>()?;
        let train = records.iter().filter(|one| one.split == SetSplit::Train);
        Ok(train
            .filter(|one| !folds.iter().any(|fold| fold.holds_out(&one.group)))
            .collect())
    }

    fn held<'r>(&self, records: &'r [Record], held: Held) -> Result<Vec<&'r Record>> {
        let of = |split: SetSplit| records.iter().filter(move |one| one.split == split);
        let found: Vec<&Record> = match held {
            Held::Fold(part) => self.fold(part)?.part(of(SetSplit::Train)).1,
            Held::Validation => of(SetSplit::Validation).collect(),
            Held::Test => of(SetSplit::Test).collect(),
        };
        ensure!(!found.is_empty(), "{} has no records in {held:?}", self.set);
        Ok(found)
    }
}

/// The first share of things in the order of a digest of their names, in their own order.
fn first_share<T: Clone>(things: &[T], share: f64, name: impl Fn(&T) -> String) -> Vec<T> {
    let count = (share * things.len() as f64).ceil() as usize;
    let mut ranked: Vec<(Vec<u8>, usize)> = things
        .iter()
        .enumerate()
        .map(|(at, one)| (Sha256::digest(name(one)).to_vec(), at))
        .collect();
    ranked.sort();
    let mut kept: Vec<usize> = ranked.into_iter().take(count).map(|one| one.1).collect();
    kept.sort_unstable();
    kept.into_iter().map(|at| things[at].clone()).collect()
}

/// Counts by name, one pair an image.
struct Counts {
    n_images: usize,
    order: Vec<String>,
    units: BTreeMap<String, Vec<(u32, u32)>>,
}

impl Counts {
    /// Names come in this order, those that were never counted are left out.
    fn new(n_images: usize, order: &[&str]) -> Self {
        Self {
            n_images,
            order: order.iter().map(|name| (*name).to_owned()).collect(),
            units: BTreeMap::new(),
        }
    }

    fn add(&mut self, name: &str, image: usize, (above, below): (u32, u32)) {
        if !self.order.iter().any(|one| one == name) {
            self.order.push(name.to_owned());
        }
        let units = self.units.entry(name.to_owned());
        let unit = &mut units.or_insert_with(|| vec![(0, 0); self.n_images])[image];
        *unit = (unit.0 + above, unit.1 + below);
    }

    fn measures(mut self) -> Vec<Measure> {
        let found = self.order.iter().filter_map(|name| {
            let units = self.units.remove(name)?;
            Some(Measure {
                name: name.clone(),
                units,
            })
        });
        found.collect()
    }
}

/// Exact match of questions, all, closed and open, and by kind; of reports, word for word and finding F1.
fn film_measures(films: &[Example], answers: &[Vec<String>]) -> Vec<Measure> {
    let order = [
        "questions",
        "closed",
        "open",
        "report exact",
        "finding F1",
        "finding F1 kind",
    ];
    let mut counts = Counts::new(films.len(), &order);
    for (image, (film, answers)) in films.iter().zip(answers).enumerate() {
        for (turn, answer) in film.turns.iter().zip(answers) {
            let right = (u32::from(is_exact(answer, &turn.answer)), 1);
            match turn.kind {
                QuestionKind::AnyCode => {}
                QuestionKind::Report => {
                    counts.add("report exact", image, right);
                    for (name, depth) in [
                        ("finding F1", Depth::Full),
                        ("finding F1 kind", Depth::Kind),
                    ] {
                        let found = report_counts(answer, &film.scene(), depth);
                        counts.add(name, image, found);
                    }
                }
                kind => {
                    counts.add("questions", image, right);
                    counts.add(if turn.closed { "closed" } else { "open" }, image, right);
                    counts.add(&format!("kind: {}", word(kind)), image, right);
                }
            }
        }
    }
    counts.measures()
}

fn word(kind: QuestionKind) -> String {
    let value = serde_json::to_value(kind).ok();
    let word = value.as_ref().and_then(serde_json::Value::as_str);
    word.unwrap_or("other").to_owned()
}

/// Exact match: of questions all, closed and open, and of reports. Records that the base cannot be asked
/// (too long, or with a token that has a meaning of its own) are left out everywhere.
fn record_measures(records: &[&Record], answers: &[String]) -> Vec<Measure> {
    let images = by_image(records.iter().copied());
    let places: BTreeMap<_, _> = images
        .iter()
        .enumerate()
        .map(|(at, (image, _))| (*image, at))
        .collect();
    let mut counts = Counts::new(
        images.len(),
        &["questions", "closed", "open", "report exact"],
    );
    for (record, answer) in records.iter().zip(answers) {
        let Some(image) = places.get(record.shown()) else {
            continue;
        };
        let right = (u32::from(same_form(answer) == same_form(&record.answer)), 1);
        let name = match record.answer_type {
            AnswerType::Closed => "closed",
            AnswerType::Open => "open",
            AnswerType::Report => "report exact",
        };
        counts.add(name, *image, right);
        if record.answer_type != AnswerType::Report {
            counts.add("questions", *image, right);
        }
    }
    counts.measures()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::phantom::metrics::summarise;

    #[test]
    fn film_measures_agree_with_the_summary() {
        for task in [Task::LowDose, Task::House, Task::Urgent] {
            let films: Vec<Example> = dataset::examples(task, Split::Test, 3, 30)
                .map(std::result::Result::unwrap)
                .collect();
            // Every third film gets its neighbour's answers.
            let answers: Vec<Vec<String>> = (0..films.len())
                .map(|at| {
                    let said = &films[if at % 3 == 0 {
                        (at + 1) % films.len()
                    } else {
                        at
                    }];
                    said.turns.iter().map(|turn| turn.answer.clone()).collect()
                })
                .collect();
            let summary = summarise(&films, &answers);
            let measures = film_measures(&films, &answers);
            let value = |name: &str| measures.iter().find(|one| one.name == name)?.value();
            assert_eq!(value("questions"), summary.questions.map(|one| one.value));
            assert_eq!(value("closed"), summary.closed.map(|one| one.value));
            assert_eq!(value("open"), summary.open.map(|one| one.value));
            let reports = summary.reports.as_ref();
            assert_eq!(value("report exact"), reports.map(|one| one.exact.value));
            assert_eq!(value("finding F1"), reports.map(|one| one.f1_full.value));
            for (kind, score) in summary.by_kind {
                assert_eq!(value(&format!("kind: {}", word(kind))), Some(score.value));
            }
        }
    }

    #[test]
    fn a_smaller_share_is_part_of_a_larger_one() {
        let all: Vec<u32> = (0..100).collect();
        let of = |share| first_share(&all, share, u32::to_string);
        let (few, many) = (of(0.1), of(0.5));
        assert_eq!((few.len(), many.len(), of(1.0).len()), (10, 50, 100));
        assert!(few.iter().all(|one| many.contains(one)));
        assert!(many.is_sorted() && many != all[..50]);
        assert_eq!(of(0.001).len(), 1);
    }
}
