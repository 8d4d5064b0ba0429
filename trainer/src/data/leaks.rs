//! What two parts of a set share. In: a set. Out: for each pair of splits how many patients, images or
//! rows of the later one also occur in the earlier. It says what a score on the later split owes to
//! having seen its images; it refuses nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::Serialize;

use super::{DataSet, Image, Record, Split, compare};

/// What one split shares with an earlier one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Leak {
    /// What is shared: the set's groups, images of equal bytes, or rows of equal image, question and
    /// answer.
    pub what: String,
    pub earlier: Split,
    pub later: Split,
    /// How many of them are in both.
    pub shared: usize,
    /// How many the later split has.
    pub of: usize,
    /// Records of the later split that they touch.
    pub records: usize,
    /// All records of the later split.
    pub of_records: usize,
    /// The first few, by name.
    pub examples: Vec<String>,
}

/// Examples that a leak names.
const EXAMPLES: usize = 3;

/// Groups in more than one split.
pub fn of_groups(set: &DataSet) -> Vec<Leak> {
    between(set, set.about.groups, |record| vec![record.group.clone()])
}

/// Images in more than one split, by their digests; those of images that are not in `digests` are left
/// out.
pub fn of_images(set: &DataSet, digests: &BTreeMap<&Image, [u8; 32]>) -> Vec<Leak> {
    let mut names: BTreeMap<[u8; 32], String> = BTreeMap::new();
    let mut named = |image: &Image| {
        let digest = *digests.get(image)?;
        let name = names.entry(digest).or_insert_with(|| image.short());
        Some(name.clone())
    };
    let names: BTreeMap<&Image, String> = set
        .records
        .iter()
        .flat_map(|record| &record.images)
        .filter_map(|image| Some((image, named(image)?)))
        .collect();
    between(set, "images of equal bytes", |record| {
        let images = record.images.iter();
        images
            .filter_map(|image| names.get(image).cloned())
            .collect()
    })
}

/// Rows in more than one split: the same image, question and answer.
pub fn of_rows(set: &DataSet) -> Vec<Leak> {
    between(set, "rows", |record| {
        let (question, answer) = (compare(&record.question), compare(&record.answer));
        let image = record.shown();
        vec![format!("{}: {question} {answer}", image.short())]
    })
}

fn between(set: &DataSet, what: &str, keys: impl Fn(&Record) -> Vec<String>) -> Vec<Leak> {
    let keyed: Vec<(Split, Vec<String>)> = set
        .records
        .iter()
        .map(|record| (record.split, keys(record)))
        .collect();
    let all = |split: Split| -> BTreeSet<&String> {
        let of_split = keyed.iter().filter(|(one, _)| *one == split);
        of_split.flat_map(|(_, keys)| keys).collect()
    };
    let mut leaks = Vec::new();
    for (at, earlier) in Split::ALL.into_iter().enumerate() {
        let before = all(earlier);
        for later in Split::ALL.into_iter().skip(at + 1) {
            let after = all(later);
            let shared: BTreeSet<&String> = before.intersection(&after).copied().collect();
            if shared.is_empty() {
                continue;
            }
            let of_later = || keyed.iter().filter(|(split, _)| *split == later);
            let touched =
                of_later().filter(|(_, keys)| keys.iter().any(|key| shared.contains(key)));
            leaks.push(Leak {
                what: what.into(),
                earlier,
                later,
                shared: shared.len(),
                of: after.len(),
                records: touched.count(),
                of_records: of_later().count(),
                examples: shared
                    .iter()
                    .take(EXAMPLES)
                    .map(|key| (*key).clone())
                    .collect(),
            });
        }
    }
    leaks
}

impl fmt::Display for Leak {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} of {} {} in {} also occur in {} ({} of its {} records)",
            self.shared,
            self.of,
            self.what,
            self.later,
            self.earlier,
            self.records,
            self.of_records
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::imitation::record;

    fn set(rows: &[(&str, &str, &str, Split)]) -> DataSet {
        let mut set = DataSet::default();
        set.about.groups = "patients";
        for (image, group, answer, split) in rows {
            let mut one = record(*image, "Which side?", answer);
            (one.group, one.split) = ((*group).into(), *split);
            set.records.push(one);
        }
        set
    }

    #[test]
    fn patients_images_and_rows_in_two_splits_are_counted() {
        use Split::{Test, Train, Validation};
        let set = set(&[
            ("a", "p1", "left", Train),
            ("b", "p2", "left", Train),
            ("c", "p1", "left", Test),
            ("d", "p3", "left", Test),
            ("d", "p3", "right", Test),
            ("b", "p4", "Left.", Validation),
        ]);
        let leaks = of_groups(&set);
        assert_eq!(leaks.len(), 1);
        assert_eq!(
            leaks[0].to_string(),
            "1 of 2 patients in test also occur in train (1 of its 3 records)"
        );
        assert_eq!(leaks[0].examples, ["p1"]);
        let rows = of_rows(&set);
        assert_eq!(
            (rows.len(), rows[0].later, rows[0].shared),
            (1, Validation, 1)
        );
        // The file `d` is a copy of `a`.
        let images = ["a", "b", "c", "d"].map(Image::from);
        let digests: BTreeMap<_, _> = images
            .iter()
            .zip([[1; 32], [2; 32], [3; 32], [1; 32]])
            .collect();
        let found: Vec<_> = of_images(&set, &digests)
            .into_iter()
            .map(|leak| (leak.earlier, leak.later, leak.shared, leak.records))
            .collect();
        assert_eq!(found, [(Train, Validation, 1, 1), (Train, Test, 1, 2)]);
    }

    #[test]
    fn a_clean_split_has_no_leak() {
        let set = set(&[
            ("a", "p1", "left", Split::Train),
            ("b", "p2", "left", Split::Test),
        ]);
        assert!(of_groups(&set).is_empty() && of_rows(&set).is_empty());
    }
}
