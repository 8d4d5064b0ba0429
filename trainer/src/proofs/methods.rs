//! The reference's runs of every other method (PEFT's LoRA, IA3 and prefix tuning; torch with
//! `requires_grad` for the rest): losses and values. What the files hold: tests/golden/README.md.

use std::collections::BTreeMap;

use candle_core::{Device, Tensor};
use norma::base::{Base, OpenOptions};
use norma::model::MedVlm;
use norma::model::kv_cache::{KvCache, KvType};
use norma::model::ops::attention::Segment;
use norma::model::step::Step;
use norma_adapters::Scope;
use serde::Deserialize;

use super::lntuning::{expected as lntuning, golden, lessons, relative};
use crate::batch::pack;
use crate::frozen::FrozenBase;
use crate::lesson::{Lesson, pixels};
use crate::methods::{Choice, LayerNorm, Lora, Method, NormValues, Prefix};
use crate::optimizer::AdamConfig;
use crate::tune::{Prepared, Tuner};

#[derive(Deserialize)]
struct Expected {
    steps: usize,
    methods: BTreeMap<String, Run>,
}

#[derive(Deserialize)]
struct Run {
    rate: f64,
    losses: Vec<f64>,
    final_losses: Vec<f64>,
    n_trained: usize,
    trained_tensors: Vec<String>,
}

fn expected() -> Expected {
    serde_json::from_slice(&std::fs::read(golden("methods/expected.json")).unwrap()).unwrap()
}

fn tensors() -> BTreeMap<String, Tensor> {
    let path = golden("methods/expected.safetensors");
    let tensors = candle_core::safetensors::load(path, &Device::Cpu).unwrap();
    tensors.into_iter().collect()
}

/// The base, built for a method in both towers.
pub(super) fn base(method: Method) -> (FrozenBase, Choice) {
    let choice = Choice {
        method,
        scope: Scope::All,
        seed: 4,
    };
    let base = Base::open(&golden("llava/llama_a"), &OpenOptions::default()).unwrap();
    let (row, digest) = (base.row().unwrap(), base.digest());
    let built =
        FrozenBase::with_method(base.config(), base.checkpoint(), row, digest, &choice).unwrap();
    (built, choice)
}

pub(super) fn method(name: &str) -> Method {
    match name {
        "lora" => Method::Lora(Lora {
            rank: 4,
            alpha: 8.0,
            ..Lora::default()
        }),
        "ia3" => Method::Ia3,
        "prefix" => Method::Prefix(Prefix { tokens: 5 }),
        "bias" => Method::Bias,
        "ffn" => Method::Ffn,
        "attention" => Method::Attention,
        "full" => Method::Full,
        "layernorm_gain" => Method::LayerNorm(LayerNorm {
            sites: None,
            values: NormValues::Gain,
        }),
        _ => panic!("no method {name}"),
    }
}

