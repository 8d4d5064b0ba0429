//! Many adapters resident in the bank: what they take, and whether they slow anybody down.
//!
//! One service, one engine, one bank with room for all. Runs of the same load, over sixteen adapters, take
//! turns: the bank holds these alone, or further ones were brought into it, and before the next turn it
//! forgets them. So whatever else a run meets, memory and its places above all, is the same on both sides.

use std::path::Path;

use anyhow::{Context, ensure};
use norma::base::{Base, WeightType, memory};
use norma::engine::RequestAdapter;
use serde::Serialize;

use super::load::{self, Load};
use super::local::{self, Local, Setup};
use super::mixed;
use super::pairs::{Compared, Pairs, Rates};
use super::target::Target;

/// The load's own adapters.
const USED: u64 = 16;

/// What is done.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Further adapters, in rising order.
    pub further: &'static [u64],
    /// Runs of the load in a turn, after one to warm up.
    pub loads: usize,
    /// Turns of both sides, for each number of adapters.
    pub pairs: Pairs,
}

/// So many further adapters in the bank beside none.
#[derive(Clone, Debug, Serialize)]
pub struct Resident {
    /// Adapters in the bank that nobody uses.
    pub adapters: u64,
    /// Rates of the load with them in the bank over rates without.
    #[serde(flatten)]
    pub compared: Compared,
    /// Bytes of one row of the bank.
    pub row_bytes: usize,
    /// Bytes by which the process grew for each adapter that was new: values, bank and books.
    pub bytes_per_adapter: f64,
    /// The same over one row.
    pub rows_per_adapter: f64,
}

/// Figures, and reasons why there are not more.
#[derive(Debug, Default)]
pub struct Measured {
    /// By the number of adapters.
    pub figures: Vec<Resident>,
    /// Where there was no memory.
    pub no_room: Vec<String>,
}

/// Measures on a service of its own.
pub async fn measure(
    (base, weights, folder): (&Base, WeightType, &Path),
    plan: Plan,
) -> anyhow::Result<Measured> {
    let mut measured = Measured::default();
    let row_bytes = base.outline().sites.row_len() * size_of::<f32>();
    let free = memory::available().map(|free| free / 2);
    let fits = |further: u64| {
        let need = base.weight_bytes(weights) + 2 * further * row_bytes as u64;
        free.is_none_or(|free| need <= free)
    };
    let (further, too_many): (Vec<u64>, Vec<u64>) =
        plan.further.iter().copied().partition(|count| fits(*count));
    measured.no_room.extend(too_many.iter().map(|count| {
        format!("{count} resident adapters: there is no memory for a second base with them")
    }));
    let Some(&most) = further.last() else {
        return Ok(measured);
    };
    // The load's own have files; the others come into memory without, for ten thousand files take minutes.
    let data_dir = local::data_dir(folder, "resident")?;
    let local = tokio::task::block_in_place(|| {
        Local::open(&Setup {
            base,
            weights,
            data_dir: &data_dir,
            tokenizer: None,
            adapters: USED,
            bank_slots: (USED + most) as usize + 1,
            cached: (USED + most) as usize + 1,
        })
    })?;
    let aliases: Vec<String> = (0..USED).map(|seed| format!("bench-{seed}")).collect();
    let load = mixed::load(&aliases, plan.pairs.tokens);
    // Buffers and cache rows of as many streams as will bring adapters in are touched before the process's
    // size is looked at.
    let warm = Load {
        streams: Local::MAX_STREAMS,
        ..load.clone()
    };
    load::run(&Target::Local(local.clone()), &warm).await?;
    let mut others: Vec<RequestAdapter> = Vec::new();
    for count in further {
        let (before, had) = (resident_bytes()?, others.len());
        for seed in had as u64..count {
            others.push(local.remember(USED + seed).await?);
        }
        local.bring_in(&others[had..]).await?;
        let grown = resident_bytes()?.saturating_sub(before) as f64;
        let bytes_per_adapter = grown / (others.len() - had).max(1) as f64;
        measured.figures.push(Resident {
            adapters: count,
            compared: compare(&local, (&load, &others), plan).await?,
            row_bytes,
            bytes_per_adapter,
            rows_per_adapter: bytes_per_adapter / row_bytes as f64,
        });
    }
    Ok(measured)
}

/// Who is in the bank while the load runs.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Bank {
    Few,
    Many,
}

async fn compare(
    local: &Local,
    (load, others): (&Load, &[RequestAdapter]),
    plan: Plan,
) -> anyhow::Result<Compared> {
    let (mut many, mut few) = (Vec::new(), Vec::new());
    let mut turns = plan.pairs.turns();
    let mut present = None;
    while let Some(turn) = turns.next_one() {
        // Every other pair in the other order, so that the bank changes once a pair.
        let order = if turn % 2 == 0 {
            [Bank::Few, Bank::Many]
        } else {
            [Bank::Many, Bank::Few]
        };
        for bank in order {
            if present != Some(bank) {
                change(local, bank, (load, others)).await?;
                present = Some(bank);
            }
            let runs = if bank == Bank::Many {
                &mut many
            } else {
                &mut few
            };
            runs.push(take_turn(local, load, plan.loads).await?);
        }
    }
    Ok(Compared::of(&many, &few))
}

/// Brings the others in or has them forgotten; the load's own are there in both cases.
async fn change(
    local: &Local,
    bank: Bank,
    (load, others): (&Load, &[RequestAdapter]),
) -> anyhow::Result<()> {
    let before = local.settled().await?.slots_filled;
    let own = load.models.len() as u64;
    local.service().engine().forget_idle_adapters();
    load::run(&Target::Local(local.clone()), load).await?;
    let mut want = own;
    if bank == Bank::Many {
        local.bring_in(others).await?;
        want += others.len() as u64;
    }
    let got = local.settled().await?.slots_filled - before;
    ensure!(
        got == want,
        "{want} slots should have been filled, the engine filled {got}"
    );
    Ok(())
}

async fn take_turn(local: &Local, load: &Load, loads: usize) -> anyhow::Result<Rates> {
    let target = Target::Local(local.clone());
    load::run(&target, load).await?;
    let mut runs = Vec::with_capacity(loads);
    for _ in 0..loads {
        runs.push(Rates::of(&load::run(&target, load).await?));
    }
    Ok(Rates::median(&runs))
}

/// Bytes of this process that are in memory.
fn resident_bytes() -> anyhow::Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")
        .context("this system does not tell a process's size")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kilobytes = line.and_then(|line| line.trim().trim_end_matches("kB").trim().parse().ok());
    let kilobytes: u64 = kilobytes.context("this system does not tell a process's size")?;
    Ok(kilobytes * 1024)
}
