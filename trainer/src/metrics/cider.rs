//! CIDEr-D (Vedantam et al., CVPR 2015), as pycocoevalcap computes what it calls CIDEr.
//!
//! In: words of predictions and references, one reference each. Out: a score for each, between 0 and 10,
//! of which a corpus has the mean. Weights come from these very references: the score of a text depends on
//! the corpus around it, and a corpus of one has 0.

use std::collections::HashMap;

use super::bleu::{MAX_ORDER, ngrams};

/// How fast a difference in length costs.
const SIGMA: f64 = 6.0;

/// The scores, in order.
pub fn cider_d(pairs: &[(Vec<String>, Vec<String>)]) -> Vec<f64> {
    let mut documents: HashMap<&[String], f64> = HashMap::new();
    for (_, reference) in pairs {
        for n in 1..=MAX_ORDER {
            for ngram in ngrams(reference, n).into_keys() {
                *documents.entry(ngram).or_default() += 1.0;
            }
        }
    }
    let size = (pairs.len() as f64).ln();
    let weights = |words, n| weigh(words, n, &documents, size);
    pairs
        .iter()
        .map(|(prediction, reference)| {
            let sum: f64 = (1..=MAX_ORDER)
                .map(|n| similarity(&weights(prediction, n), &weights(reference, n)))
                .sum();
            // The reference program takes the number of word pairs for the length.
            let pairs = |words: &[String]| words.len().saturating_sub(1) as f64;
            let apart = pairs(prediction) - pairs(reference);
            let penalty = (-(apart * apart) / (2.0 * SIGMA * SIGMA)).exp();
            10.0 * penalty * sum / MAX_ORDER as f64
        })
        .collect()
}

/// How often n-grams occur, each times the logarithm of how rare it is among the references.
type Weights<'a> = HashMap<&'a [String], f64>;

fn weigh<'a>(
    words: &'a [String],
    n: usize,
    documents: &HashMap<&[String], f64>,
    size: f64,
) -> Weights<'a> {
    let rarity = |ngram: &[String]| size - documents.get(ngram).map_or(0.0, |seen| seen.ln());
    ngrams(words, n)
        .into_iter()
        .map(|(ngram, count)| (ngram, count as f64 * rarity(ngram)))
        .collect()
}

/// The cosine, a prediction's weight counting no further than the reference's.
fn similarity(prediction: &Weights, reference: &Weights) -> f64 {
    let norm = |weights: &Weights| sum(weights.values().map(|weight| weight * weight)).sqrt();
    let norms = norm(prediction) * norm(reference);
    if norms == 0.0 {
        return 0.0;
    }
    let common = prediction.iter().filter_map(|(ngram, weight)| {
        let wanted = *reference.get(ngram)?;
        Some(weight.min(wanted) * wanted)
    });
    sum(common) / norms
}

/// A sum in an order of its own: maps have none that is the same on every run.
fn sum(terms: impl Iterator<Item = f64>) -> f64 {
    let mut terms: Vec<f64> = terms.collect();
    terms.sort_by(f64::total_cmp);
    terms.into_iter().sum()
}
