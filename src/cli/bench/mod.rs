//! `norma bench`: what the engine and the server reach on this machine.
//!
//! In: a base's folder (the embedded phantom base without one) or a server's URL. Out: tables, JSON, a plot.
//! A run goes from the quiet to the loud:
//! - `machine`: what the hardware can do; `limits`: how near the engine comes to it.
//! - `second`: two questions about one image.
//! - `load`: streams at once, distinct adapters, pairs of loads in turns.
//! - `slots`, `resident`, `registered`: adapters in the bank, in memory, on disk.
//! - `publish`: adapters published while answers stream.
//!
//! Loads do not know whom they ask: `target` is `local` (an engine in this process) or `remote`. Figures that
//! need the inside of an engine are not measured through a URL, and the report says so.

mod adapters;
mod film;
mod limits;
mod load;
mod local;
mod machine;
mod plan;
mod plot;
mod publish;
mod registered;
mod remote;
mod report;
mod resident;
mod second;
mod slots;
mod stats;
mod target;
mod tested;

use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::{Args, Subcommand};
use norma::base::{Base, OpenOptions, WeightType};

use self::load::Load;
use self::local::{Local, Setup};
use self::plan::Plan;
use self::remote::Remote;
use self::report::{BaseFigures, Mixed, Report};
use self::target::Target;
use super::demo::bundle;

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
        Some(url) => over_http(args, url, &plan).await?,
        None => in_process(args, &plan).await?,
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

fn machine_of(args: &BenchArgs, plan: &Plan) -> machine::Machine {
    let all = std::thread::available_parallelism().map_or(1, usize::from);
    tokio::task::block_in_place(|| machine::measure(args.threads.unwrap_or(all), plan.machine()))
}

async fn over_http(args: &BenchArgs, url: &str, plan: &Plan) -> anyhow::Result<Report> {
    step("the machine");
    let machine = machine_of(args, plan);
    let remote = Remote::connect(url, args.key.clone()).await?;
    let aliases = remote.aliases().to_vec();
    let mut report = common(&Target::Remote(remote), plan, &aliases).await?;
    report.machine = machine;
    url.clone_into(&mut report.target);
    let inside = "the machine's fractions, resident and registered adapters, slots and publishing need \
                  the inside of an engine: run without --url";
    report.not_measured.push(inside.to_owned());
    Ok(report)
}

async fn in_process(args: &BenchArgs, plan: &Plan) -> anyhow::Result<Report> {
    let folder = tempfile::tempdir().context("no temporary folder")?;
    step("the machine");
    let machine = machine_of(args, plan);
    step("loading");
    let (base, name) = open_base(args, folder.path())?;
    let weights = args.weights.unwrap_or_else(|| base.default_weights());
    let (slots, data_dir) = (plan.slots, local::data_dir(folder.path(), "main")?);
    let main = tokio::task::block_in_place(|| {
        Local::open(&Setup {
            base: &base,
            weights,
            data_dir: &data_dir,
            tokenizer: args.tokenizer.as_deref(),
            adapters: slots.registered,
            bank_slots: slots.slots as usize + 1,
            cached: slots.cached as usize,
        })
    })?;
    let target = Target::Local(main.clone());
    let aliases: Vec<String> = (0..slots.slots)
        .map(|seed| format!("bench-{seed}"))
        .collect();
    step("one stream against the machine's limits");
    let runs = (plan.tokens, plan.repeats);
    let reached = limits::measure((&base, weights, &target), &machine, runs).await?;
    let mut report = common(&target, plan, &aliases).await?;
    report.machine = machine;
    report.target = name;
    report.reached = Some(reached);
    let parameters = base.outline().parameters.iter();
    report.base = Some(BaseFigures {
        parameters: parameters
            .map(|(_, shape)| shape.iter().product::<usize>())
            .sum(),
        weights: weights.to_string(),
        weight_bytes: base.weight_bytes(weights),
        adapter_values: base.outline().sites.row_len(),
        image_rows: base.outline().shape.image_tokens,
    });
    step("adapters brought back into the bank");
    report.bringing_back = Some(slots::measure(&main, slots, plan.repeats as u64 * 20).await?);
    let load = mixed_load(plan, &aliases);
    for &adapters in plan.resident {
        step("adapters resident in the bank");
        let pairs = (&load, plan.pairs);
        let place = (&base, weights, folder.path());
        match resident::measure(place, &main, adapters, pairs).await? {
            Some(figures) => report.resident.push(figures),
            None => report.not_measured.push(format!(
                "{adapters} resident adapters: there is no memory for a second base"
            )),
        }
    }
    step("adapters in the registry");
    let registry = local::data_dir(folder.path(), "registry")?;
    let counts = plan.registered;
    report.registered = tokio::task::block_in_place(|| registered::measure(&registry, counts))?;
    step("publishing");
    report.publishing = Some(publish::measure(&main, plan.publish).await?);
    Ok(report)
}

