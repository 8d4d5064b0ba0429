//! `norma bench`: what the engine and the server reach on this machine.
//!
//! In: a base's folder (the embedded phantom base without one) or a server's URL. Out: tables, JSON, a plot.
//! A `run` follows a `plan` from the quiet to the loud, all of it or chosen `parts`:
//! - `machine`: what the hardware can do; `limits`: how near the engine comes to it.
//! - `second`: two questions about one image.
//! - `load`: streams at once, distinct adapters; `mixed`: adapters beside the base, in pairs.
//! - `slots`, `resident`, `registered`: adapters in the bank, in memory, on disk.
//! - `publish`: adapters published (`uploads`) while answers stream (`windows`).
//!
//! Loads do not know whom they ask: `target` is `local` (an engine in this process) or `remote`. Figures that
//! need the inside of an engine are not measured through a URL, and the report says so.

mod adapters;
mod film;
mod limits;
mod load;
mod local;
mod machine;
mod mixed;
mod pairs;
mod parts;
mod plan;
mod plot;
mod publish;
mod registered;
mod remote;
mod report;
mod resident;
mod run;
mod second;
mod slots;
mod stats;
mod target;
mod tested;
mod uploads;
mod windows;

use std::path::PathBuf;

use anyhow::Context;
use clap::{Args, Subcommand};
use norma::base::{Base, OpenOptions, WeightType};

/// Arguments of `norma bench`.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct BenchArgs {
    #[command(subcommand)]
    other: Option<Other>,
    /// The base: a checkpoint folder of a LLaVA. The embedded phantom base without one.
    #[arg(long, value_name = "FOLDER")]
    base: Option<PathBuf>,
    /// Another tokenizer.json than the base's own.
    #[arg(long, value_name = "FILE", requires = "base")]
    tokenizer: Option<PathBuf>,
    /// Where the model lives: cpu, or cuda:N where this program was built for it.
    #[arg(long, default_value = "cpu", value_name = "DEVICE")]
    device: String,
    /// What weights are held as, see `norma serve --help`.
    #[arg(long, value_name = "TYPE")]
    weights: Option<WeightType>,
    /// A running server, to be measured over HTTP instead.
    #[arg(long, value_name = "URL", conflicts_with_all = ["base", "weights"])]
    url: Option<String>,
    /// The key for it.
    #[arg(
        long,
        env = "NORMA_API_KEY",
        hide_env_values = true,
        value_name = "KEY"
    )]
    key: Option<String>,
    /// These parts alone, by the report's names; all of them by default.
    #[arg(long, value_name = "PART", value_delimiter = ',', value_enum)]
    only: Vec<parts::Part>,
    /// Few and short runs: every figure, none of them sharp.
    #[arg(long)]
    quick: bool,
    /// Threads that measure the machine; all that there are by default.
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
    /// Where the figures are written as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Where the curves are drawn as SVG.
    #[arg(long, value_name = "FILE")]
    plot: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Other {
    /// Fill a data folder with random adapters, `bench-0` and so on, for `norma serve`.
    Adapters(AdaptersArgs),
}

#[derive(Debug, Args)]
struct AdaptersArgs {
    /// The base: a checkpoint folder of a LLaVA.
    #[arg(long, value_name = "FOLDER")]
    base: PathBuf,
    /// Where adapters and their registry are kept.
    #[arg(long, value_name = "DIR")]
    data_dir: PathBuf,
    /// How many.
    #[arg(long, value_name = "N")]
    count: u64,
}

/// Runs the command.
pub fn run(args: &BenchArgs) -> anyhow::Result<()> {
    match &args.other {
        Some(Other::Adapters(args)) => fill(args),
        None => super::block_on("warn", bench(args)),
    }
}

fn fill(args: &AdaptersArgs) -> anyhow::Result<()> {
    std::fs::create_dir_all(&args.data_dir).context("--data-dir could not be made")?;
    let options = OpenOptions {
        digest_cache: Some(args.data_dir.join("base-digests.json")),
        ..OpenOptions::default()
    };
    let base = Base::open(&args.base, &options).context("the base cannot be used")?;
    adapters::fill(&base, &args.data_dir, args.count)
}

#[expect(clippy::print_stdout, reason = "the output of a command")]
async fn bench(args: &BenchArgs) -> anyhow::Result<()> {
    let plan = if args.quick { plan::QUICK } else { plan::FULL };
    let report = match &args.url {
        Some(url) => run::over_http(args, url, &plan).await?,
        None => run::in_process(args, &plan).await?,
    };
    print!("{}", report.text());
    if let Some(path) = &args.json {
        let json = serde_json::to_string_pretty(&report)? + "\n";
        std::fs::write(path, json).context("--json could not be written")?;
    }
    if let Some(path) = &args.plot {
        std::fs::write(path, plot::svg(&report)).context("--plot could not be written")?;
    }
    Ok(())
}
