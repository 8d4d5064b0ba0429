//! What can be wrong with a set. [`DataError`]: it cannot be read at all. [`ProblemKind`]: a row is
//! faulty, and whether it became a record all the same.

use std::fmt;

use super::{Place, Split};

/// Why a set could not be read at all. Faults of single rows are [`Problem`]s.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// A file could not be read.
    #[error("cannot read {path}")]
    Read {
        path: String,
        source: std::io::Error,
    },
    /// A file could not be written.
    #[error("cannot write {path}")]
    Write {
        path: String,
        source: std::io::Error,
    },
    /// A JSON file does not hold rows.
    #[error("{path}, line {line}: {problem}")]
    Json {
        path: String,
        line: usize,
        problem: String,
    },
    /// A file of another format cannot be understood.
    #[error("{path}: {problem}")]
    Format { path: String, problem: String },
    /// A folder is not in the layout that was named.
    #[error("{folder} is not in the layout `{format}`, which has {wanted}")]
    Layout {
        folder: String,
        format: &'static str,
        wanted: &'static str,
    },
    /// No layout fits, or several do.
    #[error("{folder} {problem}; name the layout as FORMAT:FOLDER, FORMAT one of {known}")]
    Unrecognised {
        folder: String,
        problem: String,
        known: String,
    },
    /// A set is named in a way that is not understood.
    #[error("`{got}` names no data set, wanted is {want}")]
    Source { got: String, want: String },
    /// A fold that does not exist.
    #[error("fold {held_out} of {folds}: folds are at least 2, numbered from 0")]
    Fold { held_out: usize, folds: usize },
    /// Shares that no set can be dealt by.
    #[error("`{got}` are no shares: wanted are three numbers, as in 80,10,10, the first not zero")]
    Shares { got: String },
    /// Nothing is left to work with.
    #[error("{what} has no usable record")]
    Empty { what: String },
    /// Rows would be left out, and that was forbidden.
    #[error("{count} rows cannot be used; the first: {first}")]
    Strict { count: usize, first: String },
}

impl DataError {
    pub(super) fn format(path: &std::path::Path, problem: impl fmt::Display) -> Self {
        Self::Format {
            path: path.display().to_string(),
            problem: problem.to_string(),
        }
    }
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
    /// The row cannot be read.
    Malformed { reason: String },
    /// A field that a record needs is not there, or `NULL`.
    Missing { field: &'static str },
    /// A field is there and blank.
    Blank { field: &'static str },
    /// A field holds something that it cannot mean.
    Unknown { field: &'static str, got: String },
    /// The image's name leads out of the image folder.
    ImageName { name: String },
    /// There is no such image file, and the record has no other image.
    NoImage { name: String },
    /// There is no such image file; the study's other images stand.
    NoView { name: String },
    /// An image that cannot be decoded.
    BadImage { name: String, reason: String },
    /// One of a study's images that cannot be decoded; the others stand.
    BadView { name: String, reason: String },
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
            Self::Malformed { .. }
            | Self::Missing { .. }
            | Self::Blank { .. }
            | Self::Unknown { .. }
            | Self::ImageName { .. }
            | Self::NoImage { .. }
            | Self::BadImage { .. } => true,
            Self::NoView { .. }
            | Self::BadView { .. }
            | Self::LostCharacters { .. }
            | Self::Duplicate { .. }
            | Self::OtherSplit { .. } => false,
        }
    }

    /// What is wrong, without the row's own particulars: the same for all rows of the kind.
    pub fn summary(&self) -> String {
        match self {
            Self::Malformed { .. } => "cannot be read".into(),
            Self::Missing { .. } | Self::Blank { .. } | Self::LostCharacters { .. } => {
                self.to_string()
            }
            Self::Unknown { field, .. } => format!("`{field}` is not understood"),
            Self::ImageName { .. } => "the image lies outside the image folder".into(),
            Self::NoImage { .. } => "the image is not there".into(),
            Self::NoView { .. } => "one of several images is not there".into(),
            Self::BadImage { .. } => "the image cannot be decoded".into(),
            Self::BadView { .. } => "one of several images cannot be decoded".into(),
            Self::Duplicate { .. } => "repeats an earlier row".into(),
            Self::OtherSplit { split, .. } => format!("also stands in {split}"),
        }
    }
}

impl fmt::Display for ProblemKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Malformed { reason } => write!(f, "cannot be read: {reason}"),
            Self::Missing { field } => write!(f, "`{field}` is missing"),
            Self::Blank { field } => write!(f, "`{field}` is blank"),
            Self::Unknown { field, got } => write!(f, "`{field}` is {got}"),
            Self::ImageName { name } => write!(f, "image `{name}` lies outside the image folder"),
            Self::NoImage { name } => write!(f, "image `{name}` is not there"),
            Self::NoView { name } => write!(f, "image `{name}` is not there, others are"),
            Self::BadImage { name, reason } | Self::BadView { name, reason } => {
                write!(f, "image `{name}`: {reason}")
            }
            Self::LostCharacters { field } => write!(f, "`{field}` has lost characters"),
            Self::Duplicate { first } => write!(f, "repeats row {first}"),
            Self::OtherSplit { first, split } => write!(f, "stands as row {first} in {split}"),
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
