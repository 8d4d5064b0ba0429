//! Intervals of measures whose observations are not independent: several questions share an image.
//!
//! In: what each observation adds to a measure's sums, and which observations belong together. Out: the
//! measure with a 95 % interval, or the difference of two runs with one. It must not know what is
//! measured.

use std::collections::HashMap;
use std::hash::Hash;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

/// Resamples behind an interval.
pub const SAMPLES: usize = 2_000;

const SEED: u64 = 1;

/// Which observations fall together, such as all about one image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Clusters {
    of: Vec<usize>,
    count: usize,
}

impl Clusters {
    /// One key an observation; equal keys make a cluster.
    pub fn of<K: Eq + Hash>(keys: impl IntoIterator<Item = K>) -> Self {
        let mut numbers = HashMap::new();
        let of = keys
            .into_iter()
            .map(|key| {
                let next = numbers.len();
                *numbers.entry(key).or_insert(next)
            })
            .collect();
        Self {
            of,
            count: numbers.len(),
        }
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.count
    }
}

/// A measure as sums over observations, so that it can be taken again over any of them: a mean is two
/// sums, corpus BLEU ten.
#[derive(Clone, Debug)]
pub struct Measure {
    /// What each observation adds.
    terms: Vec<Vec<f64>>,
    value: fn(&[f64]) -> f64,
}

/// A value with its 95 % interval.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Estimate {
    pub value: f64,
    /// From the resampled clusters: their 2.5 % quantile.
    pub low: f64,
    /// Their 97.5 % quantile.
    pub high: f64,
    /// Observations.
    pub n: usize,
    /// Clusters that they fall into.
    pub clusters: usize,
}

/// How far one run lies above another on the same observations.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Difference {
    pub value: f64,
    /// From the resampled clusters, the same of both runs: their 2.5 % quantile.
    pub low: f64,
    /// Their 97.5 % quantile.
    pub high: f64,
    /// Share of the resamples in which the run does not lie above the other.
    pub not_above: f64,
}

impl Measure {
    /// `terms`: the same number of each observation. `value`: the measure, from the sums of the terms.
    pub fn new(terms: Vec<Vec<f64>>, value: fn(&[f64]) -> f64) -> Self {
        Self { terms, value }
    }

    /// The mean of one number an observation; 0 of none.
    pub fn mean(values: impl IntoIterator<Item = f64>) -> Self {
        let terms = values.into_iter().map(|value| vec![value, 1.0]).collect();
        Self::new(terms, |sums| ratio(sums[0], sums[1]))
    }

    /// The share of observations that hold.
    pub fn share(observations: impl IntoIterator<Item = bool>) -> Self {
        Self::mean(observations.into_iter().map(|one| f64::from(u8::from(one))))
    }

    /// Observations.
    pub fn len(&self) -> usize {
        self.terms.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.terms.is_empty()
    }

    /// The measure of all observations; 0 of none.
    pub fn value(&self) -> f64 {
        self.of(&self.sums(&Clusters::of(vec![(); self.len()])))
    }

    /// The measure with the percentile interval of [`SAMPLES`] draws of whole clusters, the same on every
    /// call. Of nothing it is 0 in `[0, 1]`.
    pub fn estimate(&self, clusters: &Clusters) -> Estimate {
        let (n, count) = (self.len(), clusters.count());
        if n == 0 {
            return Estimate {
                value: 0.0,
                low: 0.0,
                high: 1.0,
                n,
                clusters: count,
            };
        }
        let sums = self.sums(clusters);
        let drawn = draws(count).map(|draw| self.of(pick(&sums, &draw)));
        let (low, high) = quantiles(drawn.collect());
        Estimate {
            value: self.of(&sums),
            low,
            high,
            n,
            clusters: count,
        }
    }

    /// How far this run lies above `other` on the same observations, in the same order; every draw of
    /// clusters is taken of both.
    pub fn above(&self, other: &Self, clusters: &Clusters) -> Difference {
        let (own, others) = (self.sums(clusters), other.sums(clusters));
        let value = self.of(&own) - other.of(&others);
        if self.is_empty() {
            return Difference {
                value: 0.0,
                low: 0.0,
                high: 0.0,
                not_above: 1.0,
            };
        }
        let drawn: Vec<f64> = draws(clusters.count())
            .map(|draw| self.of(pick(&own, &draw)) - other.of(pick(&others, &draw)))
            .collect();
        let not_above = drawn.iter().filter(|value| **value <= 0.0).count() as f64;
        let (low, high) = quantiles(drawn);
        Difference {
            value,
            low,
            high,
            not_above: not_above / SAMPLES as f64,
        }
    }

    /// The sums of each cluster.
    fn sums(&self, clusters: &Clusters) -> Vec<Vec<f64>> {
        let width = self.terms.first().map_or(0, Vec::len);
        let mut sums = vec![vec![0.0; width]; clusters.count];
        for (terms, cluster) in self.terms.iter().zip(&clusters.of) {
            add(&mut sums[*cluster], terms);
        }
        sums
    }

