//! The fields of foreign rows. In: JSON values. Out: clean texts, or why there is none. It must not
//! know which set a row is from.

use serde_json::{Map, Value};

use super::ProblemKind;
use crate::data::AnswerType;

/// What stands for a character that was lost when a file changed its encoding.
const LOST: char = '\u{FFFD}';

/// A field as text. Numbers are read as they are written; `NULL` is how some sets write nothing.
pub(in crate::data) fn field(
    row: &Map<String, Value>,
    name: &'static str,
) -> Result<String, ProblemKind> {
    let text = match row.get(name) {
        None | Some(Value::Null) => return Err(ProblemKind::Missing { field: name }),
        Some(Value::String(text)) => clean(text),
        Some(Value::Number(number)) => number.to_string(),
        Some(other) => {
            return Err(ProblemKind::Unknown {
                field: name,
                got: other.to_string(),
            });
        }
    };
    match text.as_str() {
        "" => Err(ProblemKind::Blank { field: name }),
        "NULL" => Err(ProblemKind::Missing { field: name }),
        _ => Ok(text),
    }
}

/// The first of several fields that is there.
pub(in crate::data) fn any_field(
    row: &Map<String, Value>,
    names: &[&'static str],
) -> Result<String, ProblemKind> {
    let there = names.iter().find(|name| row.contains_key(**name));
    field(row, there.or(names.first()).expect("names are given"))
}

/// A field that may be absent or blank.
pub(in crate::data) fn optional(
    row: &Map<String, Value>,
    name: &'static str,
) -> Result<Option<String>, ProblemKind> {
    match field(row, name) {
        Ok(text) => Ok(Some(text)),
        Err(ProblemKind::Missing { .. } | ProblemKind::Blank { .. }) => Ok(None),
        Err(other) => Err(other),
    }
}

/// A note for each field that has lost characters, which [`field`] mends as far as that goes.
pub(in crate::data) fn lost(row: &Map<String, Value>, names: &[&'static str]) -> Vec<ProblemKind> {
    let text = |name: &str| row.get(name).and_then(Value::as_str);
    let lost = names
        .iter()
        .filter(|name| text(name).is_some_and(|text| text.contains(LOST)));
    lost.map(|field| ProblemKind::LostCharacters { field })
        .collect()
}

/// Blanks of any kind become one; none stay at the ends. A lost character between letters was an
/// apostrophe in all likelihood (`it's`); elsewhere it is left out.
pub(in crate::data) fn clean(text: &str) -> String {
    let characters: Vec<char> = text.chars().collect();
    let letter = |at: Option<usize>| {
        at.and_then(|at| characters.get(at))
            .is_some_and(|character| character.is_alphabetic())
    };
    let mended = characters
        .iter()
        .enumerate()
        .filter_map(|(at, character)| match *character {
            LOST if letter(at.checked_sub(1)) && letter(Some(at + 1)) => Some('\''),
            LOST => None,
            other => Some(other),
        });
    let mended: String = mended.collect();
    mended.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Open or closed, whatever blanks and case surround the word.
pub(in crate::data) fn answer_type(
    row: &Map<String, Value>,
    name: &'static str,
) -> Result<AnswerType, ProblemKind> {
    let text = field(row, name)?;
    match text.to_uppercase().as_str() {
        "CLOSED" => Ok(AnswerType::Closed),
        "OPEN" => Ok(AnswerType::Open),
        _ => Err(ProblemKind::Unknown {
            field: name,
            got: format!("`{text}`"),
        }),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn one(value: Value) -> Result<String, ProblemKind> {
        field(&Map::from_iter([("answer".to_owned(), value)]), "answer")
    }

    #[test]
    fn texts_are_cleaned() {
        assert_eq!(
            one(json!(" heart \tand\n lungs ")),
            Ok("heart and lungs".into())
        );
        assert_eq!(one(json!(4)), Ok("4".into()));
        assert_eq!(
            one(json!("if it\u{FFFD}s\u{FFFD} so")),
            Ok("if it's so".into())
        );
    }

    #[test]
    fn a_text_that_is_none_is_named() {
        let missing = ProblemKind::Missing { field: "answer" };
        assert_eq!(one(json!("NULL")), Err(missing.clone()));
        assert_eq!(one(Value::Null), Err(missing.clone()));
        assert_eq!(field(&Map::new(), "answer"), Err(missing));
        assert_eq!(
            one(json!(" \t")),
            Err(ProblemKind::Blank { field: "answer" })
        );
        assert!(matches!(one(json!([1])), Err(ProblemKind::Unknown { got, .. }) if got == "[1]"));
    }

    #[test]
    fn answer_types_survive_blanks_and_case() {
        let read =
            |value: &str| answer_type(&Map::from_iter([("t".to_owned(), json!(value))]), "t");
        assert_eq!(read("CLOSED "), Ok(AnswerType::Closed));
        assert_eq!(read("open"), Ok(AnswerType::Open));
        assert!(matches!(read("maybe"), Err(ProblemKind::Unknown { .. })));
    }
}
