//! Parquet tables whose images lie in a column, as the Hugging Face hub stores sets. In: a file. Out: its
//! rows, and where each row's image is; later the bytes of one image. It must not know what the other
//! columns mean.

use std::cell::RefCell;
use std::fs::File;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use parquet::basic::Type as PhysicalType;
use parquet::column::reader::ColumnReader;
use parquet::data_type::ByteArray;
use parquet::errors::ParquetError;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::Field;
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use super::{DataError, Place};
use crate::data::Image;

/// A row of a table.
pub(in crate::data) struct TableRow {
    pub place: Place,
    /// All columns but the image's.
    pub fields: Map<String, Value>,
    /// The image, if the row has one; a file by its name where the table holds only that.
    pub image: Option<Picture>,
}

/// A row's image.
pub(in crate::data) enum Picture {
    /// Bytes in the table, and their digest.
    Inside(Image, [u8; 32]),
    /// The name of a file.
    Named(String),
}

/// The rows of a table. `image` names the column with the images: bytes, or a struct of `bytes` and
/// `path`.
pub(in crate::data) fn read(path: &Path, image: &str) -> Result<Vec<TableRow>, DataError> {
    guarded(path, || read_rows(path, image))
}

fn read_rows(path: &Path, image: &str) -> Result<Vec<TableRow>, DataError> {
    let failed = |error: ParquetError| DataError::format(path, error);
    let reader = open(path)?;
    let file: Arc<Path> = path.into();
    let column: Arc<str> = leaf(&reader, image).into();
    let mut rows = Vec::new();
    for (index, row) in reader.get_row_iter(None).map_err(failed)?.enumerate() {
        let mut picture = None;
        let mut fields = Map::new();
        for (name, value) in row.map_err(failed)?.into_columns() {
            if name == image {
                picture = picture_of(value, &file, &column, index);
            } else {
                fields.insert(name, plain(value));
            }
        }
        let place = Place {
            file: file.clone(),
            index,
            line: None,
        };
        rows.push(TableRow {
            place,
            fields,
            image: picture,
        });
    }
    Ok(rows)
}

/// The names of a table's columns, without reading its rows.
pub(in crate::data) fn columns(path: &Path) -> Result<Vec<String>, DataError> {
    guarded(path, || {
        let reader = open(path)?;
        let schema = reader.metadata().file_metadata().schema();
        let names = schema.get_fields().iter().map(|one| one.name().to_owned());
        Ok(names.collect())
    })
}

/// The bytes in one row of a column, named by its path such as `image.bytes`.
pub(in crate::data) fn cell(path: &Path, column: &str, row: usize) -> Result<Vec<u8>, DataError> {
    let read = |source| DataError::Read {
        path: path.display().to_string(),
        source,
    };
    let file = std::fs::metadata(path).map_err(read)?;
    let state = (file.len(), file.modified().map_err(read)?);
    LAST.with_borrow_mut(|last| {
        let fits = |group: &Group| {
            group.path == path
                && group.column == column
                && group.state == state
                && group.rows.contains(&row)
        };
        let group = match last.take_if(|group| fits(group)) {
            Some(group) => group,
            None => guarded(path, || group_of(path, column, row, state))?,
        };
        let group = last.insert(group);
        let cell = group.cells[row - group.rows.start].as_ref();
        cell.map(|bytes| bytes.data().to_vec())
            .ok_or_else(|| missing(path, column, row))
    })
}

thread_local! {
    /// Writers put a thousand images into one compressed page, so that reading one costs as much as
    /// reading its neighbours, which are mostly wanted next.
    static LAST: RefCell<Option<Group>> = const { RefCell::new(None) };
}

/// A column of one row group, unpacked.
struct Group {
    path: PathBuf,
    column: String,
    /// The file's length and time, lest an older file's content be taken for a newer one's.
    state: (u64, SystemTime),
    rows: Range<usize>,
    cells: Vec<Option<ByteArray>>,
}

fn missing(path: &Path, column: &str, row: usize) -> DataError {
    DataError::format(path, format!("row {row} has no `{column}`"))
}

