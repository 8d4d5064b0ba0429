//! The model against transformers, case by case: image features, logits, greedy tokens.
//!
//! Expected numbers: `tests/golden/make_llava.py`. Logits agree within 1e-4; where float32 in the
//! reference is itself further than 3e-5 from float64, see `tests/golden/README.md`.

use candle_core::Tensor;
use norma::base::Base;
use norma::model::MedVlm;
use norma::model::kv_cache::{KvCache, KvType};
use norma::model::ops::Kernels;
use norma::model::ops::attention::Segment;
use norma::model::step::{RowInput, Step};

use crate::golden::{Case, load, max_difference, open, stem, whole_sequence};

const TOLERANCE: f32 = 1e-4;

fn check(folder: &str, case: &str, kernels: Kernels) {
    let (base, case) = (open(folder), Case::read(case));
    let (model, bank) = load(&base, kernels);
    for prompt in &case.prompts {
        let features = case.pixels(prompt).map(|pixels| {
            let slots = vec![0; prompt.images.len()];
            model.encode_images(&pixels, &slots, &bank).unwrap()
        });
        let image_tokens = model.shape().image_tokens;
        for (i, file) in prompt.images.iter().enumerate() {
            let got = features
                .as_ref()
                .unwrap()
                .narrow(0, i * image_tokens, image_tokens)
                .unwrap();
            let want = &case.tensors[&format!("{}.image_features", stem(file))];
            let error = max_difference(&got, want);
            assert!(
                error < TOLERANCE,
                "{}: features of {file} differ by {error}",
                prompt.name
            );
        }
        let step = whole_sequence(case.inputs(prompt), features.clone(), 0);
        let logits = model.forward(&step, &bank, None).unwrap();
        let error = max_difference(&logits, &case.tensors[&format!("{}.logits", prompt.name)]);
        assert!(
            error < TOLERANCE,
            "{}: logits differ by {error}",
            prompt.name
        );
        let greedy = generate(
            &model,
            &bank,
            (case.inputs(prompt), features),
            prompt.greedy.len(),
        );
        assert_eq!(greedy, prompt.greedy, "{}: greedy tokens", prompt.name);
    }
}

/// Greedy tokens through the KV cache, whose rows are handed out backwards and in two spans, so that
/// nothing can depend on their order in memory.
fn generate(
    model: &dyn MedVlm,
    bank: &norma::model::bank::NormBank,
    (inputs, features): (Vec<RowInput>, Option<Tensor>),
    n_tokens: usize,
) -> Vec<u32> {
    let shape = model.shape();
    let total = inputs.len() + n_tokens;
    let capacity = 2 * total;
    let cache = KvCache::new(shape, capacity, KvType::F32).unwrap();
    let half = total / 2;
    let row_of = |position: usize| {
        if position < half {
            total + position
        } else {
            position - half
        }
    };
    let spans = |n: usize| {
        if n <= half {
            vec![total..total + n]
        } else {
            vec![total..total + half, 0..n - half]
        }
    };
    let mut next = inputs;
    let mut position = 0;
    let mut tokens = Vec::new();
    while tokens.len() < n_tokens {
        let rows = next.len();
        let positions = position..position + rows;
        let step = Step {
            inputs: next,
            positions: positions.clone().map(|p| p as u32).collect(),
            slots: vec![0; rows],
            segments: vec![Segment {
                rows: 0..rows,
                keys: spans(positions.end),
            }],
            cache_rows: Some(positions.clone().map(|p| row_of(p) as u32).collect()),
            image_features: features.clone(),
            logits_rows: vec![rows as u32 - 1],
        };
        let logits = model.forward(&step, bank, Some(&cache)).unwrap();
        let token: u32 = logits.argmax(1).unwrap().to_vec1().unwrap()[0];
        tokens.push(token);
        next = vec![RowInput::Token(token)];
        position = positions.end;
    }
    tokens
}

macro_rules! parity {
    ($($name:ident: $folder:literal against $case:literal;)*) => {
        $(#[test] fn $name() { check($folder, $case, Kernels::Fused); })*
    };
}

parity! {
    layout_a_equals_transformers: "llama_a" against "llama_a";
    layout_b_equals_transformers: "llama_b" against "llama_a";
    layout_c_equals_transformers: "llama_c" against "llama_a";
    layout_d_equals_the_same_weights_in_layout_a: "llama_d" against "llama_a";
    layout_d_equals_transformers_on_padded_images: "llama_d" against "llama_d";
    grouped_queries_tied_head_and_sliding_window_equal_transformers: "gqa_tied" against "gqa_tied";
    shards_and_full_features_equal_transformers: "sharded" against "sharded";
    a_bf16_checkpoint_equals_transformers: "bf16" against "bf16";
    linear_rope_scaling_equals_transformers: "rope_linear" against "rope_linear";
    llama3_rope_scaling_equals_transformers: "rope_llama3" against "rope_llama3";
    biases_and_several_feature_layers_equal_transformers: "biases" against "biases";
}

#[test]
fn the_composed_path_equals_transformers() {
    for case in ["llama_a", "gqa_tied", "sharded", "biases"] {
        check(case, case, Kernels::Composed);
    }
}

/// The reference ran these rows as one left-padded batch; here they share one ragged step.
#[test]
fn a_ragged_batch_equals_the_padded_one_of_transformers() {
    let (base, case) = (open("llama_a"), Case::read("llama_a"));
    let (model, bank) = load(&base, Kernels::Fused);
    let mut step = Step::default();
    let mut features = Vec::new();
    let mut n_features = 0u32;
    for prompt in &case.prompts {
        let first = step.len();
        let inputs = case.inputs(prompt);
        let rows = inputs.len();
        step.inputs
            .extend(inputs.into_iter().map(|input| match input {
                RowInput::Feature(row) => RowInput::Feature(row + n_features),
                token @ RowInput::Token(_) => token,
            }));
        step.positions.extend(0..rows as u32);
        let own = first..first + rows;
        step.segments.push(Segment {
            rows: own.clone(),
            keys: vec![own],
        });
        if let Some(pixels) = case.pixels(prompt) {
            let slots = vec![0; prompt.images.len()];
            let encoded = model.encode_images(&pixels, &slots, &bank).unwrap();
            n_features += encoded.dim(0).unwrap() as u32;
            features.push(encoded);
        }
    }
    step.slots = vec![0; step.len()];
    step.logits_rows = (0..step.len() as u32).collect();
    step.image_features = Some(Tensor::cat(&features, 0).unwrap());
    let logits = model.forward(&step, &bank, None).unwrap();
    for (prompt, segment) in case.prompts.iter().zip(&step.segments) {
        let got = logits
            .narrow(0, segment.rows.start, segment.rows.len())
            .unwrap();
        let error = max_difference(&got, &case.tensors[&format!("{}.logits", prompt.name)]);
        assert!(
            error < TOLERANCE,
            "{}: logits differ by {error}",
            prompt.name
        );
    }
}

#[test]
fn four_layouts_have_one_digest_and_one_list_of_sites() {
    let bases: Vec<Base> = ["llama_a", "llama_b", "llama_c", "llama_d"]
        .map(open)
        .into();
    for base in &bases[1..] {
        assert_eq!(base.digest(), bases[0].digest());
        assert_eq!(
            base.outline().sites.sites(),
            bases[0].outline().sites.sites()
        );
        assert_eq!(base.row().unwrap(), bases[0].row().unwrap());
    }
    assert_ne!(open("gqa_tied").digest(), bases[0].digest());
}
