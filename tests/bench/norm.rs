//! The norms with slots: rows of one adapter beside rows of as many adapters as rows, in banks of 2 and of
//! 1,001 slots. Mixing must cost nothing.

#![allow(
    clippy::unwrap_used,
    reason = "what cannot be set up cannot be measured"
)]

use std::hint::black_box;
use std::time::Duration;

use candle_core::{Device, Tensor};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use norma::model::ops::norm::{SiteValues, Statistic, norm};
use norma::model::ops::{Kernels, RowIndex};

const WIDTH: usize = 768;
const ROWS: usize = 64;

fn values(slots: usize, has_bias: bool) -> SiteValues {
    let random = || Tensor::rand(0.5f32, 1.5, (slots, WIDTH), &Device::Cpu).unwrap();
    SiteValues {
        gain: random(),
        bias: has_bias.then(random),
        trainable: false,
    }
}

fn bench(criterion: &mut Criterion) {
    let x = Tensor::rand(-1f32, 1.0, (ROWS, WIDTH), &Device::Cpu).unwrap();
    let mut group = criterion.benchmark_group("norm");
    group.throughput(Throughput::Elements((ROWS * WIDTH) as u64));
    for (kind, statistic, has_bias) in [
        ("layer norm", Statistic::Centred, true),
        ("rms norm", Statistic::Uncentred, false),
    ] {
        for (mix, n_slots, stride) in [
            ("one adapter", 2, 0),
            ("64 adapters", 65, 1),
            ("64 adapters of 1,000", 1001, 15),
        ] {
            let values = values(n_slots, has_bias);
            let slots: Vec<u32> = (0..ROWS as u32).map(|row| 1 + row * stride).collect();
            let slots = RowIndex::new(&slots, &Device::Cpu).unwrap();
            group.bench_function(BenchmarkId::new(kind, mix), |bencher| {
                bencher.iter(|| {
                    let rule = (statistic, 1e-5);
                    black_box(norm(&x, &values, &slots, rule, Kernels::Fused).unwrap())
                });
            });
        }
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
