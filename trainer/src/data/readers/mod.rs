//! Layouts of sets: one file each. In: a folder. Out: rows put into an [`Intake`]. A reader knows its
//! set's files, fields and oddities; it must not know what becomes of the records.
//!
//! **A new layout**: a file here with a type that implements [`Reader`], a `mod` line and a place in
//! [`READERS`]. Its tests write an imitation of a few rows with the oddities of the real files.

mod jsonl;
mod mimic_cxr;
mod openi;
mod path_vqa;
mod r2gen;
mod report_text;
mod roco;
mod slake;
mod tables;
mod vqa_rad;
mod vqa_rad_mevf;

use std::path::{Path, PathBuf};

use serde::Serialize;

use super::intake::Intake;
use super::{DataError, ProblemKind, Split};

/// Every layout that can be read.
pub const READERS: [&dyn Reader; 10] = [
    &slake::Slake,
    &vqa_rad::VqaRad,
    &vqa_rad_mevf::VqaRadMevf,
    &path_vqa::PathVqa,
    &r2gen::R2Gen,
    &openi::OpenI,
    &mimic_cxr::MimicCxr,
    &roco::Roco,
    &tables::Tables,
    &jsonl::Jsonl,
];

/// Reads one layout.
pub trait Reader: Sync {
    /// What the layout is called, and the set whose it is.
    fn about(&self) -> About;

    /// Where a set in this layout begins, if `folder` holds one: the folder itself, or one in it that
    /// the set's archive unpacks to. It looks at names of files, not into them.
    fn root(&self, folder: &Path) -> Option<PathBuf>;

    /// Puts every row of the set into the intake, faulty ones too. `root`: from [`Self::root`].
    fn read(&self, root: &Path, intake: &mut Intake) -> Result<(), DataError>;
}

/// What a layout is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct About {
    /// Its name on the command line.
    pub format: &'static str,
    /// Files by which it is known.
    #[serde(skip)]
    pub files: &'static str,
    /// How to name and cite the set, if the layout is one set's.
    pub citation: &'static str,
    /// The set's licence as its makers state it. Copies may say otherwise; the copy's counts.
    pub licence: &'static str,
    /// What records' groups are, in the plural.
    pub groups: &'static str,
}

impl About {
    /// Citation and licence in one line.
    pub fn cited(&self) -> String {
        format!("{}; {}", self.citation, self.licence)
    }
}

/// The reader of a layout's name.
pub(super) fn named(format: &str) -> Option<&'static dyn Reader> {
    READERS
        .into_iter()
        .find(|reader| reader.about().format == format)
}

/// The first of `nested` in a folder, or the folder, that `fits`.
fn first_fitting(folder: &Path, nested: &[&str], fits: impl Fn(&Path) -> bool) -> Option<PathBuf> {
    let inside = nested.iter().map(|name| folder.join(name));
    std::iter::once(folder.to_owned())
        .chain(inside)
        .find(|folder| fits(folder))
}

/// The split that a word in a field means.
fn split_word(field: &'static str, word: &str) -> Result<Split, ProblemKind> {
    Split::from_word(word).ok_or_else(|| ProblemKind::Unknown {
        field,
        got: format!("`{word}`"),
    })
}
