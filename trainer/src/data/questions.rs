//! A list of questions for other programs, which ask them of a server. In: records. Out: one JSON
//! file. It must not know what answers them.

use std::path::Path;

use serde::Serialize;

use super::Record;

/// A question with its truth.
#[derive(Debug, Serialize)]
struct Row<'a> {
    id: &'a str,
    /// Absolute where the set was named by an absolute path.
    image: &'a Path,
    group: &'a str,
    question: &'a str,
    answer: &'a str,
    closed: bool,
}

/// The list as pretty JSON: `{"source", "questions": [{"id", "image", "group", "question", "answer",
/// "closed"}]}`.
pub fn to_json<'a>(
    source: &str,
    records: impl IntoIterator<Item = &'a Record>,
) -> serde_json::Result<String> {
    #[derive(Serialize)]
    struct List<'a> {
        source: &'a str,
        questions: Vec<Row<'a>>,
    }
    let questions = records.into_iter().map(|record| Row {
        id: &record.id,
        image: &record.image,
        group: &record.group,
        question: &record.question,
        answer: &record.answer,
        closed: record.closed,
    });
    serde_json::to_string_pretty(&List {
        source,
        questions: questions.collect(),
    })
}
