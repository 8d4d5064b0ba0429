//! Which measures are taken of which items. In: items with a text each. Out: the measures by name, ready
//! to be resampled. It must not know who said the texts.

use serde::{Deserialize, Serialize};

use super::{Item, Kind};
use crate::data::compare;
use crate::metrics::interval::{Clusters, Measure};
use crate::metrics::{bleu, cider, llava_med, meteor, rouge, words};

/// A measure by its name.
#[derive(Clone, Debug)]
pub struct Named {
    pub name: Name,
    pub measure: Measure,
    /// The images that its observations fall into.
    pub clusters: Clusters,
}

macro_rules! names {
    ($($variant:ident $word:literal $about:literal,)*) => {
        /// The measures.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        pub enum Name {
            $(#[doc = $about] #[serde(rename = $word)] $variant,)*
        }

        impl Name {
            /// In tables.
            pub fn about(self) -> &'static str {
                match self {
                    $(Self::$variant => $about,)*
                }
            }
        }
    };
}

names! {
    ExactClosed "exact_closed" "closed, exact",
    ExactOpen "exact_open" "open, exact",
    Exact "exact" "all questions, exact",
    LlavaMedClosed "llava_med_closed" "closed, LLaVA-Med's script",
    LlavaMedRecall "llava_med_open_recall" "open recall, LLaVA-Med's script",
    LlavaMedF1 "llava_med_open_f1" "open F1, LLaVA-Med's script",
    LlavaMedPrecision "llava_med_open_precision" "open precision, LLaVA-Med's script",
    LlavaMedExact "llava_med_open_exact" "open \"exact match\", LLaVA-Med's script",
    ReportExact "report_exact" "report, word for word",
    Bleu1 "bleu_1" "BLEU-1",
    Bleu2 "bleu_2" "BLEU-2",
    Bleu3 "bleu_3" "BLEU-3",
    Bleu4 "bleu_4" "BLEU-4",
    RougeL "rouge_l" "ROUGE-L, F1",
    RougeLCoco "rouge_l_coco" "ROUGE-L, pycocoevalcap",
    Meteor "meteor" "METEOR, exact and stem",
    CiderD "cider_d" "CIDEr-D",
}

impl Name {
    /// Whether each observation holds or not, so that Wilson's interval applies.
    pub fn is_share(self) -> bool {
        matches!(
            self,
            Self::ExactClosed
                | Self::ExactOpen
                | Self::Exact
                | Self::LlavaMedClosed
                | Self::ReportExact
        )
    }

    /// Whether it lies between 0 and 1. CIDEr-D goes to 10.
    pub fn is_fraction(self) -> bool {
        self != Self::CiderD
    }
}

/// Whether an answer is the truth, case, blanks and a final full stop aside.
pub fn is_right(text: &str, reference: &str) -> bool {
    compare(text) == compare(reference)
}