/// What can be measured of anybody.
async fn common(target: &Target, plan: &Plan, aliases: &[String]) -> anyhow::Result<Report> {
    step("two questions about an image");
    let second_question = second::measure(target, plan.images).await?;
    let base = vec![target.base().to_owned()];
    let mut report = Report {
        norma: env!("CARGO_PKG_VERSION"),
        target: String::new(),
        base: None,
        machine: machine::Machine::default(),
        reached: None,
        streams: Vec::new(),
        adapters: Vec::new(),
        adapters_over_base: None,
        second_question,
        resident: Vec::new(),
        registered: Vec::new(),
        bringing_back: None,
        publishing: None,
        not_measured: Vec::new(),
    };
    step("streams at once");
    for &streams in plan.streams {
        let load = Load {
            streams,
            models: base.clone(),
            tokens: plan.tokens,
        };
        report
            .streams
            .push(load::measure(target, &load, plan.repeats).await?);
    }
    if aliases.is_empty() {
        let reason = "distinct adapters: the server lists none, see `norma bench adapters`";
        report.not_measured.push(reason.to_owned());
        return Ok(report);
    }
    step("distinct adapters");
    for &adapters in plan.streams.iter().filter(|count| **count <= aliases.len()) {
        let load = Load {
            streams: plan.streams.last().copied().unwrap_or(1),
            models: aliases[..adapters].to_vec(),
            tokens: plan.tokens,
        };
        report
            .adapters
            .push(load::measure(target, &load, plan.repeats).await?);
    }
    step("adapters beside the base alone");
    let mixed = mixed_load(plan, aliases);
    let alone = Load {
        models: base,
        ..mixed.clone()
    };
    report.adapters_over_base = Some(Mixed {
        streams: mixed.streams,
        adapters: mixed.models.len(),
        tokens: mixed.tokens,
        throughput: load::paired((target, &mixed), (target, &alone), plan.pairs).await?,
    });
    Ok(report)
}

/// Sixteen streams with as many adapters.
fn mixed_load(plan: &Plan, aliases: &[String]) -> Load {
    const STREAMS: usize = 16;
    Load {
        streams: STREAMS,
        models: aliases.iter().take(STREAMS).cloned().collect(),
        tokens: plan.tokens,
    }
}

fn open_base(args: &BenchArgs, folder: &Path) -> anyhow::Result<(Base, String)> {
    let (path, name) = if let Some(path) = &args.base {
        let name = path
            .file_name()
            .map(|name| name.to_string_lossy().into_owned());
        (path.clone(), name.unwrap_or_else(|| "base".into()))
    } else {
        let path = folder.join("phantom");
        bundle::unpack_base(&path)?;
        (path, "phantom".into())
    };
    let base = Base::open(&path, &OpenOptions::default());
    Ok((base.context("the base cannot be used")?, name))
}

/// Says what begins, beside the output.
fn step(what: &str) {
    #[expect(clippy::print_stderr, reason = "progress of a command")]
    {
        eprintln!("... {what}");
    }
}
