//! What this machine can do at most: bytes read and multiply-adds done in a second, on so many threads.
//!
//! Nothing in but the number of threads; the figures are the best of several short runs, because a limit is
//! what is reached when nobody disturbs.

use std::hint::black_box;
use std::thread;
use std::time::{Duration, Instant};

use serde::Serialize;

/// Bytes of the buffer that is read: many times any cache.
const BUFFER: usize = 512 << 20;
/// Multiply-adds of each chain in one run: a few milliseconds at the most.
const ROUNDS: usize = 1 << 16;

/// The machine's limits.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Machine {
    /// Threads that measured.
    pub threads: usize,
    /// Bytes read from memory in a second, all threads together, in GB (1e9).
    pub read_gb_per_second: f64,
    /// Single-precision operations in a second, two a multiply-add, all threads together, in 1e9.
    pub fma_gflop_per_second: f64,
}

/// Measures, for about `time` each.
pub fn measure(threads: usize, time: Duration) -> Machine {
    Machine {
        threads,
        read_gb_per_second: read_bandwidth(threads, time) / 1e9,
        fma_gflop_per_second: fma_peak(threads, time) / 1e9,
    }
}

fn read_bandwidth(threads: usize, time: Duration) -> f64 {
    let buffer = vec![1u64; BUFFER / 8];
    let part = buffer.len().div_ceil(threads);
    best_rate(time, || {
        thread::scope(|scope| {
            for part in buffer.chunks(part) {
                scope.spawn(move || black_box(sum(black_box(part))));
            }
        });
        BUFFER as f64
    })
}

/// Integers add in any order, so the compiler is free to use its widest loads.
fn sum(words: &[u64]) -> u64 {
    words
        .iter()
        .fold(0u64, |total, word| total.wrapping_add(*word))
}

/// So many running totals, and what runs them.
type Shape = (usize, fn(usize) -> f32);

fn fma_peak(threads: usize, time: Duration) -> f64 {
    // Which shape the compiler keeps in registers differs from machine to machine, so several are tried.
    let shapes: [Shape; 7] = [
        (8 * 8, chains::<8, 8>),
        (8 * 10, chains::<8, 10>),
        (8 * 11, chains::<8, 11>),
        (16 * 6, chains::<16, 6>),
        (16 * 10, chains::<16, 10>),
        (16 * 11, chains::<16, 11>),
        (32 * 5, chains::<32, 5>),
    ];
    let each = time / shapes.len() as u32;
    let rate = |(totals, chains): Shape| {
        best_rate(each, || {
            thread::scope(|scope| {
                for _ in 0..threads {
                    scope.spawn(|| black_box(chains(black_box(ROUNDS))));
                }
            });
            (threads * ROUNDS * totals * 2) as f64
        })
    };
    shapes.into_iter().map(rate).fold(0.0, f64::max)
}

/// Multiply-adds that wait for nothing but the one before in their own chain: `C` chains of `L` lanes.
#[inline(never)]
fn chains<const L: usize, const C: usize>(rounds: usize) -> f32 {
    let mut totals = [[0f32; L]; C];
    let (a, b) = (black_box([0.5f32; L]), black_box([1f32; L]));
    for _ in 0..rounds {
        for total in &mut totals {
            for lane in 0..L {
                total[lane] = multiply_add(total[lane], a[lane], b[lane]);
            }
        }
    }
    black_box(totals).iter().flatten().sum()
}

#[inline(always)]
fn multiply_add(x: f32, a: f32, b: f32) -> f32 {
    if cfg!(any(target_feature = "fma", target_arch = "aarch64")) {
        x.mul_add(a, b)
    } else {
        x * a + b
    }
}

/// The best rate of runs that go on for `time`; a run says how much it did.
fn best_rate(time: Duration, run: impl Fn() -> f64) -> f64 {
    let begun = Instant::now();
    let mut best = 0f64;
    loop {
        let at = Instant::now();
        let done = run();
        best = best.max(done / at.elapsed().as_secs_f64());
        if begun.elapsed() >= time {
            return best;
        }
    }
}
