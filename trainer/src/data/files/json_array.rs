//! A JSON file of rows: one array, or an object of arrays. In: a file. Out: each row with its number,
//! line and the array's name. It must not know what a row holds.

use std::path::Path;
use std::sync::Arc;

use serde_json::{Deserializer, Value};

use super::{DataError, Place, Row};

/// The rows of a file that is one array. Anything but objects in an array is an error, with its line.
pub(in crate::data) fn read(path: &Path) -> Result<Vec<Row>, DataError> {
    let bytes = super::bytes(path)?;
    let mut cursor = Cursor::new(path, &bytes);
    if cursor.next_byte() != Some(b'[') {
        return Err(cursor.failed("the file must be one array of rows"));
    }
    let mut rows = Vec::new();
    cursor.array(&mut |row| rows.push(row))?;
    Ok(rows)
}

/// The rows of a file that is one object of arrays, with the arrays' names; or one array, with none.
pub(in crate::data) fn read_named(path: &Path) -> Result<Vec<(Option<String>, Row)>, DataError> {
    let bytes = super::bytes(path)?;
    let mut cursor = Cursor::new(path, &bytes);
    let mut rows = Vec::new();
    match cursor.next_byte() {
        Some(b'[') => cursor.array(&mut |row| rows.push((None, row)))?,
        Some(b'{') => {
            cursor.advance(1);
            if cursor.next_byte() == Some(b'}') {
                return Ok(rows);
            }
            loop {
                let Value::String(name) = cursor.value()? else {
                    return Err(cursor.failed("an array of rows must have a name"));
                };
                cursor.expect(b':', "`:` must follow a name")?;
                if cursor.next_byte() != Some(b'[') {
                    return Err(cursor.failed("a name must stand for an array of rows"));
                }
                cursor.array(&mut |row| rows.push((Some(name.clone()), row)))?;
                match cursor.next_byte() {
                    Some(b',') => cursor.advance(1),
                    Some(b'}') => break,
                    _ => return Err(cursor.failed("`,` or `}` must follow an array")),
                }
            }
        }
        _ => return Err(cursor.failed("the file must be an array of rows, or an object of such")),
    }
    Ok(rows)
}

struct Cursor<'a> {
    file: Arc<Path>,
    bytes: &'a [u8],
    at: usize,
    line: usize,
    rows: usize,
}

impl<'a> Cursor<'a> {
    fn new(path: &Path, bytes: &'a [u8]) -> Self {
        Self {
            file: path.into(),
            bytes,
            at: 0,
            line: 1,
            rows: 0,
        }
    }

    /// Reads the array that begins here; rows are counted through the file.
    fn array(&mut self, take: &mut dyn FnMut(Row)) -> Result<(), DataError> {
        self.advance(1);
        if self.next_byte() == Some(b']') {
            self.advance(1);
            return Ok(());
        }
        loop {
            self.next_byte();
            let place = Place {
                file: self.file.clone(),
                index: self.rows,
                line: Some(self.line),
            };
            match self.value()? {
                Value::Object(row) => take((place, row)),
                _ => return Err(self.failed_at(place.line, "a row must be an object")),
            }
            self.rows += 1;
            match self.next_byte() {
                Some(b',') => self.advance(1),
                Some(b']') => {
                    self.advance(1);
                    return Ok(());
                }
                _ => return Err(self.failed("`,` or `]` must follow a row")),
            }
        }
    }

    /// Reads the value that begins here or after blanks.
    fn value(&mut self) -> Result<Value, DataError> {
        self.next_byte();
        let mut one = Deserializer::from_slice(&self.bytes[self.at..]).into_iter::<Value>();
        match one.next() {
            Some(Ok(value)) => {
                let length = one.byte_offset();
                self.advance(length);
                Ok(value)
            }
            Some(Err(error)) => {
                let line = self.line + error.line() - 1;
                Err(self.failed_at(Some(line), &error.to_string()))
            }
            None => Err(self.failed("the file ends inside its array")),
        }
    }

    fn expect(&mut self, byte: u8, problem: &str) -> Result<(), DataError> {
        if self.next_byte() != Some(byte) {
            return Err(self.failed(problem));
        }
        self.advance(1);
        Ok(())
    }

    fn failed(&self, problem: &str) -> DataError {
        self.failed_at(Some(self.line), problem)
    }

    fn failed_at(&self, line: Option<usize>, problem: &str) -> DataError {
        DataError::Json {
            path: self.file.display().to_string(),
            line: line.unwrap_or(self.line),
            problem: problem.into(),
        }
    }

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
    use crate::data::imitation::Folder;

    fn read_text(text: &str) -> Result<Vec<(usize, usize)>, String> {
        let folder = Folder::new();
        folder.write("a.json", text);
        let read = read(&folder.path().join("a.json")).map_err(|e| e.to_string())?;
        let places = read.into_iter().map(|(place, _)| place);
        Ok(places.map(|at| (at.index, at.line.unwrap())).collect())
    }

    #[test]
    fn rows_have_their_lines() {
        assert_eq!(read_text("[]"), Ok(vec![]));
        assert_eq!(
            read_text("\u{FEFF} [\n{\"a\": 1},\n\n {\n}\n, {}]\n"),
            Ok(vec![(0, 2), (1, 4), (2, 6)])
        );
    }

    #[test]
    fn arrays_of_an_object_are_named_and_rows_counted_through() {
        let folder = Folder::new();
        let path = folder.path().join("a.json");
        folder.write(
            "a.json",
            "{\"train\": [{\"a\": 1},\n{}], \"val\": [],\n\"test\":[{}]}",
        );
        let rows = read_named(&path).unwrap();
        let shown: Vec<_> = rows
            .iter()
            .map(|(name, (place, _))| (name.as_deref().unwrap(), place.index, place.line.unwrap()))
            .collect();
        assert_eq!(shown, [("train", 0, 1), ("train", 1, 2), ("test", 2, 3)]);
        folder.write("a.json", "[{}]");
        assert_eq!(read_named(&path).unwrap()[0].0, None);
        for (text, wanted) in [
            ("{\"train\": 3}", "must stand for an array"),
            ("{\"train\" [{}]}", "`:` must follow"),
            ("{3: []}", "must have a name"),
            ("{\"a\": [{}]\n \"b\": []}", "line 2: `,` or `}`"),
            ("7", "an array of rows, or an object"),
        ] {
            folder.write("a.json", text);
            let error = read_named(&path).unwrap_err().to_string();
            assert!(error.contains(wanted), "{text}: {error}");
        }
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
