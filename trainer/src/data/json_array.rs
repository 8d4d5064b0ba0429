//! A JSON file that is one array, row by row. In: a file. Out: each row with its number and line. It
//! must not know what a row holds.

use std::path::Path;
use std::sync::Arc;

use serde_json::{Deserializer, Map, Value};

use super::{DataError, Place};

/// A row: where it stands, and its fields.
pub(super) type Row = (Place, Map<String, Value>);

/// The rows of a file. Anything but objects in an array is an error, with its line.
pub(super) fn read(path: &Path) -> Result<Vec<Row>, DataError> {
    let bytes = std::fs::read(path).map_err(|source| DataError::Read {
        path: path.display().to_string(),
        source,
    })?;
    rows(path, bytes.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(&bytes))
}

fn rows(path: &Path, bytes: &[u8]) -> Result<Vec<Row>, DataError> {
    let file: Arc<Path> = path.into();
    let mut cursor = Cursor {
        bytes,
        at: 0,
        line: 1,
    };
    let failed = |line: usize, problem: String| DataError::Json {
        path: path.display().to_string(),
        line,
        problem,
    };
    if cursor.next_byte() != Some(b'[') {
        return Err(failed(
            cursor.line,
            "the file must be one array of rows".into(),
        ));
    }
    let mut rows = Vec::new();
    cursor.advance(1);
    if cursor.next_byte() == Some(b']') {
        return Ok(rows);
    }
    loop {
        cursor.next_byte();
        let line = cursor.line;
        let mut one = Deserializer::from_slice(&bytes[cursor.at..]).into_iter::<Value>();
        let row = match one.next() {
            Some(Ok(Value::Object(row))) => row,
            Some(Ok(_)) => return Err(failed(line, "a row must be an object".into())),
            Some(Err(error)) => return Err(failed(line + error.line() - 1, error.to_string())),
            None => return Err(failed(line, "the file ends inside its array".into())),
        };
        let length = one.byte_offset();
        rows.push((
            Place {
                file: file.clone(),
                index: rows.len(),
                line,
            },
            row,
        ));
        cursor.advance(length);
        match cursor.next_byte() {
            Some(b',') => cursor.advance(1),
            Some(b']') => return Ok(rows),
            _ => return Err(failed(cursor.line, "`,` or `]` must follow a row".into())),
        }
    }
}

struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
    line: usize,
}

impl Cursor<'_> {
    fn advance(&mut self, bytes: usize) {
        let passed = &self.bytes[self.at..self.at + bytes];
        self.line += passed.split(|byte| *byte == b'\n').count() - 1;
        self.at += bytes;
    }

    /// Skips blanks and shows what follows.
    fn next_byte(&mut self) -> Option<u8> {
        while let Some(byte) = self.bytes.get(self.at).copied() {
            if !byte.is_ascii_whitespace() {
                return Some(byte);
            }
            self.advance(1);
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_text(text: &str) -> Result<Vec<(usize, usize)>, String> {
        let read = rows(Path::new("a.json"), text.as_bytes()).map_err(|e| e.to_string())?;
        Ok(read
            .into_iter()
            .map(|(place, _)| (place.index, place.line))
            .collect())
    }

    #[test]
    fn rows_have_their_lines() {
        assert_eq!(read_text("[]"), Ok(vec![]));
        assert_eq!(
            read_text(" [\n{\"a\": 1},\n\n {\n}\n, {}]\n"),
            Ok(vec![(0, 2), (1, 4), (2, 6)])
        );
    }

    #[test]
    fn what_is_no_array_of_objects_is_refused_with_its_line() {
        let refuse = |text: &str| read_text(text).unwrap_err();
        assert!(refuse("{}").contains("line 1: the file must be one array"));
        assert!(refuse("").contains("must be one array"));
        assert!(refuse("[\n{},\n3]").contains("line 3: a row must be an object"));
        assert!(refuse("[\n{}\n{}]").contains("line 3: `,` or `]`"));
        assert!(refuse("[{},\n{\"a\":\n").contains("line 3"));
        assert!(refuse("[{},").contains("ends inside"));
        assert!(refuse("[{\"a\": nul}]").contains("line 1"));
    }
}
