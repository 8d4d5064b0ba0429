//! PathVQA (He et al., arXiv 2003.10286) as its makers packed it: pickles of questions in `qas/`, images
//! in `images/train|val|test/`. Some images are CMYK JPEGs, which the decoder turns to RGB as it does in
//! serving.
//!
//! `qas/SPLIT/SPLIT_qa.pkl` has `image`, `question`, `answer`. Where it is missing, `qas/SPLIT_vqa.pkl`
//! is read: `img_id`, `sent` and the answer as the only key of `label`. No file calls an answer open or
//! closed as other sets do: yes and no are closed.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::{About, Reader, first_fitting};
use crate::data::files::fields::{clean, field, lost, optional};
use crate::data::files::{pickle, tree};
use crate::data::intake::{Draft, Intake};
use crate::data::{AnswerType, DataError, ProblemKind, Split};

const SPLITS: [(&str, Split); 3] = [
    ("train", Split::Train),
    ("val", Split::Validation),
    ("test", Split::Test),
];

/// The layout.
pub struct PathVqa;

impl Reader for PathVqa {
    fn about(&self) -> About {
        About {
            format: "path-vqa",
            files: "qas/train/train_qa.pkl (or qas/train_vqa.pkl), likewise val and test, and images/",
            citation: "PathVQA (He et al., arXiv 2003.10286)",
            licence: "MIT for the questions; the pictures are from textbooks and a digital library",
            groups: "images",
        }
    }

    fn root(&self, folder: &Path) -> Option<PathBuf> {
        first_fitting(folder, &["pvqa", "data"], |folder| {
            SPLITS
                .iter()
                .any(|(name, _)| pickle_of(folder, name).is_some())
        })
    }

    fn read(&self, root: &Path, intake: &mut Intake) -> Result<(), DataError> {
        for (name, split) in SPLITS {
            let Some(path) = pickle_of(root, name) else {
                continue;
            };
            let images = [root.join("images").join(name), root.join("images")];
            for (place, row) in pickle::read(&path)? {
                intake.put(&place, draft(&images, &row, split, place.index));
            }
        }
        intake.remark("the set does not tell open from closed answers: yes and no count as closed");
        Ok(())
    }
}

fn pickle_of(root: &Path, split: &str) -> Option<PathBuf> {
    let names = [
        format!("qas/{split}/{split}_qa.pkl"),
        format!("qas/{split}_qa.pkl"),
        format!("qas/{split}_vqa.pkl"),
    ];
    let paths = names.into_iter().map(|name| root.join(name));
    paths.into_iter().find(|path| path.is_file())
}

fn draft(
    images: &[PathBuf],
    row: &Map<String, Value>,
    split: Split,
    index: usize,
) -> Result<Draft, ProblemKind> {
    let older = row.contains_key("img_id");
    let (image, question) = if older {
        ("img_id", "sent")
    } else {
        ("image", "question")
    };
    let name = field(row, image)?;
    let answer = if older {
        label(row)?
    } else {
        field(row, "answer")?
    };
    Ok(Draft {
        id: optional(row, "question_id")?.unwrap_or_else(|| index.to_string()),
        images: vec![tree::image(images, &name)?.into()],
        question: field(row, question)?,
        answer_type: AnswerType::of_answer(&answer),
        answer,
        split: Some(split),
        group: name,
        language: "en".into(),
        notes: lost(row, &[question, "answer"]),
    })
}

/// The answer as the key of `{answer: 1}`.
fn label(row: &Map<String, Value>) -> Result<String, ProblemKind> {
    let labels = row.get("label").and_then(Value::as_object);
    let mut labels = labels
        .ok_or(ProblemKind::Missing { field: "label" })?
        .keys();
    match (labels.next(), labels.next()) {
        (Some(answer), None) if !clean(answer).is_empty() => Ok(clean(answer)),
        (Some(_), Some(_)) => Err(ProblemKind::Unknown {
            field: "label",
            got: "more than one answer".into(),
        }),
        _ => Err(ProblemKind::Blank { field: "label" }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::imitation::{Folder, faults, ids};

    /// A pickle, protocol 2, of a list of dictionaries of texts; a value that starts with `{` is a
    /// dictionary with that one key.
    fn pickled(rows: &[&[(&str, &str)]]) -> Vec<u8> {
        let text = |out: &mut Vec<u8>, text: &str| {
            out.push(b'X');
            out.extend((text.len() as u32).to_le_bytes());
            out.extend(text.as_bytes());
        };
        let mut out = b"\x80\x02](".to_vec();
        for row in rows {
            out.extend(b"}(");
            for (key, value) in *row {
                text(&mut out, key);
                if let Some(answer) = value.strip_prefix('{') {
                    out.push(b'}');
                    text(&mut out, answer);
                    out.extend(b"K\x01s");
                } else {
                    text(&mut out, value);
                }
            }
            out.push(b'u');
        }
        out.extend(b"e.");
        out
    }

    #[test]
    fn pickles_of_both_kinds_are_read() {
        let folder = Folder::new();
        let row = |image, question, answer| {
            [("image", image), ("question", question), ("answer", answer)]
        };
        let train = pickled(&[
            &row(
                "train_0422",
                "where are they  located?",
                "in the canals of hering",
            ),
            &row("train_0422", "are bile duct cells shown?", "yes"),
            &row("train_0422", "what is shown?", ""),
            &row("train_9", "what is shown?", "liver"),
        ]);
        let test = pickled(&[&[
            ("answer_type", "yes/no"),
            ("img_id", "test_0001"),
            ("label", "{no"),
            ("question_id", "77"),
            ("sent", "is it shown?"),
        ]]);
        folder
            .write("pvqa/qas/train/train_qa.pkl", &train)
            .write("pvqa/qas/train_vqa.pkl", "not needed")
            .write("pvqa/qas/test_vqa.pkl", &test)
            .write("pvqa/images/train/train_0422.jpg", "1")
            .write("pvqa/images/test/test_0001.jpg", "2");
        let set = folder.read();
        assert_eq!(ids(&set, Split::Train), ["0", "1"]);
        assert_eq!(ids(&set, Split::Test), ["77"]);
        assert_eq!(set.records[0].question, "where are they located?");
        assert_eq!(set.records[0].place.line, None);
        let closed: Vec<_> = set
            .records
            .iter()
            .map(crate::data::Record::is_closed)
            .collect();
        assert_eq!(closed, [false, true, true]);
        assert_eq!(set.records[2].answer, "no");
        let name = "train_9".to_owned();
        let wanted = [
            (2, ProblemKind::Blank { field: "answer" }),
            (3, ProblemKind::NoImage { name }),
        ];
        assert_eq!(faults(&set), wanted);
    }

    #[test]
    fn a_pickle_that_would_run_something_is_refused() {
        let folder = Folder::new();
        folder.write("qas/val/val_qa.pkl", "cposix\nsystem\n(Vecho\ntR.");
        let error = folder.read_with(&crate::data::intake::Options::default());
        let error = error.unwrap_err().to_string();
        assert!(
            error.contains("instruction 0x63, which could import"),
            "{error}"
        );
    }
}
