//! A set of one's own: JSON lines, one record a line. `{"image": "a.png", "question": "..", "answer":
//! ".."}` or `{"images": ["a.png", "b.png"], "report": ".."}`; further `split`, `group`, `id`,
//! `answer_type` (`open` or `closed`) and `language`. With a report, `question` is what asks for it.
//!
//! Images are named from the file's own folder, or by absolute paths. Without `split`, a file's name says
//! it (`train.jsonl`, `val.jsonl`, `test.jsonl`); if neither does, the set is dealt by group.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::{About, Reader, split_word};
use crate::data::files::fields::{answer_type, field, lost, optional};
use crate::data::files::{json_lines, tree};
use crate::data::intake::{Draft, Intake};
use crate::data::record::REPORT_QUESTION;
use crate::data::{AnswerType, DataError, Image, ProblemKind, Split};

/// The layout.
pub struct Jsonl;

impl Reader for Jsonl {
    fn about(&self) -> About {
        About {
            format: "jsonl",
            files: "one or more .jsonl files",
            citation: "a set of one's own",
            licence: "licence not known",
            groups: "groups",
        }
    }

    fn root(&self, folder: &Path) -> Option<PathBuf> {
        (!files(folder).is_empty()).then(|| folder.into())
    }

    fn read(&self, root: &Path, intake: &mut Intake) -> Result<(), DataError> {
        for file in files(root) {
            let folder = file.parent().unwrap_or(root).to_owned();
            let stem = file.file_stem().unwrap_or_default().to_string_lossy();
            let split = Split::from_word(&stem);
            for (place, row) in json_lines::read(&file)? {
                let draft = row.and_then(|row| draft(&folder, &row, split, place.index));
                intake.put(&place, draft);
            }
        }
        Ok(())
    }
}

/// The files of a folder in the order of their names; or the file itself.
fn files(path: &Path) -> Vec<PathBuf> {
    let is_jsonl = |path: &PathBuf| path.extension().is_some_and(|end| end == "jsonl");
    if path.is_file() {
        return Vec::from_iter(Some(path.to_owned()).filter(is_jsonl));
    }
    let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.path()).filter(is_jsonl).collect();
    files.sort_unstable();
    files
}

fn draft(
    folder: &Path,
    row: &Map<String, Value>,
    of_file: Option<Split>,
    index: usize,
) -> Result<Draft, ProblemKind> {
    let names = names(row)?;
    let (images, mut notes) = tree::views(&names, |name| {
        let path = folder.join(name);
        if path.is_file() {
            Ok(Image::File(path))
        } else {
            Err(ProblemKind::NoImage { name: name.into() })
        }
    })?;
    notes.extend(lost(row, &["question", "answer", "report"]));
    let (question, answer, answer_type) = exchange(row)?;
    let split = match optional(row, "split")? {
        Some(word) => Some(split_word("split", &word)?),
        None => of_file,
    };
    Ok(Draft {
        id: optional(row, "id")?.unwrap_or_else(|| index.to_string()),
        group: optional(row, "group")?.unwrap_or_else(|| names[0].clone()),
        images,
        question,
        answer,
        answer_type,
        split,
        language: optional(row, "language")?.unwrap_or_else(|| "en".into()),
        notes,
    })
}

/// Question, answer and its type.
fn exchange(row: &Map<String, Value>) -> Result<(String, String, AnswerType), ProblemKind> {
    if row.contains_key("report") {
        let question = optional(row, "question")?.unwrap_or_else(|| REPORT_QUESTION.into());
        return Ok((question, field(row, "report")?, AnswerType::Report));
    }
    let answer = field(row, "answer")?;
    let kind = if row.contains_key("answer_type") {
        answer_type(row, "answer_type")?
    } else {
        AnswerType::of_answer(&answer)
    };
    Ok((field(row, "question")?, answer, kind))
}

/// The names in `images`, or in `image`; at least one.
fn names(row: &Map<String, Value>) -> Result<Vec<String>, ProblemKind> {
    let Some(Value::Array(names)) = row.get("images") else {
        return Ok(vec![field(row, "image")?]);
    };
    if names.is_empty() {
        return Err(ProblemKind::Blank { field: "images" });
    }
    let name = |name: &Value| {
        name.as_str()
            .map(str::to_owned)
            .ok_or(ProblemKind::Unknown {
                field: "images",
                got: name.to_string(),
            })
    };
    names.iter().map(name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::imitation::{Folder, faults, ids};

    #[test]
    fn questions_and_reports_of_ones_own_are_read() {
        let folder = Folder::new();
        let rows = [
            r#"{"image": "a.png", "question": "Is it large?", "answer": "Yes", "group": "p1"}"#,
            r#"{"images": ["a.png", "b.png"], "report": "Clear.", "id": 7, "split": "test"}"#,
            r#"{"image": "a.png", "question": "T1 or T2?", "answer": "T1", "answer_type": "closed"}"#,
            r#"{"image": "c.png", "question": "What?", "answer": "liver"}"#,
            r#"{"images": [], "question": "What?", "answer": "liver"}"#,
            r#"{"image": "a.png", "question": "What?"}"#,
            r#"{"image": "a.png", "question": "What?", "answer": "liver", "split": "later"}"#,
            r#"{"image": "a.png" "question"}"#,
            r#"{"images": [3], "report": "Clear."}"#,
        ];
        folder
            .write("train.jsonl", rows.join("\n"))
            .write("a.png", "1")
            .write("b.png", "2");
        let set = folder.read();
        assert_eq!(ids(&set, Split::Train), ["0", "2"]);
        assert_eq!(ids(&set, Split::Test), ["7"]);
        assert_eq!(
            (set.records[0].group.as_str(), set.records[0].is_closed()),
            ("p1", true)
        );
        let report = &set.records[1];
        assert_eq!(
            (report.question.as_str(), report.images.len()),
            (REPORT_QUESTION, 2)
        );
        assert!(set.records[2].is_closed() && set.records[2].group == "a.png");
        let rows: Vec<usize> = faults(&set).iter().map(|(row, _)| *row).collect();
        assert_eq!(rows, [3, 4, 5, 6, 7, 8]);
        assert!(matches!(
            set.problems[4].kind,
            ProblemKind::Malformed { .. }
        ));
        assert_eq!(set.problems[4].place.line, Some(8));
    }

    #[test]
    fn a_single_file_without_splits_is_dealt() {
        let folder = Folder::new();
        folder
            .write(
                "mine.jsonl",
                r#"{"image": "a.png", "report": "Clear.", "question": "Describe."}"#,
            )
            .write("a.png", "1");
        let path = folder.path().join("mine.jsonl");
        let source: crate::data::source::Source = path.to_str().unwrap().parse().unwrap();
        let set = source
            .read(&crate::data::intake::Options::default())
            .unwrap();
        assert_eq!(set.records[0].question, "Describe.");
        assert!(
            set.remarks[0].contains("as the set has no split"),
            "{:?}",
            set.remarks
        );
    }
}
