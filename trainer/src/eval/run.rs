//! A whole evaluation: scores with baselines, calibration, and the difference to an earlier one.
//!
//! In: answered items. Out: values that serialise, the same for the same answers. It must not know how
//! answers were got.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use norma_adapters::manifest::Calibration;
use serde::{Deserialize, Serialize};

use super::scores::{Name, is_right, measures};
use super::{Answered, Item, Kind};
use crate::data::compare;
use crate::metrics::calibration::{
    FitError, Judged, Kept, Reliability, Sure, fit_temperature, fit_threshold, keep, reliability,
};
use crate::metrics::interval::{Difference, Estimate};
use crate::phantom::metrics::Summary;
use crate::phantom::score::proportion;

/// Everything that one evaluation found.
#[derive(Clone, Debug, Serialize)]
pub struct Run {
    pub about: About,
    pub scores: Vec<Scored>,
    /// Of questions; absent where there are none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub calibration: Option<Calibrated>,
    /// What the phantom world itself says, of its films.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub phantom: Option<Summary>,
    /// How far this run lies above an earlier one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub against: Option<Against>,
    pub answers: Vec<Answered>,
}

/// What was asked of whom.
#[derive(Clone, Debug, Serialize)]
pub struct About {
    pub set: String,
    pub part: String,
    /// Digest of the base.
    pub base: String,
    /// Generation of the adapter; none is the base itself.
    pub adapter: Option<String>,
    pub weights: String,
    pub kv_type: String,
    /// The most frequent answer of each kind, which the majority baseline always gives.
    pub majority: BTreeMap<Kind, String>,
    /// Where it is the most frequent.
    pub majority_of: String,
}

/// A measure with its intervals and its baselines.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Scored {
    pub name: Name,
    #[serde(flatten)]
    pub estimate: Estimate,
    /// Wilson's 95 % interval, which takes observations for independent; of shares only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wilson: Option<[f64; 2]>,
    /// Of always giving the most frequent answer.
    pub majority: Estimate,
    /// Of the model that is shown nothing; absent where it was not asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub blind: Option<Estimate>,
}

/// How far confidences can be trusted.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Calibrated {
    /// The adapter's, or 1.
    pub temperature: f32,
    pub reliability: Reliability,
    /// What the adapter's abstention threshold keeps; absent without calibration.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kept: Option<Kept>,
}

/// This run and an earlier one on the same questions.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Against {
    /// The earlier one.
    pub earlier: String,
    pub differences: Vec<(Name, Difference)>,
}

/// What is needed of an earlier run.
#[derive(Clone, Debug, Deserialize)]
pub struct Earlier {
    pub answers: Vec<Answered>,
}

/// The most frequent truth of each kind, as answers are compared; of equally frequent ones the first in
/// the alphabet.
pub fn majority<'t>(truths: impl IntoIterator<Item = (Kind, &'t str)>) -> BTreeMap<Kind, String> {
    let mut counts: BTreeMap<Kind, BTreeMap<String, usize>> = BTreeMap::new();
    for (kind, truth) in truths {
        *counts
            .entry(kind)
            .or_default()
            .entry(compare(truth))
            .or_default() += 1;
    }
    let most = |truths: BTreeMap<String, usize>| {
        let first = truths.into_iter().rev().max_by_key(|(_, count)| *count);
        first.map_or_else(String::new, |(truth, _)| truth)
    };
    counts
        .into_iter()
        .map(|(kind, truths)| (kind, most(truths)))
        .collect()
}

/// All measures of the answers, with the baselines.
pub fn scores(answers: &[Answered], majority: &BTreeMap<Kind, String>) -> Vec<Scored> {
    let items: Vec<&Item> = answers.iter().map(|one| &one.item).collect();
    let of = |texts: &[&str]| measures(&items, texts);
    let said = of(&texts(answers));
    let always = |kind| majority.get(&kind).map_or("", String::as_str);
    let constant = of(&items
        .iter()
        .map(|item| always(item.kind))
        .collect::<Vec<_>>());
    let unseeing: Option<Vec<&str>> = answers.iter().map(|one| one.blind.as_deref()).collect();
    let unseeing = unseeing.map(|texts| of(&texts));
    said.iter()
        .enumerate()
        .map(|(at, one)| {
            let estimate = one.measure.estimate(&one.clusters);
            let wilson = one.name.is_share().then(|| {
                let hits = (estimate.value * estimate.n as f64).round() as usize;
                let score = proportion(hits, estimate.n);
                [score.low, score.high]
            });
            Scored {
                name: one.name,
                estimate,
                wilson,
                majority: constant[at].measure.estimate(&one.clusters),
                blind: unseeing
                    .as_ref()
                    .map(|all| all[at].measure.estimate(&one.clusters)),
            }
        })
        .collect()
}

/// How far the confidences of questions can be trusted; `None` where there are no questions.
pub fn calibrated(answers: &[Answered], calibration: Option<&Calibration>) -> Option<Calibrated> {
    let judged = judged(answers);
    let temperature = calibration.map_or(1.0, |one| one.temperature);
    let sure: Vec<Sure> = judged.iter().map(|one| one.at(temperature)).collect();
    (!sure.is_empty()).then(|| Calibrated {
        temperature,
        reliability: reliability(&sure),
        kept: calibration.map(|one| keep(&sure, one.abstention_threshold)),
    })
}

/// A calibration, and what it does on the answers that it was fitted on.
#[derive(Clone, Debug, PartialEq)]
pub struct Fitted {
    pub calibration: Calibration,
    /// At temperature 1.
    pub before: Reliability,
    /// At the fitted temperature.
    pub after: Reliability,
    pub kept: Kept,
}

