//! The reference's LN-tuning (PEFT's `LNTuningConfig` on `llava/llama_a`): its losses, its gradients,
//! its final values. What the files hold and how they were made: tests/golden/README.md.

use std::path::PathBuf;

use candle_core::{Device, Tensor};
use norma::base::{Base, OpenOptions};
use norma::model::MedVlm;
use norma_adapters::Scope;
use serde::Deserialize;

use crate::batch::Dialogue;
use crate::frozen::FrozenBase;
use crate::lesson::Lesson;
use crate::methods::Choice;
use crate::optimizer::AdamConfig;
use crate::tune::{Prepared, Tuner};

#[derive(Deserialize)]
pub(super) struct Expected {
    examples: Vec<Recorded>,
    pub(super) batches: Vec<Vec<usize>>,
    losses: Vec<f64>,
    final_losses: Vec<f64>,
    trained_tensors: Vec<String>,
    steps: usize,
}

#[derive(Deserialize)]
struct Recorded {
    image: String,
    input_ids: Vec<u32>,
    label_mask: Vec<u8>,
}

const IMAGE_TOKEN: u32 = 299;
const RATE: f64 = 1e-2;
const NO_LIMIT: f64 = f64::INFINITY;

pub(super) fn golden(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("../tests/golden")
        .join(path)
}

pub(super) fn expected() -> Expected {
    serde_json::from_slice(&std::fs::read(golden("lntuning/expected.json")).unwrap()).unwrap()
}

fn expected_tensor(name: &str) -> Vec<f32> {
    let path = golden("lntuning/expected.safetensors");
    let tensors = candle_core::safetensors::load(path, &Device::Cpu).unwrap();
    tensors[name].flatten_all().unwrap().to_vec1().unwrap()
}

fn base() -> FrozenBase {
    let base = Base::open(&golden("llava/llama_a"), &OpenOptions::default()).unwrap();
    FrozenBase::new(
        base.config(),
        base.checkpoint(),
        base.row().unwrap(),
        base.digest(),
    )
    .unwrap()
}

/// The examples, with the pixels that the reference's processor made.
pub(super) fn lessons(expected: &Expected) -> Vec<Lesson> {
    let tensors = golden("llava/llama_a.safetensors");
    let tensors = candle_core::safetensors::load(tensors, &Device::Cpu).unwrap();
    let lesson = |one: &Recorded| {
        let stem = one.image.split('.').next().unwrap();
        let pixels: &Tensor = &tensors[&format!("{stem}.pixel_values")];
        let answer = one
            .label_mask
            .iter()
            .position(|wanted| *wanted == 1)
            .unwrap();
        assert!(one.label_mask[answer..].iter().all(|wanted| *wanted == 1));
        let sequences = [(one.input_ids.clone(), answer)];
        Lesson {
            pixels: pixels.flatten_all().unwrap().to_vec1().unwrap(),
            dialogue: Dialogue::from_sequences(&sequences, IMAGE_TOKEN).unwrap(),
        }
    };
    expected.examples.iter().map(lesson).collect()
}

fn tuner(base: &FrozenBase, scope: Scope) -> Tuner<'_> {
    Tuner::new(base, &Choice::layernorm(scope), AdamConfig::default(), 1).unwrap()
}

pub(super) fn relative(got: f64, want: f64) -> f64 {
    (got - want).abs() / want.abs()
}

