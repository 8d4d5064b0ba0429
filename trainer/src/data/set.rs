//! A set as it was read: records, problems, remarks. Out of records also comes the digest that names
//! training data in an adapter's manifest. It must not know layouts on disk.

use std::collections::BTreeMap;

use sha2::{Digest, Sha256};

use super::readers::About;
use super::{DataError, Image, Problem, Record, Split};

/// A set as it was read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DataSet {
    /// What the set is, as far as its layout tells.
    pub about: About,
    pub records: Vec<Record>,
    pub problems: Vec<Problem>,
    /// What its reader says of it as a whole; see [`Self::to_know`].
    pub remarks: Vec<String>,
}

impl DataSet {
    /// The records of one split, in the order of the files.
    pub fn split(&self, split: Split) -> impl Iterator<Item = &Record> {
        self.records
            .iter()
            .filter(move |record| record.split == split)
    }

    /// Rows that became no record.
    pub fn dropped(&self) -> impl Iterator<Item = &Problem> {
        self.problems.iter().filter(|problem| problem.kind.drops())
    }

    /// What else whoever works with this set should know.
    pub fn to_know(&self) -> Vec<String> {
        let mut known = self.remarks.clone();
        let all = self.records.len();
        let count = |wanted: &dyn Fn(&Record) -> bool| {
            self.records.iter().filter(|record| wanted(record)).count()
        };
        let removed = count(&|record| REMOVED.iter().any(|mark| record.answer.contains(mark)));
        if removed > 0 {
            known.push(format!(
                "{removed} of {all} answers have words removed by the set's makers (XXXX or ___); they \
                 are kept as they are, and a model learns to write them"
            ));
        }
        let several = count(&|record| record.images.len() > 1);
        if several > 0 {
            known.push(format!(
                "{several} of {all} records have several images; a model is shown the first"
            ));
        }
        known
    }

    /// Brings problems into the order of files and rows, as people read them.
    pub(super) fn sort_problems(&mut self) {
        self.problems.sort_by(|one, other| {
            let (one, other) = (&one.place, &other.place);
            (&one.file, one.index).cmp(&(&other.file, other.index))
        });
    }

    /// Refuses a set of which rows were left out.
    pub fn require_all(&self) -> Result<(), DataError> {
        match self.dropped().next() {
            None => Ok(()),
            Some(first) => Err(DataError::Strict {
                count: self.dropped().count(),
                first: first.to_string(),
            }),
        }
    }
}

/// What removed words look like: `XXXX` in OpenI, `___` in MIMIC-CXR.
const REMOVED: [&str; 2] = ["XXXX", "___"];

/// The form in which answers are compared: lower case, single blanks, no full stop at the end.
pub fn compare(text: &str) -> String {
    let words: Vec<String> = text.split_whitespace().map(str::to_lowercase).collect();
    words.join(" ").trim_end_matches(['.', ' ']).to_owned()
}

/// `sha256:` and the hexadecimal digest of records and their images' bytes. It does not depend on where
/// the set lies, nor on whether its images are files or cells of a table.
pub fn digest<'a>(records: impl IntoIterator<Item = &'a Record>) -> Result<String, DataError> {
    let mut images = BTreeMap::new();
    let records: Vec<&Record> = records.into_iter().collect();
    for image in records.iter().flat_map(|record| &record.images) {
        if !images.contains_key(image) {
            images.insert(image, Sha256::digest(image.bytes()?).into());
        }
    }
    Ok(digest_with(records, &images))
}

/// [`digest`], the images' own digests being known.
pub(super) fn digest_with<'a>(
    records: impl IntoIterator<Item = &'a Record>,
    images: &BTreeMap<&Image, [u8; 32]>,
) -> String {
    let mut hash = Sha256::new();
    for record in records {
        // A record of one image is the usual case, and its digest the older one.
        if record.images.len() != 1 {
            hash.update(b"images");
            hash.update((record.images.len() as u64).to_le_bytes());
        }
        for image in &record.images {
            hash.update(images[image]);
        }
        let kind = record.answer_type.word();
        for text in [&record.group, &record.question, &record.answer, kind] {
            hash.update((text.len() as u64).to_le_bytes());
            hash.update(text.as_bytes());
        }
    }
    format!("sha256:{:x}", hash.finalize())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::imitation::{Folder, png, record};

    #[test]
    fn the_digest_follows_content_not_place() {
        let folder = Folder::new();
        folder.write("a.png", png(1)).write("b/c.png", png(1));
        folder.write("d.png", png(2));
        let one = |name: &str| Record {
            group: "patient".into(),
            ..record(folder.path().join(name), "Which?", "left")
        };
        let of = |name: &str| digest(&[one(name)]);
        let before = of("a.png").unwrap();
        assert_eq!(before, of("b/c.png").unwrap());
        assert_ne!(before, of("d.png").unwrap());
        let mut changed = one("a.png");
        changed.answer.push('s');
        assert_ne!(before, digest(&[changed]).unwrap());
        let mut views = one("a.png");
        views.images.push(folder.path().join("d.png").into());
        let two = digest(&[views.clone()]).unwrap();
        views.images.reverse();
        assert_ne!(two, digest(&[views]).unwrap());
        assert!(of("none.png").unwrap_err().to_string().contains("none.png"));
    }

    #[test]
    fn answers_are_compared_without_case_and_blanks() {
        assert_eq!(compare(" Left  LUNG\t. "), "left lung");
        assert_ne!(compare("left lung"), compare("leftlung"));
        assert_eq!(compare("T2."), compare("t2"));
    }
}
