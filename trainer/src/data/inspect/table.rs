//! An inspection as a table for people.

use std::fmt;

use super::{Inspection, Lengths, Part};
use crate::data::AnswerType;

impl fmt::Display for Inspection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}, layout `{}`", self.about.citation, self.about.format)?;
        write!(f, "licence: {}", self.about.licence)?;
        match &self.card_licence {
            Some(licence) => writeln!(f, "; its card says: {licence}")?,
            None => writeln!(f)?,
        }
        writeln!(f, "{} records", self.records)?;
        if let Some(digest) = &self.digest {
            writeln!(f, "{digest}")?;
        }
        self.write_parts(f)?;
        self.write_images(f)?;
        writeln!(f, "\nbetween splits")?;
        if self.leaks.is_empty() {
            writeln!(f, "  nothing that was looked for is in two splits")?;
        }
        for leak in &self.leaks {
            writeln!(f, "  {leak}, such as {}", leak.examples[0])?;
        }
        if !self.faults.is_empty() {
            writeln!(f, "\nrows with faults")?;
        }
        for fault in &self.faults {
            let end = if fault.left_out { "left out" } else { "kept" };
            writeln!(f, "  {:>6} {}; {end}", fault.rows, fault.what)?;
            for first in &fault.first {
                writeln!(f, "         {first}")?;
            }
        }
        if !self.remarks.is_empty() {
            writeln!(f, "\nto know")?;
        }
        for remark in &self.remarks {
            writeln!(f, "  {remark}")?;
        }
        Ok(())
    }
}

/// A line of the table of splits: its name and what it shows of a split.
type Line<'a> = (&'a str, &'a dyn Fn(&Part) -> String);

impl Inspection {
    fn write_parts(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f)?;
        let of_type =
            |kind| move |part: &Part| part.answer_types.get(&kind).unwrap_or(&0).to_string();
        let closed = of_type(AnswerType::Closed);
        let open = of_type(AnswerType::Open);
        let reports = of_type(AnswerType::Report);
        let groups = format!("groups: {}", self.about.groups);
        let lines: [Line; 14] = [
            ("records", &|part| part.records.to_string()),
            ("images", &|part| part.images.to_string()),
            (&groups, &|part| part.groups.to_string()),
            ("closed", &closed),
            ("open", &open),
            ("reports", &reports),
            ("words of a question", &|part| {
                shown(Some(part.question_words))
            }),
            ("words of an answer", &|part| shown(Some(part.answer_words))),
            ("tokens of a question", &|part| shown(part.question_tokens)),
            ("tokens of an answer", &|part| shown(part.answer_tokens)),
            ("distinct answers", &|part| {
                part.distinct_answers.to_string()
            }),
            ("answers not in train", &|part| {
                part.answers_not_in_train.to_string()
            }),
            ("most frequent answer", &most_frequent),
            ("  and its share", &|part| {
                let share = part.most_frequent_answer.1 as f64 / part.records as f64;
                format!("{:.1} %", 100.0 * share)
            }),
        ];
        write!(f, "{:<24}", "")?;
        let last = self.splits.len().saturating_sub(1);
        for (at, split) in self.splits.keys().enumerate() {
            cell(f, &split.to_string(), at == last)?;
        }
        writeln!(f)?;
        for (name, show) in lines {
            let cells: Vec<String> = self.splits.values().map(show).collect();
            if cells.iter().all(String::is_empty) {
                continue;
            }
            write!(f, "{name:<24}")?;
            for (at, text) in cells.iter().enumerate() {
                cell(f, text, at == last)?;
            }
            writeln!(f)?;
        }
        writeln!(f, "lengths: least / median / 95 % / most")
    }

    fn write_images(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f)?;
        let Some(images) = &self.images else {
            return writeln!(f, "images were not looked at");
        };
        let [narrow, middle, wide] = images.widths;
        let [low, half, high] = images.heights;
        writeln!(
            f,
            "{} images: {} JPEG, {} PNG; {} stored as grey, {} grey but stored in colour",
            images.count,
            images.jpeg,
            images.count - images.jpeg,
            images.grey,
            images.grey_in_colour
        )?;
        writeln!(
            f,
            "widths {narrow} / {middle} / {wide}, heights {low} / {half} / {high} (least / median / most)"
        )?;
        if images.copies > 0 {
            writeln!(f, "{} images have the same bytes as another", images.copies)?;
        }
        Ok(())
    }
}

const COLUMN: usize = 22;
/// Characters of an answer that are shown.
const ANSWER: usize = 12;

fn cell(f: &mut fmt::Formatter<'_>, text: &str, last: bool) -> fmt::Result {
    if last {
        write!(f, "{text}")
    } else {
        write!(f, "{text:<COLUMN$}")
    }
}

fn shown(lengths: Option<Lengths>) -> String {
    lengths.map_or_else(String::new, |one| {
        let Lengths {
            least,
            median,
            most_of_95,
            most,
        } = one;
        format!("{least} / {median} / {most_of_95} / {most}")
    })
}

fn most_frequent(part: &Part) -> String {
    let (answer, count) = &part.most_frequent_answer;
    let short: String = answer.chars().take(ANSWER).collect();
    let dots = if short.len() < answer.len() { ".." } else { "" };
    format!("`{short}{dots}` {count}")
}