fn flat(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

/// Sets what the reference drew at random.
fn start_as(base: &FrozenBase, name: &str, tensors: &BTreeMap<String, Tensor>) {
    for variable in &base.variables {
        if let Some(start) = tensors.get(&format!("{name}.start.{}", variable.name)) {
            let start = start.reshape(variable.var.dims()).unwrap();
            variable.var.set(&start).unwrap();
        }
    }
}

/// What no gradient reaches but rounding; see `methods::bias`.
fn is_noise(name: &str) -> bool {
    name.starts_with("vision_tower") && name.ends_with("k_proj.bias")
}

/// Losses within 1e-5. Values within a hundredth of what the largest rate moves in one step: where a first
/// gradient is near zero, AdamW's step is as large as anywhere, and its sign is a matter of rounding.
fn check(name: &str) {
    let (expected, wanted, common) = (expected(), tensors(), lntuning());
    let run = &expected.methods[name];
    let ((base, choice), lessons) = (base(method(name)), lessons(&common));
    start_as(&base, name, &wanted);
    let before = base.weights_digest().unwrap();
    let mut tuner = Tuner::new(&base, &choice, AdamConfig::default(), 1).unwrap();
    assert_eq!(tuner.n_trainable(), run.n_trained);
    let prepared = tuner.prepare(&lessons).unwrap();
    tuner
        .check_reach(&prepared.iter().collect::<Vec<_>>())
        .unwrap();
    let batch = |batch: usize| -> Vec<&Prepared> {
        common.batches[batch]
            .iter()
            .map(|one| &prepared[*one])
            .collect()
    };
    for step in 0..expected.steps {
        let loss = tuner.step(&batch(step % 2), run.rate, f64::INFINITY);
        let (loss, want) = (loss.unwrap(), run.losses[step]);
        assert!(
            relative(loss, want) < 1e-5,
            "{name}, step {step}: loss {loss}, the reference's {want}"
        );
    }
    for (at, want) in run.final_losses.iter().enumerate() {
        let loss = tuner.evaluate(&batch(at)).unwrap();
        assert!(relative(loss, *want) < 1e-5, "{name}: {loss} {want}");
    }
    tuner.check_moved().unwrap();
    let trained = base.variables.iter().chain(tuner.norms().all());
    let trained: BTreeMap<&str, Vec<f32>> = trained
        .map(|one| (one.name.as_str(), flat(&one.var)))
        .collect();
    assert!(trained.keys().eq(run.trained_tensors.iter()));
    for (tensor, values) in trained {
        if is_noise(tensor) {
            continue;
        }
        for (got, want) in values
            .iter()
            .zip(flat(&wanted[&format!("{name}.end.{tensor}")]))
        {
            assert!((got - want).abs() < 1e-4, "{name}, {tensor}: {got} {want}");
        }
    }
    assert_eq!(base.weights_digest().unwrap(), before);
}

#[test]
fn lora_gives_pefts_losses_and_values() {
    check("lora");
}

#[test]
fn ia3_gives_pefts_losses_and_values() {
    check("ia3");
}

#[test]
fn prefix_tuning_gives_pefts_losses_and_values() {
    check("prefix");
}

#[test]
fn bias_tuning_gives_torchs_losses_and_values() {
    check("bias");
}

#[test]
fn tuning_of_whole_weights_gives_torchs_losses_and_values() {
    for name in ["ffn", "attention", "full"] {
        check(name);
    }
}

#[test]
fn tuning_of_gains_alone_gives_torchs_losses_and_values() {
    check("layernorm_gain");
}

/// Answers through the KV cache are those of whole sequences, with everything that can be attached.
#[test]
fn cached_answers_of_every_method_are_those_of_whole_sequences() {
    let lessons = &lessons(&lntuning())[..3];
    for name in ["prefix", "lora", "ia3", "bias", "full"] {
        let (base, choice) = base(method(name));
        let mut tuner = Tuner::new(&base, &choice, AdamConfig::default(), 1).unwrap();
        let prepared = tuner.prepare(lessons).unwrap();
        let all: Vec<&Prepared> = prepared.iter().collect();
        tuner.step(&all, 1e-2, f64::INFINITY).unwrap();
        answers_agree(&base, &tuner, lessons);
    }
}

/// The rows of each lesson's first question, all at once and through a cache: the prompt, then row by row.
fn answers_agree(base: &FrozenBase, tuner: &Tuner, lessons: &[Lesson]) {
    let (model, bank) = (&base.model, tuner.norms().bank());
    for lesson in lessons {
        let one = std::iter::once(lesson);
        let pixels = pixels(one, model.shape().image_size, model.device()).unwrap();
        let features = model.encode_images(&pixels, &[0], bank).unwrap();
        let dialogue = lesson.dialogue.separate().remove(0);
        let answer = dialogue.branches[0].answer.len();
        let mut whole = pack([&dialogue]).step;
        whole.image_features = Some(features.clone());
        let rows = whole.inputs.len();
        whole.logits_rows = (0..rows as u32).collect();
        let want = model.forward(&whole, bank, None).unwrap();
        let cache = KvCache::new(model.shape(), rows, KvType::F32).unwrap();
        let prompt = rows - answer;
        let mut got = Vec::new();
        for range in std::iter::once(0..prompt).chain((prompt..rows).map(|row| row..row + 1)) {
            let step = Step {
                inputs: whole.inputs[range.clone()].to_vec(),
                positions: whole.positions[range.clone()].to_vec(),
                slots: vec![0; range.len()],
                segments: vec![Segment {
                    rows: 0..range.len(),
                    keys: vec![0..range.end],
                }],
                cache_rows: Some(range.clone().map(|row| row as u32).collect()),
                image_features: (range.start == 0).then(|| features.clone()),
                logits_rows: (0..range.len() as u32).collect(),
            };
            got.push(model.forward(&step, bank, Some(&cache)).unwrap());
        }
        let got = Tensor::cat(&got, 0).unwrap();
        let off = (got - want).unwrap().abs().unwrap().max_all().unwrap();
        assert!(off.to_scalar::<f32>().unwrap() < 1e-4);
    }
}

/// The longest sequence that a base takes is shorter by the prefix.
#[test]
fn a_prefix_takes_positions() {
    let (plain, with) = (base(Method::Ia3).0, base(method("prefix")).0);
    let positions = |base: &FrozenBase| base.model.shape().max_positions;
    assert_eq!(positions(&plain), positions(&with) + 5);
}
