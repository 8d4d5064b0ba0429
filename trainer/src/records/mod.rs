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

use crate::data::{Image, Record};

/// Records gathered by the image that a model is shown, in the order in which images first occur. Of a
/// study with several images that is the first; the others are not shown.
pub fn by_image<'a>(
    records: impl IntoIterator<Item = &'a Record>,
) -> Vec<(&'a Image, Vec<&'a Record>)> {
    let mut gathered: Vec<(&Image, Vec<&Record>)> = Vec::new();
    let mut places = BTreeMap::new();
    for record in records {
        let image = record.shown();
        let place = *places.entry(image).or_insert_with(|| {
            gathered.push((image, Vec::new()));
            gathered.len() - 1
        });
        gathered[place].1.push(record);
    }
    gathered
}

#[cfg(test)]
pub(crate) mod proofs;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::imitation::record;

    #[test]
    fn records_of_an_image_come_together() {
        let mut records = [
            record("b", "1", "yes"),
            record("a", "2", "no"),
            record("b", "3", "no"),
        ];
        records[2].images.push("c".into());
        let gathered = by_image(&records);
        assert_eq!(gathered.len(), 2);
        assert_eq!(
            gathered[0],
            (&Image::from("b"), vec![&records[0], &records[2]])
        );
        assert_eq!(gathered[1], (&Image::from("a"), vec![&records[1]]));
    }
}
