//! The options of a training run, and the run under a progress bar. In: options, a base, lessons, a
//! recipe. Out: what was tuned; on Ctrl-C a checkpoint and how to go on.

#![expect(clippy::print_stdout, reason = "the output of a command")]

use std::cell::RefCell;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use norma::model::MedVlm;
use norma_trainer::adapter::Card;
use norma_trainer::atomic_file;
use norma_trainer::checkpoint::Keeper;
use norma_trainer::extras::Validation;
use norma_trainer::frozen::FrozenBase;
use norma_trainer::methods::Choice;
use norma_trainer::run::{Around, Diverged, Ended, Lessons, Tuned, run};
use norma_trainer::run_log::html::{Page, Shown, flattened, movements};
use norma_trainer::run_log::{Places, RunLog};
use norma_trainer::sweep::{Sweep, Variant, lowest};
use norma_trainer::tune::TuneRecipe;
use thiserror::Error;

use crate::commands::write;
use crate::interrupt::Interrupt;
use crate::progress::Progress;

/// How a run is kept, and what it does beside its recipe.
#[derive(clap::Args)]
pub struct TrainingOptions {
    /// Where the run's state is kept while it goes on; without this, beside the file that is to be
    /// written. The same command goes on from there. It is removed when the file is written.
    #[arg(long, value_name = "FOLDER")]
    checkpoint: Option<PathBuf>,
    /// Steps between two checkpoints; 0 writes one only at the start, on Ctrl-C and at the end.
    #[arg(long, value_name = "STEPS", default_value_t = 50)]
    checkpoint_every: usize,
    /// Parts that a step's images are worked out in, for less memory.
    #[arg(long, value_name = "PARTS")]
    accumulate: Option<usize>,
    /// How strongly values are pulled back to what they were in the base, as AdamW's weight decay.
    #[arg(long, value_name = "SHARE")]
    decay: Option<f64>,
    /// Keeps an average of the values over the steps, with this decay.
    #[arg(long, value_name = "DECAY")]
    ema: Option<f64>,
    /// Takes a validation loss every so many steps and keeps the values of the lowest. Phantom: other
    /// films; a real set: a tenth of the training images, which are then not learnt from.
    #[arg(long, value_name = "STEPS")]
    validate_every: Option<usize>,
    /// Stops after so many validation losses that were no better.
    #[arg(long, value_name = "COUNT")]
    patience: Option<usize>,
    /// Tunes every combination, `lr=0.01,0.05,scope=all,language,seed=1,2`, and keeps the one with the
    /// lowest validation loss.
    #[arg(long, value_name = "LIST")]
    sweep: Option<Sweep>,
    /// Writes a line of JSON for every step.
    #[arg(long, value_name = "FILE")]
    log: Option<PathBuf>,
    /// Writes event files for TensorBoard.
    #[arg(long, value_name = "FOLDER")]
    tensorboard: Option<PathBuf>,
    /// Writes a page about the run: curves, how far norms moved, what was measured.
    #[arg(long, value_name = "HTML")]
    report: Option<PathBuf>,
}

/// What a run keeps until its file is written.
pub struct Kept {
    main: Keeper,
    folder: PathBuf,
    variants: RefCell<Vec<(Keeper, f64)>>,
}

impl Kept {
    /// Removes the checkpoints: the file is written.
    pub fn clear(self) -> Result<()> {
        for (keeper, _) in self.variants.into_inner() {
            keeper.clear()?;
        }
        Ok(self.main.clear()?)
    }
}

/// A run that was asked to stop, and has.
#[derive(Debug, Error)]
#[error(
    "stopped after step {done}; {} has all of it. The same command goes on from there",
    checkpoint.display()
)]
pub struct Interrupted {
    done: usize,
    checkpoint: PathBuf,
}

impl TrainingOptions {
    /// Puts the options into the recipe.
    pub fn apply(&self, recipe: &mut TuneRecipe) -> Result<()> {
        let extras = &mut recipe.extras;
        extras.accumulate = self.accumulate.unwrap_or(extras.accumulate);
        extras.decay = self.decay.unwrap_or(extras.decay);
        extras.average = self.ema.or(extras.average);
        if let Some(every) = self.validate_every {
            let patience = extras.validation.and_then(|one| one.patience);
            extras.validation = Some(Validation { every, patience });
        }
        if self.patience.is_some() {
            let rule = extras.validation.as_mut();
            let rule = rule.context("--patience needs --validate-every")?;
            rule.patience = self.patience;
        }
        if self.sweep.is_some() {
            let name = recipe.method.name();
            ensure!(
                recipe.method.makes_adapter(),
                "--sweep tunes norm values, the method is {name}"
            );
            extras.validation.get_or_insert(Validation {
                every: (recipe.schedule.steps / 10).max(1),
                patience: None,
            });
        }
        extras.check()
    }

    /// What the base is to be built for; a sweep moves nothing of the base itself.
    pub fn choice(&self, recipe: &TuneRecipe) -> Option<Choice> {
        self.sweep.is_none().then(|| recipe.choice())
    }

