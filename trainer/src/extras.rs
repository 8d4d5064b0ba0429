//! What a run may do beyond AdamW on whole batches: accumulation, decay towards the first values, an
//! average of the values on the way, a validation loss that stops it. All off unless named. In: a
//! recipe's fields. Out: rules over numbers. It must not know models.

use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};

/// The options; the default is none of them.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Extras {
    /// Parts that a step's images are worked out in, one after the other: less memory, the same mean
    /// over all answer tokens.
    pub accumulate: usize,
    /// The share of the way back to its first value (a norm's: the base's) that a value is pulled by a
    /// unit of learning rate.
    pub decay: f64,
    /// Decay of an average of the values over the steps; what is validated and kept is then the average.
    pub average: Option<f64>,
    /// Lessons that are not learnt from say which values are kept.
    pub validation: Option<Validation>,
}

impl Default for Extras {
    fn default() -> Self {
        Self {
            accumulate: 1,
            decay: 0.0,
            average: None,
            validation: None,
        }
    }
}

impl Extras {
    /// Whether nothing is asked for.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// Fails where a number is out of its range.
    pub fn check(&self) -> Result<()> {
        let Self {
            accumulate,
            decay,
            average,
            validation,
        } = self;
        ensure!(*accumulate > 0, "`accumulate` is 0, at least 1 is needed");
        ensure!(
            decay.is_finite() && *decay >= 0.0,
            "`decay` is {decay}, at least 0 is needed"
        );
        if let Some(average) = average {
            ensure!(
                (0.0..1.0).contains(average),
                "`average` is {average}, it must be at least 0 and below 1"
            );
        }
        if let Some(Validation { every, patience }) = validation {
            ensure!(*every > 0, "`validation.every` is 0, at least 1 is needed");
            ensure!(
                *patience != Some(0),
                "`validation.patience` is 0, at least 1 is needed"
            );
        }
        Ok(())
    }
}

/// When the validation loss is taken, and when it stops the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Validation {
    /// Steps between two.
    pub every: usize,
    /// Losses in a row that are no better than the best before the run stops; none: it never does.
    #[serde(default)]
    pub patience: Option<usize>,
}

/// A validation loss, and after how many steps.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Validated {
    /// Steps done.
    pub done: usize,
    /// Mean over all answer tokens.
    pub loss: f64,
}

/// The place of the lowest loss, the first of them.
pub fn best(history: &[Validated]) -> Option<usize> {
    (0..history.len()).min_by(|a, b| history[*a].loss.total_cmp(&history[*b].loss))
}

impl Validation {
    /// Whether a loss is taken after `done` of `steps` steps.
    pub fn is_due(self, done: usize, steps: usize) -> bool {
        done > 0 && (done.is_multiple_of(self.every) || done == steps)
    }

    /// Whether the losses so far end the run.
    pub fn stops(self, history: &[Validated]) -> bool {
        let waited = best(history).map_or(0, |at| history.len() - 1 - at);
        self.patience.is_some_and(|patience| waited >= patience)
    }
}

/// One step of an average: `average` moves towards `value` by `1 - decay`. In the first steps less is
/// kept of the start, `(1 + step) / (10 + step)` at most; `step` counts from 1.
pub fn average(average: &mut [f32], value: &[f32], decay: f64, step: usize) {
    let ramp = (1.0 + step as f64) / (10.0 + step as f64);
    let share = (1.0 - decay.min(ramp)) as f32;
    for (average, value) in average.iter_mut().zip(value) {
        *average += share * (value - *average);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn history(losses: &[f64]) -> Vec<Validated> {
        let one = |(at, loss): (usize, &f64)| Validated {
            done: at + 1,
            loss: *loss,
        };
        losses.iter().enumerate().map(one).collect()
    }

    #[test]
    fn a_run_stops_when_patience_is_over() {
        let rule = |patience| Validation { every: 1, patience };
        let rising = history(&[3.0, 2.0, 2.5, 2.0]);
        assert_eq!(best(&rising), Some(1));
        assert!(rule(Some(2)).stops(&rising));
        assert!(!rule(Some(3)).stops(&rising));
        assert!(!rule(None).stops(&rising));
        assert!(!rule(Some(1)).stops(&history(&[3.0])));
        assert!(!rule(Some(1)).stops(&[]));
        assert_eq!(best(&[]), None);
    }

    #[test]
    fn validation_comes_every_so_often_and_at_the_end() {
        let rule = Validation {
            every: 4,
            patience: None,
        };
        let due: Vec<usize> = (0..=10).filter(|done| rule.is_due(*done, 10)).collect();
        assert_eq!(due, [4, 8, 10]);
    }

    #[test]
    fn an_average_is_the_weighted_sum_of_what_was_seen() {
        let (decay, seen) = (0.5, [4.0f64, 8.0, 2.0, 6.0]);
        let mut got = [1.0f32];
        let mut want = 1.0f64;
        for (at, value) in seen.iter().enumerate() {
            average(&mut got, &[*value as f32], decay, at + 1);
            let keep = decay.min([2.0 / 11.0, 3.0 / 12.0, 4.0 / 13.0, 5.0 / 14.0][at]);
            want = keep * want + (1.0 - keep) * value;
        }
        assert!((f64::from(got[0]) - want).abs() < 1e-5, "{got:?} {want}");
    }

    #[test]
    fn numbers_out_of_range_are_refused() {
        for (text, field) in [
            (r#"{"accumulate": 0}"#, "accumulate"),
            (r#"{"decay": -1}"#, "decay"),
            (r#"{"average": 1.0}"#, "average"),
            (r#"{"validation": {"every": 0}}"#, "every"),
            (r#"{"validation": {"every": 5, "patience": 0}}"#, "patience"),
        ] {
            let extras: Extras = serde_json::from_str(text).unwrap();
            let error = extras.check().unwrap_err().to_string();
            assert!(error.contains(field), "{error}");
        }
        assert!(Extras::default().check().is_ok());
    }
}
