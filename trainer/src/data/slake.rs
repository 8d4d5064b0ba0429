//! SLAKE (Liu et al., ISBI 2021) in its original layout: `train.json`, `validate.json`, `test.json`,
//! `imgs/xmlabN/source.jpg`. A folder and a language enter, a [`DataSet`] leaves. It must not know
//! other layouts.
//!
//! English and Chinese rows use different image splits, so that reading both would put test images
//! of one into the training set of the other: the language is chosen before anything else.

use std::path::{Component, Path, PathBuf};

use serde_json::{Map, Value};

use super::text::{field, has_lost, is_closed};
use super::{DataError, DataSet, Place, Problem, ProblemKind, Record, Seen, Split, json_array};

/// The files of a split; mirrors spell one of them differently.
const FILES: [(&str, Split); 4] = [
    ("train.json", Split::Train),
    ("validate.json", Split::Validation),
    ("validation.json", Split::Validation),
    ("test.json", Split::Test),
];

/// Reads the rows of one language. `folder`: the one that holds the JSON files, or `Slake1.0` with
/// them. A split whose file is not there has no records; with no file at all it is an error.
pub fn read(folder: &Path, language: &str) -> Result<DataSet, DataError> {
    let folder = root(folder);
    let (mut set, mut seen) = (DataSet::default(), Seen::new());
    let mut found = Vec::new();
    for (name, split) in FILES {
        let path = folder.join(name);
        if !path.exists() || found.contains(&split) {
            continue;
        }
        found.push(split);
        for (place, row) in json_array::read(&path)? {
            match record(&folder, (&place, &row), split, language) {
                Ok(None) => {}
                Ok(Some(record)) => {
                    for field in ["question", "answer"] {
                        if has_lost(&row, field) {
                            let kind = ProblemKind::LostCharacters { field };
                            set.problems.push(Problem {
                                place: place.clone(),
                                kind,
                            });
                        }
                    }
                    set.push(record, &mut seen);
                }
                Err(kind) => set.problems.push(Problem { place, kind }),
            }
        }
    }
    if found.is_empty() {
        return Err(DataError::Layout {
            folder: folder.display().to_string(),
            wanted: FILES.map(|(name, _)| name).join(", "),
        });
    }
    Ok(set)
}

fn root(folder: &Path) -> PathBuf {
    let nested = folder.join("Slake1.0");
    if nested.is_dir() {
        nested
    } else {
        folder.into()
    }
}

/// The record of a row; `None` for a row of another language.
fn record(
    folder: &Path,
    (place, row): (&Place, &Map<String, Value>),
    split: Split,
    wanted: &str,
) -> Result<Option<Record>, ProblemKind> {
    let language = field(row, "q_lang")?;
    if language != wanted {
        return Ok(None);
    }
    let name = field(row, "img_name")?;
    Ok(Some(Record {
        id: field(row, "qid")?,
        image: image(&folder.join("imgs"), &name)?,
        question: field(row, "question")?,
        answer: field(row, "answer")?,
        closed: is_closed(row, "answer_type")?,
        split,
        group: name,
        language,
        place: place.clone(),
    }))
}

/// The path of an image that lies in `folder`.
pub(super) fn image(folder: &Path, name: &str) -> Result<PathBuf, ProblemKind> {
    let inside = Path::new(name)
        .components()
        .all(|part| matches!(part, Component::Normal(_)));
    if !inside {
        return Err(ProblemKind::ImageName { name: name.into() });
    }
    let path = folder.join(name);
    if path.is_file() {
        Ok(path)
    } else {
        Err(ProblemKind::NoImage { name: name.into() })
    }
}
