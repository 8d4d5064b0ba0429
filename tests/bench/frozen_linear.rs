//! The frozen linear map by weight type and rows: 2048 inputs to 8192 outputs, the size of a small
//! decoder's MLP, in elements of the product a second.

#![allow(
    clippy::unwrap_used,
    reason = "what cannot be set up cannot be measured"
)]

use std::hint::black_box;
use std::time::Duration;

use candle_core::{DType, Device, Tensor};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use half::bf16;
use norma::model::ops::frozen_linear::{DenseLinear, FrozenLinear, Packed, PackedLinear, Paired};

const N_IN: usize = 2048;
const N_OUT: usize = 8192;
const ROWS: [usize; 4] = [1, 8, 64, 576];

fn linears(weight: &Tensor) -> Vec<(&'static str, Box<dyn FrozenLinear>)> {
    let mut linears: Vec<(_, Box<dyn FrozenLinear>)> = vec![
        (
            "packed f32",
            Box::new(PackedLinear::<Packed<f32>>::new(weight, None).unwrap()),
        ),
        (
            "packed bf16",
            Box::new(PackedLinear::<Packed<bf16>>::new(weight, None).unwrap()),
        ),
        (
            "candle f32",
            Box::new(DenseLinear::new(weight, None).unwrap()),
        ),
    ];
    // Not on every machine.
    if let Ok(linear) = PackedLinear::<Paired>::new(weight, None) {
        linears.push(("paired bf16", Box::new(linear)));
    }
    linears
}

fn frozen_linear(criterion: &mut Criterion) {
    let weight = Tensor::rand(-0.1f32, 0.1, (N_OUT, N_IN), &Device::Cpu).unwrap();
    let linears = linears(&weight);
    let mut group = criterion.benchmark_group("frozen_linear");
    for rows in ROWS {
        let x = Tensor::rand(-1f32, 1.0, (rows, N_IN), &Device::Cpu).unwrap();
        let x = x.to_dtype(DType::F32).unwrap();
        group.throughput(Throughput::Elements((rows * N_IN * N_OUT) as u64));
        for (name, linear) in &linears {
            group.bench_with_input(BenchmarkId::new(*name, rows), &x, |bencher, x| {
                bencher.iter(|| black_box(linear.forward(x).unwrap()));
            });
        }
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_millis(800));
    targets = frozen_linear
}
criterion_main!(benches);
