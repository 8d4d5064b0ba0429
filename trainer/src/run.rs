//! A whole run: a recipe's steps, its validation losses and checkpoints, and what it says on the way.
//!
//! In: a frozen base, lessons, a recipe, and where to keep checkpoints. Out: the tuned norm row; what
//! the base has attached has moved in place. A run that was cut off at any step and goes on gives the
//! bytes of one that was not. It must not know files' formats or terminals.

mod identity;
mod told;

use std::cell::OnceCell;
use std::time::Instant;

use anyhow::{Result, bail, ensure};
use norma::model::MedVlm;

use crate::checkpoint::{Identity, Keeper, SlotState, State};
use crate::extras::{Validated, average, best};
use crate::frozen::FrozenBase;
use crate::lesson::Lesson;
use crate::order::Order;
use crate::tune::{Prepared, TuneRecipe, Tuner};
use identity::identity;
pub use told::{Diverged, Ended, Event, Tuned};

/// What is learnt from, and what only measures. Image features that no run changes are computed once for
/// all runs on the same lessons and base.
pub struct Lessons<'l> {
    train: &'l [Lesson],
    validation: &'l [Lesson],
    features: OnceCell<[Vec<Prepared<'l>>; 2]>,
}

impl<'l> Lessons<'l> {
    /// `validation` may be empty if no recipe asks for a validation loss.
    pub fn new(train: &'l [Lesson], validation: &'l [Lesson]) -> Self {
        Self {
            train,
            validation,
            features: OnceCell::new(),
        }
    }

    fn prepare(&self, tuner: &Tuner) -> Result<[Vec<Prepared<'l>>; 2]> {
        Ok([tuner.prepare(self.train)?, tuner.prepare(self.validation)?])
    }
}

/// What stands around a run.
pub struct Around<'a> {
    /// Where checkpoints go.
    pub keeper: Option<&'a Keeper>,
    /// Whether the run should stop now.
    pub stop: &'a dyn Fn() -> bool,
    /// Gets what happens; an error ends the run.
    pub report: &'a mut dyn FnMut(&Event) -> Result<()>,
}

/// Runs a recipe on lessons, from the start to the end and without checkpoints. What the base has
/// attached is moved in place, so a second run needs a base of its own.
pub fn tune(
    base: &FrozenBase,
    lessons: &[Lesson],
    recipe: &TuneRecipe,
    mut report: impl FnMut(Event),
) -> Result<Tuned> {
    let around = Around {
        keeper: None,
        stop: &|| false,
        report: &mut |event| {
            report(*event);
            Ok(())
        },
    };
    match run(base, &Lessons::new(lessons, &[]), recipe, around)? {
        Ended::Finished(tuned) => Ok(tuned),
        Ended::Stopped { done } => bail!("stopped after {done} steps"),
    }
}

