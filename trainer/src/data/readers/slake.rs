//! SLAKE (Liu et al., ISBI 2021) in its original layout: `train.json`, `validate.json`, `test.json`,
//! `imgs/xmlabN/source.jpg`.
//!
//! English and Chinese rows use different image splits, so that reading both would put test images
//! of one into the training set of the other: the language is chosen before anything else.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::{About, Reader, first_fitting};
use crate::data::files::fields::{answer_type, field, lost};
use crate::data::files::{json_array, tree};
use crate::data::intake::{Draft, Intake};
use crate::data::{DataError, ProblemKind, Split};

/// The files of a split; mirrors spell one of them differently.
const FILES: [(&str, Split); 4] = [
    ("train.json", Split::Train),
    ("validate.json", Split::Validation),
    ("validation.json", Split::Validation),
    ("test.json", Split::Test),
];

/// The layout.
pub struct Slake;

impl Reader for Slake {
    fn about(&self) -> About {
        About {
            format: "slake",
            files: "train.json, validate.json (or validation.json), test.json and imgs/",
            citation: "SLAKE (Liu et al., ISBI 2021)",
            licence: "CC BY 4.0",
            groups: "images",
        }
    }

    fn root(&self, folder: &Path) -> Option<PathBuf> {
        first_fitting(folder, &["Slake1.0", "Slake"], |folder| {
            let files = FILES.iter().any(|(name, _)| folder.join(name).is_file());
            files && folder.join("imgs").is_dir()
        })
    }

    /// A split whose file is not there has no records.
    fn read(&self, root: &Path, intake: &mut Intake) -> Result<(), DataError> {
        let images = [root.join("imgs")];
        let mut found = Vec::new();
        let mut others = 0;
        for (name, split) in FILES {
            let path = root.join(name);
            if !path.is_file() || found.contains(&split) {
                continue;
            }
            found.push(split);
            for (place, row) in json_array::read(&path)? {
                match draft(&images, &row, split, &intake.options.language) {
                    Ok(None) => others += 1,
                    Ok(Some(draft)) => intake.put(&place, Ok(draft)),
                    Err(fault) => intake.put(&place, Err(fault)),
                }
            }
        }
        if others > 0 {
            let language = &intake.options.language;
            let remark = format!("{others} rows are in other languages than `{language}`");
            intake.remark(remark);
        }
        Ok(())
    }
}

/// The record of a row; `None` for a row of another language.
fn draft(
    images: &[PathBuf],
    row: &Map<String, Value>,
    split: Split,
    wanted: &str,
) -> Result<Option<Draft>, ProblemKind> {
    let language = field(row, "q_lang")?;
    if language != wanted {
        return Ok(None);
    }
    let name = field(row, "img_name")?;
    Ok(Some(Draft {
        id: field(row, "qid")?,
        images: vec![tree::image(images, &name)?.into()],
        question: field(row, "question")?,
        answer: field(row, "answer")?,
        answer_type: answer_type(row, "answer_type")?,
        split: Some(split),
        group: name,
        language,
        notes: lost(row, &["question", "answer"]),
    }))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::data::AnswerType;
    use crate::data::imitation::{Folder, faults, ids};
    use crate::data::intake::Options;

    fn row(qid: u32, language: &str, question: &str, answer: &str) -> Value {
        json!({
            "img_id": 1, "img_name": "xmlab1/source.jpg", "question": question, "answer": answer,
            "q_lang": language, "location": "Lung", "modality": "CT", "answer_type": "OPEN",
            "base_type": "vqa", "content_type": "Organ", "triple": ["vhead", "_", "_"], "qid": qid,
        })
    }

    fn imitation() -> Folder {
        let mut closed = row(2, "en", "Which is bigger, lung or heart?", "Lung");
        closed["answer_type"] = "CLOSED".into();
        let mut elsewhere = row(4, "en", "What is it?", "CT");
        elsewhere["img_name"] = "../../etc/passwd".into();
        let mut absent = row(5, "en", "What is it?", "CT");
        absent["img_name"] = "xmlab9/source.jpg".into();
        let reordered = r#"{"triple": [], "qid": 6, "answer": "t2", "answer_type": "CLOSED",
            "q_lang": "en", "question": "What weighting?", "img_name": "xmlab2/source.jpg"}"#;
        let rows = [
            row(0, "en", "What is the modality?", "X-Ray"),
            row(1, "zh", "这是什么?", "肺"),
            closed,
            row(3, "en", "Does the picture contain liver?", ""),
            elsewhere,
            absent,
        ];
        let mut text: Vec<String> = rows.iter().map(Value::to_string).collect();
        text.push(reordered.into());
        let validation = json!([row(9, "en", "Where is the lesion?", "Left Lung")]);
        let folder = Folder::new();
        folder
            .write("Slake1.0/train.json", format!("[\n{}\n]", text.join(",\n")))
            .write("Slake1.0/validation.json", validation.to_string())
            .write("Slake1.0/imgs/xmlab1/source.jpg", "1")
            .write("Slake1.0/imgs/xmlab2/source.jpg", "2");
        folder
    }

    #[test]
    fn slake_is_read_one_language_at_a_time() {
        let folder = imitation();
        let set = folder.read();
        assert_eq!(set.about.format, "slake");
        assert_eq!(ids(&set, Split::Train), ["0", "2", "6"]);
        assert_eq!(ids(&set, Split::Validation), ["9"]);
        assert_eq!(ids(&set, Split::Test), [""; 0]);
        let types: Vec<_> = set.records.iter().map(|one| one.answer_type).collect();
        let (open, closed) = (AnswerType::Open, AnswerType::Closed);
        assert_eq!(types, [open, closed, closed, open]);
        assert_eq!(set.records[1].answer, "Lung");
        assert_eq!(set.records[2].group, "xmlab2/source.jpg");
        assert_eq!(set.records[2].place.line, Some(8));
        assert_eq!(set.remarks, ["1 rows are in other languages than `en`"]);
        let chinese = Options {
            language: "zh".into(),
            ..Options::default()
        };
        let set = folder.read_with(&chinese).unwrap();
        assert_eq!(ids(&set, Split::Train), ["1"]);
        assert_eq!(set.records[0].question, "这是什么?");
        assert_eq!(set.records[0].language, "zh");
    }

    #[test]
    fn rows_that_cannot_be_used_are_listed_with_their_place() {
        let set = imitation().read();
        let name = |name: &str| name.to_owned();
        let wanted = [
            (3, ProblemKind::Blank { field: "answer" }),
            (
                4,
                ProblemKind::ImageName {
                    name: name("../../etc/passwd"),
                },
            ),
            (
                5,
                ProblemKind::NoImage {
                    name: name("xmlab9/source.jpg"),
                },
            ),
        ];
        assert_eq!(faults(&set), wanted);
        let shown = set.problems[0].to_string();
        let end = "train.json:5, row 3: `answer` is blank; left out";
        assert!(shown.ends_with(end), "{shown}");
        let strict = set.require_all().unwrap_err().to_string();
        assert!(
            strict.starts_with("3 rows cannot be used; the first: "),
            "{strict}"
        );
    }
}