/// Fits a temperature, then a threshold above which a share of `accuracy` of the answers is right.
pub fn fit(answers: &[Answered], accuracy: f64) -> Result<Fitted, FitError> {
    let judged = judged(answers);
    let temperature = fit_temperature(&judged)?;
    let at = |temperature| -> Vec<Sure> { judged.iter().map(|one| one.at(temperature)).collect() };
    let (before, after) = (at(1.0), at(temperature));
    let kept = fit_threshold(&after, accuracy)?;
    Ok(Fitted {
        calibration: Calibration {
            temperature,
            abstention_threshold: kept.threshold,
        },
        before: reliability(&before),
        after: reliability(&after),
        kept,
    })
}

/// Measures this run against an earlier one, which must be on the same questions.
pub fn against(answers: &[Answered], earlier: &Earlier, name: &str) -> Result<Against> {
    ensure!(
        answers.len() == earlier.answers.len(),
        "{name} has {} answers, this run has {}",
        earlier.answers.len(),
        answers.len()
    );
    for (own, other) in answers.iter().zip(&earlier.answers) {
        ensure!(
            own.item == other.item,
            "{name} has question {} where this run has {}, or another question or truth there",
            other.item.id,
            own.item.id
        );
    }
    let items: Vec<&Item> = answers.iter().map(|one| &one.item).collect();
    let own = measures(&items, &texts(answers));
    let others = measures(&items, &texts(&earlier.answers));
    let pairs = own.iter().zip(&others);
    let differences =
        pairs.map(|(own, other)| (own.name, own.measure.above(&other.measure, &own.clusters)));
    Ok(Against {
        earlier: name.to_owned(),
        differences: differences.collect(),
    })
}

impl Earlier {
    /// Reads a file that holds what [`Run`] serialises to; also its name.
    pub fn read(path: &Path) -> Result<(Self, String)> {
        let name = path.display().to_string();
        let bytes = std::fs::read(path).with_context(|| format!("cannot read {name}"))?;
        Ok((Self::from_json(&bytes, &name)?, name))
    }

    /// Reads what [`Run`] serialises to.
    pub fn from_json(bytes: &[u8], name: &str) -> Result<Self> {
        serde_json::from_slice(bytes).with_context(|| format!("{name} is no run of `eval --json`"))
    }
}

fn texts(answers: &[Answered]) -> Vec<&str> {
    answers.iter().map(|one| one.prediction.as_str()).collect()
}

fn judged(answers: &[Answered]) -> Vec<Judged<'_>> {
    let questions = answers.iter().filter(|one| one.item.kind != Kind::Report);
    questions
        .map(|one| Judged {
            steps: &one.steps,
            right: is_right(&one.prediction, &one.item.reference),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answered(group: usize, reference: &str, prediction: &str, blind: &str) -> Answered {
        Answered {
            item: Item {
                id: group.to_string(),
                group: group.to_string(),
                kind: Kind::Closed,
                question: "Is it?".into(),
                reference: reference.into(),
            },
            prediction: prediction.into(),
            blind: Some(blind.into()),
            confidence: None,
            steps: Vec::new(),
        }
    }

    fn forty(right: impl Fn(usize) -> bool) -> Vec<Answered> {
        let one = |index: usize| {
            let (truth, lie) = if index.is_multiple_of(4) {
                ("yes", "no")
            } else {
                ("no", "yes")
            };
            answered(index, truth, if right(index) { truth } else { lie }, "yes")
        };
        (0..40).map(one).collect()
    }

    #[test]
    fn baselines_stand_beside_the_score() {
        let answers = forty(|index| index != 3);
        let truths = answers
            .iter()
            .map(|one| (one.item.kind, one.item.reference.as_str()));
        let majority = majority(truths);
        assert_eq!(majority[&Kind::Closed], "no");
        let scores = scores(&answers, &majority);
        let exact = scores
            .iter()
            .find(|one| one.name == Name::ExactClosed)
            .unwrap();
        assert_eq!(exact.estimate.value, 0.975);
        assert_eq!(exact.majority.value, 0.75);
        assert_eq!(exact.blind.unwrap().value, 0.25);
        let wilson = exact.wilson.unwrap();
        assert!(wilson[0] < 0.9 && wilson[1] < 1.0, "{wilson:?}");
    }

    #[test]
    fn a_run_is_held_against_what_it_wrote_before() {
        let (worse, better) = (forty(|index| index % 3 == 0), forty(|index| index % 3 != 1));
        let json = serde_json::json!({ "answers": worse, "scores": [] }).to_string();
        let earlier = Earlier::from_json(json.as_bytes(), "one.json").unwrap();
        let found = against(&better, &earlier, "one.json").unwrap();
        let exact = found
            .differences
            .iter()
            .find(|(name, _)| *name == Name::Exact)
            .unwrap()
            .1;
        assert!((exact.value - 0.325).abs() < 1e-12, "{exact:?}");
        assert!(exact.low > 0.0 && exact.not_above < 0.025, "{exact:?}");
        let refused = against(&better[1..], &earlier, "one.json")
            .unwrap_err()
            .to_string();
        assert!(
            refused.contains("has 40 answers, this run has 39"),
            "{refused}"
        );
        let mut other = better;
        other[5].item.reference = "perhaps".into();
        let refused = against(&other, &earlier, "one.json")
            .unwrap_err()
            .to_string();
        assert!(refused.contains("question 5"), "{refused}");
        assert!(Earlier::from_json(b"[]", "two.json").is_err());
    }
}
