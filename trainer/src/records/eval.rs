//! A model's answers to records, and how many are right. In: an asker, an adapter or none, records it has
//! not seen. Out: answers, and exact match with 95 % intervals. It must not know how the adapter's values
//! were found.

use std::collections::HashMap;
use std::fmt;

use anyhow::Result;
use norma::engine::{RequestAdapter, RequestImage};
use serde::Serialize;

use super::lesson::Look;
use crate::asking::{Asker, Said};
use crate::data::{AnswerType, Image, Record, compare};
use crate::eval::{Item, Kind, ask};
use crate::phantom::score::{Score, share};
use crate::pictures;

/// Exact match, case, blanks and a final full stop aside.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Marks {
    /// Of the questions that the set's makers call closed.
    pub closed: Score,
    /// Of the other questions.
    pub open: Score,
    /// Of reports, word for word.
    pub reports: Score,
    /// Of all.
    pub all: Score,
}

impl Marks {
    /// Compares answers with the truth, one a record.
    pub fn new(records: &[&Record], answers: &[String]) -> Self {
        let right = |wanted: Option<AnswerType>| {
            let pairs = records.iter().zip(answers);
            let pairs =
                pairs.filter(|(record, _)| wanted.is_none_or(|one| record.answer_type == one));
            share(pairs.map(|(record, answer)| compare(answer) == compare(&record.answer)))
        };
        Self {
            closed: right(Some(AnswerType::Closed)),
            open: right(Some(AnswerType::Open)),
            reports: right(Some(AnswerType::Report)),
            all: right(None),
        }
    }
}

impl fmt::Display for Marks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scores = [
            ("closed", self.closed),
            ("open", self.open),
            ("reports", self.reports),
            ("all", self.all),
        ];
        // Of a kind that the set does not have, there is nothing to say.
        let scores = scores.into_iter().filter(|(_, score)| score.n > 0);
        for (place, (name, score)) in scores.enumerate() {
            let comma = if place == 0 { "" } else { ", " };
            let [value, low, high] = [score.value, score.low, score.high].map(|one| 100.0 * one);
            write!(
                f,
                "{comma}{name} {value:.1} % [{low:.1}, {high:.1}] of {}",
                score.n
            )?;
        }
        Ok(())
    }
}

/// A record as something to be judged.
pub fn item(record: &Record) -> Item {
    Item {
        id: record.id.clone(),
        group: record.group.clone(),
        kind: match record.answer_type {
            AnswerType::Closed => Kind::Closed,
            AnswerType::Open => Kind::Open,
            AnswerType::Report => Kind::Report,
        },
        question: record.question.clone(),
        reference: record.answer.clone(),
    }
}

/// What was said about records, one answer each, in the records' order.
pub fn answers(
    asker: &Asker,
    adapter: Option<&RequestAdapter>,
    records: &[&Record],
    look: Look,
) -> Result<Vec<Said>> {
    let items: Vec<Item> = records.iter().map(|record| item(record)).collect();
    let mut numbers: HashMap<&Image, usize> = HashMap::new();
    let mut images: Vec<&Image> = Vec::new();
    let pictures: Vec<usize> = records
        .iter()
        .map(|record| {
            let image = record.shown();
            *numbers.entry(image).or_insert_with(|| {
                images.push(image);
                images.len() - 1
            })
        })
        .collect();
    ask(asker, adapter, &items, &pictures, |at| {
        Ok(vec![shown(asker, images[at], look)?])
    })
}

fn shown(asker: &Asker, image: &Image, look: Look) -> Result<RequestImage> {
    match look {
        Look::Picture => asker.image(&pictures::read(image)?),
        Look::Blank => asker.blank(),
    }
}

/// Asks and counts.
pub fn marks(
    asker: &Asker,
    adapter: Option<&RequestAdapter>,
    records: &[&Record],
    look: Look,
) -> Result<Marks> {
    let said = answers(asker, adapter, records, look)?;
    let texts: Vec<String> = said.into_iter().map(|one| one.text).collect();
    Ok(Marks::new(records, &texts))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::imitation::record;

    #[test]
    fn marks_are_given_closed_and_open_apart() {
        let records = [
            record("a", "?", "yes"),
            record("a", "?", "Left Lung"),
            record("b", "?", "no"),
        ];
        let records: Vec<&Record> = records.iter().collect();
        let answers = ["Yes.", "left  lung", "yes"].map(str::to_owned);
        let marks = Marks::new(&records, &answers);
        assert_eq!((marks.closed.value, marks.closed.n), (0.5, 2));
        assert_eq!((marks.open.value, marks.open.n), (1.0, 1));
        assert!((marks.all.value - 2.0 / 3.0).abs() < 1e-12);
        let mut report = record("a", "?", "Clear lungs.");
        report.answer_type = AnswerType::Report;
        let of_report = Marks::new(&[&report], &["clear lungs".into()]);
        assert_eq!((of_report.reports.value, of_report.open.n), (1.0, 0));
        let shown = of_report.to_string();
        assert!(
            shown.starts_with("reports 100.0 % [20.7, 100.0] of 1, all"),
            "{shown}"
        );
        let shown = marks.to_string();
        assert!(
            shown.starts_with("closed 50.0 % [9.5, 90.5] of 2, open 100.0 %"),
            "{shown}"
        );
    }
}
