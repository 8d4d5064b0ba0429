//! BLEU-1 to BLEU-4 of a corpus (Papineni et al., ACL 2002), as pycocoevalcap computes it.
//!
//! In: words of predictions and references, one reference each. Out: a [`Measure`]. It must not know how
//! texts become words.

use std::collections::HashMap;

use super::interval::Measure;

/// The longest n-grams that are counted.
pub const MAX_ORDER: usize = 4;

/// pycocoevalcap adds these to numerators and denominators, so that a corpus without a common n-gram has a
/// score near 0 and no division by 0.
const TINY: f64 = 1e-15;
const SMALL: f64 = 1e-9;

/// Corpus BLEU up to n-grams of `order` (1 to 4) words, between 0 and 1.
pub fn bleu(pairs: &[(Vec<String>, Vec<String>)], order: usize) -> Measure {
    let terms = pairs
        .iter()
        .map(|(prediction, reference)| terms(prediction, reference));
    let value: fn(&[f64]) -> f64 = match order {
        1 => |sums| value(sums, 1),
        2 => |sums| value(sums, 2),
        3 => |sums| value(sums, 3),
        _ => |sums| value(sums, MAX_ORDER),
    };
    Measure::new(terms.collect(), value)
}

/// How often each n-gram occurs.
pub fn ngrams(words: &[String], n: usize) -> HashMap<&[String], usize> {
    let mut counts = HashMap::new();
    for ngram in words.windows(n) {
        *counts.entry(ngram).or_default() += 1;
    }
    counts
}

/// For each order the n-grams in common and those of the prediction; then both lengths.
fn terms(prediction: &[String], reference: &[String]) -> Vec<f64> {
    let mut terms = Vec::with_capacity(2 * MAX_ORDER + 2);
    for n in 1..=MAX_ORDER {
        let wanted = ngrams(reference, n);
        let common: usize = ngrams(prediction, n)
            .into_iter()
            .map(|(ngram, count)| count.min(wanted.get(ngram).copied().unwrap_or(0)))
            .sum();
        terms.push(common as f64);
        terms.push((prediction.len() + 1).saturating_sub(n) as f64);
    }
    terms.push(prediction.len() as f64);
    terms.push(reference.len() as f64);
    terms
}

fn value(sums: &[f64], order: usize) -> f64 {
    let product: f64 = (0..order)
        .map(|n| (sums[2 * n] + TINY) / (sums[2 * n + 1] + SMALL))
        .product();
    let (said, wanted) = (sums[2 * MAX_ORDER], sums[2 * MAX_ORDER + 1]);
    let length = (said + TINY) / (wanted + SMALL);
    let brevity = if length < 1.0 {
        (1.0 - 1.0 / length).exp()
    } else {
        1.0
    };
    product.powf(1.0 / order as f64) * brevity
}
