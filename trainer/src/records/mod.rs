//! Learning from real sets: what lies between records on disk and the trainer's lessons. In: records.
//! Out: lessons, curricula, scores. It must not know layouts of sets on disk.
//!
//! - [`base`]: a small LLaVA and what stands beside its weights, for pre-training on a set.
//! - [`lesson`]: an image and its questions as the model sees them. [`curriculum`]: which of them when.
//! - [`eval`]: answers against records.

pub mod base;
pub mod curriculum;
pub mod eval;
pub mod lesson;

use std::collections::BTreeMap;
use std::path::Path;

use crate::data::Record;

/// Records gathered by image, in the order in which images first occur.
pub fn by_image<'a>(
    records: impl IntoIterator<Item = &'a Record>,
) -> Vec<(&'a Path, Vec<&'a Record>)> {
    let mut gathered: Vec<(&Path, Vec<&Record>)> = Vec::new();
    let mut places = BTreeMap::new();
    for record in records {
        let path = record.image.as_path();
        let place = *places.entry(path).or_insert_with(|| {
            gathered.push((path, Vec::new()));
            gathered.len() - 1
        });
        gathered[place].1.push(record);
    }
    gathered
}

#[cfg(test)]
pub(crate) mod proofs;

#[cfg(test)]
pub(crate) mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::data::{Place, Split};

    /// A record made up for a test.
    pub(crate) fn record(image: impl Into<PathBuf>, question: &str, answer: &str) -> Record {
        let image = image.into();
        Record {
            id: "0".into(),
            group: image.display().to_string(),
            image,
            question: question.into(),
            answer: answer.into(),
            closed: matches!(answer, "yes" | "no"),
            split: Split::Train,
            language: "en".into(),
            place: Place {
                file: Path::new("made-up.json").into(),
                index: 0,
                line: 1,
            },
        }
    }

    #[test]
    fn records_of_an_image_come_together() {
        let records = [
            record("b", "1", "yes"),
            record("a", "2", "no"),
            record("b", "3", "no"),
        ];
        let gathered = by_image(&records);
        assert_eq!(gathered.len(), 2);
        assert_eq!(
            gathered[0],
            (Path::new("b"), vec![&records[0], &records[2]])
        );
        assert_eq!(gathered[1], (Path::new("a"), vec![&records[1]]));
    }
}
