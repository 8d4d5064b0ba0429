//! The real files, where `NORMA_REAL_DATA` names a folder that holds `slake` and `vqa_rad`. Counts as
//! published with them.

use std::collections::BTreeSet;
use std::path::PathBuf;

use super::intake::Options;
use super::source::Source;
use super::{DataSet, ProblemKind, Record, Split, compare, images, leaks};

fn read(name: &str) -> Option<DataSet> {
    let folder = PathBuf::from(std::env::var_os("NORMA_REAL_DATA")?);
    let source: Source = folder.join(name).to_str().unwrap().parse().unwrap();
    Some(source.read(&Options::default()).unwrap())
}

fn count(set: &DataSet, split: Split) -> usize {
    set.split(split).count()
}

fn kinds(set: &DataSet, wanted: fn(&ProblemKind) -> bool) -> usize {
    let problems = set.problems.iter();
    problems.filter(|problem| wanted(&problem.kind)).count()
}

fn n_images(set: &DataSet, split: Split) -> usize {
    let mut images: Vec<_> = set.split(split).map(Record::shown).collect();
    images.sort_unstable();
    images.dedup();
    images.len()
}

#[test]
fn real_slake_has_its_known_counts() {
    let Some(mut set) = read("slake") else {
        return;
    };
    assert_eq!(set.about.format, "slake");
    assert_eq!(
        count(&set, Split::Train),
        4_918,
        "4,919 rows, one answer is empty"
    );
    assert_eq!(count(&set, Split::Validation), 1_053);
    let dropped: Vec<_> = set.dropped().map(|problem| &problem.kind).collect();
    assert_eq!(dropped, [&ProblemKind::Blank { field: "answer" }]);
    assert!(leaks::of_groups(&set).is_empty());
    assert_eq!(n_images(&set, Split::Train), 450);
    assert_eq!(n_images(&set, Split::Validation), 96);
    assert_eq!(images::check(&mut set).len(), 546);
    assert_eq!(set.dropped().count(), 1, "every image can be decoded");
}

#[test]
fn real_vqa_rad_has_its_known_counts() {
    let Some(mut set) = read("vqa_rad") else {
        return;
    };
    assert_eq!(set.about.format, "vqa-rad");
    assert_eq!(
        (count(&set, Split::Train), count(&set, Split::Test)),
        (1_797, 451)
    );
    assert_eq!(set.dropped().count(), 0);
    let closed = set.split(Split::Test).filter(|record| record.is_closed());
    assert_eq!(closed.count(), 272);
    let leak = &leaks::of_groups(&set)[0];
    assert_eq!(
        (leak.shared, leak.of),
        (202, 203),
        "all test images but one occur in train"
    );
    let answers = |split, open: bool| -> BTreeSet<String> {
        let records = set.split(split).filter(|one| !open || !one.is_closed());
        records.map(|one| compare(&one.answer)).collect()
    };
    let (asked, learnt) = (answers(Split::Test, true), answers(Split::Train, false));
    assert_eq!(
        (asked.len(), asked.difference(&learnt).count()),
        (111, 80),
        "open test answers"
    );
    assert_eq!(
        kinds(&set, |kind| matches!(kind, ProblemKind::Duplicate { .. })),
        3
    );
    assert_eq!(
        kinds(&set, |kind| matches!(kind, ProblemKind::OtherSplit { .. })),
        1
    );
    assert_eq!(
        kinds(&set, |kind| matches!(
            kind,
            ProblemKind::LostCharacters { .. }
        )),
        1
    );
    assert_eq!(
        images::check(&mut set).len(),
        314,
        "315 files, one of which no row names"
    );
    assert_eq!(set.dropped().count(), 0, "every image can be decoded");
}

#[test]
fn real_data_rad_adds_the_rows_made_of_frames() {
    let (Some(set), Some(published)) = (read("vqa_rad/data_RAD"), read("vqa_rad")) else {
        return;
    };
    assert_eq!(set.about.format, "data-rad");
    assert_eq!(count(&set, Split::Train), 1_797 + 1_267);
    assert_eq!(count(&set, Split::Test), 451);
    assert_eq!(set.dropped().count(), 0);
    let leak = &leaks::of_groups(&set)[0];
    assert_eq!(
        (leak.shared, leak.of),
        (203, 203),
        "a row made of a frame has the last test image"
    );
    let questions = |set: &DataSet| {
        let mut questions: Vec<_> = set
            .split(Split::Test)
            .map(|one| (one.group.clone(), compare(&one.question)))
            .collect();
        questions.sort_unstable();
        questions
    };
    assert_eq!(questions(&set), questions(&published));
}
