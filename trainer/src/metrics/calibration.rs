//! How far confidences can be trusted, and what makes them more so.
//!
//! In: how sure a model was of each answer, and whether it was right. Out: the expected calibration error
//! with its bins; a temperature and an abstention threshold, fitted. It must not know how confidences come
//! about, but for [`norma::confidence`], which the server uses as well.

use norma::confidence;
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// An answer of which something can be learnt about confidence.
#[derive(Clone, Copy, Debug)]
pub struct Judged<'a> {
    /// The likeliest tokens' log probabilities at each token, as [`confidence::of_greedy`] takes them.
    pub steps: &'a [Vec<f32>],
    pub right: bool,
}

impl Judged<'_> {
    /// How sure the model was, at a temperature.
    pub fn at(&self, temperature: f32) -> Sure {
        let steps = self.steps.iter().map(Vec::as_slice);
        Sure {
            confidence: confidence::of_greedy(steps, temperature),
            right: self.right,
        }
    }
}

/// An answer's confidence, between 0 and 1, and whether it was right.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sure {
    pub confidence: f32,
    pub right: bool,
}

/// Bins of equal width that confidences are dealt to.
pub const BINS: usize = 10;

/// How confidences and correctness go together.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Reliability {
    /// Expected calibration error (Guo et al., ICML 2017): by how much confidence and accuracy of a bin
    /// differ, on average over the answers.
    pub ece: f64,
    /// Mean squared distance of confidence from 1 where the answer is right, from 0 where it is not.
    pub brier: f64,
    /// [`BINS`] of them, from unsure to sure.
    pub bins: Vec<Bin>,
}

/// Answers of similar confidence.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Bin {
    /// Confidences above this (or 0) and up to `high`.
    pub low: f64,
    pub high: f64,
    pub n: usize,
    /// Their mean confidence; 0 of none.
    pub confidence: f64,
    /// The share of right ones; 0 of none.
    pub accuracy: f64,
}

/// Deals answers to bins.
pub fn reliability(answers: &[Sure]) -> Reliability {
    let mean = |sum: f64, n: usize| if n == 0 { 0.0 } else { sum / n as f64 };
    let bins: Vec<Bin> = (0..BINS)
        .map(|bin| {
            let inside = || {
                answers
                    .iter()
                    .filter(move |one| bin_of(one.confidence) == bin)
            };
            let n = inside().count();
            Bin {
                low: bin as f64 / BINS as f64,
                high: (bin + 1) as f64 / BINS as f64,
                n,
                confidence: mean(inside().map(|one| f64::from(one.confidence)).sum(), n),
                accuracy: mean(inside().filter(|one| one.right).count() as f64, n),
            }
        })
        .collect();
    let off = bins
        .iter()
        .map(|bin| bin.n as f64 * (bin.confidence - bin.accuracy).abs());
    let squares = answers.iter().map(|one| {
        let truth = f64::from(u8::from(one.right));
        (f64::from(one.confidence) - truth).powi(2)
    });
    Reliability {
        ece: mean(off.sum(), answers.len()),
        brier: mean(squares.sum(), answers.len()),
        bins,
    }
}

fn bin_of(confidence: f32) -> usize {
    let above = (confidence * BINS as f32).ceil() as usize;
    above.saturating_sub(1).min(BINS - 1)
}

/// Why nothing could be fitted.
#[derive(Clone, Debug, PartialEq, Error)]
pub enum FitError {
    /// Of answers that are all right, or all wrong, nothing can be learnt.
    #[error("{right} of {n} answers are right: a temperature needs both right and wrong ones")]
    OneSided { right: usize, n: usize },
    /// The model is nowhere that sure.
    #[error(
        "no confidence keeps {least} answers or more of which {wanted} % are right; the best is {best} % of {answered} answers"
    )]
    Unreachable {
        /// Per cent.
        wanted: f64,
        /// Per cent.
        best: f64,
        answered: usize,
        least: usize,
    },
}

/// Temperatures are looked for between these.
const RANGE: (f64, f64) = (0.05, 20.0);
/// Steps of the first, coarse look.
const COARSE: usize = 60;
/// Halvings, about, of the last interval.
const FINE: usize = 30;

