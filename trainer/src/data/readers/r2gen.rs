//! Reports as the code of R2Gen (Chen et al., EMNLP 2020) and its many followers have them:
//! `annotation.json` and `images/`. IU-Xray and MIMIC-CXR are both handed on in it.
//!
//! The file is an object of arrays named `train`, `val`, `test`, whose rows may say their split again;
//! or one array, whose rows say their split or not. A study has one to five images.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::{About, Reader, split_word};
use crate::data::files::fields::{field, lost, optional};
use crate::data::files::{json_array, tree};
use crate::data::intake::{Draft, Intake};
use crate::data::record::REPORT_QUESTION;
use crate::data::{AnswerType, DataError, ProblemKind, Split};

const FILE: &str = "annotation.json";

/// The layout.
pub struct R2Gen;

impl Reader for R2Gen {
    fn about(&self) -> About {
        About {
            format: "r2gen",
            files: "annotation.json and images/",
            citation: "IU X-Ray (Demner-Fushman et al., JAMIA 23:304, 2016) or MIMIC-CXR, in R2Gen's layout",
            licence: "IU X-Ray: CC BY-NC-ND 4.0; MIMIC-CXR: PhysioNet Credentialed Health Data License",
            groups: "patients",
        }
    }

    fn root(&self, folder: &Path) -> Option<PathBuf> {
        folder.join(FILE).is_file().then(|| folder.into())
    }

    fn read(&self, root: &Path, intake: &mut Intake) -> Result<(), DataError> {
        let images = [root.join("images"), root.to_owned()];
        for (name, (place, row)) in json_array::read_named(&root.join(FILE))? {
            intake.put(&place, draft(&images, &row, name.as_deref()));
        }
        Ok(())
    }
}

fn draft(
    images: &[PathBuf],
    row: &Map<String, Value>,
    array: Option<&str>,
) -> Result<Draft, ProblemKind> {
    let id = field(row, "id")?;
    let answer = field(row, "report")?;
    let names = names(row)?;
    let (images, mut notes) = tree::views(&names, |name| Ok(tree::image(images, name)?.into()))?;
    notes.extend(lost(row, &["report"]));
    let group = match optional(row, "subject_id")? {
        Some(patient) => patient,
        // IU X-Ray: `CXR2384_IM-0942`.
        None => id.split("_IM-").next().unwrap_or(&id).to_owned(),
    };
    Ok(Draft {
        split: split(row, array)?,
        id,
        images,
        question: REPORT_QUESTION.into(),
        answer,
        answer_type: AnswerType::Report,
        group,
        language: "en".into(),
        notes,
    })
}

fn split(row: &Map<String, Value>, array: Option<&str>) -> Result<Option<Split>, ProblemKind> {
    let own = match optional(row, "split")? {
        Some(word) => Some(split_word("split", &word)?),
        None => None,
    };
    let array = match array {
        Some(word) => Some(split_word("array", word)?),
        None => None,
    };
    match (own, array) {
        (Some(own), Some(array)) if own != array => Err(ProblemKind::Unknown {
            field: "split",
            got: format!("{own} in the array of {array}"),
        }),
        (own, array) => Ok(own.or(array)),
    }
}

/// The names in `image_path`: a list, or one name.
fn names(row: &Map<String, Value>) -> Result<Vec<String>, ProblemKind> {
    match row.get("image_path") {
        Some(Value::Array(names)) => {
            let name = |name: &Value| {
                name.as_str()
                    .map(str::to_owned)
                    .ok_or(ProblemKind::Unknown {
                        field: "image_path",
                        got: name.to_string(),
                    })
            };
            names.iter().map(name).collect()
        }
        _ => Ok(vec![field(row, "image_path")?]),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::data::imitation::{Folder, faults, ids};

    fn study(id: &str, report: &str, images: &[&str]) -> Value {
        json!({ "id": id, "report": report, "image_path": images })
    }

    fn folder(annotation: &Value) -> Folder {
        let folder = Folder::new();
        folder
            .write("annotation.json", annotation.to_string())
            .write("images/CXR1_IM-0001/0.png", "1")
            .write("images/CXR1_IM-0001/1.png", "2")
            .write("images/CXR2_IM-0652/0.png", "3");
        folder
    }

    #[test]
    fn studies_have_views_and_the_split_of_their_array() {
        let both = ["CXR1_IM-0001/0.png", "CXR1_IM-0001/1.png"];
        let mut again = study("CXR2_IM-0652", "Enlarged heart.", &["CXR2_IM-0652/0.png"]);
        again["split"] = "val".into();
        let mut torn = again.clone();
        torn["split"] = "train".into();
        let folder = folder(&json!({
            "train": [study("CXR1_IM-0001", "Clear  lungs.\n", &both), study("CXR3_IM-1", "", &both)],
            "val": [again, torn],
            "test": [
                study("CXR4_IM-2", "Clear.", &["CXR1_IM-0001/0.png", "CXR4_IM-2/1.png"]),
                study("CXR5_IM-2", "Clear.", &["CXR5_IM-2/0.png", "CXR5_IM-2/1.png"]),
                study("CXR6_IM-2", "Clear.", &[]),
            ],
        }));
        let set = folder.read();
        assert_eq!(ids(&set, Split::Train), ["CXR1_IM-0001"]);
        assert_eq!(ids(&set, Split::Validation), ["CXR2_IM-0652"]);
        assert_eq!(ids(&set, Split::Test), ["CXR4_IM-2"]);
        let first = &set.records[0];
        assert_eq!(
            (first.answer.as_str(), first.images.len()),
            ("Clear lungs.", 2)
        );
        assert_eq!(
            (first.group.as_str(), first.question.as_str()),
            ("CXR1", REPORT_QUESTION)
        );
        assert_eq!(first.answer_type, AnswerType::Report);
        let name = |name: &str| name.to_owned();
        let got = "train in the array of validation".to_owned();
        let wanted = [
            (1, ProblemKind::Blank { field: "report" }),
            (
                3,
                ProblemKind::Unknown {
                    field: "split",
                    got,
                },
            ),
            (
                4,
                ProblemKind::NoView {
                    name: name("CXR4_IM-2/1.png"),
                },
            ),
            (
                5,
                ProblemKind::NoImage {
                    name: name("CXR5_IM-2/0.png"),
                },
            ),
            (6, ProblemKind::Missing { field: "image" }),
        ];
        assert_eq!(faults(&set), wanted);
        let shown = "1 of 3 records have several images; a model is shown the first";
        assert_eq!(set.to_know(), [shown]);
    }

    #[test]
    fn a_list_without_splits_is_dealt_by_patient() {
        let one = study("CXR1_IM-0001", "Clear.", &["CXR1_IM-0001/0.png"]);
        let mut other = study("9", "Clear.", &["CXR1_IM-0001/1.png"]);
        other["subject_id"] = 17.into();
        let set = folder(&json!([one, other])).read();
        assert_eq!(set.records.len(), 2);
        assert_eq!(set.records[1].group, "17");
        assert!(
            set.remarks[0].starts_with("split by whole patients, 80/10/10"),
            "{:?}",
            set.remarks
        );
    }

    #[test]
    fn a_list_of_which_some_have_a_split_is_not_dealt() {
        let mut one = study("CXR1_IM-0001", "Clear.", &["CXR1_IM-0001/0.png"]);
        let other = one.clone();
        one["split"] = "test".into();
        let set = folder(&json!([one, other])).read();
        assert_eq!(ids(&set, Split::Test), ["CXR1_IM-0001"]);
        assert_eq!(faults(&set), [(1, ProblemKind::Missing { field: "split" })]);
    }
}