/// The row group that a row is in.
fn group_of(
    path: &Path,
    column: &str,
    row: usize,
    state: (u64, SystemTime),
) -> Result<Group, DataError> {
    let failed = |error: ParquetError| DataError::format(path, error);
    let reader = open(path)?;
    let schema = reader.metadata().file_metadata().schema_descr();
    let leaf = (0..schema.num_columns()).find(|at| schema.column(*at).path().string() == column);
    let leaf = leaf.ok_or_else(|| missing(path, column, row))?;
    let highest = schema.column(leaf).max_def_level();
    let mut start = 0;
    for number in 0..reader.num_row_groups() {
        let group = reader.get_row_group(number).map_err(failed)?;
        let rows = start..start + group.metadata().num_rows() as usize;
        start = rows.end;
        if !rows.contains(&row) {
            continue;
        }
        let values = group.get_column_reader(leaf).map_err(failed)?;
        let ColumnReader::ByteArrayColumnReader(mut values) = values else {
            return Err(missing(path, column, row));
        };
        let (mut levels, mut found): (Vec<i16>, Vec<ByteArray>) = (Vec::new(), Vec::new());
        let wanted = (highest > 0).then_some(&mut levels);
        values
            .read_records(rows.len(), wanted, None, &mut found)
            .map_err(failed)?;
        let mut found = found.into_iter();
        // A column without levels has a value in every row.
        levels.resize(rows.len(), highest);
        let cells = levels.iter().map(|level| {
            let there = *level == highest;
            if there { found.next() } else { None }
        });
        return Ok(Group {
            path: path.to_owned(),
            column: column.to_owned(),
            state,
            cells: cells.collect(),
            rows,
        });
    }
    Err(missing(path, column, row))
}

/// The tables in a folder, in the order of their names; one level of folders is looked into.
pub(in crate::data) fn tables(folder: &Path) -> Vec<PathBuf> {
    let list = |folder: &Path| -> Vec<PathBuf> {
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
        entries.map(|entry| entry.path()).collect()
    };
    let (folders, mut files): (Vec<_>, Vec<_>) =
        list(folder).into_iter().partition(|path| path.is_dir());
    files.extend(folders.iter().flat_map(|folder| list(folder)));
    files.retain(|path| path.extension().is_some_and(|end| end == "parquet"));
    files.sort_unstable();
    files
}

/// The crate is safe Rust, but damaged tables make it panic; that must not end the program.
fn guarded<T>(path: &Path, work: impl FnOnce() -> Result<T, DataError>) -> Result<T, DataError> {
    catch_unwind(AssertUnwindSafe(work))
        .unwrap_or_else(|_| Err(DataError::format(path, "the table is corrupt")))
}

fn open(path: &Path) -> Result<SerializedFileReader<File>, DataError> {
    let file = File::open(path).map_err(|source| DataError::Read {
        path: path.display().to_string(),
        source,
    })?;
    SerializedFileReader::new(file).map_err(|error| DataError::format(path, error))
}

/// The path of the column that holds an image's bytes.
fn leaf(reader: &SerializedFileReader<File>, image: &str) -> String {
    let schema = reader.metadata().file_metadata().schema_descr();
    let plain = (0..schema.num_columns()).any(|at| {
        let column = schema.column(at);
        column.path().string() == image && column.physical_type() == PhysicalType::BYTE_ARRAY
    });
    if plain {
        image.to_owned()
    } else {
        format!("{image}.bytes")
    }
}

fn picture_of(value: Field, table: &Arc<Path>, column: &Arc<str>, row: usize) -> Option<Picture> {
    let inside = |bytes: &ByteArray| {
        let image = Image::Cell {
            table: table.clone(),
            column: column.clone(),
            row,
        };
        Picture::Inside(image, Sha256::digest(bytes.data()).into())
    };
    match value {
        Field::Bytes(bytes) => Some(inside(&bytes)),
        Field::Str(name) => Some(Picture::Named(name)),
        Field::Group(parts) => {
            let mut named = None;
            for (name, part) in parts.into_columns() {
                match (name.as_str(), part) {
                    ("bytes", Field::Bytes(bytes)) => return Some(inside(&bytes)),
                    ("path", Field::Str(path)) => named = Some(Picture::Named(path)),
                    _ => {}
                }
            }
            named
        }
        _ => None,
    }
}

/// A value as JSON has it; of lists and maps, nothing.
fn plain(value: Field) -> Value {
    match value {
        Field::Bool(value) => value.into(),
        Field::Byte(value) => value.into(),
        Field::Short(value) => value.into(),
        Field::Int(value) => value.into(),
        Field::Long(value) => value.into(),
        Field::UByte(value) => value.into(),
        Field::UShort(value) => value.into(),
        Field::UInt(value) => value.into(),
        Field::ULong(value) => value.into(),
        Field::Float(value) => value.into(),
        Field::Double(value) => value.into(),
        Field::Str(value) => value.into(),
        Field::Bytes(value) => String::from_utf8_lossy(value.data()).into_owned().into(),
        _ => Value::Null,
    }
}
