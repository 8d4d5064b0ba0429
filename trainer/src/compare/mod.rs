//! Methods side by side: every method with several learning rates, of which validation chooses one, then
//! with several seeds and shares of the data. In: a grid, and something that does a job. Out: one table.
//! It must not know how a job is done: that is [`work`], in a process of its own, so that its peak of
//! memory is its own.
//!
//! [`grid`]: what is compared. [`job`]: one run, its key and its result. [`ledger`]: results as JSON
//! lines; what stands there is not done again. [`tasks`]: lessons and held-out measures.
//! [`statistics`]: intervals and paired differences. [`table`], [`plot`]: what is written.

pub mod grid;
pub mod job;
pub mod ledger;
pub mod plot;
pub mod statistics;
pub mod table;
pub mod tasks;
pub mod work;

use anyhow::{Result, ensure};

use grid::{Entry, Grid};
use job::{Job, MeasureJob, Measured, Outcome, TrainJob, Trained};
use ledger::Ledger;

/// A method with one share of the data: the chosen rate, and a run a seed.
#[derive(Clone, Debug)]
pub struct Compared {
    /// What was tuned.
    pub entry: Entry,
    /// The share of the training images.
    pub share: f64,
    /// The learning rate that validation chose.
    pub rate: f64,
    /// Rates with the validation score of the first seed.
    pub tried: Vec<(f64, f64)>,
    /// One a seed.
    pub trained: Vec<Trained>,
    /// One a seed.
    pub measured: Vec<Measured>,
}

/// All that a table is made of.
#[derive(Clone, Debug)]
pub struct Comparison {
    /// The base itself.
    pub untouched: Measured,
    /// By share, then in the grid's order of methods.
    pub compared: Vec<Compared>,
}

/// Does what the ledger does not have yet. `say` gets a line for every job that is done.
pub fn run(
    grid: &Grid,
    ledger: &mut Ledger,
    mut job: impl FnMut(&Job) -> Result<Outcome>,
    mut say: impl FnMut(&str),
) -> Result<Comparison> {
    grid.check()?;
    let mut done = |label: &str, one: Job| -> Result<Outcome> {
        if let Some(known) = ledger.get(&one) {
            return Ok(known);
        }
        say(&format!("{label}: {one}"));
        let outcome = job(&one)?;
        ledger.add(&one, outcome)
    };
    let measure = |trained: Option<String>| Job::Measure(MeasureJob::new(grid, trained));
    let untouched = done("base", measure(None))?.measured()?;
    let mut compared = Vec::new();
    for share in &grid.shares {
        for entry in &grid.methods {
            let train = |rate: f64, seed: u64| TrainJob::new(grid, entry, *share, (rate, seed));
            let label = &entry.label;
            let mut tried = Vec::with_capacity(entry.rates.len());
            for rate in &entry.rates {
                let trained = done(label, Job::Train(train(*rate, grid.seeds[0])))?.trained()?;
                tried.push((*rate, trained.validation));
            }
            let rate = best(&tried)?;
            let (mut trained, mut measured) = (Vec::new(), Vec::new());
            for seed in &grid.seeds {
                let one = Job::Train(train(rate, *seed));
                let file = one.key();
                trained.push(done(label, one)?.trained()?);
                measured.push(done(label, measure(Some(file)))?.measured()?);
            }
            compared.push(Compared {
                entry: entry.clone(),
                share: *share,
                rate,
                tried,
                trained,
                measured,
            });
        }
    }
    Ok(Comparison {
        untouched,
        compared,
    })
}

/// The rate of the highest score, of equal ones the lowest rate.
fn best(tried: &[(f64, f64)]) -> Result<f64> {
    let mut tried = tried.to_vec();
    tried.sort_by(|one, two| one.0.total_cmp(&two.0));
    let mut best: Option<(f64, f64)> = None;
    for one in tried {
        if best.is_none_or(|best| one.1 > best.1) {
            best = Some(one);
        }
    }
    ensure!(best.is_some(), "a method has no learning rates");
    Ok(best.map_or(0.0, |best| best.0))
}

#[cfg(test)]
mod tests;
