//! How much is measured: two plans, one for figures to be quoted and one that ends within seconds.

use std::time::Duration;

use super::publish;
use super::slots::Sizes;

/// A run's lengths.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// For each of the machine's limits, milliseconds.
    machine_ms: u64,
    /// Repetitions of whatever is repeated.
    pub repeats: usize,
    /// Tokens of an answer.
    pub tokens: usize,
    /// Images with two questions each.
    pub images: usize,
    /// Streams at once, and distinct adapters among the most of them.
    pub streams: &'static [usize],
    /// Pairs of loads.
    pub pairs: usize,
    /// The bank, memory and disk of the service.
    pub slots: Sizes,
    /// Adapters resident in a bank.
    pub resident: &'static [u64],
    /// Adapters in a registry.
    pub registered: &'static [u64],
    /// Publishing.
    pub publish: publish::Plan,
}

impl Plan {
    /// For each of the machine's limits.
    pub fn machine(&self) -> Duration {
        Duration::from_millis(self.machine_ms)
    }
}

/// Figures to be quoted.
pub const FULL: Plan = Plan {
    machine_ms: 3000,
    repeats: 5,
    tokens: 96,
    images: 20,
    streams: &[1, 2, 4, 8, 16, 32, 64],
    pairs: 20,
    slots: Sizes {
        slots: 64,
        cached: 160,
        registered: 320,
    },
    resident: &[100, 1000, 10_000],
    registered: &[1, 10, 100, 1000, 10_000],
    publish: publish::Plan {
        streams: 8,
        tokens: 96,
        rounds: 5,
        publishes: 24,
        every_ms: 250,
    },
};

/// Every figure, none of them sharp.
pub const QUICK: Plan = Plan {
    machine_ms: 300,
    repeats: 1,
    tokens: 32,
    images: 2,
    streams: &[1, 8, 64],
    pairs: 3,
    slots: Sizes {
        slots: 64,
        cached: 96,
        registered: 128,
    },
    resident: &[100],
    registered: &[1, 50],
    publish: publish::Plan {
        streams: 4,
        tokens: 32,
        rounds: 2,
        publishes: 3,
        every_ms: 100,
    },
};
