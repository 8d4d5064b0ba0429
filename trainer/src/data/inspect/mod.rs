//! A set at a glance, before anything is trained on it. In: a set as it was read, and its images' facts.
//! Out: counts, lengths, leaks and faults, as a table for people or as JSON. It must not know layouts.

mod sheet;
mod table;

pub use sheet::contact_sheet;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::Serialize;

use super::images::Facts;
use super::leaks::{self, Leak};
use super::readers::About;
use super::set::digest_with;
use super::{AnswerType, DataSet, Image, ProblemKind, Record, Split, compare};

/// Examples that a kind of fault names.
const EXAMPLES: usize = 3;

/// What is to be known of a set.
#[derive(Clone, Debug, Serialize)]
pub struct Inspection {
    pub about: About,
    /// The licence that the set's own card states, if it has one.
    pub card_licence: Option<String>,
    pub records: usize,
    /// Of all records and images; none where images were not looked at.
    pub digest: Option<String>,
    pub splits: BTreeMap<Split, Part>,
    /// None where images were not looked at.
    pub images: Option<Images>,
    /// Rows that repeat an earlier one of their split.
    pub duplicates: usize,
    pub leaks: Vec<Leak>,
    pub faults: Vec<Fault>,
    pub remarks: Vec<String>,
}

/// One split.
#[derive(Clone, Debug, Serialize)]
pub struct Part {
    pub records: usize,
    pub images: usize,
    pub groups: usize,
    pub answer_types: BTreeMap<AnswerType, usize>,
    pub question_words: Lengths,
    pub answer_words: Lengths,
    /// With a base's tokenizer at hand.
    pub question_tokens: Option<Lengths>,
    pub answer_tokens: Option<Lengths>,
    pub distinct_answers: usize,
    /// Records whose answer no training record has.
    pub answers_not_in_train: usize,
    /// The most frequent answer, and how many records have it: what always giving it scores.
    pub most_frequent_answer: (String, usize),
}

/// Lengths of texts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Lengths {
    pub least: usize,
    pub median: usize,
    /// 95 of 100 are not longer.
    pub most_of_95: usize,
    pub most: usize,
}

/// The images that can be decoded.
#[derive(Clone, Debug, Serialize)]
pub struct Images {
    pub count: usize,
    /// Images whose bytes another one has too.
    pub copies: usize,
    pub jpeg: usize,
    /// Stored as 8-bit grey.
    pub grey: usize,
    /// Stored otherwise, but all pixels are grey.
    pub grey_in_colour: usize,
    /// Least, median and greatest width, and height.
    pub widths: [u32; 3],
    pub heights: [u32; 3],
}

/// Rows with a fault of one kind.
#[derive(Clone, Debug, Serialize)]
pub struct Fault {
    pub what: String,
    pub rows: usize,
    /// Whether the rows are left out.
    pub left_out: bool,
    /// The first few, with file and line.
    pub first: Vec<String>,
}

/// Counts a text's tokens.
pub type CountTokens<'a> = &'a dyn Fn(&str) -> usize;

/// Looks at a set. `facts`: of its images, if they were decoded.
pub fn inspect(
    set: &DataSet,
    facts: Option<&BTreeMap<Image, Facts>>,
    tokens: Option<CountTokens>,
) -> Inspection {
    let digests: BTreeMap<&Image, [u8; 32]> = facts
        .into_iter()
        .flatten()
        .map(|(image, facts)| (image, facts.digest))
        .collect();
    let mut leaks = leaks::of_groups(set);
    leaks.extend(leaks::of_images(set, &digests));
    leaks.extend(leaks::of_rows(set));
    let train = answers(set.split(Split::Train));
    let splits = Split::ALL.into_iter().filter_map(|split| {
        let records: Vec<&Record> = set.split(split).collect();
        (!records.is_empty()).then(|| (split, part(&records, &train, tokens)))
    });
    let repeats = |kind: &ProblemKind| matches!(kind, ProblemKind::Duplicate { .. });
    Inspection {
        about: set.about.clone(),
        card_licence: None,
        records: set.records.len(),
        digest: facts.map(|_| digest_with(&set.records, &digests)),
        splits: splits.collect(),
        images: facts.filter(|facts| !facts.is_empty()).map(images),
        duplicates: set.problems.iter().filter(|one| repeats(&one.kind)).count(),
        leaks,
        faults: faults(set),
        remarks: set.to_know(),
    }
}

