//! Parquet tables with the images in them, as the Hugging Face hub mirrors sets: `train-00000-of-00001.parquet`
//! and so on, in the folder or in `data/`. Mirrors of VQA-RAD, SLAKE, PathVQA and ROCOv2 look so.
//!
//! Columns: `image` (bytes, or a struct of `bytes` and `path`); `question` and `answer`, or `caption`,
//! `report`, `findings` or `text`; perhaps `answer_type`, `q_lang`, `qid`, `id` or `image_id`. Mirrors
//! repeat an image in every row that asks about it: equal bytes are one image here.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::{About, Reader};
use crate::data::files::fields::{answer_type, any_field, field, lost, optional};
use crate::data::files::parquet::{self, Picture, TableRow};
use crate::data::files::tree;
use crate::data::intake::{Draft, Intake};
use crate::data::record::REPORT_QUESTION;
use crate::data::{AnswerType, DataError, Image, ProblemKind, Split};

const IMAGE: &str = "image";
const TEXTS: [&str; 4] = ["caption", "report", "findings", "text"];
const NUMBERS: [&str; 4] = ["qid", "question_id", "id", "image_id"];

/// The layout.
pub struct Tables;

impl Reader for Tables {
    fn about(&self) -> About {
        About {
            format: "parquet",
            files: ".parquet files with a column `image`, in the folder or one below",
            citation: "a set in Parquet tables; see the card that came with it",
            licence: "licence as its card says",
            groups: "images",
        }
    }

    fn root(&self, folder: &Path) -> Option<PathBuf> {
        (!files(folder).is_empty()).then(|| folder.into())
    }

    fn read(&self, root: &Path, intake: &mut Intake) -> Result<(), DataError> {
        let mut seen = BTreeMap::new();
        let mut untyped = false;
        for path in files(root) {
            let columns = parquet::columns(&path)?;
            if !columns.iter().any(|name| name == IMAGE) {
                let problem = format!("there is no column `{IMAGE}`, only {}", columns.join(", "));
                return Err(DataError::format(&path, problem));
            }
            let has = |name: &str| columns.iter().any(|one| one == name);
            untyped |= has("answer") && !has("answer_type");
            let (folder, split) = (path.parent().unwrap_or(root), split_of(&path));
            for row in parquet::read(&path, IMAGE)? {
                let language = &intake.options.language;
                if let Some(other) = optional(&row.fields, "q_lang").unwrap_or(None)
                    && other != *language
                {
                    continue;
                }
                let place = row.place.clone();
                let draft = draft(row, folder, split, &mut seen);
                intake.put(&place, draft);
            }
        }
        if untyped {
            intake.remark(
                "the tables do not tell open from closed answers: yes and no count as closed",
            );
        }
        Ok(())
    }
}

fn files(path: &Path) -> Vec<PathBuf> {
    if path.is_file() && path.extension().is_some_and(|end| end == "parquet") {
        return vec![path.to_owned()];
    }
    parquet::tables(path)
}

/// The split that a table's name begins with, or that its folder is called.
fn split_of(path: &Path) -> Option<Split> {
    let name = path.file_stem()?.to_string_lossy();
    let first = name.split(['-', '_', '.']).next()?;
    let folder = path.parent().and_then(Path::file_name);
    let folder = folder.map(|name| name.to_string_lossy());
    Split::from_word(first).or_else(|| Split::from_word(&folder?))
}

/// The first image of each digest.
type Seen = BTreeMap<[u8; 32], Image>;

fn draft(
    row: TableRow,
    folder: &Path,
    split: Option<Split>,
    seen: &mut Seen,
) -> Result<Draft, ProblemKind> {
    let fields = &row.fields;
    let (image, group) = match row.image {
        None => return Err(ProblemKind::Missing { field: IMAGE }),
        Some(Picture::Inside(image, digest)) => {
            let mut group = String::new();
            for byte in &digest[..8] {
                write!(group, "{byte:02x}").expect("a string takes all text");
            }
            (seen.entry(digest).or_insert(image).clone(), group)
        }
        Some(Picture::Named(name)) => {
            let path = tree::image(&[folder.to_owned()], &name)?;
            (path.into(), name)
        }
    };
    let (question, answer, kind) = exchange(fields)?;
    let numbered = NUMBERS.into_iter().find(|name| fields.contains_key(*name));
    Ok(Draft {
        id: match numbered {
            Some(name) => field(fields, name)?,
            None => row.place.index.to_string(),
        },
        images: vec![image],
        question,
        answer,
        answer_type: kind,
        split,
        group,
        language: optional(fields, "q_lang")?.unwrap_or_else(|| "en".into()),
        notes: lost(
            fields,
            &[
                "question", "answer", "caption", "report", "findings", "text",
            ],
        ),
    })
}

