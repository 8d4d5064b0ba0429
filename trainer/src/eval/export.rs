//! Predictions as tables for programs that judge reports by their content.
//!
//! In: answered items. Out: CSV. It must not know those programs, but for the columns that they read:
//!
//! - RadGraph's `F1RadGraph` and GREEN take two lists: columns `reference` and `prediction` of [`all`].
//! - CheXbert's `label.py` reads the column `Report Impression`, and CXR-Report-Metric (CheXbert
//!   similarity, RadGraph F1, RadCliQ) `study_id` and `report`, each from a table of truths and a table of
//!   predictions: [`reports`].

use anyhow::Result;

use super::{Answered, Kind};

/// Whose text a table of [`reports`] has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whose {
    Reference,
    Prediction,
}

/// Everything that was asked, one row an item: `id`, `group`, `kind`, `question`, `reference`,
/// `prediction`, `confidence`.
pub fn all(answers: &[Answered]) -> Result<Vec<u8>> {
    let mut table = csv::Writer::from_writer(Vec::new());
    table.write_record([
        "id",
        "group",
        "kind",
        "question",
        "reference",
        "prediction",
        "confidence",
    ])?;
    for one in answers {
        let Answered {
            item,
            prediction,
            confidence,
            ..
        } = one;
        let kind = match item.kind {
            Kind::Closed => "closed",
            Kind::Open => "open",
            Kind::Report => "report",
        };
        let confidence = confidence.map(|one| one.to_string()).unwrap_or_default();
        table.write_record([
            &item.id,
            &item.group,
            kind,
            &item.question,
            &item.reference,
            prediction,
            &confidence,
        ])?;
    }
    Ok(table.into_inner()?)
}

/// The reports alone: `study_id`, `report`, and the report again as `Report Impression`. `None` where
/// there are no reports.
pub fn reports(answers: &[Answered], whose: Whose) -> Result<Option<Vec<u8>>> {
    let mut table = csv::Writer::from_writer(Vec::new());
    table.write_record(["study_id", "report", "Report Impression"])?;
    let mut any = false;
    for one in answers.iter().filter(|one| one.item.kind == Kind::Report) {
        let text = match whose {
            Whose::Reference => &one.item.reference,
            Whose::Prediction => &one.prediction,
        };
        table.write_record([&one.item.id, text, text])?;
        any = true;
    }
    Ok(if any { Some(table.into_inner()?) } else { None })
}

#[cfg(test)]
mod tests {
    use super::super::Item;
    use super::*;

    #[test]
    fn texts_with_commas_quotes_and_lines_survive() {
        let answered = |id: &str, kind, reference: &str, prediction: &str| Answered {
            item: Item {
                id: id.into(),
                group: "g".into(),
                kind,
                question: "Which?".into(),
                reference: reference.into(),
            },
            prediction: prediction.into(),
            blind: None,
            confidence: Some(0.5),
            steps: Vec::new(),
        };
        let answers = [
            answered(
                "1",
                Kind::Report,
                "Clear.\nNo \"effusion\".",
                "Clear, no effusion.",
            ),
            answered("2", Kind::Open, "left", "right"),
        ];
        let bytes = all(&answers).unwrap();
        let mut table = csv::Reader::from_reader(bytes.as_slice());
        let rows: Vec<csv::StringRecord> = table.records().map(Result::unwrap).collect();
        assert_eq!(&rows[0][4], "Clear.\nNo \"effusion\".");
        assert_eq!(
            (&rows[1][2], &rows[1][5], &rows[1][6]),
            ("open", "right", "0.5")
        );
        let bytes = reports(&answers, Whose::Prediction).unwrap().unwrap();
        let mut table = csv::Reader::from_reader(bytes.as_slice());
        assert_eq!(
            table.headers().unwrap(),
            vec!["study_id", "report", "Report Impression"]
        );
        let rows: Vec<csv::StringRecord> = table.records().map(Result::unwrap).collect();
        assert_eq!(
            rows,
            [vec!["1", "Clear, no effusion.", "Clear, no effusion."]]
        );
        assert!(reports(&answers[1..], Whose::Reference).unwrap().is_none());
    }
}