/// The temperature at which confidences are likeliest, given what was right: least mean of the negative
/// logarithm of the confidence of right answers and of one minus that of wrong ones.
pub fn fit_temperature(answers: &[Judged]) -> Result<f32, FitError> {
    let (right, n) = (
        answers.iter().filter(|one| one.right).count(),
        answers.len(),
    );
    if right == 0 || right == n {
        return Err(FitError::OneSided { right, n });
    }
    let (low, high) = (RANGE.0.ln(), RANGE.1.ln());
    let step = (high - low) / COARSE as f64;
    let at = |index: usize| low + step * index as f64;
    let loss = |log: f64| surprise(answers, log.exp() as f32);
    let losses: Vec<f64> = (0..=COARSE).map(|index| loss(at(index))).collect();
    let best = (0..=COARSE)
        .min_by(|one, other| losses[*one].total_cmp(&losses[*other]))
        .unwrap_or(COARSE / 2);
    let (mut from, mut to) = (at(best.saturating_sub(1)), at((best + 1).min(COARSE)));
    for _ in 0..FINE {
        let third = (to - from) / 3.0;
        if loss(from + third) <= loss(to - third) {
            to -= third;
        } else {
            from += third;
        }
    }
    Ok(f64::midpoint(from, to).exp() as f32)
}

/// Confidences of 0 and 1 would be infinitely wrong.
const LEAST: f64 = 1e-6;

/// Mean negative log likelihood of what was right.
pub fn surprise(answers: &[Judged], temperature: f32) -> f64 {
    let one = |answer: &Judged| {
        let confidence = f64::from(answer.at(temperature).confidence).clamp(LEAST, 1.0 - LEAST);
        -(if answer.right {
            confidence
        } else {
            1.0 - confidence
        })
        .ln()
    };
    answers.iter().map(one).sum::<f64>() / answers.len().max(1) as f64
}

/// What a threshold keeps.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Kept {
    /// Answers with a confidence below this are abstentions.
    pub threshold: f32,
    /// Answers that are given.
    pub answered: usize,
    /// Answers and abstentions.
    pub n: usize,
    /// Right ones among those given.
    pub right: usize,
}

/// Fewer answers than these prove no accuracy.
const LEAST_KEPT: usize = 10;

/// The threshold that keeps most answers, so that a share of `wanted` (0 to 1) of those kept is right.
/// 0 where all answers together are that good.
pub fn fit_threshold(answers: &[Sure], wanted: f64) -> Result<Kept, FitError> {
    let mut sorted = answers.to_vec();
    sorted.sort_by(|one, other| other.confidence.total_cmp(&one.confidence));
    let (mut right, mut kept, mut best) = (0, None, (0.0, 0));
    for (at, one) in sorted.iter().enumerate() {
        right += usize::from(one.right);
        let (answered, next) = (at + 1, sorted.get(at + 1));
        // Answers of the same confidence go together.
        let tied = next.is_some_and(|next| next.confidence == one.confidence);
        if tied || answered < LEAST_KEPT {
            continue;
        }
        let accuracy = right as f64 / answered as f64;
        if accuracy > best.0 {
            best = (accuracy, answered);
        }
        if accuracy >= wanted {
            let threshold = next.map_or(0.0, |next| between(next.confidence, one.confidence));
            kept = Some(Kept {
                threshold,
                answered,
                n: sorted.len(),
                right,
            });
        }
    }
    kept.ok_or(FitError::Unreachable {
        wanted: 100.0 * wanted,
        best: (1000.0 * best.0).round() / 10.0,
        answered: best.1,
        least: LEAST_KEPT,
    })
}

/// A number above `low` and not above `high`.
fn between(low: f32, high: f32) -> f32 {
    let middle = low + (high - low) / 2.0;
    if middle > low { middle } else { high }
}