/// The measures that apply to these items, `texts[i]` being what was said to `items[i]`.
pub fn measures(items: &[&Item], texts: &[&str]) -> Vec<Named> {
    let of = |wanted: &[Kind]| -> Vec<(&Item, &str)> {
        let pairs = items.iter().copied().zip(texts.iter().copied());
        pairs
            .filter(|(item, _)| wanted.contains(&item.kind))
            .collect()
    };
    let (closed, open) = (of(&[Kind::Closed]), of(&[Kind::Open]));
    let questions = of(&[Kind::Closed, Kind::Open]);
    let mut found = Vec::new();
    let mut add = |name: Name, pairs: &[(&Item, &str)], measure: Measure| {
        if !pairs.is_empty() {
            let clusters = Clusters::of(pairs.iter().map(|(item, _)| item.group.as_str()));
            found.push(Named {
                name,
                measure,
                clusters,
            });
        }
    };
    let exact = |pairs: &[(&Item, &str)]| {
        Measure::share(
            pairs
                .iter()
                .map(|(item, text)| is_right(text, &item.reference)),
        )
    };
    add(Name::ExactClosed, &closed, exact(&closed));
    add(Name::ExactOpen, &open, exact(&open));
    add(Name::Exact, &questions, exact(&questions));
    let hits = closed
        .iter()
        .map(|(item, text)| llava_med::closed(text, &item.reference));
    add(Name::LlavaMedClosed, &closed, Measure::share(hits));
    let scores: Vec<llava_med::Open> = open
        .iter()
        .map(|(item, text)| llava_med::open(text, &item.reference))
        .collect();
    let mean = |of: fn(&llava_med::Open) -> f64| Measure::mean(scores.iter().map(of));
    add(Name::LlavaMedRecall, &open, mean(|one| one.recall));
    add(Name::LlavaMedF1, &open, mean(|one| one.f1));
    add(Name::LlavaMedPrecision, &open, mean(|one| one.precision));
    add(Name::LlavaMedExact, &open, mean(|one| one.exact));

    let reports = of(&[Kind::Report]);
    add(Name::ReportExact, &reports, exact(&reports));
    for (name, measure) in report_measures(&reports) {
        add(name, &reports, measure);
    }
    found
}

fn report_measures(reports: &[(&Item, &str)]) -> Vec<(Name, Measure)> {
    let cut = |how: fn(&str) -> Vec<String>| -> Vec<(Vec<String>, Vec<String>)> {
        let pairs = reports.iter();
        pairs
            .map(|(item, text)| (how(text), how(&item.reference)))
            .collect()
    };
    let (words, runs) = (cut(words::treebank), cut(words::alphanumeric));
    let mean = |pairs: &[(Vec<String>, Vec<String>)], score: fn(&[String], &[String]) -> f64| {
        Measure::mean(pairs.iter().map(|(said, wanted)| score(said, wanted)))
    };
    let orders = [Name::Bleu1, Name::Bleu2, Name::Bleu3, Name::Bleu4];
    let bleu = orders
        .into_iter()
        .zip(1..)
        .map(|(name, order)| (name, bleu::bleu(&words, order)));
    bleu.chain([
        (Name::RougeL, mean(&runs, rouge::f1)),
        (Name::RougeLCoco, mean(&words, rouge::coco)),
        (Name::Meteor, meteor::meteor(&words)),
        (Name::CiderD, Measure::mean(cider::cider_d(&words))),
    ])
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(group: &str, kind: Kind, reference: &str) -> Item {
        Item {
            id: String::new(),
            group: group.into(),
            kind,
            question: String::new(),
            reference: reference.into(),
        }
    }

    #[test]
    fn each_measure_is_taken_of_the_items_that_it_is_for() {
        let items = [
            item("a", Kind::Closed, "no"),
            item("a", Kind::Open, "Left lung."),
            item("b", Kind::Closed, "yes"),
            item("b", Kind::Report, "The lungs are clear."),
        ];
        let texts = ["normal", "left lung", "Yes", "The lungs are clear."];
        let found = measures(&items.iter().collect::<Vec<_>>(), &texts);
        let value = |name: Name| {
            let one = found.iter().find(|one| one.name == name).unwrap();
            (one.measure.value(), one.measure.len(), one.clusters.count())
        };
        // The script finds a `no` in `normal`.
        assert_eq!(value(Name::ExactClosed), (0.5, 2, 2));
        assert_eq!(value(Name::LlavaMedClosed), (1.0, 2, 2));
        assert_eq!(value(Name::ExactOpen), (1.0, 1, 1));
        assert_eq!(value(Name::Exact).1, 3);
        assert_eq!(value(Name::ReportExact), (1.0, 1, 1));
        assert_eq!(value(Name::RougeL).0, 1.0);
        assert_eq!(value(Name::Meteor).0, 1.0);
        assert!((value(Name::Bleu4).0 - 1.0).abs() < 1e-8);
        let questions = measures(&[&items[0]], &["no"]);
        assert!(questions.iter().all(|one| one.name < Name::ReportExact));
    }
}