    fn of<'s>(&self, sums: impl IntoIterator<Item = &'s Vec<f64>>) -> f64 {
        let mut sums = sums.into_iter();
        let Some(mut whole) = sums.next().cloned() else {
            return 0.0;
        };
        sums.for_each(|sum| add(&mut whole, sum));
        (self.value)(&whole)
    }
}

/// A quotient; 0 where there is nothing to divide by.
pub fn ratio(part: f64, whole: f64) -> f64 {
    if whole == 0.0 { 0.0 } else { part / whole }
}

fn add(sum: &mut [f64], terms: &[f64]) {
    for (sum, term) in sum.iter_mut().zip(terms) {
        *sum += term;
    }
}

/// The sums of the clusters of a draw.
fn pick<'s>(sums: &'s [Vec<f64>], draw: &'s [usize]) -> impl Iterator<Item = &'s Vec<f64>> {
    draw.iter().map(|at| &sums[*at])
}

/// Draws of `count` clusters with replacement.
fn draws(count: usize) -> impl Iterator<Item = Vec<usize>> {
    let mut rng = ChaCha8Rng::seed_from_u64(SEED);
    (0..SAMPLES).map(move |_| (0..count).map(|_| rng.random_range(0..count)).collect())
}

fn quantiles(mut drawn: Vec<f64>) -> (f64, f64) {
    drawn.sort_by(f64::total_cmp);
    let at = |quantile: f64| drawn[(quantile * (SAMPLES - 1) as f64).round() as usize];
    (at(0.025), at(0.975))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn independent_observations_have_about_wilsons_interval() {
        let hits = (0..400).map(|index| index % 4 != 0);
        let estimate = Measure::share(hits).estimate(&Clusters::of(0..400));
        let wilson = crate::phantom::score::proportion(300, 400);
        assert!((estimate.value - 0.75).abs() < 1e-12);
        assert!((estimate.low - wilson.low).abs() < 0.01, "{estimate:?}");
        assert!((estimate.high - wilson.high).abs() < 0.01, "{estimate:?}");
    }

    #[test]
    fn questions_that_err_together_widen_the_interval() {
        // Forty images of ten questions, all right or all wrong: as good as forty observations.
        let hits = || (0..400).map(|index| index / 10 % 4 != 0);
        let alone = Measure::share(hits()).estimate(&Clusters::of(0..400));
        let together =
            Measure::share(hits()).estimate(&Clusters::of((0..400).map(|index| index / 10)));
        assert_eq!((together.n, together.clusters), (400, 40));
        assert_eq!(alone.value, together.value);
        let (narrow, wide) = (alone.high - alone.low, together.high - together.low);
        // The square root of ten, the draws' own scatter aside.
        assert!(
            (2.6..3.8).contains(&(wide / narrow)),
            "{alone:?} {together:?}"
        );
    }

    #[test]
    fn runs_that_agree_on_most_questions_differ_by_less_than_their_intervals() {
        let clusters = Clusters::of((0..300).map(|index| index / 3));
        // The better run has every tenth image right besides, and is otherwise the same.
        let base = Measure::share((0..300).map(|index| index / 3 % 2 == 0));
        let better =
            Measure::share((0..300).map(|index| index / 3 % 2 == 0 || index / 3 % 10 == 1));
        let difference = better.above(&base, &clusters);
        assert!((difference.value - 0.1).abs() < 1e-12, "{difference:?}");
        assert!(
            difference.low > 0.03 && difference.high < 0.17,
            "{difference:?}"
        );
        assert!(difference.not_above < 0.01);
        let (one, other) = (base.estimate(&clusters), better.estimate(&clusters));
        assert!(
            one.high > other.low,
            "the intervals overlap: {one:?} {other:?}"
        );
        let same = base.above(&base, &clusters);
        assert_eq!(
            (same.value, same.low, same.high, same.not_above),
            (0.0, 0.0, 0.0, 1.0)
        );
    }

    #[test]
    fn a_measure_of_sums_is_taken_anew_for_every_draw() {
        // A ratio of sums is not the mean of ratios.
        let measure = Measure::new(vec![vec![1.0, 1.0], vec![0.0, 9.0]], |sums| {
            sums[0] / sums[1]
        });
        assert!((measure.value() - 0.1).abs() < 1e-12);
        let estimate = measure.estimate(&Clusters::of([0, 1]));
        assert_eq!((estimate.low, estimate.high), (0.0, 1.0));
    }

    #[test]
    fn nothing_measures_nothing() {
        let none = Measure::mean([]);
        assert!(none.is_empty() && none.value() == 0.0);
        let estimate = none.estimate(&Clusters::of(Vec::<u8>::new()));
        assert_eq!((estimate.low, estimate.high, estimate.n), (0.0, 1.0, 0));
    }
}