fn exchange(fields: &Map<String, Value>) -> Result<(String, String, AnswerType), ProblemKind> {
    if !fields.contains_key("answer") {
        let text = any_field(fields, &TEXTS)?;
        return Ok((REPORT_QUESTION.into(), text, AnswerType::Report));
    }
    let answer = field(fields, "answer")?;
    let kind = if fields.contains_key("answer_type") {
        answer_type(fields, "answer_type")?
    } else {
        AnswerType::of_answer(&answer)
    };
    Ok((field(fields, "question")?, answer, kind))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::imitation::{Folder, faults, ids, png};
    use crate::data::intake::Options;
    use crate::data::{digest, leaks};

    /// Tables that PyArrow wrote, by `fixtures/make_tables.py`.
    const TRAIN: &[u8] = include_bytes!("../fixtures/train-00000-of-00001.parquet");
    const TEST: &[u8] = include_bytes!("../fixtures/test-00000-of-00001.parquet");
    const CAPTIONS: &[u8] = include_bytes!("../fixtures/captions.parquet");

    fn mirror() -> Folder {
        let folder = Folder::new();
        folder
            .write("README.md", "---\nlicense: cc0-1.0\n---\n")
            .write("data/train-00000-of-00001-eb8844602202be60.parquet", TRAIN)
            .write("data/test-00000-of-00001-e5bc3d208bb4deeb.parquet", TEST);
        folder
    }

    #[test]
    fn a_mirror_has_its_questions_and_each_image_once() {
        let folder = mirror();
        let set = folder.read();
        assert_eq!(set.about.format, "parquet");
        assert_eq!(ids(&set, Split::Train), ["0", "1", "2", "4", "5"]);
        assert_eq!(ids(&set, Split::Test), ["0", "1"]);
        let train: Vec<_> = set.split(Split::Train).collect();
        assert_eq!(train[0].question, "are regions of the brain infarcted?");
        let closed: Vec<_> = train.iter().map(|record| record.is_closed()).collect();
        assert_eq!(closed, [true, false, false, true, false]);
        assert_eq!(train[0].shown(), train[2].shown());
        assert_ne!(train[0].shown(), train[1].shown());
        // Rows are found again across row groups, as their images were made: by their number.
        for (record, seed) in train.iter().zip([1, 2, 1, 4, 5]) {
            assert_eq!(record.shown().bytes().unwrap()[..8], png(1)[..8]);
            assert_eq!(
                norma::preprocess::decode(
                    &record.shown().bytes().unwrap(),
                    &norma::preprocess::ImageLimits::default()
                )
                .unwrap()
                .get_pixel(0, 0)
                .0,
                [seed * 10, 0, 0]
            );
        }
        let absent = ProblemKind::Missing { field: "image" };
        let blank = ProblemKind::Blank { field: "answer" };
        let mut found = faults(&set);
        found.sort_by_key(|(row, _)| *row);
        assert_eq!(found, [(3, absent), (6, blank)]);
        let said = "the tables do not tell open from closed answers: yes and no count as closed";
        assert_eq!(set.remarks, [said]);
        assert_eq!(
            leaks::of_groups(&set)[0].shared,
            1,
            "an image of the training part"
        );
        let before = digest(&set.records).unwrap();
        assert_eq!(digest(&mirror().read().records).unwrap(), before);
    }

    #[test]
    fn captions_and_images_beside_the_table_are_read() {
        let folder = Folder::new();
        folder.write("validation/captions.parquet", CAPTIONS);
        folder.write("validation/figures/b.png", png(3));
        let set = folder.read();
        assert_eq!(
            ids(&set, Split::Validation),
            ["ROCOv2_2023_valid_000001", "b"]
        );
        assert_eq!(set.records[0].answer_type, AnswerType::Report);
        assert_eq!(set.records[1].shown().bytes().unwrap(), png(3));
        let name = "figures/c.png".to_owned();
        assert_eq!(faults(&set), [(2, ProblemKind::NoImage { name })]);
    }

    #[test]
    fn files_that_are_no_tables_are_named_and_damage_ends_nothing() {
        let folder = Folder::new();
        folder.write("train.parquet", "PAR1, perhaps");
        let error = folder
            .read_with(&Options::default())
            .unwrap_err()
            .to_string();
        assert!(error.contains("train.parquet: "), "{error}");
        for at in (0..TEST.len()).step_by(3) {
            for change in [0x01, 0x10, 0xFF] {
                let mut changed = TEST.to_vec();
                changed[at] ^= change;
                folder.write("train.parquet", changed);
                // Whatever comes of it, the program goes on.
                let set = folder.read_with(&Options::default());
                let images = set.iter().flat_map(|set| &set.records);
                let _ = images.map(|one| one.shown().bytes()).collect::<Vec<_>>();
            }
        }
        for length in [0, 4, 100, TRAIN.len() / 2, TRAIN.len() - 1] {
            folder.write("train.parquet", &TRAIN[..length]);
            assert!(folder.read_with(&Options::default()).is_err(), "{length}");
        }
    }
}
