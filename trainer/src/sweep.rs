//! Variants of a recipe. In: a list such as `lr=0.01,0.05,scope=all,language,seed=1,2`. Out: one recipe for
//! every combination, with a name, and which of them validated best. It must not know how they are run.

use std::str::FromStr;

use norma_adapters::Scope;
use thiserror::Error;

use crate::run::Tuned;
use crate::tune::TuneRecipe;

/// What is varied.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sweep {
    rates: Vec<f64>,
    scopes: Vec<Scope>,
    seeds: Vec<u64>,
}

/// A list that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum SweepError {
    /// A value without a name before it.
    #[error(
        "`{0}` belongs to nothing: a sweep is written lr=0.01,0.05,scope=all,language,seed=1,2"
    )]
    NoKey(String),
    /// A name that is none of ours.
    #[error("`{0}` cannot be varied: a sweep has `lr`, `scope` and `seed`")]
    Key(String),
    /// A value that is none of its name.
    #[error("`{value}` is no value of `{key}`")]
    Value {
        /// The name.
        key: String,
        /// The value.
        value: String,
    },
    /// The same value twice.
    #[error("`{key}` has {value} twice")]
    Twice {
        /// The name.
        key: String,
        /// The value.
        value: String,
    },
}

impl FromStr for Sweep {
    type Err = SweepError;

    fn from_str(text: &str) -> Result<Self, SweepError> {
        let (mut sweep, mut key) = (Self::default(), None);
        for part in text.split(',').map(str::trim) {
            let value = match part.split_once('=') {
                Some((name, value)) => {
                    key = Some(name.trim());
                    value.trim()
                }
                None => part,
            };
            let key = key.ok_or_else(|| SweepError::NoKey(value.into()))?;
            match key {
                "lr" => push(&mut sweep.rates, key, value, |rate: &f64| {
                    rate.is_finite() && *rate > 0.0
                })?,
                "scope" => push(&mut sweep.scopes, key, value, |_| true)?,
                "seed" => push(&mut sweep.seeds, key, value, |_| true)?,
                _ => return Err(SweepError::Key(key.into())),
            }
        }
        Ok(sweep)
    }
}

fn push<T: FromStr + PartialEq>(
    values: &mut Vec<T>,
    key: &str,
    text: &str,
    fits: impl Fn(&T) -> bool,
) -> Result<(), SweepError> {
    let (key, value) = (key.to_owned(), text.to_owned());
    let Some(one) = text.parse().ok().filter(fits) else {
        return Err(SweepError::Value { key, value });
    };
    if values.contains(&one) {
        return Err(SweepError::Twice { key, value });
    }
    values.push(one);
    Ok(())
}

/// One combination.
#[derive(Clone, Debug, PartialEq)]
pub struct Variant {
    /// Its name, which may be a file's.
    pub name: String,
    /// Its recipe.
    pub recipe: TuneRecipe,
}

impl Sweep {
    /// All combinations; what is not varied is the recipe's.
    pub fn variants(&self, recipe: &TuneRecipe) -> Vec<Variant> {
        fn or<T: Copy>(values: &[T], own: T) -> Vec<T> {
            if values.is_empty() {
                vec![own]
            } else {
                values.to_vec()
            }
        }
        let mut variants = Vec::new();
        for scope in or(&self.scopes, recipe.scope) {
            for rate in or(&self.rates, recipe.schedule.peak) {
                for seed in or(&self.seeds, recipe.seed) {
                    let mut recipe = recipe.clone();
                    (recipe.scope, recipe.schedule.peak, recipe.seed) = (scope, rate, seed);
                    let name = format!("lr-{rate}-scope-{scope}-seed-{seed}");
                    variants.push(Variant { name, recipe });
                }
            }
        }
        variants
    }
}

/// The lowest validation loss of a run.
pub fn lowest(tuned: &Tuned) -> f64 {
    let losses = tuned.validated.iter().map(|one| one.loss);
    losses.fold(f64::INFINITY, f64::min)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::extras::{Extras, Validated};
    use crate::methods::Method;
    use crate::optimizer::{AdamConfig, Schedule};

    fn recipe() -> TuneRecipe {
        TuneRecipe {
            seed: 7,
            scope: Scope::All,
            method: Method::default(),
            images: 4,
            shards: 1,
            schedule: Schedule {
                peak: 0.5,
                warm_up: 0,
                steps: 1,
                floor: 0.1,
            },
            adam: AdamConfig::default(),
            clip: 1.0,
            checkpoint_layers: false,
            extras: Extras::default(),
        }
    }

    #[test]
    fn a_list_gives_every_combination() {
        let sweep: Sweep = "lr=0.01,5e-2,scope=all,language".parse().unwrap();
        let variants = sweep.variants(&recipe());
        let names: Vec<&str> = variants.iter().map(|one| one.name.as_str()).collect();
        let want = [
            "lr-0.01-scope-all-seed-7",
            "lr-0.05-scope-all-seed-7",
            "lr-0.01-scope-language-seed-7",
            "lr-0.05-scope-language-seed-7",
        ];
        assert_eq!(names, want);
        assert_eq!(variants[3].recipe.schedule.peak, 0.05);
        assert_eq!(variants[3].recipe.scope, Scope::Language);
        let seeds: Sweep = "seed=1,2".parse().unwrap();
        assert_eq!(seeds.variants(&recipe())[1].recipe.seed, 2);
    }

    #[test]
    fn a_list_that_makes_no_sense_is_refused() {
        let said = |text: &str| text.parse::<Sweep>().unwrap_err().to_string();
        assert!(said("0.1,0.2").contains("`0.1` belongs to nothing"));
        assert!(said("rank=8").contains("`rank` cannot be varied"));
        assert!(said("lr=-1").contains("`-1` is no value of `lr`"));
        assert!(said("scope=everything").contains("no value of `scope`"));
        assert!(said("seed=1,1").contains("has 1 twice"));
    }

    #[test]
    fn the_lowest_loss_counts() {
        let loss = |loss: f64| Validated { done: 1, loss };
        let mut tuned = Tuned {
            row: Vec::new(),
            losses: Vec::new(),
            moved: (0, 0),
            seconds: Vec::new(),
            validated: vec![loss(2.0), loss(1.0), loss(3.0)],
        };
        assert_eq!(lowest(&tuned), 1.0);
        tuned.validated.clear();
        assert_eq!(lowest(&tuned), f64::INFINITY);
    }
}
