//! Measures with intervals. In: counts, one pair an image. Out: values, 95 % intervals, and paired
//! differences. It knows no model and no task.
//!
//! Every measure is a ratio of two sums over images (accuracy: right answers by questions; micro F1: twice
//! what was found by twice that and what was wrong or missed). So one bootstrap serves all of them: whole
//! images are drawn, since answers about one image err together, and the same ones for both sides of a
//! difference. With several seeds a value is the mean over them; seeds are not drawn, so an interval
//! speaks of other images, not of other seeds.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use crate::phantom::score::Score;

/// A named ratio of sums over images.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Measure {
    /// What it is called in tables.
    pub name: String,
    /// Numerator and denominator of each image, in the held-out part's order.
    pub units: Vec<(u32, u32)>,
}

impl Measure {
    /// The ratio; `None` if nothing was counted.
    pub fn value(&self) -> Option<f64> {
        ratio(self.units.iter().copied())
    }
}

/// A measure by name, or the first one.
pub fn primary<'a>(measures: &'a [Measure], name: Option<&str>) -> Option<&'a Measure> {
    match name {
        Some(name) => measures.iter().find(|one| one.name == name),
        None => measures.first(),
    }
}

fn ratio(units: impl Iterator<Item = (u32, u32)>) -> Option<f64> {
    let (above, below) = units.fold((0u64, 0u64), |sum, one| {
        (sum.0 + u64::from(one.0), sum.1 + u64::from(one.1))
    });
    (below > 0).then(|| above as f64 / below as f64)
}

/// How often images are drawn.
const SAMPLES: usize = 2_000;
const SEED: u64 = 20;

/// Mean over runs, `n` images each.
fn mean(runs: &[&Measure], images: &[usize]) -> Option<f64> {
    let values: Option<Vec<f64>> = runs
        .iter()
        .map(|run| ratio(images.iter().map(|at| run.units[*at])))
        .collect();
    let values = values.filter(|values| !values.is_empty())?;
    Some(values.iter().sum::<f64>() / values.len() as f64)
}

/// Calls `of` with the images themselves and then with samples of them; returns the first value and the
/// 2.5 and 97.5 percentiles of the others with the share of them at or below and at or above zero.
fn bootstrap(n: usize, of: impl Fn(&[usize]) -> Option<f64>) -> Option<(Score, [f64; 2])> {
    let value = of(&(0..n).collect::<Vec<_>>())?;
    let mut rng = ChaCha8Rng::seed_from_u64(SEED);
    let mut samples: Vec<f64> = (0..SAMPLES)
        .filter_map(|_| of(&(0..n).map(|_| rng.random_range(0..n)).collect::<Vec<_>>()))
        .collect();
    samples.sort_by(f64::total_cmp);
    let last = samples.len().checked_sub(1)?;
    let at = |quantile: f64| samples[(quantile * last as f64).round() as usize];
    let share = |of: &dyn Fn(f64) -> bool| {
        samples.iter().filter(|one| of(**one)).count() as f64 / samples.len() as f64
    };
    let score = Score {
        value,
        low: at(0.025),
        high: at(0.975),
        n,
    };
    Some((score, [share(&|one| one <= 0.0), share(&|one| one >= 0.0)]))
}

/// The mean of runs over the same images, with its interval; `None` of nothing.
pub fn score(runs: &[&Measure]) -> Option<Score> {
    let n = images(runs)?;
    bootstrap(n, |images| mean(runs, images)).map(|found| found.0)
}

/// A difference of two means over the same images.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Difference {
    /// The difference with its interval.
    pub score: Score,
    /// How often a difference at least as far from zero would come by chance, two-sided.
    pub p: f64,
}

/// `these` less `those`, paired by image.
pub fn difference(these: &[&Measure], those: &[&Measure]) -> Option<Difference> {
    let n = images(these)?;
    if images(those)? != n {
        return None;
    }
    let of = |images: &[usize]| Some(mean(these, images)? - mean(those, images)?);
    let (score, [below, above]) = bootstrap(n, of)?;
    Some(Difference {
        score,
        p: (2.0 * below.min(above)).clamp(1.0 / SAMPLES as f64, 1.0),
    })
}

/// The number of images, if it is the same in all runs.
fn images(runs: &[&Measure]) -> Option<usize> {
    let n = runs.first()?.units.len();
    let same = runs.iter().all(|run| run.units.len() == n);
    (same && n > 0).then_some(n)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measure(units: impl IntoIterator<Item = (u32, u32)>) -> Measure {
        Measure {
            name: "all".into(),
            units: units.into_iter().collect(),
        }
    }

    #[test]
    fn an_interval_of_independent_answers_is_about_wilsons() {
        let hits = measure((0..400).map(|at| (u32::from(at % 4 != 0), 1)));
        let found = score(&[&hits]).unwrap();
        let wilson = crate::phantom::score::proportion(300, 400);
        assert_eq!(found.value, 0.75);
        assert!(
            (found.low - wilson.low).abs() < 0.01,
            "{found:?} {wilson:?}"
        );
        assert!(
            (found.high - wilson.high).abs() < 0.01,
            "{found:?} {wilson:?}"
        );
        assert_eq!(Some(found), score(&[&hits]));
    }

    #[test]
    fn answers_that_err_together_make_the_interval_wider() {
        let apart = measure((0..400).map(|at| (u32::from(at % 2 == 0), 1)));
        let together = measure((0..50).map(|at| (if at % 2 == 0 { 8 } else { 0 }, 8)));
        let width = |one: &Measure| {
            let found = score(&[one]).unwrap();
            found.high - found.low
        };
        assert!(width(&together) > 2.0 * width(&apart));
    }

    #[test]
    fn a_paired_difference_is_sharper_than_two_intervals() {
        // Whether an image is hard decides nearly everything; one method is right once more in ten.
        let one = measure((0..200).map(|at| (u32::from(at % 2 == 0), 1)));
        let two = measure((0..200).map(|at| (u32::from(at % 2 == 0 || at % 10 == 1), 1)));
        let found = difference(&[&two], &[&one]).unwrap();
        assert!((found.score.value - 0.1).abs() < 1e-12);
        assert!(found.score.low > 0.0 && found.p < 0.01, "{found:?}");
        let (one_alone, two_alone) = (score(&[&one]).unwrap(), score(&[&two]).unwrap());
        assert!(one_alone.high > two_alone.low);
        let none = difference(&[&one], &[&one]).unwrap();
        assert_eq!((none.score.low, none.score.high, none.p), (0.0, 0.0, 1.0));
    }

    #[test]
    fn seeds_are_averaged_and_other_images_refused() {
        let (all, none) = (measure([(1, 1), (1, 1)]), measure([(0, 1), (0, 1)]));
        assert_eq!(score(&[&all, &none]).unwrap().value, 0.5);
        let shorter = measure([(1, 1)]);
        assert_eq!(score(&[&all, &shorter]), None);
        assert_eq!(difference(&[&all], &[&shorter]), None);
        assert_eq!(score(&[&measure([(0, 0)])]), None);
    }
}
