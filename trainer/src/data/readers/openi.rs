//! IU X-Ray (Demner-Fushman et al., JAMIA 23:304, 2016; OpenI) as its CSV copies have it:
//! `indiana_reports.csv`, `indiana_projections.csv`, and the images in `images/images_normalized/`.
//!
//! It has no split. Removed words are `XXXX`; many reports have no findings; a study may have no image.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::{About, Reader, first_fitting};
use crate::data::files::fields::{field, lost, optional};
use crate::data::files::{csv, tree};
use crate::data::intake::{Draft, Intake, Section};
use crate::data::record::REPORT_QUESTION;
use crate::data::{AnswerType, DataError, ProblemKind};

const REPORTS: &str = "indiana_reports.csv";
const PROJECTIONS: &str = "indiana_projections.csv";

/// The layout.
pub struct OpenI;

impl Reader for OpenI {
    fn about(&self) -> About {
        About {
            format: "openi",
            files: "indiana_reports.csv, indiana_projections.csv and images/images_normalized/",
            citation: "IU X-Ray (Demner-Fushman et al., JAMIA 23:304, 2016)",
            licence: "CC BY-NC-ND 4.0",
            groups: "studies",
        }
    }

    fn root(&self, folder: &Path) -> Option<PathBuf> {
        first_fitting(folder, &[], |folder| {
            folder.join(REPORTS).is_file() && folder.join(PROJECTIONS).is_file()
        })
    }

    fn read(&self, root: &Path, intake: &mut Intake) -> Result<(), DataError> {
        let folders = ["images/images_normalized", "images", "images_normalized"];
        let folders = folders.map(|name| root.join(name));
        let mut views: BTreeMap<String, Vec<(bool, String)>> = BTreeMap::new();
        for (place, row) in csv::read(&root.join(PROJECTIONS))? {
            match view(&row) {
                Ok((study, view)) => views.entry(study).or_default().push(view),
                Err(fault) => intake.note(&place, fault),
            }
        }
        for of_study in views.values_mut() {
            // Stable: views of a kind stay in the file's order.
            of_study.sort_by_key(|(frontal, _)| !frontal);
        }
        for (place, row) in csv::read(&root.join(REPORTS))? {
            let section = intake.options.section;
            intake.put(&place, draft(&folders, &row, &views, section));
        }
        Ok(())
    }
}

/// The study of a projection, whether it is frontal, and its file.
fn view(row: &Map<String, Value>) -> Result<(String, (bool, String)), ProblemKind> {
    let frontal = optional(row, "projection")?;
    let frontal = frontal.is_some_and(|word| word.eq_ignore_ascii_case("frontal"));
    Ok((field(row, "uid")?, (frontal, field(row, "filename")?)))
}

fn draft(
    folders: &[PathBuf],
    row: &Map<String, Value>,
    views: &BTreeMap<String, Vec<(bool, String)>>,
    section: Section,
) -> Result<Draft, ProblemKind> {
    let id = field(row, "uid")?;
    let answer = section.of(field(row, "findings"), field(row, "impression"))?;
    let names = views.get(&id).into_iter().flatten();
    let names: Vec<String> = names.map(|(_, name)| name.clone()).collect();
    let (images, mut notes) = tree::views(&names, |name| Ok(tree::image(folders, name)?.into()))?;
    notes.extend(lost(row, &["findings", "impression"]));
    Ok(Draft {
        group: id.clone(),
        id,
        images,
        question: REPORT_QUESTION.into(),
        answer,
        answer_type: AnswerType::Report,
        split: None,
        language: "en".into(),
        notes,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::imitation::{Folder, faults};
    use crate::data::intake::Options;

    fn imitation() -> Folder {
        let reports = "uid,MeSH,Problems,image,indication,comparison,findings,impression\n\
            1,normal,normal,Xray Chest PA and Lateral,Positive TB test,None.,\"The heart is normal, \
            no XXXX.\n\nLungs clear.\",Normal chest x-XXXX.\n\
            2,Cardiomegaly,Cardiomegaly,\"Chest, 2 views\",Cough,None.,,Large heart.\n\
            3,normal,normal,Chest,Cough,None.,Clear.,\n\
            4,normal,normal,Chest,Cough,None.,Clear lungs.,Normal.\n";
        let projections = "uid,filename,projection\n1,1_IM-0001-3001.dcm.png,Lateral\n\
            1,1_IM-0001-4001.dcm.png,Frontal\n2,2_IM-0652-1001.dcm.png,Frontal\n\
            4,4_IM-2050-1001.dcm.png,Frontal\n,x.png,Frontal\n";
        let folder = Folder::new();
        folder
            .write(REPORTS, reports)
            .write(PROJECTIONS, projections)
            .write("images/images_normalized/1_IM-0001-3001.dcm.png", "1")
            .write("images/images_normalized/1_IM-0001-4001.dcm.png", "2")
            .write("images/images_normalized/2_IM-0652-1001.dcm.png", "3");
        folder
    }

    #[test]
    fn findings_are_read_and_the_frontal_view_comes_first() {
        let set = imitation().read();
        assert_eq!(set.records.len(), 1);
        let record = &set.records[0];
        assert_eq!(record.answer, "The heart is normal, no XXXX. Lungs clear.");
        assert!(
            record
                .shown()
                .to_string()
                .ends_with("1_IM-0001-4001.dcm.png")
        );
        assert_eq!((record.images.len(), record.place.line), (2, Some(2)));
        let name = "4_IM-2050-1001.dcm.png".to_owned();
        let mut found = faults(&set);
        found.sort_by_key(|(row, _)| *row);
        let wanted = [
            (1, ProblemKind::Blank { field: "findings" }),
            (2, ProblemKind::Missing { field: "image" }),
            (3, ProblemKind::NoImage { name }),
            (4, ProblemKind::Blank { field: "uid" }),
        ];
        assert_eq!(found, wanted);
        assert!(
            set.remarks[0].starts_with("split by whole studies"),
            "{:?}",
            set.to_know()
        );
        assert!(
            set.to_know()[1].starts_with("1 of 1 answers have words removed"),
            "{:?}",
            set.to_know()
        );
    }

    #[test]
    fn impressions_stand_in_where_both_are_asked_for() {
        let options = Options {
            section: Section::Both,
            ..Options::default()
        };
        let set = imitation().read_with(&options).unwrap();
        let answers: Vec<_> = set.records.iter().map(|one| one.answer.as_str()).collect();
        assert!(
            answers[0].ends_with("Lungs clear. Normal chest x-XXXX."),
            "{answers:?}"
        );
        assert_eq!(answers[1..], ["Large heart."]);
    }
}
