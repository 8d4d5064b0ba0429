//! MIMIC-CXR-JPG (Johnson et al., 2019) with the reports of MIMIC-CXR: `mimic-cxr-2.0.0-split.csv`,
//! perhaps `mimic-cxr-2.0.0-metadata.csv` (each as `.csv.gz` too), reports
//! `files/p10/p10000032/s50414267.txt` and images `files/p10/p10000032/s50414267/DICOM.jpg`.
//!
//! A record is a study. Removed words are `___`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::report_text::section;
use super::{About, Reader, first_fitting, split_word};
use crate::data::files::fields::{field, optional};
use crate::data::files::{csv, tree};
use crate::data::intake::{Draft, Intake, Section};
use crate::data::record::REPORT_QUESTION;
use crate::data::{AnswerType, DataError, Place, ProblemKind, Split};

const SPLITS: &str = "mimic-cxr-2.0.0-split.csv";
const METADATA: &str = "mimic-cxr-2.0.0-metadata.csv";

/// Where reports and images may begin, as people unpack the two archives.
const TREES: [&str; 6] = [
    "files",
    "mimic-cxr-reports/files",
    "reports/files",
    "reports",
    "images/files",
    "images",
];

/// The layout.
pub struct MimicCxr;

impl Reader for MimicCxr {
    fn about(&self) -> About {
        About {
            format: "mimic-cxr",
            files: "mimic-cxr-2.0.0-split.csv (or .csv.gz), and files/ with images and reports",
            citation: "MIMIC-CXR (Johnson et al., Sci Data 6:317, 2019)",
            licence: "PhysioNet Credentialed Health Data License: it may not be handed on",
            groups: "patients",
        }
    }

    fn root(&self, folder: &Path) -> Option<PathBuf> {
        first_fitting(folder, &["mimic-cxr-jpg", "mimic-cxr"], |folder| {
            csv::plain_or_packed(folder, SPLITS).is_some()
        })
    }

    fn read(&self, root: &Path, intake: &mut Intake) -> Result<(), DataError> {
        let Some(splits) = csv::plain_or_packed(root, SPLITS) else {
            return Ok(());
        };
        let views = match csv::plain_or_packed(root, METADATA) {
            Some(path) => views(&path)?,
            None => BTreeMap::new(),
        };
        if views.is_empty() {
            intake.remark(format!(
                "without {METADATA} no view is known: the first image may be lateral"
            ));
        }
        // Studies in the order of the file, which has a row an image.
        let mut studies: Vec<Study> = Vec::new();
        let mut places: BTreeMap<String, usize> = BTreeMap::new();
        for (place, row) in csv::read(&splits)? {
            match image(&row) {
                Ok((study, dicom)) => {
                    let at = *places.entry(study.id.clone()).or_insert_with(|| {
                        studies.push(Study { place, ..study });
                        studies.len() - 1
                    });
                    studies[at].images.push(dicom);
                }
                Err(fault) => intake.note(&place, fault),
            }
        }
        let trees = TREES.map(|name| root.join(name));
        for study in studies {
            let place = study.place.clone();
            let section = intake.options.section;
            intake.put(&place, draft(&trees, study, &views, section));
        }
        Ok(())
    }
}

struct Study {
    place: Place,
    id: String,
    patient: String,
    split: Split,
    images: Vec<String>,
}

/// The study of a row of the split's table, and the image's name.
fn image(row: &Map<String, Value>) -> Result<(Study, String), ProblemKind> {
    let study = Study {
        place: Place {
            file: Path::new(SPLITS).into(),
            index: 0,
            line: None,
        },
        id: field(row, "study_id")?,
        patient: field(row, "subject_id")?,
        split: split_word("split", &field(row, "split")?)?,
        images: Vec::new(),
    };
    Ok((study, field(row, "dicom_id")?))
}

/// Whether each image is a frontal view.
fn views(path: &Path) -> Result<BTreeMap<String, bool>, DataError> {
    let rows = csv::read(path)?.into_iter();
    let views = rows.filter_map(|(_, row)| {
        let view = optional(&row, "ViewPosition").ok()??;
        let frontal = matches!(view.to_uppercase().as_str(), "PA" | "AP");
        Some((field(&row, "dicom_id").ok()?, frontal))
    });
    Ok(views.collect())
}

