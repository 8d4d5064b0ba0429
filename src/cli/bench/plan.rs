//! How much is measured: two plans, one for figures to be quoted and one that ends within seconds.

use std::time::Duration;

use super::pairs::Pairs;
use super::slots::Sizes;
use super::{publish, resident};

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
    /// Pairs of loads with adapters and without.
    pub pairs: Pairs,
    /// The bank, memory and disk of the service.
    pub slots: Sizes,
    /// Adapters resident in a bank beside those in use.
    pub resident: resident::Plan,
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
    pairs: Pairs {
        least: 20,
        most: 2000,
        seconds: 45,
        tokens: 48,
    },
    slots: Sizes {
        slots: 64,
        cached: 160,
        registered: 320,
    },
    resident: resident::Plan {
        further: &[100, 1000, 10_000],
        loads: 3,
        pairs: Pairs {
            least: 8,
            most: 60,
            seconds: 45,
            tokens: 48,
        },
    },
    registered: &[1, 10, 100, 1000, 10_000],
    publish: publish::Plan {
        streams: 8,
        tokens: 96,
        rounds: 16,
        window_ms: 1000,
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
    pairs: Pairs {
        least: 3,
        most: 3,
        seconds: 0,
        tokens: 32,
    },
    slots: Sizes {
        slots: 64,
        cached: 96,
        registered: 128,
    },
    resident: resident::Plan {
        further: &[100],
        loads: 1,
        pairs: Pairs {
            least: 2,
            most: 2,
            seconds: 0,
            tokens: 32,
        },
    },
    registered: &[1, 50],
    publish: publish::Plan {
        streams: 4,
        tokens: 32,
        rounds: 2,
        window_ms: 300,
        every_ms: 100,
    },
};