/// Runs a recipe, or what a checkpoint has left of it.
pub fn run(
    base: &FrozenBase,
    lessons: &Lessons,
    recipe: &TuneRecipe,
    around: Around,
) -> Result<Ended> {
    check(lessons, recipe)?;
    // A step of fewer images than shards would leave cores idle.
    let shards = recipe.shards.min(recipe.images);
    let mut tuner = Tuner::new(base, &recipe.choice(), recipe.adam, shards)?;
    tuner.checkpoint_layers(recipe.checkpoint_layers);
    let before = base.weights_digest()?;
    let own;
    let [train, validation] = if tuner.learns_vision() {
        own = lessons.prepare(&tuner)?;
        &own
    } else if let Some(kept) = lessons.features.get() {
        kept
    } else {
        let made = lessons.prepare(&tuner)?;
        lessons.features.get_or_init(|| made)
    };
    if recipe.extras.decay > 0.0 {
        tuner.decay_to_start(recipe.extras.decay)?;
    }
    let mut order = Order::new(train.len(), recipe.seed);
    tuner.check_reach(&draw(&mut order, train, recipe.images))?;
    let mut run = Run {
        state: State {
            slots: start_slots(&tuner, recipe.extras.average.is_some())?,
            ..State::default()
        },
        tuner,
        recipe,
        identity: match around.keeper {
            Some(_) => Some(identity(base, lessons, recipe)?),
            None => None,
        },
        around,
        saved: None,
    };
    run.resume()?;
    (run.around.report)(&Event::Start {
        trainable: run.tuner.n_trainable(),
        total: base.n_values(),
        steps: recipe.schedule.steps,
        resumed: run.state.done(),
    })?;
    for _ in 0..run.state.done() {
        draw(&mut order, train, recipe.images);
    }
    while !run.is_over()? {
        if (run.around.stop)() {
            run.save()?;
            let done = run.state.done();
            return Ok(Ended::Stopped { done });
        }
        run.step(&draw(&mut order, train, recipe.images))?;
        run.validate(validation)?;
        if run
            .around
            .keeper
            .is_some_and(|keeper| keeper.is_due(run.state.done()))
        {
            run.save()?;
        }
    }
    run.save()?;
    run.keep_best()?;
    ensure!(
        base.weights_digest()? == before,
        "a frozen tensor changed while others were tuned"
    );
    run.finish(base).map(Ended::Finished)
}

fn check(lessons: &Lessons, recipe: &TuneRecipe) -> Result<()> {
    ensure!(
        !lessons.train.is_empty(),
        "there is nothing to learn from: no lessons"
    );
    ensure!(
        recipe.images > 0 && recipe.schedule.steps > 0,
        "a run needs images and steps"
    );
    recipe.extras.check()?;
    ensure!(
        recipe.extras.validation.is_none() || !lessons.validation.is_empty(),
        "the recipe asks for a validation loss, and there are no lessons for it"
    );
    Ok(())
}

/// What is remembered of the variables before the first step.
fn start_slots(tuner: &Tuner, averaged: bool) -> Result<Vec<SlotState>> {
    let mut slots = tuner.slots()?;
    for slot in &mut slots {
        slot.average = averaged.then(|| slot.value.clone());
        slot.forget();
    }
    Ok(slots)
}

fn draw<'p, 'l>(
    order: &mut Order,
    lessons: &'p [Prepared<'l>],
    images: usize,
) -> Vec<&'p Prepared<'l>> {
    (0..images).map(|_| &lessons[order.draw()]).collect()
}

/// A run under way.
struct Run<'a, 'b> {
    tuner: Tuner<'a>,
    recipe: &'a TuneRecipe,
    /// Losses, the average and the best values are kept up here after every step; values and moments
    /// only when they are written.
    state: State,
    identity: Option<Identity>,
    around: Around<'b>,
    /// Steps of the checkpoint that is there.
    saved: Option<usize>,
}

impl Run<'_, '_> {
    /// Goes on where a checkpoint ends, or writes the first one, so that a folder that cannot be written
    /// to is known before the work.
    fn resume(&mut self) -> Result<()> {
        let (Some(keeper), Some(identity)) = (self.around.keeper, &self.identity) else {
            return Ok(());
        };
        let Some(state) = keeper.load(identity, &self.tuner.names())? else {
            return self.save();
        };
        self.tuner.restore(state.done(), &state.slots)?;
        self.saved = Some(state.done());
        self.state = state;
        self.state.slots.iter_mut().for_each(SlotState::forget);
        Ok(())
    }

    fn is_over(&mut self) -> Result<bool> {
        let done = self.state.done();
        let rule = self.recipe.extras.validation;
        if rule.is_some_and(|rule| rule.stops(&self.state.validated)) {
            (self.around.report)(&Event::StoppedEarly { done })?;
            return Ok(true);
        }
        Ok(done >= self.recipe.schedule.steps)
    }

