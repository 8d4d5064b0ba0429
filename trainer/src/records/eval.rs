//! A model's answers to records, and how many are right. In: a model with its norm values, records it
//! has not seen. Out: answers, and exact match with 95 % intervals. It must not know how the values were
//! found.

use std::fmt;

use anyhow::Result;
use norma::model::MedVlm;
use norma::model::bank::NormBank;
use serde::Serialize;

use super::by_image;
use super::lesson::{Look, RecordTeacher};
use crate::data::{AnswerType, Record, compare};
use crate::decode::Limits;
use crate::eval::answer;
use crate::phantom::score::{Score, share};

/// Images that are answered together.
const TOGETHER: usize = 16;
/// An answer of exact match is short.
const MAX_TOKENS: usize = 48;

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

/// The model's answers, one a record, in the records' order.
pub fn answers(
    model: &dyn MedVlm,
    bank: &NormBank,
    teacher: &RecordTeacher,
    records: &[&Record],
    look: Look,
) -> Result<Vec<String>> {
    let limits = Limits {
        max_tokens: MAX_TOKENS,
        end: teacher.ends(),
    };
    let places: Vec<(usize, &Record)> = records.iter().copied().enumerate().collect();
    let mut texts = vec![String::new(); records.len()];
    let gathered = by_image(records.iter().copied());
    for chunk in gathered.chunks(TOGETHER) {
        let lessons = chunk
            .iter()
            .map(|(image, records)| teacher.lesson(image, records, look))
            .collect::<Result<Vec<_>>>()?;
        for ((image, _), answers) in chunk.iter().zip(answer(model, bank, &lessons, limits)?) {
            let own = places.iter().filter(|(_, record)| record.shown() == *image);
            for ((place, _), answer) in own.zip(answers) {
                texts[*place] = teacher.text(&answer.tokens)?;
            }
        }
    }
    Ok(texts)
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
