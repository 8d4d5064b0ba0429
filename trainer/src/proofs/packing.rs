//! Several questions about one image in one sequence: losses and gradients of separate sequences.

use candle_core::{Device, Tensor};
use norma::model::MedVlm;
use norma::model::llava::Llava;
use norma::model::ops::Kernels;
use norma_adapters::Scope;

use crate::batch::{Dialogue, pack};
use crate::learner::{Shards, answer_loss};
use crate::lesson::{Teacher, pixels};
use crate::optimizer::Gradients;
use crate::phantom::draw::SIDE;
use crate::phantom::{Example, Split, Task};
use crate::phantom_base::{Sizes, config};
use crate::variables::{NamedVar, NormVariables, Source, Variables, neutral_row};

const SIZES: Sizes = Sizes {
    width: 48,
    head: 12,
    tower_layers: 2,
    tower_inner: 64,
    decoder_layers: 2,
    decoder_inner: 64,
};

/// Every variable of a small base, gradients of all of them.
fn gradients(kernels: Kernels, separate: bool, shards: usize) -> (f64, Gradients, Vec<String>) {
    let device = Device::Cpu;
    let variables = Variables::new(Source::Seed(3), &device);
    let model = Llava::new(&config(&SIZES), &variables, kernels).unwrap();
    let sites = model.sites().clone();
    let norms =
        NormVariables::new(&sites, &neutral_row(&sites), Some(Scope::All), &device).unwrap();
    let all: Vec<NamedVar> = variables
        .all()
        .into_iter()
        .chain(norms.all().iter().cloned())
        .collect();
    let teacher = Teacher::new().unwrap();
    let lessons: Vec<_> = (0..4)
        .map(|index| Example::new(Task::Pretrain, Split::Train, 0, index).unwrap())
        .map(|example| teacher.lesson(&example).unwrap())
        .collect();
    let tokens: usize = lessons
        .iter()
        .flat_map(|lesson| &lesson.dialogue.branches)
        .map(|branch| branch.answer.len())
        .sum();
    let groups: Vec<_> = lessons.chunks(lessons.len() / shards).collect();
    let loss = |lessons: &&[_]| {
        let pixels = pixels(lessons.iter(), SIDE, &device)?;
        let features = model.encode_images(&pixels, &vec![0; lessons.len()], norms.bank())?;
        let rows = features.dim(0)? / lessons.len();
        let (packed, features) = if separate {
            let dialogues: Vec<Vec<Dialogue>> = lessons
                .iter()
                .map(|lesson| lesson.dialogue.separate())
                .collect();
            let features: Vec<Tensor> = dialogues
                .iter()
                .enumerate()
                .flat_map(|(image, dialogues)| {
                    let own = features.narrow(0, image * rows, rows);
                    dialogues.iter().map(move |_| own.as_ref().unwrap().clone())
                })
                .collect();
            (pack(dialogues.iter().flatten()), Tensor::cat(&features, 0)?)
        } else {
            (
                pack(lessons.iter().map(|lesson| &lesson.dialogue)),
                features,
            )
        };
        let share = packed.targets.len() as f64 / tokens as f64;
        Ok((answer_loss(&model, norms.bank(), &packed, Some(features))? * share)?)
    };
    let shards = Shards::new(shards).unwrap();
    let (loss, gradients) = shards.gradients(&all, &groups, loss).unwrap();
    (
        loss,
        gradients,
        all.into_iter().map(|variable| variable.name).collect(),
    )
}

fn length(values: impl Iterator<Item = f64>) -> f64 {
    values.map(|x| x * x).sum::<f64>().sqrt()
}

/// Compares loss and every gradient, relative, with the bound that the design asks for.
fn check(one: &(f64, Gradients, Vec<String>), other: &(f64, Gradients, Vec<String>)) {
    assert!(
        (one.0 - other.0).abs() <= 1e-5 * one.0.abs(),
        "losses {} {}",
        one.0,
        other.0
    );
    assert_eq!(one.2, other.2);
    let whole = length(one.1.iter().flatten().flatten().map(|x| f64::from(*x)));
    for ((a, b), name) in one.1.iter().zip(&other.1).zip(&one.2) {
        let wide = |gradient: &Option<Vec<f32>>| -> Vec<f64> {
            gradient
                .as_ref()
                .unwrap()
                .iter()
                .map(|x| f64::from(*x))
                .collect()
        };
        let (a, b) = (wide(a), wide(b));
        let distance = length(a.iter().zip(&b).map(|(a, b)| a - b));
        let longer = length(a.into_iter()).max(length(b.into_iter()));
        if name.ends_with("k_proj.bias") {
            // The softmax takes away what all keys share: this gradient is 0 but for rounding.
            assert!(
                longer <= 1e-6 * whole,
                "`{name}` has a gradient of {longer} of {whole}"
            );
            continue;
        }
        assert!(longer > 1e-6 * whole, "`{name}` has no gradient");
        assert!(
            distance <= 1e-5 * longer,
            "`{name}` differs by {distance} of {longer}"
        );
    }
}

#[test]
fn packed_questions_give_the_gradients_of_separate_sequences() {
    check(
        &gradients(Kernels::Fused, false, 1),
        &gradients(Kernels::Fused, true, 1),
    );
}

#[test]
fn fused_training_equals_composed_training() {
    check(
        &gradients(Kernels::Fused, false, 1),
        &gradients(Kernels::Composed, false, 1),
    );
}

#[test]
fn shards_add_up_to_the_whole_batch_and_repeat_bit_for_bit() {
    let two = gradients(Kernels::Fused, false, 2);
    check(&gradients(Kernels::Fused, false, 1), &two);
    let again = gradients(Kernels::Fused, false, 2);
    assert_eq!(two.0.to_bits(), again.0.to_bits());
    assert_eq!(two.1, again.1);
}
