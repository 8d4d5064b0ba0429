//! `norma-train`: the command line of the trainer.
//!
//! In: arguments. Out: files, and what was measured on the standard output. All work is in the library
//! and in [`commands`].

mod commands;
mod compare_commands;
mod eval_commands;
mod inspect_command;
mod interchange_commands;
mod interrupt;
mod method_options;
mod progress;
mod record_commands;
mod set_options;
mod step_command;
mod training;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use norma::base::WeightType;
use norma_trainer::data;
use norma_trainer::folder::Storage;

use inspect_command::Inspect;
use set_options::{MaybeSet, Set};

/// Trains the phantom base, tunes LayerNorm adapters, evaluates them.
#[derive(Parser)]
#[command(name = "norma-train", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Trains a base from nothing, on phantom films or on a real set, and writes it as a Hugging Face
    /// folder.
    Pretrain(Pretrain),
    /// Tunes a frozen base by a recipe: its norms, which makes an adapter file, or by another method.
    Tune(Box<Tune>),
    /// Measures a base, with an adapter or without, on held-out films or records.
    Eval(eval_commands::Eval),
    /// Fits how sure an adapter says it is, and writes the adapter anew with it.
    Calibrate(eval_commands::Calibrate),
    /// Tunes by several methods, learning rates, seeds and shares of the data, and writes one table.
    Compare(compare_commands::Compare),
    /// One run of a comparison, in a process of its own.
    #[command(hide = true)]
    CompareJob(compare_commands::CompareJob),
    /// Times steps of tuning on drawn or given images and tokens; nothing is written.
    Step(step_command::Step),
    /// Says what a data set holds: counts, lengths, leaks between its splits, faults.
    Inspect(Inspect),
    /// Writes a list of a real set's questions, for a program that asks a server.
    Questions(Questions),
    /// Makes an adapter file of an LN-tuning adapter that PEFT saved.
    Import(interchange_commands::Import),
    /// Writes an adapter for PEFT to load.
    Export(interchange_commands::Export),
    /// Shows how far two adapters lie from each other, site by site.
    Diff(interchange_commands::Diff),
    /// Makes one adapter of several, their mean by weight.
    Average(interchange_commands::Average),
    /// The phantom world.
    #[command(subcommand)]
    Phantom(Phantom),
}

#[derive(clap::Args)]
struct Pretrain {
    #[command(flatten)]
    set: MaybeSet,
    /// The recipe, a JSON file.
    #[arg(long)]
    recipe: PathBuf,
    /// The folder to write.
    #[arg(long)]
    out: PathBuf,
    /// How weights are stored.
    #[arg(long, value_parser = word::<Storage>, default_value = "float16")]
    storage: Storage,
    /// Test films to measure the written base on; 0 measures nothing. A base of a real set is measured
    /// on the set's validation part.
    #[arg(long, default_value_t = 500)]
    test: u64,
}

#[derive(clap::Args)]
struct Tune {
    #[command(flatten)]
    set: MaybeSet,
    #[command(flatten)]
    held: Held,
    /// The base's folder.
    #[arg(long)]
    base: PathBuf,
    /// The recipe, a JSON file.
    #[arg(long)]
    recipe: PathBuf,
    /// What the frozen weights are held as, as `norma serve` has it. Gradients flow through all of them.
    #[arg(long, value_name = "TYPE", default_value_t = WeightType::F32)]
    weights: WeightType,
    #[command(flatten)]
    method: method_options::MethodOptions,
    #[command(flatten)]
    training: training::TrainingOptions,
    /// The adapter file to write.
    #[arg(long)]
    out: PathBuf,
}

#[derive(clap::Args)]
struct Questions {
    #[command(flatten)]
    set: Set,
    #[command(flatten)]
    held: Held,
    /// Which part of the set, where no fold is named.
    #[arg(long, default_value = "validation")]
    part: Part,
    /// The JSON file to write.
    #[arg(long)]
    out: PathBuf,
}

/// Which images of a real set's training part are held out.
#[derive(clap::Args)]
struct Held {
    /// Parts that the images are dealt to.
    #[arg(long, requires = "data")]
    folds: Option<usize>,
    /// The part that is held out, from 0.
    #[arg(long, default_value_t = 0)]
    hold_out: usize,
    /// Deals the images otherwise.
    #[arg(long, default_value_t = 0)]
    fold_seed: u64,
}

/// A part of a real set, as its makers split it.
#[derive(Clone, Copy, clap::ValueEnum)]
enum Part {
    Train,
    Validation,
    Test,
}

impl From<Part> for data::Split {
    fn from(part: Part) -> Self {
        match part {
            Part::Train => Self::Train,
            Part::Validation => Self::Validation,
            Part::Test => Self::Test,
        }
    }
}

#[derive(Subcommand)]
enum Phantom {
    /// Writes what the demo shows: test films, `demo.json` and `truth.json` about them.
    Export(Export),
}

#[derive(clap::Args)]
struct Export {
    /// The folder to write.
    #[arg(long)]
    out: PathBuf,
    /// Films for each of the demo's adapters.
    #[arg(long, default_value_t = 2)]
    count: usize,
    /// Seed of the films.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// Reads a value by the word that its serialised form has.
fn word<T: serde::de::DeserializeOwned>(text: &str) -> Result<T, String> {
    serde_json::from_value(text.into()).map_err(|error| error.to_string())
}

#[expect(
    clippy::print_stderr,
    reason = "the last word of a command that failed"
)]
fn main() -> ExitCode {
    let done = match Arguments::parse().command {
        Command::Pretrain(arguments) => match arguments.set.get() {
            None => commands::pretrain(&arguments),
            Some(set) => record_commands::pretrain(&arguments, &set),
        },
        Command::Tune(arguments) => match arguments.set.get() {
            None => commands::tune(&arguments),
            Some(set) => record_commands::tune(&arguments, &set),
        },
        Command::Eval(arguments) => eval_commands::eval(&arguments),
        Command::Calibrate(arguments) => eval_commands::calibrate(&arguments),
        Command::Compare(arguments) => compare_commands::compare(&arguments),
        Command::CompareJob(arguments) => compare_commands::job(&arguments),
        Command::Step(arguments) => step_command::step(&arguments),
        Command::Inspect(arguments) => inspect_command::inspect(&arguments),
        Command::Questions(arguments) => record_commands::list_questions(&arguments),
        Command::Import(arguments) => interchange_commands::import(&arguments),
        Command::Export(arguments) => interchange_commands::export(&arguments),
        Command::Diff(arguments) => interchange_commands::compare_two(&arguments),
        Command::Average(arguments) => interchange_commands::merge(&arguments),
        Command::Phantom(Phantom::Export(arguments)) => commands::export(&arguments),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            if let Some(stopped) = error.downcast_ref::<training::Interrupted>() {
                eprintln!("{stopped}");
                return ExitCode::from(interrupt::EXIT_CODE);
            }
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
