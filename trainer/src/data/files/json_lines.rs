//! A file with one JSON object a line. In: a file. Out: each line's row, or why it is none. It must not
//! know what a row holds.

use std::path::Path;
use std::sync::Arc;

use serde_json::Value;

use super::{DataError, PerhapsRow, Place, ProblemKind};

/// The rows of a file; blank lines are none.
pub(in crate::data) fn read(path: &Path) -> Result<Vec<PerhapsRow>, DataError> {
    let file: Arc<Path> = path.into();
    let bytes = super::bytes(path)?;
    let lines = bytes.split(|byte| *byte == b'\n').enumerate();
    let lines = lines.filter(|(_, line)| !line.trim_ascii().is_empty());
    let rows = lines.enumerate().map(|(index, (at, line))| {
        let place = Place {
            file: file.clone(),
            index,
            line: Some(at + 1),
        };
        let row = match serde_json::from_slice(line) {
            Ok(Value::Object(row)) => Ok(row),
            Ok(_) => Err("a line must be one JSON object".into()),
            // The error's own line is that within the line.
            Err(error) => {
                let text = error.to_string();
                let what = text.split(" at line ").next().unwrap_or(&text);
                Err(format!("{what} at column {}", error.column()))
            }
        };
        (
            place,
            row.map_err(|reason| ProblemKind::Malformed { reason }),
        )
    });
    Ok(rows.collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::imitation::Folder;

    #[test]
    fn faulty_lines_are_named_and_others_read() {
        let folder = Folder::new();
        folder.write(
            "a.jsonl",
            "\u{FEFF}{\"a\": 1}\r\n\n{\"a\": \n[2]\n{\"a\": 3}",
        );
        let rows = read(&folder.path().join("a.jsonl")).unwrap();
        let lines: Vec<_> = rows
            .iter()
            .map(|(place, row)| (place.line, row.is_ok()))
            .collect();
        assert_eq!(
            lines,
            [
                (Some(1), true),
                (Some(3), false),
                (Some(4), false),
                (Some(5), true)
            ]
        );
        assert!(
            matches!(&rows[1].1, Err(ProblemKind::Malformed { reason })
                if reason == "EOF while parsing a value at column 6"),
            "{rows:?}"
        );
        let Err(ProblemKind::Malformed { reason }) = &rows[2].1 else {
            panic!("{rows:?}")
        };
        assert_eq!(reason, "a line must be one JSON object");
    }
}
