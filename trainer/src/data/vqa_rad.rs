//! VQA-RAD (Lau et al., Sci Data 5:180251, 2018) in the layout of its publication: one JSON file and
//! one folder of images. The folder enters, a [`DataSet`] leaves. It must not know other layouts.
//!
//! The published split stands in `phrase_type`. All but one of its 203 test images also occur in its
//! training part ([`DataSet::leaks`] says so), so scores for choosing anything come from image-wise
//! folds of the training part.

use std::path::Path;

use serde_json::{Map, Value};

use super::slake::image;
use super::text::{field, has_lost, is_closed};
use super::{DataError, DataSet, Place, Problem, ProblemKind, Record, Seen, Split, json_array};

const FILE: &str = "VQA_RAD Dataset Public.json";
const IMAGES: &str = "VQA_RAD Image Folder";

/// Reads the folder that holds the JSON file and the image folder.
pub fn read(folder: &Path) -> Result<DataSet, DataError> {
    let path = folder.join(FILE);
    if !path.exists() {
        return Err(DataError::Layout {
            folder: folder.display().to_string(),
            wanted: format!("`{FILE}`"),
        });
    }
    let (mut set, mut seen) = (DataSet::default(), Seen::new());
    for (place, row) in json_array::read(&path)? {
        match record(&folder.join(IMAGES), &place, &row) {
            Ok(record) => {
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
    Ok(set)
}

fn record(images: &Path, place: &Place, row: &Map<String, Value>) -> Result<Record, ProblemKind> {
    let name = field(row, "image_name")?;
    let phrase = field(row, "phrase_type")?;
    let split = match phrase.as_str() {
        "freeform" | "para" => Split::Train,
        "test_freeform" | "test_para" => Split::Test,
        _ => {
            let got = format!("`{phrase}`");
            return Err(ProblemKind::Unknown {
                field: "phrase_type",
                got,
            });
        }
    };
    Ok(Record {
        id: field(row, "qid")?,
        image: image(images, &name)?,
        question: field(row, "question")?,
        answer: field(row, "answer")?,
        closed: is_closed(row, "answer_type")?,
        split,
        group: name,
        language: "en".into(),
        place: place.clone(),
    })
}