fn draft(
    trees: &[PathBuf],
    mut study: Study,
    views: &BTreeMap<String, bool>,
    wanted: Section,
) -> Result<Draft, ProblemKind> {
    let patient = &study.patient;
    let Some(start) = patient.get(..2) else {
        return Err(ProblemKind::Unknown {
            field: "subject_id",
            got: format!("`{patient}`"),
        });
    };
    let place = format!("p{start}/p{patient}/s{}", study.id);
    let report = trees.iter().map(|tree| tree.join(format!("{place}.txt")));
    let report = report.into_iter().find(|path| path.is_file());
    let report = report.ok_or(ProblemKind::Missing { field: "report" })?;
    let text = std::fs::read(&report).map_err(|error| ProblemKind::Malformed {
        reason: format!("{}: {error}", report.display()),
    })?;
    let text = String::from_utf8_lossy(&text);
    let answer = wanted.of(section(&text, "FINDINGS"), section(&text, "IMPRESSION"))?;
    // Stable: views of a kind stay in the file's order.
    study
        .images
        .sort_by_key(|dicom| !views.get(dicom).copied().unwrap_or(false));
    let names: Vec<String> = study
        .images
        .iter()
        .map(|dicom| format!("{place}/{dicom}.jpg"))
        .collect();
    let find = |name: &str| {
        let png = name.replace(".jpg", ".png");
        let found = tree::image(trees, name);
        Ok(found
            .or_else(|fault| tree::image(trees, &png).map_err(|_| fault))?
            .into())
    };
    let (images, notes) = tree::views(&names, find)?;
    Ok(Draft {
        id: study.id,
        images,
        question: REPORT_QUESTION.into(),
        answer,
        answer_type: AnswerType::Report,
        split: Some(study.split),
        group: study.patient,
        language: "en".into(),
        notes,
    })
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::Compression;
    use flate2::write::GzEncoder;

    use super::*;
    use crate::data::imitation::{Folder, faults, ids};
    use crate::data::intake::Options;

    fn packed(text: &str) -> Vec<u8> {
        let mut out = GzEncoder::new(Vec::new(), Compression::default());
        out.write_all(text.as_bytes()).unwrap();
        out.finish().unwrap()
    }

    fn imitation() -> Folder {
        let splits = "dicom_id,study_id,subject_id,split\n\
            02aa804e,50414267,10000032,train\n174413ec,50414267,10000032,train\n\
            2a2277a9,53189527,10000032,validate\n68b5c4b1,53911762,10000764,test\n\
            fffabebf,54848784,10000764,test\nbad,1,10000764,elsewhere\n";
        let metadata = "dicom_id,subject_id,study_id,PerformedProcedureStepDescription,ViewPosition\n\
            02aa804e,10000032,50414267,CHEST (PA AND LAT),LATERAL\n\
            174413ec,10000032,50414267,CHEST (PA AND LAT),PA\n\
            2a2277a9,10000032,53189527,CHEST,\n";
        let folder = Folder::new();
        folder
            .write("mimic-cxr-2.0.0-split.csv.gz", packed(splits))
            .write("mimic-cxr-2.0.0-metadata.csv", metadata)
            .write(
                "mimic-cxr-reports/files/p10/p10000032/s50414267.txt",
                "                 FINAL REPORT\n INDICATION:  ___F with cough\n \n FINDINGS: \n \n \
                 There is no focal consolidation\n as of ___.\n \n IMPRESSION: \n \n Normal.\n",
            )
            .write(
                "mimic-cxr-reports/files/p10/p10000032/s53189527.txt",
                " IMPRESSION: Clear.",
            )
            .write(
                "mimic-cxr-reports/files/p10/p10000764/s53911762.txt",
                " FINDINGS: Clear.",
            );
        for image in [
            "50414267/02aa804e",
            "50414267/174413ec",
            "53189527/2a2277a9",
        ] {
            folder.write(&format!("files/p10/p10000032/s{image}.jpg"), image);
        }
        folder
    }

    #[test]
    fn studies_are_read_with_the_official_split() {
        let set = imitation().read();
        assert_eq!(ids(&set, Split::Train), ["50414267"]);
        let record = &set.records[0];
        assert_eq!(record.answer, "There is no focal consolidation as of ___.");
        assert_eq!(
            (record.group.as_str(), record.images.len()),
            ("10000032", 2)
        );
        assert!(
            record.shown().to_string().ends_with("174413ec.jpg"),
            "the frontal view"
        );
        let name = "p10/p10000764/s53911762/68b5c4b1.jpg".to_owned();
        let got = "`elsewhere`".to_owned();
        let wanted = [
            (2, ProblemKind::Missing { field: "FINDINGS" }),
            (3, ProblemKind::NoImage { name }),
            (4, ProblemKind::Missing { field: "report" }),
            (
                5,
                ProblemKind::Unknown {
                    field: "split",
                    got,
                },
            ),
        ];
        assert_eq!(faults(&set), wanted);
        assert_eq!(set.problems[0].place.line, Some(4));
    }

    #[test]
    fn impressions_are_read_when_asked_for() {
        let options = Options {
            section: Section::Impression,
            ..Options::default()
        };
        let set = imitation().read_with(&options).unwrap();
        assert_eq!(ids(&set, Split::Train), ["50414267"]);
        assert_eq!(ids(&set, Split::Validation), ["53189527"]);
        assert_eq!(set.records[1].answer, "Clear.");
    }
}
