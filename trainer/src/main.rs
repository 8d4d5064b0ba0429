//! `norma-train`: the command line of the trainer.
//!
//! In: arguments. Out: files, and what was measured on the standard output. All work is in the library
//! and in [`commands`].

mod commands;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use norma_trainer::folder::Storage;
use norma_trainer::phantom::{Split, Task};

/// Trains the phantom base, tunes LayerNorm adapters, evaluates them.
#[derive(Parser)]
#[command(name = "norma-train", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Trains the phantom base from nothing and writes it as a Hugging Face folder.
    Pretrain(Pretrain),
    /// Tunes the norms of a frozen base by a recipe and writes an adapter file.
    Tune(Tune),
    /// Measures a base, with an adapter or without, on held-out films.
    Eval(Eval),
    /// The phantom world.
    #[command(subcommand)]
    Phantom(Phantom),
}

#[derive(clap::Args)]
struct Pretrain {
    /// The recipe, a JSON file.
    #[arg(long)]
    recipe: PathBuf,
    /// The folder to write.
    #[arg(long)]
    out: PathBuf,
    /// How weights are stored.
    #[arg(long, value_parser = word::<Storage>, default_value = "float16")]
    storage: Storage,
    /// Test films to measure the written base on; 0 measures nothing.
    #[arg(long, default_value_t = 500)]
    test: u64,
}

#[derive(clap::Args)]
struct Tune {
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
struct Eval {
    /// The base's folder.
    #[arg(long)]
    base: PathBuf,
    /// An adapter file; without one the base itself is measured.
    #[arg(long)]
    adapter: Option<PathBuf>,
    /// What is asked.
    #[arg(long, value_parser = word::<Task>, default_value = "pretrain")]
    task: Task,
    /// Which films.
    #[arg(long, value_parser = word::<Split>, default_value = "test")]
    split: Split,
    /// Seed of the films.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// How many films.
    #[arg(long, default_value_t = 500)]
    count: u64,
}

#[derive(Subcommand)]
enum Phantom {
    /// Writes test films as PNG files, and `truth.json` about them.
    Export(Export),
}

#[derive(clap::Args)]
struct Export {
    /// The folder to write.
    #[arg(long)]
    out: PathBuf,
    /// Films of each of the three scanners.
    #[arg(long, default_value_t = 4)]
    count: u64,
    /// Seed of the films.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// Reads a value by the word that its serialised form has.
fn word<T: serde::de::DeserializeOwned>(text: &str) -> Result<T, String> {
    serde_json::from_value(text.into()).map_err(|error| error.to_string())
}

fn main() -> ExitCode {
    let done = match Arguments::parse().command {
        Command::Pretrain(arguments) => commands::pretrain(&arguments),
        Command::Tune(arguments) => commands::tune(&arguments),
        Command::Eval(arguments) => commands::eval(&arguments),
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