    /// Takes the folder for checkpoints of a run that will write `out`, and sees that `out` can be
    /// written, before the work.
    pub fn keeper(&self, out: &Path) -> Result<Kept> {
        writable(out).with_context(|| format!("cannot write {}", out.display()))?;
        let beside = || {
            let mut name = out.as_os_str().to_owned();
            name.push(".checkpoint");
            name.into()
        };
        let folder = self.checkpoint.clone().unwrap_or_else(beside);
        Ok(Kept {
            main: Keeper::open(&folder, self.checkpoint_every)?,
            folder,
            variants: RefCell::default(),
        })
    }

    /// Runs a recipe, or what is left of it. Of a sweep, the best variant's recipe takes its place.
    pub fn run(
        &self,
        kept: &Kept,
        base: &FrozenBase,
        lessons: &Lessons,
        recipe: &mut TuneRecipe,
    ) -> Result<Tuned> {
        let interrupt = Interrupt::watch()?;
        let Some(sweep) = &self.sweep else {
            return self.one((&kept.main, None), &interrupt, (base, lessons), recipe);
        };
        let variants = sweep.variants(recipe);
        let mut best: Option<(f64, Tuned, Variant)> = None;
        for (at, variant) in variants.iter().enumerate() {
            let name = &variant.name;
            println!("{} of {}: {name}", at + 1, variants.len());
            let keeper = Keeper::open(&kept.folder.join(name), self.checkpoint_every)?;
            let given = (&keeper, Some(name));
            let loss = match self.one(given, &interrupt, (base, lessons), &variant.recipe) {
                Ok(tuned) => {
                    let loss = lowest(&tuned);
                    if best.as_ref().is_none_or(|(other, ..)| loss < *other) {
                        best = Some((loss, tuned, variant.clone()));
                    }
                    loss
                }
                // Too high a rate for one variant says nothing about the others.
                Err(error) if error.is::<Diverged>() => {
                    println!("{name}: {error}");
                    f64::INFINITY
                }
                Err(error) => return Err(error),
            };
            kept.variants.borrow_mut().push((keeper, loss));
        }
        for (variant, (_, loss)) in variants.iter().zip(kept.variants.borrow().iter()) {
            println!("  {:<40} validation loss {loss:.4}", variant.name);
        }
        let (_, tuned, variant) = best.context("no variant came to an end")?;
        println!("kept: {}", variant.name);
        *recipe = variant.recipe;
        Ok(tuned)
    }

    /// Writes the page, if one is asked for.
    pub fn write_report(
        &self,
        kept: &Kept,
        base: &FrozenBase,
        tuned: &Tuned,
        (card, shown): (&Card, Vec<Shown>),
    ) -> Result<()> {
        let Some(path) = &self.report else {
            return Ok(());
        };
        let (moved, trained) = tuned.moved;
        let seconds: f64 = tuned.seconds.iter().sum();
        let mut facts = vec![
            ("values moved".into(), format!("{moved} of {trained}")),
            ("steps".into(), tuned.losses.len().to_string()),
            ("seconds in steps".into(), format!("{seconds:.0}")),
        ];
        facts.extend(flattened(&card.recipe));
        facts.extend(flattened(&card.metrics));
        let variants = kept.variants.borrow();
        let name = |keeper: &Keeper| {
            let folder = keeper.path();
            let name = folder.parent().and_then(Path::file_name);
            name.map(|name| name.to_string_lossy().into_owned())
                .unwrap_or_default()
        };
        let page = Page {
            title: "A tuning run".into(),
            facts,
            tuned,
            movements: movements(base.model.sites(), [&base.row, &tuned.row]),
            variants: variants
                .iter()
                .map(|(keeper, loss)| (name(keeper), *loss))
                .collect(),
            shown,
        };
        write(path, page.to_html().as_bytes())
    }

    fn one(
        &self,
        (keeper, variant): (&Keeper, Option<&String>),
        interrupt: &Interrupt,
        (base, lessons): (&FrozenBase, &Lessons),
        recipe: &TuneRecipe,
    ) -> Result<Tuned> {
        let mut progress = Progress::new(recipe);
        let mut log = RunLog::new(Places {
            json: self.log.clone(),
            board: self.tensorboard.clone(),
            variant: variant.cloned(),
        });
        interrupt.heed(true);
        let around = Around {
            keeper: Some(keeper),
            stop: &|| interrupt.asked(),
            report: &mut |event| {
                progress.show(event);
                log.write(event)
            },
        };
        let ended = run(base, lessons, recipe, around);
        interrupt.heed(false);
        progress.bar.finish_and_clear();
        match ended? {
            Ended::Finished(tuned) => {
                progress.finish(&tuned);
                Ok(tuned)
            }
            Ended::Stopped { done } => Err(Interrupted {
                done,
                checkpoint: keeper.path(),
            }
            .into()),
        }
    }
}

fn writable(out: &Path) -> Result<()> {
    ensure!(!out.is_dir(), "it is a folder");
    let beside = atomic_file::beside(out);
    let made = fs::File::create(&beside).and_then(|_| fs::remove_file(&beside));
    made.map_err(|error: io::Error| error.into())
}
