//! Choosing a token from the logits of a vocabulary of 32,000, by the engine's own sampler.

#![allow(
    clippy::unwrap_used,
    reason = "what cannot be set up cannot be measured"
)]

use std::hint::black_box;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};

use norma::engine::Sampling;
use norma::engine::sampler::{Draw, Logits};

const VOCAB: u32 = 32_000;

/// Logits like a model's: bell-shaped, deviation 3, without a random number generator.
fn logits() -> Vec<f32> {
    let bell = |token: u32| -> f32 {
        let place = |k: u32| {
            (token
                .wrapping_mul(2_654_435_761)
                .wrapping_add(k * 0x9E37_79B9)
                >> 8) as f32
        };
        (0..12).map(|k| place(k) / 16_777_216.0 - 0.5).sum::<f32>() * 3.0
    };
    (0..VOCAB).map(bell).collect()
}

fn bench(criterion: &mut Criterion) {
    let logits = logits();
    let warm = Sampling {
        temperature: 0.8,
        ..Sampling::default()
    };
    let ways = [
        ("greedy", Sampling::default(), 0),
        ("temperature", warm, 0),
        (
            "top-k 50",
            Sampling {
                top_k: Some(50),
                ..warm
            },
            0,
        ),
        ("top-p 0.9", Sampling { top_p: 0.9, ..warm }, 0),
        ("greedy, 20 log probabilities", Sampling::default(), 20),
    ];
    let mut group = criterion.benchmark_group("sampling");
    for (name, sampling, top) in ways {
        let mut index = 0;
        group.bench_function(BenchmarkId::from_parameter(name), |bencher| {
            bencher.iter(|| {
                index += 1;
                let row = Logits::new(black_box(&logits)).unwrap();
                let token = row
                    .choose(&sampling, &[2], Draw { seed: 7, index })
                    .unwrap();
                black_box((row.token(token), row.top(top)))
            });
        });
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(100))
        .measurement_time(Duration::from_millis(400));
    targets = bench
}
criterion_main!(benches);
