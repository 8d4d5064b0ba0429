//! The sub-commands. Each turns its arguments into one call of the library.

mod bench;
mod demo;
mod key;
mod serve;

use std::future::Future;
use std::io::IsTerminal;

use anyhow::Context;
use clap::{Parser, Subcommand};
use tracing_subscriber::EnvFilter;

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
    /// Measure this machine, an engine and a server.
    Bench(Box<bench::BenchArgs>),
    /// Make API keys.
    Key(key::KeyArgs),
}

/// Sends logs to standard error, with `filter` where `RUST_LOG` says nothing, and runs `command` to its
/// end.
fn block_on(filter: &str, command: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(filter));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr)
        .init();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("the runtime could not be started")?;
    runtime.block_on(command)
}

/// Runs the command.
pub fn run(cli: Cli) -> anyhow::Result<()> {
    match cli.command {
        Command::Serve(args) => serve::run(&args),
        Command::Demo(args) => demo::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Key(args) => key::run(args),
    }
}
