//! The look at a small set of one's own, from its files to the table.

use super::*;
use crate::data::images;
use crate::data::imitation::{Folder, png};

fn folder() -> Folder {
    let rows = [
        ("train", "a.png", "Which side is it on?", "Left lung", "p1"),
        ("train", "a.png", "Is it large?", "yes", "p1"),
        ("train", "a.png", "is it  large?", "Yes.", "p1"),
        ("train", "b.png", "Is it large?", "yes", "p2"),
        ("test", "copy.png", "Is it large?", "yes", "p3"),
        ("test", "c.png", "Where is it?", "in the liver", "p2"),
        ("test", "cut.png", "Where is it?", "liver", "p4"),
        ("test", "gone.png", "Where is it?", "liver", "p4"),
    ];
    let rows = rows.map(|(split, image, question, answer, group)| {
        serde_json::json!({ "split": split, "image": image, "question": question, "answer": answer,
            "group": group })
        .to_string()
    });
    let folder = Folder::new();
    folder
        .write("set.jsonl", rows.join("\n"))
        .write(
            "README.md",
            "---\nlicense: cc-by-4.0\n---\n# Set\nlicense: other\n",
        )
        .write("a.png", png(1))
        .write("copy.png", png(1))
        .write("b.png", png(2))
        .write("c.png", png(3))
        .write("cut.png", &png(4)[..50]);
    folder
}

fn look(folder: &Folder) -> Inspection {
    let mut set = folder.read();
    let facts = images::check(&mut set);
    inspect(&set, Some(&facts), Some(&|text| text.len()))
}

#[test]
fn a_set_is_counted() {
    let folder = folder();
    let found = look(&folder);
    assert_eq!(found.records, 6);
    let train = &found.splits[&Split::Train];
    assert_eq!((train.records, train.images, train.groups), (4, 2, 2));
    assert_eq!(train.answer_types[&AnswerType::Closed], 3);
    assert_eq!(train.most_frequent_answer, ("yes".into(), 3));
    assert_eq!((train.distinct_answers, train.answers_not_in_train), (2, 0));
    let wanted = Lengths {
        least: 3,
        median: 3,
        most_of_95: 5,
        most: 5,
    };
    assert_eq!(train.question_words, wanted);
    assert_eq!(train.answer_tokens.unwrap().most, "Left lung".len());
    let test = &found.splits[&Split::Test];
    assert_eq!((test.records, test.answers_not_in_train), (2, 1));
    let images = found.images.as_ref().unwrap();
    assert_eq!((images.count, images.copies, images.jpeg), (4, 2, 0));
    assert_eq!((images.widths, images.heights), ([9; 3], [6; 3]));
    assert_eq!(found.duplicates, 1);
    assert_eq!(card_licence(folder.path()).as_deref(), Some("cc-by-4.0"));
}

#[test]
fn leaks_and_faults_are_said() {
    let found = look(&folder());
    let leaks: Vec<String> = found.leaks.iter().map(Leak::to_string).collect();
    assert_eq!(
        leaks,
        [
            "1 of 2 groups in test also occur in train (1 of its 2 records)",
            "1 of 2 images of equal bytes in test also occur in train (1 of its 2 records)",
        ]
    );
    let faults: Vec<_> = found
        .faults
        .iter()
        .map(|fault| (fault.what.as_str(), fault.rows, fault.left_out))
        .collect();
    assert_eq!(
        faults,
        [
            ("the image cannot be decoded", 1, true),
            ("the image is not there", 1, true),
            ("repeats an earlier row", 1, false),
        ]
    );
    assert!(
        found.faults[1].first[0].contains("set.jsonl:8, row 7"),
        "{:?}",
        found.faults
    );
}

#[test]
fn the_table_shows_what_the_json_holds() {
    let mut found = look(&folder());
    found.card_licence = Some("cc-by-4.0".into());
    let shown = found.to_string();
    for wanted in [
        "a set of one's own",
        "its card says: cc-by-4.0",
        "6 records",
        "sha256:",
        "1 of 2 images of equal bytes in test also occur in train",
        "left out",
        "set.jsonl:8",
        "`yes` 3",
    ] {
        assert!(shown.contains(wanted), "{wanted}\n{shown}");
    }
    assert!(shown.lines().all(|line| !line.ends_with(' ')), "{shown}");
    let json = serde_json::to_value(&found).unwrap();
    assert_eq!(json["splits"]["train"]["answer_types"]["closed"], 3);
    assert_eq!(json["splits"]["test"]["question_words"]["most"], 3);
}

#[test]
fn without_images_the_rest_is_there() {
    let set = folder().read();
    let found = inspect(&set, None, None);
    assert_eq!((found.records, found.digest.is_none()), (7, true));
    assert_eq!(found.leaks.len(), 1);
    assert!(found.to_string().contains("images were not looked at"));
}

#[test]
fn lengths_of_few_and_many() {
    assert_eq!(lengths(std::iter::empty()), Lengths::default());
    let hundred = lengths(1..=100);
    assert_eq!((hundred.least, hundred.median), (1, 50));
    assert_eq!((hundred.most_of_95, hundred.most), (95, 100));
}