/// The licence in the head of a `README.md`, as the Hugging Face hub's cards state it.
pub fn card_licence(folder: &Path) -> Option<String> {
    let card = std::fs::read_to_string(folder.join("README.md")).ok()?;
    let mut lines = card.lines();
    (lines.next()?.trim() == "---").then_some(())?;
    lines
        .take_while(|line| line.trim() != "---")
        .find_map(|line| line.strip_prefix("license:"))
        .map(|licence| licence.trim().to_owned())
        .filter(|licence| !licence.is_empty())
}

fn answers<'a>(records: impl Iterator<Item = &'a Record>) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for record in records {
        *counts.entry(compare(&record.answer)).or_insert(0) += 1;
    }
    counts
}

fn part(records: &[&Record], train: &BTreeMap<String, usize>, tokens: Option<CountTokens>) -> Part {
    let words = |text: &str| text.split_whitespace().count();
    let questions = |count: CountTokens| lengths(records.iter().map(|one| count(&one.question)));
    let answers_of = |count: CountTokens| lengths(records.iter().map(|one| count(&one.answer)));
    let mut answer_types = BTreeMap::new();
    for record in records {
        *answer_types.entry(record.answer_type).or_insert(0) += 1;
    }
    let images: BTreeSet<&Image> = records.iter().flat_map(|one| &one.images).collect();
    let groups: BTreeSet<&String> = records.iter().map(|one| &one.group).collect();
    let answers = answers(records.iter().copied());
    // Of equally frequent answers, the first in the alphabet.
    let most = answers.iter().rev().max_by_key(|(_, count)| **count);
    let unseen = answers
        .iter()
        .filter(|(answer, _)| !train.contains_key(*answer));
    Part {
        records: records.len(),
        images: images.len(),
        groups: groups.len(),
        answer_types,
        question_words: questions(&words),
        answer_words: answers_of(&words),
        question_tokens: tokens.map(questions),
        answer_tokens: tokens.map(answers_of),
        distinct_answers: answers.len(),
        answers_not_in_train: unseen.map(|(_, count)| count).sum(),
        most_frequent_answer: most.map_or_else(Default::default, |(a, n)| (a.clone(), *n)),
    }
}

fn lengths(of: impl Iterator<Item = usize>) -> Lengths {
    let mut all: Vec<usize> = of.collect();
    all.sort_unstable();
    let Some(last) = all.len().checked_sub(1) else {
        return Lengths::default();
    };
    Lengths {
        least: all[0],
        median: all[last / 2],
        most_of_95: all[(all.len() * 95).div_ceil(100) - 1],
        most: all[last],
    }
}

fn images(facts: &BTreeMap<Image, Facts>) -> Images {
    let count = |wanted: fn(&Facts) -> bool| facts.values().filter(|one| wanted(one)).count();
    let mut seen: BTreeMap<[u8; 32], usize> = BTreeMap::new();
    for one in facts.values() {
        *seen.entry(one.digest).or_insert(0) += 1;
    }
    let range = |side: fn(&Facts) -> u32| {
        let mut sides: Vec<u32> = facts.values().map(side).collect();
        sides.sort_unstable();
        [
            sides[0],
            sides[(sides.len() - 1) / 2],
            sides[sides.len() - 1],
        ]
    };
    Images {
        count: facts.len(),
        copies: seen.values().filter(|count| **count > 1).sum(),
        jpeg: count(|one| one.jpeg),
        grey: count(|one| one.grey),
        grey_in_colour: count(|one| one.looks_grey && !one.grey),
        widths: range(|one| one.width),
        heights: range(|one| one.height),
    }
}

/// The kinds of faults, rows that are left out first, then by number.
fn faults(set: &DataSet) -> Vec<Fault> {
    let mut kinds: BTreeMap<String, Fault> = BTreeMap::new();
    for problem in &set.problems {
        let what = problem.kind.summary();
        let fault = kinds.entry(what.clone()).or_insert_with(|| Fault {
            what,
            rows: 0,
            left_out: problem.kind.drops(),
            first: Vec::new(),
        });
        fault.rows += 1;
        if fault.first.len() < EXAMPLES {
            fault.first.push(problem.to_string());
        }
    }
    let mut faults: Vec<Fault> = kinds.into_values().collect();
    faults.sort_by_key(|fault| (!fault.left_out, usize::MAX - fault.rows));
    faults
}

#[cfg(test)]
mod tests;
