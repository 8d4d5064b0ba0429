//! Visual question answering sets as people have them on disk. In: a folder in a set's original
//! layout. Out: records, and a list of everything that was wrong with the files. It knows no model,
//! no tokens and no pixels.
//!
//! - `json_array`: a file's rows one by one, each with its line. `text`: what is mended in texts.
//! - [`slake`], [`vqa_rad`]: one layout each. [`source`]: `slake:FOLDER`, as a command line names a set.
//! - [`folds`]: which images are held out. [`questions`]: a list of questions for other programs.
//!
//! No record vanishes: what cannot be used stands in [`DataSet::problems`] with file, row and line.

pub mod folds;
mod json_array;
pub mod questions;
pub mod slake;
pub mod source;
mod text;
pub mod vqa_rad;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Serialize;
use sha2::{Digest, Sha256};

/// Why a set could not be read at all. Faults of single rows are [`Problem`]s.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// A file could not be read.
    #[error("cannot read {path}")]
    Read {
        path: String,
        source: std::io::Error,
    },
    /// A file is no JSON array of rows.
    #[error("{path}, line {line}: {problem}")]
    Json {
        path: String,
        line: usize,
        problem: String,
    },
    /// None of the files that a layout consists of is there.
    #[error("{folder} has none of the files {wanted}")]
    Layout { folder: String, wanted: String },
    /// A set is named in a way that is not understood.
    #[error("`{got}` names no data set, wanted is {want}")]
    Source { got: String, want: String },
    /// A fold that does not exist.
    #[error("fold {held_out} of {folds}: folds are at least 2, numbered from 0")]
    Fold { held_out: usize, folds: usize },
    /// Nothing is left to work with.
    #[error("{what} has no usable record")]
    Empty { what: String },
}

/// The part of a set that its makers put a record into.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Split {
    Train,
    Validation,
    Test,
}

/// Where a record stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    pub file: Arc<Path>,
    /// Its row in the file, counted from 0.
    pub index: usize,
    /// The line on which it begins, counted from 1.
    pub line: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}:{}, row {}",
            self.file.display(),
            self.line,
            self.index
        )
    }
}

/// One question about one image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The set's own number of the question, as text.
    pub id: String,
    pub image: PathBuf,
    pub question: String,
    pub answer: String,
    /// Whether the set's makers call the question closed (not: whether the answer is yes or no).
    pub closed: bool,
    pub split: Split,
    /// What may not be torn apart by a split: the image's name within the set.
    pub group: String,
    /// Language tag of question and answer, such as `en`.
    pub language: String,
    pub place: Place,
}

/// Something that is wrong with a row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    pub place: Place,
    pub kind: ProblemKind,
}

/// What is wrong, and so whether the row became a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProblemKind {
    /// A field that a record needs is not there, or `NULL`.
    Missing { field: &'static str },
    /// A field is there and blank.
    Blank { field: &'static str },
    /// A field holds something that it cannot mean.
    Unknown { field: &'static str, got: String },
    /// The image's name leads out of the image folder.
    ImageName { name: String },
    /// There is no such image file.
    NoImage { name: String },
    /// Characters were lost before the set was written; the text was mended as far as it goes.
    LostCharacters { field: &'static str },
    /// The same image, question, answer and split as an earlier row. Kept, as others count it.
    Duplicate { first: usize },
    /// The row also stands in another split.
    OtherSplit { first: usize, split: Split },
}

impl ProblemKind {
    /// Whether the row is left out of the records.
    pub fn drops(&self) -> bool {
        match self {
            Self::Missing { .. }
            | Self::Blank { .. }
            | Self::Unknown { .. }
            | Self::ImageName { .. }
            | Self::NoImage { .. } => true,
            Self::LostCharacters { .. } | Self::Duplicate { .. } | Self::OtherSplit { .. } => false,
        }
    }
}

impl fmt::Display for ProblemKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing { field } => write!(f, "`{field}` is missing"),
            Self::Blank { field } => write!(f, "`{field}` is blank"),
            Self::Unknown { field, got } => write!(f, "`{field}` is {got}"),
            Self::ImageName { name } => write!(f, "image `{name}` lies outside the image folder"),
            Self::NoImage { name } => write!(f, "image `{name}` is not there"),
            Self::LostCharacters { field } => write!(f, "`{field}` has lost characters"),
            Self::Duplicate { first } => write!(f, "repeats row {first}"),
            Self::OtherSplit { first, split } => write!(f, "stands as row {first} in {split:?}"),
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let end = if self.kind.drops() {
            "left out"
        } else {
            "kept"
        };
        write!(f, "{}: {}; {end}", self.place, self.kind)
    }
}

/// A set as it was read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DataSet {
    pub records: Vec<Record>,
    pub problems: Vec<Problem>,
}

