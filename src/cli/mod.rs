//! The sub-commands. Each turns its arguments into one call of the library.

mod demo;
mod key;
mod serve;

use clap::{Parser, Subcommand};

/// Serves one frozen medical vision-language model with many LayerNorm adapters.
#[derive(Debug, Parser)]
#[command(name = "norma", version, about)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Load a base and answer requests over HTTP.
    Serve(Box<serve::ServeArgs>),
    /// Show the main job with an embedded base and adapters, no download.
    Demo(demo::DemoArgs),
    /// Make API keys.
    Key(key::KeyArgs),
}

/// Runs the command.
pub fn run(cli: Cli) -> anyhow::Result<()> {
    match cli.command {
        Command::Serve(args) => serve::run(&args),
        Command::Demo(args) => demo::run(&args),
        Command::Key(args) => key::run(args),
    }
}
