//! The readers on small imitations of the real layouts, with the oddities of the real files. With
//! `NORMA_REAL_DATA` set to a folder that holds `slake` and `vqa_rad`, also on those.

use std::fs;
use std::path::PathBuf;

use serde_json::{Value, json};
use tempfile::TempDir;

use super::source::Source;
use super::*;

fn write(folder: &Path, name: &str, content: impl AsRef<[u8]>) {
    let path = folder.join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, content).unwrap();
}

fn slake_row(qid: u32, language: &str, question: &str, answer: &str) -> Value {
    json!({
        "img_id": 1, "img_name": "xmlab1/source.jpg", "question": question, "answer": answer,
        "q_lang": language, "location": "Lung", "modality": "CT", "answer_type": "OPEN",
        "base_type": "vqa", "content_type": "Organ", "triple": ["vhead", "_", "_"], "qid": qid,
    })
}

/// SLAKE's layout in a few rows.
fn slake() -> TempDir {
    let folder = TempDir::new().unwrap();
    let mut closed = slake_row(2, "en", "Which is bigger, lung or heart?", "Lung");
    closed["answer_type"] = "CLOSED".into();
    let mut elsewhere = slake_row(4, "en", "What is it?", "CT");
    elsewhere["img_name"] = "../../etc/passwd".into();
    let mut absent = slake_row(5, "en", "What is it?", "CT");
    absent["img_name"] = "xmlab9/source.jpg".into();
    let reordered = r#"{"triple": [], "qid": 6, "answer": "t2", "answer_type": "CLOSED",
        "q_lang": "en", "question": "What weighting?", "img_name": "xmlab2/source.jpg"}"#;
    let mut text = String::from("[\n");
    for row in [
        slake_row(0, "en", "What is the modality?", "X-Ray"),
        slake_row(1, "zh", "这是什么?", "肺"),
        closed,
        slake_row(3, "en", "Does the picture contain liver?", ""),
        elsewhere,
        absent,
    ] {
        text += &row.to_string();
        text += ",\n";
    }
    text += reordered;
    text += "\n]";
    let root = folder.path();
    write(root, "Slake1.0/train.json", text);
    let validation = json!([slake_row(9, "en", "Where is the lesion?", "Left Lung")]);
    write(root, "Slake1.0/validation.json", validation.to_string());
    write(root, "Slake1.0/imgs/xmlab1/source.jpg", "1");
    write(root, "Slake1.0/imgs/xmlab2/source.jpg", "2");
    folder
}

#[test]
fn slake_is_read_one_language_at_a_time() {
    let folder = slake();
    let set = super::slake::read(folder.path(), "en").unwrap();
    let ids = |split| {
        set.split(split)
            .map(|record| record.id.clone())
            .collect::<Vec<_>>()
    };
    assert_eq!(ids(Split::Train), ["0", "2", "6"]);
    assert_eq!(ids(Split::Validation), ["9"]);
    assert_eq!(ids(Split::Test), [""; 0]);
    assert_eq!(set.records[1].answer, "Lung");
    assert!(set.records[1].closed && !set.records[0].closed && set.records[2].closed);
    assert_eq!(set.records[2].group, "xmlab2/source.jpg");
    assert_eq!(set.records[2].place.line, 8);
    let other = super::slake::read(&folder.path().join("Slake1.0"), "zh").unwrap();
    assert_eq!(other.records.len(), 1);
    assert_eq!(other.records[0].question, "这是什么?");
    assert_eq!(other.records[0].language, "zh");
}

#[test]
fn rows_that_cannot_be_used_are_listed_with_their_place() {
    let folder = slake();
    let set = super::slake::read(folder.path(), "en").unwrap();
    let found: Vec<_> = set
        .problems
        .iter()
        .map(|problem| (problem.place.index, problem.kind.clone()))
        .collect();
    let name = |name: &str| name.to_owned();
    assert_eq!(
        found,
        [
            (3, ProblemKind::Blank { field: "answer" }),
            (
                4,
                ProblemKind::ImageName {
                    name: name("../../etc/passwd")
                }
            ),
            (
                5,
                ProblemKind::NoImage {
                    name: name("xmlab9/source.jpg")
                }
            ),
        ]
    );
    assert_eq!(set.dropped().count(), 3);
    let shown = set.problems[0].to_string();
    assert!(
        shown.ends_with("train.json:5, row 3: `answer` is blank; left out"),
        "{shown}"
    );
}

