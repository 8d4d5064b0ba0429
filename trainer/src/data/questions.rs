//! A list of questions for other programs, which ask them of a server. In: records. Out: one JSON
//! file, and images as files where the set has them in tables. It must not know what answers them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Serialize;
use sha2::{Digest, Sha256};

use super::{DataError, Image, Record};

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
/// "closed"}]}`. `files`: from [`image_files`].
pub fn to_json<'a>(
    source: &str,
    records: impl IntoIterator<Item = &'a Record>,
    files: &BTreeMap<&Image, PathBuf>,
) -> serde_json::Result<String> {
    #[derive(Serialize)]
    struct List<'a> {
        source: &'a str,
        questions: Vec<Row<'a>>,
    }
    let questions = records.into_iter().map(|record| Row {
        id: &record.id,
        image: &files[record.shown()],
        group: &record.group,
        question: &record.question,
        answer: &record.answer,
        closed: record.is_closed(),
    });
    serde_json::to_string_pretty(&List {
        source,
        questions: questions.collect(),
    })
}

/// A file for each image that records show. Images in tables are written to `folder`, named by their
/// digests; it is made only if there are any.
pub fn image_files<'a>(
    records: impl IntoIterator<Item = &'a Record>,
    folder: &Path,
) -> Result<BTreeMap<&'a Image, PathBuf>, DataError> {
    let mut files = BTreeMap::new();
    for image in records.into_iter().map(Record::shown) {
        if files.contains_key(image) {
            continue;
        }
        let path = match image {
            Image::File(path) => path.clone(),
            Image::Cell { .. } => {
                let bytes = image.bytes()?;
                let path = folder.join(format!("{:x}", Sha256::digest(&bytes)));
                let written = std::fs::create_dir_all(folder);
                written
                    .and_then(|()| std::fs::write(&path, bytes))
                    .map_err(|source| DataError::Write {
                        path: path.display().to_string(),
                        source,
                    })?;
                path
            }
        };
        files.insert(image, path);
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::data::imitation::{Folder, record};

    const TABLE: &[u8] = include_bytes!("fixtures/test-00000-of-00001.parquet");

    #[test]
    fn a_question_list_has_what_a_script_needs() {
        let records = [record(
            "/a/one.png",
            "It's what?",
            "superficial to the skin",
        )];
        let files = image_files(&records, Path::new("/not/needed")).unwrap();
        let text = to_json("vqa-rad:x", &records, &files).unwrap();
        let list: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(list["questions"].as_array().unwrap().len(), 1);
        let first = &list["questions"][0];
        assert_eq!(first["question"], "It's what?");
        assert_eq!(first["image"], "/a/one.png");
        assert_eq!(first["closed"], false);
    }

    #[test]
    fn images_in_tables_become_files() {
        let folder = Folder::new();
        folder.write("test.parquet", TABLE);
        let set = folder.read();
        let out = folder.path().join("images");
        let files = image_files(&set.records, &out).unwrap();
        assert_eq!(files.len(), 2);
        for (image, file) in files {
            assert!(file.starts_with(&out));
            assert_eq!(std::fs::read(file).unwrap(), image.bytes().unwrap());
        }
    }
}
