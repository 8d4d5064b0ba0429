//! Kinds of files that sets consist of. In: paths. Out: rows of named fields, each with its place. They
//! must not know which set a file belongs to.
//!
//! - `json_array`, `json_lines`, `csv`, `pickle`, `parquet`: one kind of file each.
//! - `fields`: a row's fields as clean texts. `tree`: image files by name.

pub(super) mod csv;
pub(super) mod fields;
pub(super) mod json_array;
pub(super) mod json_lines;
pub(super) mod parquet;
pub(super) mod pickle;
pub(super) mod tree;

use std::path::Path;

use serde_json::{Map, Value};

use super::{DataError, Place, ProblemKind};

/// A row: where it stands, and its fields.
pub(super) type Row = (Place, Map<String, Value>);

/// A row of a file whose rows can be faulty one by one.
pub(super) type PerhapsRow = (Place, Result<Map<String, Value>, ProblemKind>);

/// All bytes of a file, without a byte order mark.
pub(super) fn bytes(path: &Path) -> Result<Vec<u8>, DataError> {
    let mut bytes = std::fs::read(path).map_err(|source| DataError::Read {
        path: path.display().to_string(),
        source,
    })?;
    if bytes.starts_with(b"\xEF\xBB\xBF") {
        bytes.drain(..3);
    }
    Ok(bytes)
}
