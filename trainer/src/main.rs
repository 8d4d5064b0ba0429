//! `norma-train`: the command line of the trainer.
//!
//! In: arguments. Out: files, and what was measured on the standard output. All work is in the library
//! and in [`commands`].

mod commands;
mod eval_commands;
mod record_commands;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use norma_trainer::data;
use norma_trainer::data::source::Source;
use norma_trainer::folder::Storage;

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
    /// Tunes the norms of a frozen base by a recipe and writes an adapter file.
    Tune(Tune),
    /// Measures a base, with an adapter or without, on held-out films or records.
    Eval(eval_commands::Eval),
    /// Fits how sure an adapter says it is, and writes the adapter anew with it.
    Calibrate(eval_commands::Calibrate),
    /// Writes a list of a real set's questions, for a program that asks a server.
    Questions(Questions),
    /// The phantom world.
    #[command(subcommand)]
    Phantom(Phantom),
}

#[derive(clap::Args)]
struct Pretrain {
    /// A real set, `slake:FOLDER` or `vqa-rad:FOLDER`; without one, phantom films.
    #[arg(long)]
    data: Option<Source>,
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
    /// A real set, `slake:FOLDER` or `vqa-rad:FOLDER`; without one, phantom films.
    #[arg(long)]
    data: Option<Source>,
    #[command(flatten)]
    held: Held,
    /// The base's folder.
    #[arg(long)]
    base: PathBuf,
    /// The recipe, a JSON file.
    #[arg(long)]
    recipe: PathBuf,
    /// The adapter file to write.
    #[arg(long)]
    out: PathBuf,
}

#[derive(clap::Args)]
struct Questions {
    /// A real set, `slake:FOLDER` or `vqa-rad:FOLDER`.
    #[arg(long)]
    data: Source,
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
        Command::Pretrain(arguments) => match &arguments.data {
            None => commands::pretrain(&arguments),
            Some(source) => record_commands::pretrain(&arguments, source),
        },
        Command::Tune(arguments) => match &arguments.data {
            None => commands::tune(&arguments),
            Some(source) => record_commands::tune(&arguments, source),
        },
        Command::Eval(arguments) => eval_commands::eval(&arguments),
        Command::Calibrate(arguments) => eval_commands::calibrate(&arguments),
        Command::Questions(arguments) => record_commands::list_questions(&arguments),
        Command::Phantom(Phantom::Export(arguments)) => commands::export(&arguments),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
