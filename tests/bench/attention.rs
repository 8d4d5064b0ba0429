//! Attention in its two uses: one new row of each of many sequences (decoding), all rows of one prompt
//! (prefill), and an image's rows seeing each other (the vision tower). Twelve heads of 64.

#![allow(
    clippy::unwrap_used,
    reason = "what cannot be set up cannot be measured"
)]

use std::hint::black_box;
use std::time::Duration;

use candle_core::{Device, Tensor};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use norma::model::ops::Kernels;
use norma::model::ops::attention::{AttentionLayout, Heads, Mask, Segment, attention};

const N_HEADS: usize = 12;
const HEAD_DIM: usize = 64;

fn random(rows: usize) -> Tensor {
    Tensor::rand(-1f32, 1.0, (rows, N_HEADS * HEAD_DIM), &Device::Cpu).unwrap()
}

/// `n` sequences with one query each and `keys` keys of their own.
fn decoding(n: usize, keys: usize) -> AttentionLayout {
    let segment = |i: usize| Segment {
        rows: i..i + 1,
        keys: vec![i * keys..(i + 1) * keys],
    };
    let segments = (0..n).map(segment).collect();
    AttentionLayout::new(segments, Mask::Causal { window: None }).unwrap()
}

fn prefill(rows: usize) -> AttentionLayout {
    let whole = Segment {
        rows: 0..rows,
        keys: vec![0..rows],
    };
    AttentionLayout::new(vec![whole], Mask::Causal { window: None }).unwrap()
}

fn bench(criterion: &mut Criterion) {
    let heads = Heads::new(N_HEADS, N_HEADS, HEAD_DIM);
    let mut group = criterion.benchmark_group("attention");
    let mut run = |name: &str, size: usize, layout: &AttentionLayout, [rows, keys]: [usize; 2]| {
        let (q, k, v) = (random(rows), random(keys), random(keys));
        group.throughput(Throughput::Elements(rows as u64));
        group.bench_function(BenchmarkId::new(name, size), |bencher| {
            bencher.iter(|| {
                black_box(attention((&q, &k, &v), heads, layout, Kernels::Fused).unwrap())
            });
        });
    };
    for n in [1, 8, 64] {
        run("decode, 256 keys each", n, &decoding(n, 256), [n, n * 256]);
    }
    for rows in [64, 576] {
        run("prefill", rows, &prefill(rows), [rows, rows]);
        let tower = AttentionLayout::blocks(1, rows).unwrap();
        run("tower", rows, &tower, [rows, rows]);
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_millis(800));
    targets = bench
}
criterion_main!(benches);
