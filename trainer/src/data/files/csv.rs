//! Tables as text: CSV, or other separators, gzipped or not. In: a file. Out: rows of named fields, all
//! of them texts. Bytes that are no UTF-8 become U+FFFD, as a text editor shows them. It must not know
//! what the columns mean.

use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use csv::{ByteRecord, ReaderBuilder};
use flate2::read::MultiGzDecoder;
use serde_json::{Map, Value};

use super::{DataError, Place, Row};

/// The rows of a CSV file whose first line names the columns. A file whose name ends in `.gz` is
/// unpacked. A row that is too short lacks its last fields.
pub(in crate::data) fn read(path: &Path) -> Result<Vec<Row>, DataError> {
    let mut rows = records(path, b',')?.into_iter();
    let Some((_, header)) = rows.next() else {
        return Ok(Vec::new());
    };
    let header: Vec<String> = header
        .iter()
        .map(|name| text(name).trim().to_owned())
        .collect();
    Ok(rows
        .map(|(mut place, record)| {
            place.index -= 1;
            let fields = header.iter().zip(record.iter());
            let fields = fields.map(|(name, value)| (name.clone(), Value::String(text(value))));
            (place, fields.collect())
        })
        .collect())
}

/// The rows of a file of two columns without a header line, split at the first `separator` of a line.
/// Quotes mean nothing. A line without a separator lacks the second field.
pub(in crate::data) fn read_pairs(
    path: &Path,
    separator: u8,
    names: [&str; 2],
) -> Result<Vec<Row>, DataError> {
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
        let fields = line.splitn(2, |byte| *byte == separator);
        let fields = names.iter().zip(fields);
        let fields: Map<_, _> = fields
            .map(|(name, value)| ((*name).to_owned(), Value::String(text(value))))
            .collect();
        (place, fields)
    });
    Ok(rows.collect())
}

/// The file `name` or `name.gz` in a folder, whichever is there.
pub(in crate::data) fn plain_or_packed(folder: &Path, name: &str) -> Option<std::path::PathBuf> {
    [name.to_owned(), format!("{name}.gz")]
        .into_iter()
        .map(|name| folder.join(name))
        .find(|path| path.is_file())
}

fn records(path: &Path, separator: u8) -> Result<Vec<(Place, ByteRecord)>, DataError> {
    let file: Arc<Path> = path.into();
    let mut bytes = super::bytes(path)?;
    if path.extension().is_some_and(|end| end == "gz") {
        let mut unpacked = Vec::new();
        MultiGzDecoder::new(bytes.as_slice())
            .read_to_end(&mut unpacked)
            .map_err(|error| DataError::format(path, error))?;
        bytes = unpacked;
    }
    let mut reader = ReaderBuilder::new()
        .has_headers(false)
        .flexible(true)
        .delimiter(separator)
        .from_reader(bytes.as_slice());
    let mut records = Vec::new();
    // The reader's own count of lines is one behind where lines end with CR and LF.
    let (mut line, mut counted) = (1, 0);
    for record in reader.byte_records() {
        let record = record.map_err(|error| DataError::format(path, error))?;
        let start = record.position().map_or(counted, |at| at.byte() as usize);
        let blank = bytes[start..]
            .iter()
            .take_while(|one| matches!(one, b'\r' | b'\n'));
        let start = start + blank.count();
        line += bytes[counted..start].split(|one| *one == b'\n').count() - 1;
        counted = start;
        let place = Place {
            file: file.clone(),
            index: records.len(),
            line: Some(line),
        };
        records.push((place, record));
    }
    Ok(records)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::Compression;
    use flate2::write::GzEncoder;

    use super::*;
    use crate::data::imitation::Folder;

    const TABLE: &[u8] =
        b"\xEF\xBB\xBFid, text\r\n1,\"two\r\nlines, quoted\"\r\n2,caf\xE9\r\n3\r\n";

    #[test]
    fn rows_have_names_and_lines_packed_or_not() {
        let folder = Folder::new();
        let mut packed = GzEncoder::new(Vec::new(), Compression::default());
        packed.write_all(&TABLE[3..]).unwrap();
        folder
            .write("a.csv", TABLE)
            .write("b.csv.gz", packed.finish().unwrap());
        assert_eq!(plain_or_packed(folder.path(), "c.csv"), None);
        for name in ["a.csv", "b.csv"] {
            let rows = read(&plain_or_packed(folder.path(), name).unwrap()).unwrap();
            let shown: Vec<_> = rows
                .iter()
                .map(|(place, row)| (place.index, place.line, row.get("text").cloned()))
                .collect();
            let text = |text: &str| Some(Value::from(text));
            assert_eq!(
                shown,
                [
                    (0, Some(2), text("two\r\nlines, quoted")),
                    (1, Some(4), text("caf\u{FFFD}")),
                    (2, Some(5), None),
                ]
            );
        }
        folder.write("c.csv.gz", "not packed at all");
        let error = read(&folder.path().join("c.csv.gz"))
            .unwrap_err()
            .to_string();
        assert!(error.contains("c.csv.gz: "), "{error}");
    }

    #[test]
    fn pairs_are_split_once_and_keep_quotes() {
        let folder = Folder::new();
        folder.write("a.txt", "ROCO_1\t A \"wide\"\tview\n\nROCO_2\n");
        let rows = read_pairs(&folder.path().join("a.txt"), b'\t', ["id", "caption"]).unwrap();
        assert_eq!(rows[0].1["caption"], " A \"wide\"\tview");
        assert_eq!((rows[1].0.line, rows[1].1.get("caption")), (Some(3), None));
    }
}
