//! ROCO (Pelka et al., LABELS 2018) and ROCOv2 (Rückert et al., Sci Data 11:688, 2024): figures of
//! articles with their captions.
//!
//! ROCO: `SPLIT/radiology/captions.txt` (`ROCO_00002<tab> caption`) or `SPLIT/radiology/traindata.csv`
//! (`id,name,caption`), images in `SPLIT/radiology/images/`, in the folder or in `data/` or `all_data/`.
//! ROCOv2: `SPLIT_captions.csv` (`ID,Caption`), images in `SPLIT/` or `SPLIT_images/`. Images that
//! could not be fetched are missing in many copies.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::{About, Reader, first_fitting};
use crate::data::files::fields::{any_field, lost, optional};
use crate::data::files::{Row, csv, tree};
use crate::data::intake::{Draft, Intake};
use crate::data::record::REPORT_QUESTION;
use crate::data::{AnswerType, DataError, ProblemKind, Split};

const SPLITS: [(&str, Split); 5] = [
    ("train", Split::Train),
    ("validation", Split::Validation),
    ("valid", Split::Validation),
    ("val", Split::Validation),
    ("test", Split::Test),
];

/// The layout.
pub struct Roco;

impl Reader for Roco {
    fn about(&self) -> About {
        About {
            format: "roco",
            files: "train/radiology/captions.txt (or traindata.csv), or train_captions.csv",
            citation: "ROCO (Pelka et al., LABELS 2018) or ROCOv2 (Rückert et al., Sci Data 11:688, 2024)",
            licence: "each figure under the licence of its article",
            groups: "articles",
        }
    }

    fn root(&self, folder: &Path) -> Option<PathBuf> {
        first_fitting(folder, &["data", "all_data"], |folder| {
            SPLITS.iter().any(|(name, _)| table(folder, name).is_some())
        })
    }

    fn read(&self, root: &Path, intake: &mut Intake) -> Result<(), DataError> {
        let mut found = Vec::new();
        for (name, split) in SPLITS {
            let Some(path) = table(root, name) else {
                continue;
            };
            if found.contains(&split) {
                continue;
            }
            found.push(split);
            let images = [
                root.join(name).join("radiology/images"),
                root.join(name),
                root.join(format!("{name}_images")),
                root.join(format!("images/{name}")),
                root.join("images"),
            ];
            for (place, row) in rows(&path)? {
                intake.put(&place, draft(&images, &row, split));
            }
        }
        if root.join("train/non-radiology").is_dir() {
            intake.remark("the figures that are no radiology are left aside");
        }
        Ok(())
    }
}

/// The file of a split's captions.
fn table(root: &Path, split: &str) -> Option<PathBuf> {
    let short = if split == "validation" { "val" } else { split };
    let names = [
        format!("{split}/radiology/captions.txt"),
        format!("{split}/radiology/{short}data.csv"),
        format!("{split}_captions.csv"),
    ];
    let paths = names.into_iter().map(|name| root.join(name));
    paths.into_iter().find(|path| path.is_file())
}

fn rows(path: &Path) -> Result<Vec<Row>, DataError> {
    if path.extension().is_some_and(|end| end == "txt") {
        csv::read_pairs(path, b'\t', ["id", "caption"])
    } else {
        csv::read(path)
    }
}

fn draft(
    folders: &[PathBuf],
    row: &Map<String, Value>,
    split: Split,
) -> Result<Draft, ProblemKind> {
    let id = any_field(row, &["id", "ID"])?;
    let answer = any_field(row, &["caption", "Caption"])?;
    let name = optional(row, "name")?;
    let image = tree::image(folders, &id);
    let image = match (&image, &name) {
        (Err(_), Some(name)) => tree::image(folders, name).or(image)?,
        _ => image?,
    };
    // `PMC4083729_AMHSR-4-14-g002.jpg`: figures of one article are alike.
    let article = name.and_then(|name| {
        let (article, _) = name.split_once('_')?;
        article.starts_with("PMC").then(|| article.to_owned())
    });
    Ok(Draft {
        group: article.unwrap_or_else(|| id.clone()),
        id,
        images: vec![image.into()],
        question: REPORT_QUESTION.into(),
        answer,
        answer_type: AnswerType::Report,
        split: Some(split),
        language: "en".into(),
        notes: lost(row, &["caption", "Caption"]),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::imitation::{Folder, faults, ids};

    #[test]
    fn captions_of_the_first_edition_are_read_from_either_table() {
        let folder = Folder::new();
        folder
            .write(
                "all_data/train/radiology/captions.txt",
                "ROCO_00002\t Computed tomography, \"axial\".\nROCO_00003\t\nROCO_00004\tLost figure.\n",
            )
            .write("all_data/train/radiology/traindata.csv", "not needed")
            .write("all_data/train/radiology/images/ROCO_00002.jpg", "1")
            .write("all_data/train/radiology/images/ROCO_00003.jpg", "2")
            .write("all_data/train/non-radiology/captions.txt", "ROCO_1\tA scheme.")
            .write(
                "all_data/validation/radiology/valdata.csv",
                b"id,name,caption\nROCO_00009,PMC4083729_AMHSR-4-14-g002.jpg,\"Chest, caf\xE9\"\n",
            )
            .write("all_data/validation/radiology/images/PMC4083729_AMHSR-4-14-g002.jpg", "3");
        let set = folder.read();
        assert_eq!(ids(&set, Split::Train), ["ROCO_00002"]);
        assert_eq!(set.records[0].answer, "Computed tomography, \"axial\".");
        assert_eq!(ids(&set, Split::Validation), ["ROCO_00009"]);
        assert_eq!(set.records[1].group, "PMC4083729");
        let name = "ROCO_00004".to_owned();
        let mut found = faults(&set);
        found.sort_by_key(|(row, _)| *row);
        let wanted = [
            (0, ProblemKind::LostCharacters { field: "caption" }),
            (1, ProblemKind::Blank { field: "caption" }),
            (2, ProblemKind::NoImage { name }),
        ];
        assert_eq!(found, wanted);
        assert_eq!(
            set.remarks,
            ["the figures that are no radiology are left aside"]
        );
    }

    #[test]
    fn captions_of_the_second_edition_are_read() {
        let folder = Folder::new();
        folder
            .write(
                "train_captions.csv",
                "ID,Caption\nROCOv2_2023_train_000001,Head CT.\n",
            )
            .write("train_images/ROCOv2_2023_train_000001.jpg", "1")
            .write(
                "valid_captions.csv",
                "ID,Caption\nROCOv2_2023_valid_000001,\"MRI, brain.\"\n",
            )
            .write("valid/ROCOv2_2023_valid_000001.jpg", "2");
        let set = folder.read();
        assert_eq!(ids(&set, Split::Train), ["ROCOv2_2023_train_000001"]);
        assert_eq!(
            set.split(Split::Validation).next().unwrap().answer,
            "MRI, brain."
        );
        assert!(set.problems.is_empty(), "{:?}", set.problems);
    }
}
