//! A mix of sequences, lengths, adapters, prefill and decode gives each sequence what it gets alone, to the bit.

use std::ops::Range;

use candle_core::{Device, Tensor};
use norma::base::WeightType;
use norma::model::MedVlm;
use norma::model::bank::NormBank;
use norma::model::kv_cache::{KvCache, KvType};
use norma::model::llava::Llava;
use norma::model::ops::Kernels;
use norma::model::ops::attention::Segment;
use norma::model::step::{RowInput, Step};
use proptest::prelude::*;

use crate::golden::{open, whole_sequence};

const N_SLOTS: usize = 5;
const VOCAB: u32 = 299;

/// One sequence: its adapter, an image or not, its tokens, and the lengths of its prefill chunks.
#[derive(Clone, Debug)]
struct Sequence {
    slot: u32,
    image: Option<u64>,
    tokens: Vec<u32>,
    chunks: Vec<usize>,
}

fn sequence() -> impl Strategy<Value = Sequence> {
    let tokens = prop::collection::vec(0..VOCAB, 1..24);
    let chunks = prop::collection::vec(1usize..12, 1..4);
    (
        0..N_SLOTS as u32,
        prop::option::of(0u64..1000),
        tokens,
        chunks,
    )
        .prop_map(|(slot, image, tokens, chunks)| Sequence {
            slot,
            image,
            tokens,
            chunks,
        })
}

/// A bank whose slots differ from each other at every site.
fn bank(model: &Llava, row: &[f32]) -> NormBank {
    let mut bank = NormBank::resident(model.sites(), row, N_SLOTS, &Device::Cpu).unwrap();
    for slot in 1..N_SLOTS {
        let row: Vec<f32> = row
            .iter()
            .enumerate()
            .map(|(i, value)| value + 0.2 * ((i * slot) as f32 * 0.7).sin())
            .collect();
        bank.fill(slot as u32, row.into()).unwrap();
    }
    bank
}

fn pixels(seed: u64, size: usize) -> Tensor {
    let values: Vec<f32> = (0..3 * size * size)
        .map(|i| ((i as u64 * 31 + seed * 977) as f32 * 0.013).sin())
        .collect();
    Tensor::from_vec(values, (1, 3, size, size), &Device::Cpu).unwrap()
}

impl Sequence {
    fn inputs(&self, image_tokens: usize) -> Vec<RowInput> {
        let image = self.image.map_or(0, |_| image_tokens as u32);
        let tokens = self.tokens.iter().map(|token| RowInput::Token(*token));
        (0..image).map(RowInput::Feature).chain(tokens).collect()
    }

    fn features(&self, model: &Llava, bank: &NormBank) -> Option<Tensor> {
        let size = model.shape().image_size;
        self.image.map(|seed| {
            model
                .encode_images(&pixels(seed, size), &[self.slot], bank)
                .unwrap()
        })
    }
}

/// Every sequence's rows split into the chunks in which it enters the steps.
fn chunk_ranges(sequence: &Sequence, rows: usize) -> Vec<Range<usize>> {
    let mut ranges = Vec::new();
    let mut first = 0;
    let mut sizes = sequence.chunks.iter().cycle();
    while first < rows {
        let end = (first + sizes.next().unwrap()).min(rows);
        ranges.push(first..end);
        first = end;
    }
    ranges
}