#[test]
fn leaks_between_splits_are_found() {
    let folder = slake();
    let set = super::slake::read(folder.path(), "en").unwrap();
    let both = BTreeSet::from([Split::Train, Split::Validation]);
    assert_eq!(set.leaks(), BTreeMap::from([("xmlab1/source.jpg", both)]));
}

#[test]
fn a_folder_in_another_layout_is_refused() {
    let folder = TempDir::new().unwrap();
    let error = super::slake::read(folder.path(), "en")
        .unwrap_err()
        .to_string();
    assert!(error.contains("train.json, validate.json"), "{error}");
    let error = super::vqa_rad::read(folder.path()).unwrap_err().to_string();
    assert!(error.contains("VQA_RAD Dataset Public.json"), "{error}");
}

#[test]
fn the_digest_follows_content_not_place() {
    let (one, two) = (slake(), slake());
    let digest_of = |folder: &TempDir| {
        let set = super::slake::read(folder.path(), "en").unwrap();
        digest(&set.records).unwrap()
    };
    let before = digest_of(&one);
    assert_eq!(before, digest_of(&two));
    write(two.path(), "Slake1.0/imgs/xmlab2/source.jpg", "changed");
    assert_ne!(before, digest_of(&two));
    let mut set = super::slake::read(one.path(), "en").unwrap();
    set.records[0].answer.push('s');
    assert_ne!(before, digest(&set.records).unwrap());
}

fn rad_row(qid: impl Into<Value>, phrase: &str, question: &str, answer: impl Into<Value>) -> Value {
    json!({
        "qid": qid.into(), "phrase_type": phrase, "qid_linked_id": "03f451ca", "image_case_url": "https://",
        "image_name": "synpic1.jpg", "image_organ": "HEAD", "evaluation": "not evaluated",
        "question": question, "question_rephrase": "NULL", "question_relation": "NULL",
        "question_frame": "NULL", "question_type": "PRSE, ABN", "answer": answer.into(),
        "answer_type": "OPEN",
    })
}

/// VQA-RAD's layout in a few rows.
fn vqa_rad() -> TempDir {
    let folder = TempDir::new().unwrap();
    let closed = |mut row: Value, kind: &str| {
        row["answer_type"] = kind.into();
        row
    };
    let mut without_rephrase = rad_row(5, "para", "Which side?", "left");
    without_rephrase
        .as_object_mut()
        .unwrap()
        .remove("question_rephrase");
    let rows = json!([
        closed(
            rad_row("0", "freeform", "Are regions infarcted?", json!("Yes")),
            "CLOSED "
        ),
        rad_row(
            1,
            "freeform",
            "How many kidneys\tare in this image? ",
            json!(2)
        ),
        rad_row(
            2,
            "test_para",
            "It\u{FFFD}s what?",
            json!(" superficial\nto the skin")
        ),
        closed(
            rad_row(3, "para", "Is this T1 or FLAIR?", "FLAIR"),
            "CLOSED"
        ),
        rad_row(4, "freeform", "What is it?", "NULL"),
        closed(without_rephrase, "CLOSED"),
        rad_row(
            6,
            "freeform",
            "how many kidneys are in this image?",
            json!("2")
        ),
        rad_row(7, "test_freeform", "Which side?", "Left"),
        rad_row(8, "later", "Which side?", "right"),
    ]);
    write(
        folder.path(),
        "VQA_RAD Dataset Public.json",
        rows.to_string(),
    );
    write(folder.path(), "VQA_RAD Image Folder/synpic1.jpg", "1");
    write(
        folder.path(),
        "VQA_RAD Image Folder/synpic35356.jpg",
        "no row names it",
    );
    folder
}