/// What this threshold keeps of these answers.
pub fn keep(answers: &[Sure], threshold: f32) -> Kept {
    let given = || answers.iter().filter(|one| one.confidence >= threshold);
    Kept {
        threshold,
        answered: given().count(),
        n: answers.len(),
        right: given().filter(|one| one.right).count(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sure(pairs: &[(f32, bool)]) -> Vec<Sure> {
        let one = |&(confidence, right)| Sure { confidence, right };
        pairs.iter().map(one).collect()
    }

    #[test]
    fn calibration_error_is_the_bins_distance_from_the_truth() {
        // Two bins: 0.85 sure and half right, 0.25 sure and never right.
        let answers = sure(&[(0.85, true), (0.85, false), (0.25, false), (0.25, false)]);
        let found = reliability(&answers);
        assert!(
            (found.ece - (0.5 * 0.35 + 0.5 * 0.25)).abs() < 1e-6,
            "{found:?}"
        );
        let brier = (0.15f64.powi(2) + 0.85f64.powi(2) + 2.0 * 0.25f64.powi(2)) / 4.0;
        assert!((found.brier - brier).abs() < 1e-6);
        assert_eq!(found.bins.iter().map(|bin| bin.n).sum::<usize>(), 4);
        assert_eq!((found.bins[8].n, found.bins[2].n), (2, 2));
        assert_eq!(
            (bin_of(0.0), bin_of(1.0), bin_of(0.1), bin_of(0.11)),
            (0, 9, 0, 1)
        );
    }

    /// One token of two: the chosen one's logit lies `margin` above the other's.
    fn token(margin: f32) -> Vec<Vec<f32>> {
        let log = -(1.0 + (-margin).exp()).ln();
        vec![vec![log, log - margin]]
    }

    #[test]
    fn the_temperature_that_made_a_model_too_sure_is_found_again() {
        // Answers whose true chance to be right is sigmoid(margin), told with logits three times as large.
        let mut answers = Vec::new();
        for step in 1..=20u16 {
            let margin = f32::from(step) * 0.15;
            let chance = 1.0 / (1.0 + (-margin).exp());
            let right = (chance * 200.0).round() as usize;
            answers.extend((0..200).map(|index| (token(3.0 * margin), index < right)));
        }
        let judged: Vec<Judged> = answers
            .iter()
            .map(|(steps, right)| Judged {
                steps,
                right: *right,
            })
            .collect();
        let temperature = fit_temperature(&judged).unwrap();
        assert!((temperature - 3.0).abs() < 0.1, "{temperature}");
        let error = |temperature| {
            let answers: Vec<Sure> = judged.iter().map(|one| one.at(temperature)).collect();
            reliability(&answers).ece
        };
        assert!(error(1.0) > 0.1 && error(temperature) < 0.01);
        assert!(surprise(&judged, temperature) < surprise(&judged, 1.0));
        let right: Vec<Judged> = judged.iter().copied().filter(|one| one.right).collect();
        let refused = fit_temperature(&right).unwrap_err().to_string();
        assert!(refused.contains("needs both right and wrong"), "{refused}");
    }

    #[test]
    fn the_threshold_keeps_as_many_answers_as_the_accuracy_allows() {
        // The surest twenty are right, of the others every second is.
        let answers: Vec<Sure> = (0..60u16)
            .map(|index| Sure {
                confidence: 1.0 - f32::from(index) / 100.0,
                right: index < 20 || index % 2 == 0,
            })
            .collect();
        let kept = fit_threshold(&answers, 0.9).unwrap();
        assert!(kept.right as f64 >= 0.9 * kept.answered as f64);
        assert_eq!(keep(&answers, kept.threshold), kept);
        // One more answer, or two, would be too many.
        for more in 1..=2 {
            let threshold = answers[kept.answered + more - 1].confidence;
            let wider = keep(&answers, threshold);
            assert!(
                (wider.right as f64) < 0.9 * wider.answered as f64,
                "{wider:?}"
            );
        }
        assert_eq!(fit_threshold(&answers, 0.5).unwrap().threshold, 0.0);
        let never = sure(&[(0.9, false); 12]);
        let refused = fit_threshold(&never, 0.9).unwrap_err().to_string();
        assert!(
            refused.contains("90 % are right; the best is 0 %"),
            "{refused}"
        );
        // Answers of equal confidence cannot be told apart: all twenty or none.
        let mut tied = sure(&[(0.8, true); 10]);
        tied.extend(sure(&[(0.8, false); 10]));
        assert!(fit_threshold(&tied, 0.9).is_err());
    }
}