    fn step(&mut self, lessons: &[&Prepared]) -> Result<()> {
        let recipe = self.recipe;
        let (start, rate) = (Instant::now(), recipe.schedule.rate(self.state.done()));
        let parts = recipe.extras.accumulate;
        let (loss, norm) = self
            .tuner
            .step_in_parts(lessons, parts, (rate, recipe.clip))?;
        let seconds = start.elapsed().as_secs_f64();
        self.state.losses.push(loss);
        self.state.seconds.push(seconds);
        let done = self.state.done();
        if let Some(decay) = recipe.extras.average {
            let values = self.tuner.values()?;
            for (slot, values) in self.state.slots.iter_mut().zip(values) {
                if let Some(kept) = &mut slot.average {
                    average(kept, &values, decay, done);
                }
            }
        }
        (self.around.report)(&Event::Step {
            done,
            loss,
            rate,
            norm,
            tokens: lessons.iter().map(|one| one.answer_tokens()).sum(),
            seconds,
        })
    }

    /// Takes the validation loss if it is due, of the average if there is one.
    fn validate(&mut self, lessons: &[Prepared]) -> Result<()> {
        let (done, recipe) = (self.state.done(), self.recipe);
        let due = |rule: crate::extras::Validation| rule.is_due(done, recipe.schedule.steps);
        if !recipe.extras.validation.is_some_and(due) {
            return Ok(());
        }
        let values = self.tuner.values()?;
        self.use_average()?;
        let loss = self.tuner.mean_loss(lessons, recipe.images);
        self.tuner.set_values(values.iter().map(Vec::as_slice))?;
        let loss = loss?;
        Diverged::check("validation loss", loss)?;
        self.state.validated.push(Validated { done, loss });
        let is_best = best(&self.state.validated) == Some(self.state.validated.len() - 1);
        if is_best {
            for (slot, value) in self.state.slots.iter_mut().zip(values) {
                slot.best = Some(slot.average.clone().unwrap_or(value));
            }
        }
        (self.around.report)(&Event::Validated {
            done,
            loss,
            best: is_best,
        })
    }

    fn use_average(&self) -> Result<()> {
        let slots = self.state.slots.iter();
        let averages: Option<Vec<&[f32]>> = slots.map(|slot| slot.average.as_deref()).collect();
        averages.map_or(Ok(()), |averages| self.tuner.set_values(averages))
    }

    /// Writes a checkpoint, unless the one there is of this step.
    fn save(&mut self) -> Result<()> {
        let done = self.state.done();
        let (Some(keeper), Some(identity)) = (self.around.keeper, &self.identity) else {
            return Ok(());
        };
        if self.saved == Some(done) {
            return Ok(());
        }
        for (slot, now) in self.state.slots.iter_mut().zip(self.tuner.slots()?) {
            (slot.value, slot.mean, slot.square) = (now.value, now.mean, now.square);
        }
        let written = keeper.save(&self.state, identity);
        self.state.slots.iter_mut().for_each(SlotState::forget);
        written?;
        self.saved = Some(done);
        (self.around.report)(&Event::Saved { done })
    }

    /// The values that are kept: of the lowest validation loss, or the average, or the last.
    fn keep_best(&self) -> Result<()> {
        let slots = self.state.slots.iter();
        let bests: Option<Vec<&[f32]>> = slots.map(|slot| slot.best.as_deref()).collect();
        match bests {
            Some(bests) => self.tuner.set_values(bests),
            None => self.use_average(),
        }
    }

    fn finish(self, base: &FrozenBase) -> Result<Tuned> {
        let tuner = &self.tuner;
        tuner.check_moved()?;
        let row = tuner.norms().row(base.model.sites())?;
        ensure!(
            row.iter().all(|value| value.is_finite()),
            "a norm value is no longer finite"
        );
        let norms_moved = (row.iter().zip(&base.row)).filter(|(now, before)| now != before);
        let attached: usize = base.variables.iter().map(|one| one.var.elem_count()).sum();
        let moved = norms_moved.count() + attached;
        Ok(Tuned {
            row,
            losses: self.state.losses,
            moved: (moved, tuner.n_trainable()),
            seconds: self.state.seconds,
            validated: self.state.validated,
        })
    }
}

#[cfg(test)]
mod tests;
