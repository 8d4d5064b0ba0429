//! Two things measured in turns: how often, and what their pairs show.
//!
//! Many short pairs say more than few long ones: whatever disturbs a machine for a while then meets both.

use std::time::{Duration, Instant};

use serde::Serialize;

use super::load;
use super::stats::{PairedRatio, median};
use super::target::Timed;

/// How many pairs: until the time is over, but not fewer and not more than these.
#[derive(Clone, Copy, Debug)]
pub struct Pairs {
    /// At least; two or more, or there is no interval.
    pub least: usize,
    /// At most.
    pub most: usize,
    /// Seconds.
    pub seconds: u64,
    /// Tokens of an answer.
    pub tokens: usize,
}

/// Counts pairs.
pub struct Turns {
    pairs: Pairs,
    begun: Instant,
    done: usize,
}

impl Pairs {
    /// From now on.
    pub fn turns(self) -> Turns {
        Turns {
            pairs: self,
            begun: Instant::now(),
            done: 0,
        }
    }
}

impl Turns {
    /// The number of the next pair, if there is to be one.
    pub fn next_one(&mut self) -> Option<usize> {
        let over = self.begun.elapsed() >= Duration::from_secs(self.pairs.seconds);
        if self.done >= self.pairs.most || (over && self.done >= self.pairs.least) {
            return None;
        }
        self.done += 1;
        Some(self.done - 1)
    }
}

/// Tokens a second of one run of a load.
#[derive(Clone, Copy, Debug)]
pub struct Rates {
    whole: f64,
    decoding: Option<f64>,
}

impl Rates {
    /// Of its answers.
    pub fn of(answers: &[Timed]) -> Self {
        Self {
            whole: load::rate(answers),
            decoding: load::decode_rate(answers),
        }
    }

    /// The middle of several runs.
    pub fn median(runs: &[Self]) -> Self {
        let decoding: Vec<f64> = runs.iter().filter_map(|run| run.decoding).collect();
        let whole: Vec<f64> = runs.iter().map(|run| run.whole).collect();
        Self {
            whole: median(&whole),
            decoding: (!decoding.is_empty()).then(|| median(&decoding)),
        }
    }
}

/// One load's rates over the other's.
#[derive(Clone, Debug, Serialize)]
pub struct Compared {
    /// Tokens a second, from the first request to the last token.
    pub throughput: PairedRatio,
    /// Tokens a second while all streams were decoding.
    pub decoding: PairedRatio,
}

impl Compared {
    /// Of the runs of both, pair by pair.
    pub fn of(first: &[Rates], second: &[Rates]) -> Self {
        let pairs = || first.iter().zip(second);
        let whole: Vec<_> = pairs().map(|(a, b)| (a.whole, b.whole)).collect();
        let decoding = pairs().filter_map(|(a, b)| a.decoding.zip(b.decoding));
        Self {
            throughput: PairedRatio::of(&whole),
            decoding: PairedRatio::of(&decoding.collect::<Vec<_>>()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(least: usize, most: usize, seconds: u64) -> usize {
        let pairs = Pairs {
            least,
            most,
            seconds,
            tokens: 1,
        };
        let mut turns = pairs.turns();
        std::iter::from_fn(|| turns.next_one()).count()
    }

    #[test]
    fn there_are_never_fewer_pairs_nor_more_than_planned() {
        assert_eq!(count(3, 9, 0), 3);
        assert_eq!(count(3, 9, 3600), 9);
    }

    #[test]
    fn a_pair_without_common_decoding_counts_for_throughput_alone() {
        let rates = |whole, decoding| Rates { whole, decoding };
        let first = [rates(2.0, Some(3.0)), rates(2.0, None)];
        let second = [rates(1.0, Some(1.0)), rates(1.0, Some(1.0))];
        let compared = Compared::of(&first, &second);
        assert!((compared.throughput.ratio - 2.0).abs() < 1e-9);
        assert!((compared.decoding.ratio - 3.0).abs() < 1e-9);
        assert_eq!((compared.throughput.pairs, compared.decoding.pairs), (2, 1));
    }
}