#[test]
fn twenty_steps_give_pefts_losses_and_leave_the_base_bit_equal() {
    let expected = expected();
    let (base, lessons) = (base(), lessons(&expected));
    let before = base.weights_digest().unwrap();
    let mut tuner = tuner(&base, Scope::All);
    let prepared = tuner.prepare(&lessons).unwrap();
    let batch = |batch: usize| -> Vec<&Prepared> {
        expected.batches[batch]
            .iter()
            .map(|one| &prepared[*one])
            .collect()
    };
    for step in 0..expected.steps {
        let loss = tuner.step(&batch(step % 2), RATE, NO_LIMIT).unwrap();
        let off = relative(loss, expected.losses[step]);
        assert!(
            off < 1e-5,
            "step {step}: loss {loss}, PEFT's {}",
            expected.losses[step]
        );
        if step == 0 || step == expected.steps - 1 {
            check_values(&tuner, &expected, step + 1);
        }
    }
    for (at, want) in expected.final_losses.iter().enumerate() {
        let loss = tuner.evaluate(&batch(at)).unwrap();
        assert!(
            relative(loss, *want) < 1e-5,
            "final loss {loss}, PEFT's {want}"
        );
    }
    assert_eq!(base.weights_digest().unwrap(), before);
}

/// Names and values of everything trained. One value in PEFT's run has a first gradient near zero,
/// where AdamW's first step is as large as anywhere, hence the wider bound.
fn check_values(tuner: &Tuner, expected: &Expected, step: usize) {
    let mut names: Vec<&str> = tuner
        .norms()
        .all()
        .iter()
        .map(|one| one.name.as_str())
        .collect();
    names.sort_unstable();
    assert_eq!(names, expected.trained_tensors);
    for variable in tuner.norms().all() {
        let got = variable
            .var
            .flatten_all()
            .unwrap()
            .to_vec1::<f32>()
            .unwrap();
        let want = expected_tensor(&format!("after_{step}.{}", variable.name));
        for (got, want) in got.iter().zip(&want) {
            assert!(
                (got - want).abs() < 2e-5,
                "{} after {step}: {got} {want}",
                variable.name
            );
        }
    }
}

#[test]
fn every_selected_site_gets_a_gradient_and_no_frozen_weight_does() {
    let expected = expected();
    let (base, lessons) = (base(), lessons(&expected));
    for scope in [Scope::All, Scope::Vision, Scope::Language] {
        let tuner = tuner(&base, scope);
        let prepared = tuner.prepare(&lessons).unwrap();
        tuner
            .check_reach(&prepared.iter().collect::<Vec<_>>())
            .unwrap();
    }
}

#[test]
fn scopes_train_their_part_and_no_scope_trains_nothing() {
    let base = base();
    let count = |scope| tuner(&base, scope).n_trainable();
    // Five decoder norms of 32; five tower norms of gain and bias.
    assert_eq!(
        (count(Scope::Language), count(Scope::Vision)),
        (5 * 32, 5 * 64)
    );
    assert_eq!(count(Scope::All), base.model.sites().row_len());
    let nowhere = Choice::layernorm(Scope::Projector);
    let error = Tuner::new(&base, &nowhere, AdamConfig::default(), 1)
        .err()
        .unwrap();
    assert!(
        error.to_string().contains("nothing would be trained"),
        "{error}"
    );
}

#[test]
fn a_language_step_from_kept_features_equals_one_from_pixels() {
    let expected = expected();
    let (base, lessons) = (base(), lessons(&expected));
    let loss_after = |scope| {
        let mut tuner = tuner(&base, scope);
        let prepared = tuner.prepare(&lessons).unwrap();
        let all: Vec<&Prepared> = prepared.iter().collect();
        let first = tuner.step(&all, RATE, NO_LIMIT).unwrap();
        let language: Vec<Vec<f32>> = tuner
            .norms()
            .all()
            .iter()
            .filter(|one| one.name.starts_with("language_model"))
            .map(|one| one.var.flatten_all().unwrap().to_vec1().unwrap())
            .collect();
        (first, language)
    };
    let (kept, whole) = (loss_after(Scope::Language), loss_after(Scope::All));
    assert!(relative(kept.0, whole.0) < 1e-6);
    for (one, other) in kept.1.iter().flatten().zip(whole.1.iter().flatten()) {
        assert!((one - other).abs() < 1e-6);
    }
}
