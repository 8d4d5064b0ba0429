//! `compare`: a grid from a file, every job in a process of its own, tables and plots into a folder.

#![expect(clippy::print_stdout, reason = "the output of commands")]

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use norma::base::{Base, OpenOptions};
use norma_trainer::compare::grid::Grid;
use norma_trainer::compare::job::{Job, Outcome};
use norma_trainer::compare::ledger::Ledger;
use norma_trainer::compare::table::Table;
use norma_trainer::compare::work::Workplace;
use norma_trainer::compare::{plot, run};

use crate::commands::{read_json, write};

#[derive(clap::Args)]
pub struct Compare {
    /// The base's folder.
    #[arg(long)]
    base: PathBuf,
    /// What is compared, a JSON file.
    #[arg(long)]
    grid: PathBuf,
    /// The folder to write; what is done already in it is not done again.
    #[arg(long)]
    out: PathBuf,
}

#[derive(clap::Args)]
pub struct CompareJob {
    /// The base's folder.
    #[arg(long)]
    base: PathBuf,
    /// The comparison's folder.
    #[arg(long)]
    out: PathBuf,
    /// The job as JSON.
    #[arg(long)]
    job: String,
}

/// Runs a grid and writes `table.md`, `table.csv`, `measures.csv` and plots.
pub fn compare(arguments: &Compare) -> Result<()> {
    let grid: Grid = read_json(&arguments.grid)?;
    grid.check()?;
    let out = &arguments.out;
    std::fs::create_dir_all(out)
        .with_context(|| format!("cannot make the folder {}", out.display()))?;
    let base = Base::open(&arguments.base, &OpenOptions::default())
        .with_context(|| format!("cannot open the base {}", arguments.base.display()))?;
    let mut ledger = Ledger::open(&out.join("results.jsonl"), base.digest())?;
    drop(base);
    let child = |job: &Job| in_child(&arguments.base, out, job);
    let comparison = run(&grid, &mut ledger, child, |line| println!("{line}"))?;
    let table = Table::new(&grid, &comparison)?;
    let markdown = table.markdown();
    for (name, text) in [
        ("table.md", markdown.clone()),
        ("table.csv", table.csv()),
        ("measures.csv", table.long_csv()),
    ]
    .into_iter()
    .chain(plot::of_table(&table))
    {
        write(&out.join(name), text.as_bytes())?;
    }
    for one in &comparison.compared {
        let tried: Vec<String> = one
            .tried
            .iter()
            .map(|(rate, score)| format!("{rate}: {:.1}", 100.0 * score))
            .collect();
        let share = 100.0 * one.share;
        println!(
            "{} with {share} % of the images, validation by rate: {}",
            one.entry.label,
            tried.join(", ")
        );
    }
    println!("\n{markdown}");
    Ok(())
}

/// The job in a process of its own, so that its peak of memory is its own.
fn in_child(base: &Path, out: &Path, job: &Job) -> Result<Outcome> {
    let program = std::env::current_exe().context("cannot find this program")?;
    let output = Command::new(program)
        .arg("compare-job")
        .arg("--base")
        .arg(base)
        .arg("--out")
        .arg(out)
        .arg("--job")
        .arg(serde_json::to_string(job)?)
        .stderr(std::process::Stdio::inherit())
        .output()
        .context("cannot start a process for a job")?;
    ensure!(output.status.success(), "{job}: the process failed");
    let text = String::from_utf8_lossy(&output.stdout);
    let last = text.lines().last().unwrap_or_default();
    serde_json::from_str(last).with_context(|| format!("{job}: no result in {last:?}"))
}

/// One job; its result is the last line of the output.
pub fn job(arguments: &CompareJob) -> Result<()> {
    let job: Job = serde_json::from_str(&arguments.job).context("`job` is none")?;
    let place = Workplace {
        base: arguments.base.clone(),
        out: arguments.out.clone(),
    };
    let outcome = place.work(&job, |_| {})?;
    println!("{}", serde_json::to_string(&outcome)?);
    Ok(())
}
