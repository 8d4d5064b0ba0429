//! A training run on the terminal. In: events. Out: a bar, or lines where there is no terminal.

#![expect(clippy::print_stdout, reason = "the output of a command")]

use std::time::Instant;

use indicatif::ProgressBar;
use norma_trainer::run::{Event, Tuned};
use norma_trainer::tune::TuneRecipe;

use crate::commands::bar;

/// A bar with the time left, loss and throughput; or lines where there is no terminal.
pub struct Progress {
    /// The bar.
    pub bar: ProgressBar,
    start: Instant,
    images: usize,
}

impl Progress {
    /// Of a run.
    pub fn new(recipe: &TuneRecipe) -> Self {
        Self {
            bar: bar(recipe.schedule.steps as u64),
            start: Instant::now(),
            images: recipe.images,
        }
    }

    fn say(&self, text: &str) {
        self.bar.suspend(|| println!("{text}"));
    }

    /// Shows what happens.
    pub fn show(&mut self, event: &Event) {
        match *event {
            Event::Start {
                trainable,
                total,
                steps,
                resumed,
            } => {
                let share = 100.0 * trainable as f64 / total as f64;
                self.say(&format!(
                    "trainable values: {trainable} of {total} ({share:.3} %)"
                ));
                if resumed > 0 {
                    self.say(&format!("going on after step {resumed} of {steps}"));
                    self.bar.set_position(resumed as u64);
                    self.bar.reset_eta();
                }
            }
            Event::Step {
                done,
                loss,
                tokens,
                seconds,
                ..
            } => {
                let speed = [self.images, tokens].map(|count| count as f64 / seconds.max(1e-9));
                let [images, tokens] = speed;
                let text = format!("loss {loss:.4}  {images:.1} images/s  {tokens:.0} tokens/s");
                self.bar.set_position(done as u64);
                if done.is_multiple_of(50) && self.bar.is_hidden() {
                    let passed = self.start.elapsed().as_secs_f64();
                    println!("{passed:>6.0} s  {done:>5}  {text}");
                }
                self.bar.set_message(text);
            }
            Event::Validated { done, loss, best } => {
                let lowest = if best { ", the lowest so far" } else { "" };
                self.say(&format!("step {done}: validation loss {loss:.4}{lowest}"));
            }
            Event::StoppedEarly { done } => {
                self.say(&format!(
                    "stopped at step {done}: the validation loss falls no more"
                ));
            }
            Event::Saved { .. } => {}
        }
    }

    /// The last line of a run.
    pub fn finish(&self, tuned: &Tuned) {
        let (moved, trained) = tuned.moved;
        let seconds = self.start.elapsed().as_secs_f64();
        println!(
            "tuned in {seconds:.0} s; {moved} of {trained} values moved, no frozen tensor did"
        );
    }
}
