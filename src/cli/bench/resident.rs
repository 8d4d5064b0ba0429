//! Many adapters resident in the bank: what they take, and whether they slow anybody down.
//!
//! A second service is opened beside the first, its bank filled with adapters, and the same load over the
//! first sixteen of them is run on both in turns.

use std::path::Path;

use anyhow::Context;
use norma::base::{Base, WeightType, memory};
use serde::Serialize;

use super::load::{self, Load};
use super::local::{self, Local, Setup};
use super::stats::PairedRatio;
use super::target::Target;

/// So many resident adapters beside few.
#[derive(Clone, Debug, Serialize)]
pub struct Resident {
    /// Adapters in the bank.
    pub adapters: u64,
    /// Bank slots that were filled to get there, as the engine counts them.
    pub slots_filled: u64,
    /// Tokens a second of the load with this bank over the same with a bank that holds the load's alone.
    pub throughput: PairedRatio,
    /// Bytes of one row of the bank.
    pub row_bytes: usize,
    /// Bytes by which the process grew for each adapter that became resident: values, bank and books.
    pub bytes_per_adapter: f64,
    /// The same over one row.
    pub rows_per_adapter: f64,
}

/// Measures with `adapters` in the bank. `few`: the service that has few. Where there is no memory for
/// them and a second base, says so.
pub async fn measure(
    (base, weights, folder): (&Base, WeightType, &Path),
    few: &Local,
    adapters: u64,
    (load, pairs): (&Load, usize),
) -> anyhow::Result<Result<Resident, String>> {
    let row_bytes = few.maker().row_len() * size_of::<f32>();
    let need = base.weight_bytes(weights) + 3 * adapters * row_bytes as u64;
    if memory::available().is_some_and(|free| free / 2 < need) {
        let reason = "there is no memory for a second base with them";
        return Ok(Err(format!("{adapters} resident adapters: {reason}")));
    }
    // The load's own have files; the others come into memory without, for ten thousand files take minutes.
    let few_adapters = load.models.len() as u64;
    let data_dir = local::data_dir(folder, &format!("resident-{adapters}"))?;
    let many = tokio::task::block_in_place(|| {
        Local::open(&Setup {
            base,
            weights,
            data_dir: &data_dir,
            tokenizer: None,
            adapters: few_adapters,
            bank_slots: adapters as usize + 1,
            cached: adapters as usize + 1,
        })
    })?;
    let target = Target::Local(many.clone());
    // The load warms buffers and the first sixteen adapters before the process's size is looked at.
    load::run(&target, load).await?;
    let first = many.settled().await?;
    let before = resident_bytes()?;
    for seed in few_adapters..adapters {
        many.bring_in(seed).await?;
    }
    let grown = resident_bytes()?.saturating_sub(before) as f64;
    let last = many.settled().await?;
    let slots_filled = last.slots_filled;
    let new = (slots_filled - first.slots_filled).max(1);
    let bytes_per_adapter = grown / new as f64;
    let few = Target::Local(few.clone());
    let throughput = load::paired((&target, load), (&few, load), pairs).await?;
    Ok(Ok(Resident {
        adapters,
        slots_filled,
        throughput,
        row_bytes,
        bytes_per_adapter,
        rows_per_adapter: bytes_per_adapter / row_bytes as f64,
    }))
}

/// Bytes of this process that are in memory.
pub fn resident_bytes() -> anyhow::Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")
        .context("this system does not tell a process's size")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kilobytes = line.and_then(|line| line.trim().trim_end_matches("kB").trim().parse().ok());
    let kilobytes: u64 = kilobytes.context("this system does not tell a process's size")?;
    Ok(kilobytes * 1024)
}
