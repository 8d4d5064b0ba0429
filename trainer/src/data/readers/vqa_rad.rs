//! VQA-RAD (Lau et al., Sci Data 5:180251, 2018) in the layout of its publication: one JSON file and
//! one folder of images.
//!
//! The published split stands in `phrase_type`. All but one of its 203 test images also occur in its
//! training part, so scores for choosing anything come from image-wise folds of the training part.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::{About, Reader};
use crate::data::files::fields::{answer_type, field, lost};
use crate::data::files::{json_array, tree};
use crate::data::intake::{Draft, Intake};
use crate::data::{DataError, ProblemKind, Split};

const FILE: &str = "VQA_RAD Dataset Public.json";
pub(super) const IMAGES: &str = "VQA_RAD Image Folder";

/// The layout.
pub struct VqaRad;

pub(super) const CITATION: &str = "VQA-RAD (Lau et al., Sci Data 5:180251, 2018)";
pub(super) const LICENCE: &str = "CC0 1.0";

impl Reader for VqaRad {
    fn about(&self) -> About {
        About {
            format: "vqa-rad",
            files: "`VQA_RAD Dataset Public.json` and `VQA_RAD Image Folder/`",
            citation: CITATION,
            licence: LICENCE,
            groups: "images",
        }
    }

    fn root(&self, folder: &Path) -> Option<PathBuf> {
        folder.join(FILE).is_file().then(|| folder.into())
    }

    fn read(&self, root: &Path, intake: &mut Intake) -> Result<(), DataError> {
        let images = [root.join(IMAGES)];
        for (place, row) in json_array::read(&root.join(FILE))? {
            intake.put(&place, draft(&images, &row, split_of));
        }
        Ok(())
    }
}

/// A row's record; the split comes from the value of `phrase_type`.
pub(super) fn draft(
    images: &[PathBuf],
    row: &Map<String, Value>,
    split: impl Fn(&str) -> Option<Split>,
) -> Result<Draft, ProblemKind> {
    let name = field(row, "image_name")?;
    let phrase = field(row, "phrase_type")?;
    let split = split(&phrase).ok_or_else(|| ProblemKind::Unknown {
        field: "phrase_type",
        got: format!("`{phrase}`"),
    })?;
    Ok(Draft {
        id: field(row, "qid")?,
        images: vec![tree::image(images, &name)?.into()],
        question: field(row, "question")?,
        answer: field(row, "answer")?,
        answer_type: answer_type(row, "answer_type")?,
        split: Some(split),
        group: name,
        language: "en".into(),
        notes: lost(row, &["question", "answer"]),
    })
}

fn split_of(phrase: &str) -> Option<Split> {
    match phrase {
        "freeform" | "para" => Some(Split::Train),
        "test_freeform" | "test_para" => Some(Split::Test),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::data::imitation::{Folder, faults};
    use crate::data::leaks;

    fn row(qid: impl Into<Value>, phrase: &str, question: &str, answer: impl Into<Value>) -> Value {
        json!({
            "qid": qid.into(), "phrase_type": phrase, "qid_linked_id": "03f451ca",
            "image_case_url": "https://", "image_name": "synpic1.jpg", "image_organ": "HEAD",
            "evaluation": "not evaluated", "question": question, "question_rephrase": "NULL",
            "question_relation": "NULL", "question_frame": "NULL", "question_type": "PRSE, ABN",
            "answer": answer.into(), "answer_type": "OPEN",
        })
    }

    fn imitation() -> Folder {
        let closed = |mut row: Value, word: &str| {
            row["answer_type"] = word.into();
            row
        };
        let mut bare = row(5, "para", "Which side?", "left");
        bare.as_object_mut().unwrap().remove("question_rephrase");
        let rows = json!([
            closed(
                row("0", "freeform", "Are regions infarcted?", "Yes"),
                "CLOSED "
            ),
            row(1, "freeform", "How many kidneys\tare in this image? ", 2),
            row(
                2,
                "test_para",
                "It\u{FFFD}s what?",
                " superficial\nto the skin"
            ),
            closed(row(3, "para", "Is this T1 or FLAIR?", "FLAIR"), "CLOSED"),
            row(4, "freeform", "What is it?", "NULL"),
            closed(bare, "CLOSED"),
            row(6, "freeform", "how many kidneys are in this image?", "2"),
            row(7, "test_freeform", "Which side?", "Left"),
            row(8, "later", "Which side?", "right"),
        ]);
        let folder = Folder::new();
        folder
            .write(FILE, rows.to_string())
            .write("VQA_RAD Image Folder/synpic1.jpg", "1")
            .write("VQA_RAD Image Folder/synpic35356.jpg", "no row names it");
        folder
    }

    #[test]
    fn vqa_rad_is_read_with_its_oddities() {
        let set = imitation().read();
        let shown: Vec<_> = set
            .records
            .iter()
            .map(|r| (&*r.id, &*r.question, &*r.answer, r.is_closed(), r.split))
            .collect();
        let (train, test) = (Split::Train, Split::Test);
        let kidneys = "ow many kidneys are in this image?";
        let wanted = [
            ("0", "Are regions infarcted?", "Yes", true, train),
            ("1", &format!("H{kidneys}"), "2", false, train),
            ("2", "It's what?", "superficial to the skin", false, test),
            ("3", "Is this T1 or FLAIR?", "FLAIR", true, train),
            ("5", "Which side?", "left", true, train),
            ("6", &format!("h{kidneys}"), "2", false, train),
            ("7", "Which side?", "Left", false, test),
        ];
        assert_eq!(shown, wanted);
        let unknown = ProblemKind::Unknown {
            field: "phrase_type",
            got: "`later`".into(),
        };
        let wanted = [
            (2, ProblemKind::LostCharacters { field: "question" }),
            (4, ProblemKind::Missing { field: "answer" }),
            (6, ProblemKind::Duplicate { first: 1 }),
            (
                7,
                ProblemKind::OtherSplit {
                    first: 5,
                    split: train,
                },
            ),
            (8, unknown),
        ];
        assert_eq!(faults(&set), wanted);
        assert_eq!(set.dropped().count(), 2);
        assert_eq!(leaks::of_groups(&set).len(), 1);
    }
}