impl DataSet {
    /// The records of one split, in the order of the files.
    pub fn split(&self, split: Split) -> impl Iterator<Item = &Record> {
        self.records
            .iter()
            .filter(move |record| record.split == split)
    }

    /// Rows that became no record.
    pub fn dropped(&self) -> impl Iterator<Item = &Problem> {
        self.problems.iter().filter(|problem| problem.kind.drops())
    }

    /// Groups that occur in more than one split, with the splits: what a score on the later split owes
    /// to having seen its images.
    pub fn leaks(&self) -> BTreeMap<&str, BTreeSet<Split>> {
        let mut splits: BTreeMap<&str, BTreeSet<Split>> = BTreeMap::new();
        for record in &self.records {
            splits
                .entry(&record.group)
                .or_default()
                .insert(record.split);
        }
        splits.retain(|_, splits| splits.len() > 1);
        splits
    }

    /// Takes in a row that was read; notes where it repeats an earlier one.
    fn push(&mut self, record: Record, seen: &mut Seen) {
        let key = (
            record.group.clone(),
            compare(&record.question),
            compare(&record.answer),
        );
        let first = *seen
            .entry(key)
            .or_insert((record.place.index, record.split));
        if first.0 != record.place.index || first.1 != record.split {
            let kind = if first.1 == record.split {
                ProblemKind::Duplicate { first: first.0 }
            } else {
                ProblemKind::OtherSplit {
                    first: first.0,
                    split: first.1,
                }
            };
            self.problems.push(Problem {
                place: record.place.clone(),
                kind,
            });
        }
        self.records.push(record);
    }
}

/// The first row and split of each image, question and answer.
type Seen = BTreeMap<(String, String, String), (usize, Split)>;

/// The form in which answers are compared: lower case, single blanks, no full stop at the end.
pub fn compare(text: &str) -> String {
    let words: Vec<String> = text.split_whitespace().map(str::to_lowercase).collect();
    words.join(" ").trim_end_matches(['.', ' ']).to_owned()
}

/// `sha256:` and the hexadecimal digest of records and their image files. It does not depend on where
/// the set lies.
pub fn digest<'a>(records: impl IntoIterator<Item = &'a Record>) -> Result<String, DataError> {
    let mut hash = Sha256::new();
    let mut images: BTreeMap<&Path, [u8; 32]> = BTreeMap::new();
    for record in records {
        if !images.contains_key(record.image.as_path()) {
            let bytes = std::fs::read(&record.image).map_err(|source| DataError::Read {
                path: record.image.display().to_string(),
                source,
            })?;
            images.insert(&record.image, Sha256::digest(bytes).into());
        }
        hash.update(images[record.image.as_path()]);
        let closed = if record.closed { "closed" } else { "open" };
        for text in [&record.group, &record.question, &record.answer, closed] {
            hash.update((text.len() as u64).to_le_bytes());
            hash.update(text.as_bytes());
        }
    }
    Ok(format!("sha256:{:x}", hash.finalize()))
}

#[cfg(test)]
mod tests;