#[test]
fn vqa_rad_is_read_with_its_oddities() {
    let folder = vqa_rad();
    let set = super::vqa_rad::read(folder.path()).unwrap();
    let shown: Vec<_> = set
        .records
        .iter()
        .map(|r| {
            (
                r.id.as_str(),
                r.question.as_str(),
                r.answer.as_str(),
                r.closed,
                r.split,
            )
        })
        .collect();
    let (train, test) = (Split::Train, Split::Test);
    assert_eq!(
        shown,
        [
            ("0", "Are regions infarcted?", "Yes", true, train),
            (
                "1",
                "How many kidneys are in this image?",
                "2",
                false,
                train
            ),
            ("2", "It's what?", "superficial to the skin", false, test),
            ("3", "Is this T1 or FLAIR?", "FLAIR", true, train),
            ("5", "Which side?", "left", true, train),
            (
                "6",
                "how many kidneys are in this image?",
                "2",
                false,
                train
            ),
            ("7", "Which side?", "Left", false, test),
        ]
    );
    let found: Vec<_> = set
        .problems
        .iter()
        .map(|problem| (problem.place.index, problem.kind.clone()))
        .collect();
    assert_eq!(
        found,
        [
            (2, ProblemKind::LostCharacters { field: "question" }),
            (4, ProblemKind::Missing { field: "answer" }),
            (6, ProblemKind::Duplicate { first: 1 }),
            (
                7,
                ProblemKind::OtherSplit {
                    first: 5,
                    split: train
                }
            ),
            (
                8,
                ProblemKind::Unknown {
                    field: "phrase_type",
                    got: "`later`".into()
                }
            ),
        ]
    );
    assert_eq!(set.dropped().count(), 2);
    assert_eq!(set.leaks().len(), 1);
}

#[test]
fn answers_are_compared_without_case_and_blanks() {
    assert_eq!(compare(" Left  LUNG\t. "), "left lung");
    assert_ne!(compare("left lung"), compare("leftlung"));
    assert_eq!(compare("T2."), compare("t2"));
}

#[test]
fn a_question_list_has_what_a_script_needs() {
    let folder = vqa_rad();
    let set = super::vqa_rad::read(folder.path()).unwrap();
    let text = questions::to_json("vqa-rad:x", set.split(Split::Test)).unwrap();
    let list: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(list["questions"].as_array().unwrap().len(), 2);
    let first = &list["questions"][0];
    assert_eq!(first["question"], "It's what?");
    assert!(Path::new(first["image"].as_str().unwrap()).is_file());
    assert_eq!(first["closed"], false);
}

/// The real files, where they are at hand. Counts as published with them.
#[test]
fn real_files_have_their_known_counts() {
    let Some(folder) = std::env::var_os("NORMA_REAL_DATA").map(PathBuf::from) else {
        return;
    };
    let read = |name: &str| {
        let source: Source = name
            .replace('@', &folder.display().to_string())
            .parse()
            .unwrap();
        source.read().unwrap()
    };
    let count = |set: &DataSet, split| set.split(split).count();

    let slake = read("slake:@/slake");
    assert_eq!(
        count(&slake, Split::Train),
        4_918,
        "4,919 rows, one answer is empty"
    );
    assert_eq!(count(&slake, Split::Validation), 1_053);
    let dropped: Vec<_> = slake.dropped().map(|problem| &problem.kind).collect();
    assert_eq!(dropped, [&ProblemKind::Blank { field: "answer" }]);
    assert!(slake.leaks().is_empty());
    let images = |split| {
        slake
            .split(split)
            .map(|r| &r.group)
            .collect::<BTreeSet<_>>()
            .len()
    };
    assert_eq!((images(Split::Train), images(Split::Validation)), (450, 96));

    let rad = read("vqa-rad:@/vqa_rad");
    assert_eq!(
        (count(&rad, Split::Train), count(&rad, Split::Test)),
        (1_797, 451)
    );
    assert_eq!(rad.dropped().count(), 0);
    assert_eq!(
        rad.split(Split::Test)
            .filter(|record| record.closed)
            .count(),
        272
    );
    assert_eq!(
        rad.leaks().len(),
        202,
        "all test images but one occur in train"
    );
    let kinds = |wanted: fn(&ProblemKind) -> bool| {
        rad.problems
            .iter()
            .filter(|problem| wanted(&problem.kind))
            .count()
    };
    assert_eq!(
        kinds(|kind| matches!(kind, ProblemKind::Duplicate { .. })),
        3
    );
    assert_eq!(
        kinds(|kind| matches!(kind, ProblemKind::OtherSplit { .. })),
        1
    );
    assert_eq!(
        kinds(|kind| matches!(kind, ProblemKind::LostCharacters { .. })),
        1
    );
}
