//! What it costs to bring an adapter back into the bank, from memory and from disk.
//!
//! A request with one adapter over and over finds it in its slot. Taking turns over more adapters than the
//! bank has slots never does: the longest unused has just been replaced. Over more than memory keeps, the
//! file is read each time as well.

use anyhow::ensure;
use serde::Serialize;

use super::load::seeds;
use super::local::Local;
use super::stats::Spread;
use super::target::{Ask, Prompt, Target};

/// A service whose bank and memory are small enough to be overrun.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    /// Adapters that fit the bank.
    pub slots: u64,
    /// Adapters whose values memory keeps.
    pub cached: u64,
    /// Adapters on disk, `bench-0` and so on.
    pub registered: u64,
}

/// First tokens of short prompts, milliseconds.
#[derive(Clone, Debug, Serialize)]
pub struct BringingBack {
    /// The adapter is in its slot.
    pub resident_ms: Spread,
    /// Its slot was reclaimed, its values are in memory.
    pub from_memory_ms: Spread,
    /// They are on disk.
    pub from_disk_ms: Spread,
    /// Filling the slot, from memory: difference of the medians, microseconds.
    pub fill_us: f64,
    /// Reading and filling, from disk: difference of the medians, microseconds.
    pub read_and_fill_us: f64,
}

/// Measures, nothing else running.
pub async fn measure(local: &Local, sizes: Sizes, rounds: u64) -> anyhow::Result<BringingBack> {
    let target = Target::Local(local.clone());
    let over_slots = u64::midpoint(sizes.slots, sizes.cached);
    let mut times = [Vec::new(), Vec::new(), Vec::new()];
    for (times, adapters) in times.iter_mut().zip([1, over_slots, sizes.registered]) {
        // Once around to bring everything into the order that the turns find.
        for turn in 0..adapters {
            target.ask(ask(turn)).await?;
        }
        let before = local.settled().await?;
        let turns = rounds.max(20);
        for turn in 0..turns {
            let answer = target.ask(ask(turn % adapters)).await?;
            times.push(answer.first().as_secs_f64());
        }
        let after = local.settled().await?;
        let (got, want) = (
            after.slots_filled - before.slots_filled,
            if adapters == 1 { 0 } else { turns },
        );
        ensure!(
            got == want,
            "{want} slots should have been filled, the engine filled {got}"
        );
    }
    let [resident, memory, disk] = times.map(|times| Spread::of(&times, 1e3));
    Ok(BringingBack {
        fill_us: (memory.p50 - resident.p50) * 1e3,
        read_and_fill_us: (disk.p50 - resident.p50) * 1e3,
        resident_ms: resident,
        from_memory_ms: memory,
        from_disk_ms: disk,
    })
}

fn ask(adapter: u64) -> Ask {
    Ask {
        model: format!("bench-{adapter}"),
        prompt: Prompt::Words {
            rows: 4,
            seed: seeds::take(1),
        },
        tokens: 1,
    }
}
