//! METEOR (Denkowski and Lavie, WMT 2014) of English words, exact and stemmed, without its tables of
//! synonyms, paraphrases and function words.
//!
//! In: words of predictions and references. Out: a [`Measure`], whose value is the reference program's of
//! the same words with `-l en -lower -m "exact stem" -w "1.0 0.6" -p "0.85 0.2 0.6 0.5"`. Its defaults
//! (`-l en -norm`) also match synonyms and paraphrases and count function words a third; they give higher
//! numbers, which these must not be compared with.

use std::cmp::Reverse;

use rust_stemmers::{Algorithm, Stemmer};

use super::interval::{Measure, ratio};

/// What a match counts: of the same word, and of words of the same stem.
const WEIGHTS: [f64; 2] = [1.0, 0.6];
/// How much precision weighs against recall.
const ALPHA: f64 = 0.85;
/// How fast fragmentation costs, and how much at most.
const BETA: f64 = 0.2;
const GAMMA: f64 = 0.6;

/// Alignments that are followed at once.
const BEAM: usize = 40;

/// METEOR of a corpus, from its sums of matches, chunks and lengths.
pub fn meteor(pairs: &[(Vec<String>, Vec<String>)]) -> Measure {
    let stemmer = Stemmer::create(Algorithm::English);
    let terms = pairs.iter().map(|(prediction, reference)| {
        let Aligned {
            same,
            stemmed,
            chunks,
            ..
        } = align(prediction, reference, &stemmer);
        let lengths = [prediction.len(), reference.len()];
        // Texts that agree from end to end are in no pieces.
        let whole = chunks == 1 && lengths == [same + stemmed; 2];
        let chunks = if whole { 0 } else { chunks };
        let counts = [same, stemmed, chunks].into_iter().chain(lengths);
        counts.map(|count| count as f64).collect()
    });
    Measure::new(terms.collect(), value)
}

fn value(sums: &[f64]) -> f64 {
    let [same, stemmed, chunks, said, wanted] = sums else {
        return 0.0;
    };
    let (matches, weight) = (same + stemmed, WEIGHTS[0] * same + WEIGHTS[1] * stemmed);
    let (precision, recall) = (ratio(weight, *said), ratio(weight, *wanted));
    let mean = ratio(
        precision * recall,
        ALPHA * precision + (1.0 - ALPHA) * recall,
    );
    mean * (1.0 - GAMMA * ratio(*chunks, matches).powf(BETA))
}

/// Words of a prediction, each matched with one of the reference or with none.
#[derive(Clone, Debug, Default)]
struct Aligned {
    /// Matches of the same word.
    same: usize,
    /// Matches of the same stem.
    stemmed: usize,
    /// Runs of matches that are neighbours in both texts.
    chunks: usize,
    /// How far matched words lie apart, together.
    distance: usize,
    /// The last match.
    last: Option<(usize, usize)>,
    /// Words of the reference that are taken.
    taken: Vec<bool>,
}

impl Aligned {
    fn with(&self, at: usize, wanted: usize, same: bool) -> Self {
        let mut next = self.clone();
        next.same += usize::from(same);
        next.stemmed += usize::from(!same);
        let goes_on = next
            .last
            .is_some_and(|(said, word)| (said + 1, word + 1) == (at, wanted));
        next.chunks += usize::from(!goes_on);
        next.distance += at.abs_diff(wanted);
        next.last = Some((at, wanted));
        next.taken[wanted] = true;
        next
    }

    /// Of two alignments the smaller is better: most matches, fewest chunks, least distance.
    fn rank(&self) -> (Reverse<usize>, usize, usize) {
        (
            Reverse(self.same + self.stemmed),
            self.chunks,
            self.distance,
        )
    }
}

/// The best alignment that a search along the prediction finds.
fn align(prediction: &[String], reference: &[String], stemmer: &Stemmer) -> Aligned {
    let stem = |words: &[String]| -> Vec<String> {
        words
            .iter()
            .map(|word| stemmer.stem(word).into_owned())
            .collect()
    };
    let (said_stems, wanted_stems) = (stem(prediction), stem(reference));
    let mut paths = vec![Aligned {
        taken: vec![false; reference.len()],
        ..Aligned::default()
    }];
    for (at, word) in prediction.iter().enumerate() {
        let candidates: Vec<(usize, bool)> = (0..reference.len())
            .filter(|wanted| said_stems[at] == wanted_stems[*wanted])
            .map(|wanted| (wanted, *word == reference[wanted]))
            .collect();
        if candidates.is_empty() {
            continue;
        }
        let mut next = Vec::with_capacity(paths.len() * (candidates.len() + 1));
        for path in paths {
            let free = candidates.iter().filter(|(wanted, _)| !path.taken[*wanted]);
            next.extend(free.map(|(wanted, same)| path.with(at, *wanted, *same)));
            next.push(path);
        }
        next.sort_by_key(Aligned::rank);
        next.truncate(BEAM);
        paths = next;
    }
    paths.into_iter().next().unwrap_or_default()
}