/// Runs all sequences together, chunk by chunk, through one cache; returns each one's logits by row.
fn together(
    model: &Llava,
    bank: &NormBank,
    kv_type: KvType,
    sequences: &[Sequence],
) -> Vec<Vec<Vec<f32>>> {
    let shape = *model.shape();
    let inputs: Vec<Vec<RowInput>> = sequences
        .iter()
        .map(|sequence| sequence.inputs(shape.image_tokens))
        .collect();
    let capacity = inputs.iter().map(Vec::len).sum();
    let cache = KvCache::new(&shape, capacity, kv_type).unwrap();
    let firsts: Vec<usize> = inputs
        .iter()
        .scan(0, |next, inputs| {
            Some(std::mem::replace(next, *next + inputs.len()))
        })
        .collect();
    let mut features = Vec::new();
    let mut feature_firsts = Vec::new();
    let mut n_features = 0;
    for sequence in sequences {
        feature_firsts.push(n_features as u32);
        if let Some(encoded) = sequence.features(model, bank) {
            n_features += encoded.dim(0).unwrap();
            features.push(encoded);
        }
    }
    let features = (!features.is_empty()).then(|| Tensor::cat(&features, 0).unwrap());
    let mut chunks: Vec<_> = sequences
        .iter()
        .zip(&inputs)
        .map(|(sequence, inputs)| chunk_ranges(sequence, inputs.len()).into_iter())
        .collect();
    let mut logits = vec![Vec::new(); sequences.len()];
    loop {
        let mut step = Step {
            cache_rows: Some(Vec::new()),
            ..Step::default()
        };
        let mut owners = Vec::new();
        for (i, chunks) in chunks.iter_mut().enumerate() {
            let Some(range) = chunks.next() else { continue };
            let first = step.len();
            for position in range.clone() {
                step.inputs.push(match inputs[i][position] {
                    RowInput::Feature(row) => RowInput::Feature(row + feature_firsts[i]),
                    token @ RowInput::Token(_) => token,
                });
                step.positions.push(position as u32);
                step.slots.push(sequences[i].slot);
                step.cache_rows
                    .as_mut()
                    .unwrap()
                    .push((firsts[i] + position) as u32);
                owners.push(i);
            }
            let keys = vec![firsts[i]..firsts[i] + range.end];
            step.segments.push(Segment {
                rows: first..step.len(),
                keys,
            });
        }
        if step.is_empty() {
            return logits;
        }
        step.image_features.clone_from(&features);
        step.logits_rows = (0..step.len() as u32).collect();
        let rows: Vec<Vec<f32>> = model
            .forward(&step, bank, Some(&cache))
            .unwrap()
            .to_vec2()
            .unwrap();
        for (owner, row) in owners.into_iter().zip(rows) {
            logits[owner].push(row);
        }
    }
}

/// Types whose kernels differ; the block type has products of its own crate.
const WEIGHTS: [&str; 5] = ["f32", "bf16", "bf16-dot", "int8", "q8_0"];

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_mix_gives_each_sequence_the_bits_of_running_alone(
        sequences in prop::collection::vec(sequence(), 1..7),
        weights in prop::sample::select(&WEIGHTS[..]),
        kv_type in prop::sample::select(&[KvType::F32, KvType::Bf16][..]),
    ) {
        let weights: WeightType = weights.parse().unwrap();
        // `bf16-dot` without AVX512_BF16.
        prop_assume!(weights.runs_here());
        let base = open("llama_a");
        let model = base.load(Kernels::Fused, weights).unwrap();
        let bank = bank(&model, &base.row().unwrap());
        let mixed = together(&model, &bank, kv_type, &sequences);
        for (sequence, mixed) in sequences.iter().zip(mixed) {
            let whole = Sequence { chunks: vec![usize::MAX], ..sequence.clone() };
            let alone = together(&model, &bank, kv_type, &[whole]).remove(0);
            prop_assert_eq!(&mixed, &alone);
            if kv_type == KvType::F32 {
                let features = sequence.features(&model, &bank);
                let inputs = sequence.inputs(model.shape().image_tokens);
                let step = whole_sequence(inputs, features, sequence.slot);
                let uncached = model.forward(&step, &bank, None).unwrap();
                let uncached = uncached.to_vec2::<f32>().unwrap();
                prop_assert_eq!(mixed, uncached);
            }
        }
    }
}

#[test]
fn adapters_in_one_batch_do_change_their_own_sequences() {
    let base = open("llama_a");
    let model = base.load(Kernels::Fused, WeightType::F32).unwrap();
    let bank = bank(&model, &base.row().unwrap());
    let sequence = |slot| Sequence {
        slot,
        image: Some(7),
        tokens: vec![5, 6, 7],
        chunks: vec![9],
    };
    let logits = together(
        &model,
        &bank,
        KvType::F32,
        &[sequence(0), sequence(1), sequence(2)],
    );
    assert_ne!(logits[0], logits[1]);
    assert_ne!(logits[1], logits[2]);
}
