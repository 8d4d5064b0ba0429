//! What a reader puts rows into. In: drafts of records or faults, with their places. Out: a
//! [`DataSet`]. It must not know layouts.

use std::collections::BTreeMap;

use super::deal::{self, Deal};
use super::readers::About;
use super::{
    AnswerType, DataError, DataSet, Image, Place, Problem, ProblemKind, Record, Split, compare,
};

/// What the person who names a set may choose about reading it.
#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    /// The language of sets that have several.
    pub language: String,
    /// What of a report is to be learnt, where a set tells sections apart.
    pub section: Section,
    /// How a set without a split is split, or any set when asked.
    pub deal: Deal,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            language: "en".into(),
            section: Section::default(),
            deal: Deal::default(),
        }
    }
}

/// A section of a report.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Section {
    /// What is seen.
    #[default]
    Findings,
    /// What it means.
    Impression,
    /// The findings, then the impression; one of them where the other is missing.
    Both,
}

impl Section {
    /// The text of this choice, out of a report's two sections.
    pub(super) fn of(
        self,
        findings: Result<String, ProblemKind>,
        impression: Result<String, ProblemKind>,
    ) -> Result<String, ProblemKind> {
        match self {
            Self::Findings => findings,
            Self::Impression => impression,
            Self::Both => match (findings, impression) {
                (Ok(findings), Ok(impression)) => Ok(format!("{findings} {impression}")),
                (Ok(one), Err(_)) | (Err(_), Ok(one)) => Ok(one),
                (Err(fault), Err(_)) => Err(fault),
            },
        }
    }
}

/// A record but for its place, with what was wrong and mended.
#[derive(Clone, Debug)]
pub(super) struct Draft {
    pub id: String,
    pub images: Vec<Image>,
    pub question: String,
    pub answer: String,
    pub answer_type: AnswerType,
    /// `None` where the set does not say.
    pub split: Option<Split>,
    pub group: String,
    pub language: String,
    /// Faults in spite of which the row is kept.
    pub notes: Vec<ProblemKind>,
}

/// Gathers rows.
pub struct Intake<'a> {
    pub options: &'a Options,
    about: About,
    drafts: Vec<(Place, Draft)>,
    problems: Vec<Problem>,
    remarks: Vec<String>,
}

impl<'a> Intake<'a> {
    pub(super) fn new(options: &'a Options, about: About) -> Self {
        Self {
            options,
            about,
            drafts: Vec::new(),
            problems: Vec::new(),
            remarks: Vec::new(),
        }
    }

    /// Takes in a row, be it good or not.
    pub(super) fn put(&mut self, place: &Place, draft: Result<Draft, ProblemKind>) {
        match draft {
            Ok(mut draft) => {
                for note in draft.notes.drain(..) {
                    self.note(place, note);
                }
                self.drafts.push((place.clone(), draft));
            }
            Err(kind) => self.note(place, kind),
        }
    }

    /// Lists a fault.
    pub(super) fn note(&mut self, place: &Place, kind: ProblemKind) {
        self.problems.push(Problem {
            place: place.clone(),
            kind,
        });
    }

    /// States something about the set as a whole.
    pub(super) fn remark(&mut self, text: impl Into<String>) {
        self.remarks.push(text.into());
    }

    /// The set. Rows without a split are dealt to splits if no row has one, else they are faulty.
    pub(super) fn finish(mut self) -> Result<DataSet, DataError> {
        let by = self.options.deal.by;
        let none = self.drafts.iter().all(|(_, draft)| draft.split.is_none());
        if by.is_some() || none {
            let drafts: Vec<&mut Draft> = self.drafts.iter_mut().map(|(_, one)| one).collect();
            if let Some(remark) = deal::deal(drafts, &self.options.deal, self.about.groups) {
                self.remarks.push(remark);
            }
        }
        let mut set = DataSet {
            about: self.about,
            records: Vec::with_capacity(self.drafts.len()),
            problems: self.problems,
            remarks: self.remarks,
        };
        let mut seen = Seen::new();
        for (place, draft) in self.drafts {
            match draft.split {
                Some(split) => push(&mut set, &mut seen, record(place, draft, split)),
                None => set.problems.push(Problem {
                    place,
                    kind: ProblemKind::Missing { field: "split" },
                }),
            }
        }
        set.sort_problems();
        if set.records.is_empty() && set.problems.is_empty() {
            return Err(DataError::Empty {
                what: "the set".into(),
            });
        }
        Ok(set)
    }
}

fn record(place: Place, draft: Draft, split: Split) -> Record {
    Record {
        id: draft.id,
        images: draft.images,
        question: draft.question,
        answer: draft.answer,
        answer_type: draft.answer_type,
        split,
        group: draft.group,
        language: draft.language,
        place,
    }
}

/// The first row and split of each image, question and answer.
type Seen = BTreeMap<(Image, String, String), (usize, Split)>;

/// Adds a record and notes where it repeats an earlier one.
fn push(set: &mut DataSet, seen: &mut Seen, record: Record) {
    let key = (
        record.shown().clone(),
        compare(&record.question),
        compare(&record.answer),
    );
    let this = (record.place.index, record.split);
    let first = *seen.entry(key).or_insert(this);
    if first != this {
        let kind = if first.1 == record.split {
            ProblemKind::Duplicate { first: first.0 }
        } else {
            ProblemKind::OtherSplit {
                first: first.0,
                split: first.1,
            }
        };
        set.problems.push(Problem {
            place: record.place.clone(),
            kind,
        });
    }
    set.records.push(record);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_section_is_chosen_or_joined() {
        let text = |text: &str| Ok(text.to_owned());
        let none = || Err(ProblemKind::Missing { field: "findings" });
        let both = Section::Both;
        assert_eq!(
            both.of(text("Clear."), text("Normal.")),
            text("Clear. Normal.")
        );
        assert_eq!(both.of(none(), text("Normal.")), text("Normal."));
        assert_eq!(both.of(none(), none()), none());
        assert_eq!(Section::Findings.of(none(), text("Normal.")), none());
        assert_eq!(
            Section::Impression.of(none(), text("Normal.")),
            text("Normal.")
        );
    }
}
