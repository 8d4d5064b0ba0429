//! A record: images, what is asked about them, and the truth. It must not know where records come
//! from.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Serialize;

use super::DataError;
use super::files::parquet;

/// What a report is asked for with, where a set only has the report: the server's own words.
pub const REPORT_QUESTION: &str = "Write a report of this image.";

/// The part of a set that a record belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Split {
    Train,
    Validation,
    Test,
}

impl Split {
    /// All, in the order in which they are used.
    pub const ALL: [Self; 3] = [Self::Train, Self::Validation, Self::Test];

    /// The split that a file's or a field's word means.
    pub fn from_word(word: &str) -> Option<Self> {
        match word.to_lowercase().as_str() {
            "train" | "training" => Some(Self::Train),
            "val" | "valid" | "validate" | "validation" | "dev" => Some(Self::Validation),
            "test" | "testing" => Some(Self::Test),
            _ => None,
        }
    }
}

impl fmt::Display for Split {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Train => "train",
            Self::Validation => "validation",
            Self::Test => "test",
        })
    }
}

/// What kind of answer is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum AnswerType {
    /// A choice, as the set's makers call it (not: whether the answer is yes or no).
    Closed,
    /// A few words of one's own.
    Open,
    /// A report or a caption.
    Report,
}

impl AnswerType {
    /// The type of a question's answer in a set that states none: yes and no are closed.
    pub fn of_answer(answer: &str) -> Self {
        match super::compare(answer).as_str() {
            "yes" | "no" => Self::Closed,
            _ => Self::Open,
        }
    }

    /// Its word, as serialised.
    pub fn word(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Open => "open",
            Self::Report => "report",
        }
    }
}

/// Where an image's bytes are.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Image {
    /// A file.
    File(PathBuf),
    /// A cell of a Parquet table. Rows with the same bytes are all the first of them.
    Cell {
        table: Arc<Path>,
        /// The column's path in the table, such as `image.bytes`.
        column: Arc<str>,
        /// The row in the table, counted from 0.
        row: usize,
    },
}

impl Image {
    /// The encoded image.
    pub fn bytes(&self) -> Result<Vec<u8>, DataError> {
        match self {
            Self::File(path) => std::fs::read(path).map_err(|source| DataError::Read {
                path: path.display().to_string(),
                source,
            }),
            Self::Cell { table, column, row } => parquet::cell(table, column, *row),
        }
    }
}

impl Image {
    /// The end of its place: enough to tell a set's images apart, wherever the set lies. The folder tells
    /// `xmlab1/source.jpg` from `xmlab2/source.jpg`.
    pub fn short(&self) -> String {
        let last = |path: &Path, parts: usize| {
            let all: Vec<_> = path.iter().map(|part| part.to_string_lossy()).collect();
            all[all.len().saturating_sub(parts)..].join("/")
        };
        match self {
            Self::File(path) => last(path, 3),
            Self::Cell { table, row, .. } => format!("{}#{row}", last(table, 1)),
        }
    }
}

impl<P: Into<PathBuf>> From<P> for Image {
    fn from(path: P) -> Self {
        Self::File(path.into())
    }
}

impl fmt::Display for Image {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Cell { table, column, row } => {
                write!(f, "{}, row {row}, `{column}`", table.display())
            }
        }
    }
}

/// Where a record stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    pub file: Arc<Path>,
    /// Its row in the file, counted from 0.
    pub index: usize,
    /// The line on which it begins, counted from 1, where the file has lines.
    pub line: Option<usize>,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let file = self.file.display();
        match self.line {
            Some(line) => write!(f, "{file}:{line}, row {}", self.index),
            None => write!(f, "{file}, row {}", self.index),
        }
    }
}

/// One question, or one report, about one study.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The set's own number of the question or study, as text.
    pub id: String,
    /// At least one; the one to show first where only one is shown (a frontal view, where the set says
    /// which that is).
    pub images: Vec<Image>,
    pub question: String,
    pub answer: String,
    pub answer_type: AnswerType,
    pub split: Split,
    /// What may not be torn apart by a split: patient, study or image, by the set's own name.
    pub group: String,
    /// Language tag of question and answer, such as `en`.
    pub language: String,
    pub place: Place,
}

impl Record {
    /// The image that a model of one image is shown: the first.
    pub fn shown(&self) -> &Image {
        self.images.first().expect("a record has an image")
    }

    /// Whether the set's makers call the question closed.
    pub fn is_closed(&self) -> bool {
        self.answer_type == AnswerType::Closed
    }
}
