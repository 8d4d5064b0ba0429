//! What a run says: events on the way, and how it ended.

use thiserror::Error;

use crate::extras::Validated;

/// A run whose loss is no number any more.
#[derive(Clone, Copy, Debug, PartialEq, Error)]
#[error("the {what} is {loss}")]
pub struct Diverged {
    /// Which loss.
    pub what: &'static str,
    /// What it is.
    pub loss: f64,
}

impl Diverged {
    /// Fails where a loss is not finite.
    pub fn check(what: &'static str, loss: f64) -> Result<(), Self> {
        if loss.is_finite() {
            return Ok(());
        }
        Err(Self { what, loss })
    }
}

/// What a run tells while it goes on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Event {
    /// Before the first step.
    Start {
        /// Values that learn.
        trainable: usize,
        /// Values of the base.
        total: usize,
        /// Steps of the whole run.
        steps: usize,
        /// Steps that an earlier process did.
        resumed: usize,
    },
    /// After every step.
    Step {
        /// Steps done.
        done: usize,
        /// The loss before the step.
        loss: f64,
        /// The learning rate.
        rate: f64,
        /// The norm of the gradients before clipping.
        norm: f64,
        /// Answer tokens that were learnt from.
        tokens: usize,
        /// How long it took.
        seconds: f64,
    },
    /// After a validation.
    Validated {
        /// Steps done.
        done: usize,
        /// The loss.
        loss: f64,
        /// Whether it is the lowest so far.
        best: bool,
    },
    /// A checkpoint was written.
    Saved {
        /// Steps done.
        done: usize,
    },
    /// Validation losses have ended the run.
    StoppedEarly {
        /// Steps done.
        done: usize,
    },
}

/// A finished run.
#[derive(Debug)]
pub struct Tuned {
    /// The whole norm row, `[row_len]`: the base's values outside the scope.
    pub row: Vec<f32>,
    /// Loss of each step.
    pub losses: Vec<f64>,
    /// The values that the run moved, and all that it trained. Of what is attached to a base, tensors
    /// are taken as a whole.
    pub moved: (usize, usize),
    /// Seconds of each step.
    pub seconds: Vec<f64>,
    /// Validation losses.
    pub validated: Vec<Validated>,
}

/// How a run ended.
#[derive(Debug)]
pub enum Ended {
    /// By its recipe.
    Finished(Tuned),
    /// It was asked to stop.
    Stopped {
        /// Steps done.
        done: usize,
    },
}
