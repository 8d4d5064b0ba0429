//! VQA-RAD as the code of MEVF (Nguyen et al., MICCAI 2019) and its many followers have it, `data_RAD`:
//! `trainset.json`, `testset.json`, and the images in `images/` or beside.
//!
//! The questions are those of the publication, numbered anew; `trainset.json` adds the rows that were
//! made of frames.

use std::path::{Path, PathBuf};

use super::vqa_rad::{CITATION, IMAGES, LICENCE, draft};
use super::{About, Reader, first_fitting};
use crate::data::files::json_array;
use crate::data::intake::Intake;
use crate::data::{DataError, Split};

const FILES: [(&str, Split); 2] = [
    ("trainset.json", Split::Train),
    ("testset.json", Split::Test),
];

/// The layout.
pub struct VqaRadMevf;

impl Reader for VqaRadMevf {
    fn about(&self) -> About {
        About {
            format: "data-rad",
            files: "trainset.json and testset.json, the images in images/ or `VQA_RAD Image Folder/`",
            citation: CITATION,
            licence: LICENCE,
            groups: "images",
        }
    }

    fn root(&self, folder: &Path) -> Option<PathBuf> {
        first_fitting(folder, &[], |folder| {
            FILES.iter().all(|(name, _)| folder.join(name).is_file())
        })
    }

    fn read(&self, root: &Path, intake: &mut Intake) -> Result<(), DataError> {
        let images = ["images", IMAGES, "../images", "../VQA_RAD Image Folder"];
        let images = images.map(|name| root.join(name));
        for (name, split) in FILES {
            for (place, row) in json_array::read(&root.join(name))? {
                let known = |phrase: &str| {
                    let phrase = phrase.trim_start_matches("test_");
                    matches!(phrase, "freeform" | "para" | "frame").then_some(split)
                };
                intake.put(&place, draft(&images, &row, known));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::data::ProblemKind;
    use crate::data::imitation::{Folder, faults, ids};

    fn row(qid: u32, phrase: &str, answer: impl Into<Value>) -> Value {
        json!({
            "qid": qid, "image_name": "synpic1.jpg", "image_organ": "HEAD",
            "answer": answer.into(), "answer_type": "OPEN", "question_type": "SIZE",
            "question": format!("Question {qid}?"), "phrase_type": phrase,
        })
    }

    #[test]
    fn frames_are_for_training_and_images_may_lie_beside() {
        let folder = Folder::new();
        let train = json!([
            row(1, "freeform", 3),
            row(2, "frame", "left"),
            row(3, "other", "x")
        ]);
        let test = json!([
            row(1, "test_freeform", "right"),
            row(2, "test_para", "right")
        ]);
        folder
            .write("rad/data_RAD/trainset.json", train.to_string())
            .write("rad/data_RAD/testset.json", test.to_string())
            .write("rad/data_RAD/imgid2idx.json", "{}")
            .write("rad/VQA_RAD Image Folder/synpic1.jpg", "1");
        let source: crate::data::source::Source = folder
            .path()
            .join("rad/data_RAD")
            .to_str()
            .unwrap()
            .parse()
            .unwrap();
        let set = source
            .read(&crate::data::intake::Options::default())
            .unwrap();
        assert_eq!(ids(&set, Split::Train), ["1", "2"]);
        assert_eq!(ids(&set, Split::Test), ["1", "2"]);
        assert_eq!(set.records[0].answer, "3");
        let got = "`other`".to_owned();
        let unknown = ProblemKind::Unknown {
            field: "phrase_type",
            got,
        };
        assert_eq!(faults(&set), [(2, unknown)]);
    }
}
