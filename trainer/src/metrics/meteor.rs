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

/// METEOR of a corpus, from its sums of matches, chunks and lengths. Equal texts add no chunk, and the price
/// of the first chunks is steep: where one report in a hundred differs from its reference, a corpus already
/// loses more than ten points of a hundred. The program does so, and pycocoevalcap with it.
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

/// Words of a reference, each matched with one of the prediction or with none.
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
    /// The last match: a word of the prediction and one of the reference.
    last: Option<(usize, usize)>,
    /// Words of the prediction that are taken.
    taken: Vec<bool>,
}

impl Aligned {
    fn with(&self, said: usize, wanted: usize, same: bool) -> Self {
        let mut next = self.clone();
        next.same += usize::from(same);
        next.stemmed += usize::from(!same);
        let goes_on = next
            .last
            .is_some_and(|last| (last.0 + 1, last.1 + 1) == (said, wanted));
        next.chunks += usize::from(!goes_on);
        next.distance += said.abs_diff(wanted);
        next.last = Some((said, wanted));
        next.taken[said] = true;
        next
    }

    /// Of two alignments the smaller is better. The program counts matches in whole numbers, in which one of
    /// a stem alone is worth none; it decides where all else is equal.
    fn rank(&self) -> (Reverse<usize>, usize, Reverse<usize>, usize) {
        (
            Reverse(self.same),
            self.chunks,
            Reverse(self.stemmed),
            self.distance,
        )
    }
}

/// The best alignment that the program's search along the reference finds. Words that can only be matched
/// with each other are, whatever it costs in chunks.
fn align(prediction: &[String], reference: &[String], stemmer: &Stemmer) -> Aligned {
    let stem = |words: &[String]| -> Vec<String> {
        let stems = words.iter().map(|word| stemmer.stem(word).into_owned());
        stems.collect()
    };
    let (said_stems, wanted_stems) = (stem(prediction), stem(reference));
    let candidates: Vec<Vec<usize>> = wanted_stems
        .iter()
        .map(|wanted| {
            let places = (0..said_stems.len()).filter(|said| said_stems[*said] == *wanted);
            places.collect()
        })
        .collect();
    let mut suitors = vec![0; prediction.len()];
    for said in candidates.iter().flatten() {
        suitors[*said] += 1;
    }
    let mut paths = vec![Aligned {
        taken: vec![false; prediction.len()],
        ..Aligned::default()
    }];
    for (wanted, places) in candidates.iter().enumerate() {
        if places.is_empty() {
            continue;
        }
        let sure = matches!(places.as_slice(), [said] if suitors[*said] == 1);
        let mut next = Vec::with_capacity(paths.len() * (places.len() + 1));
        for path in paths {
            let free = places.iter().filter(|said| !path.taken[**said]);
            next.extend(free.map(|said| {
                let same = prediction[*said] == reference[wanted];
                path.with(*said, wanted, same)
            }));
            if !sure {
                next.push(path);
            }
        }
        next.sort_by_key(Aligned::rank);
        next.truncate(BEAM);
        paths = next;
    }
    paths.into_iter().next().unwrap_or_default()
}
