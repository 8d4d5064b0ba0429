//! Image sets as people have them on disk. In: a folder in a layout of its makers. Out: records, and
//! a list of everything that was wrong with the files. It knows no model and no tokens.
//!
//! - [`readers`]: **one file a layout**, behind the trait [`Reader`](readers::Reader). A new layout is a
//!   new file there and a line in its list; everything below then works for it.
//! - [`files`]: JSON, JSON lines, CSV, pickle, Parquet as rows of named fields with their places. A
//!   reader puts each row into the [`intake`], which cleans nothing and loses nothing.
//! - [`record`]: what comes out. [`problem`]: what was wrong. [`set`]: both together, and its digest.
//! - [`source`]: `FOLDER` or `slake:FOLDER`, as a command line names a set.
//! - [`deal`]: a split for sets that have none, patients kept whole. [`folds`]: held-out parts.
//!   [`leaks`]: what two parts of a set share.
//! - [`images`]: which image files can be decoded. [`inspect`]: a set at a glance.
//! - [`questions`]: a list of questions for other programs.
//!
//! No record vanishes: what cannot be used stands in [`DataSet::problems`] with file, line and row.

pub mod deal;
pub mod files;
pub mod folds;
pub mod images;
pub mod inspect;
pub mod intake;
pub mod leaks;
pub mod problem;
pub mod questions;
pub mod readers;
pub mod record;
pub mod set;
pub mod source;

pub use problem::{DataError, Problem, ProblemKind};
pub use record::{AnswerType, Image, Place, Record, Split};
pub use set::{DataSet, compare, digest};

#[cfg(test)]
pub(crate) mod imitation;
#[cfg(test)]
mod real_files;
