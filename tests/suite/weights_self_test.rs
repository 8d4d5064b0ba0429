//! The phantom base on narrower weights: how far logits move, and that an adapter's self-test, recorded on
//! f32, holds there while another adapter's does not.

use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use norma::base::{Base, OpenOptions, WeightType};
use norma::http::self_test::{Mismatch, Step as Answered, compare, top_logits};
use norma::model::MedVlm;
use norma::model::bank::NormBank;
use norma::model::key_values::KeyValues;
use norma::model::kv_cache::{KvCache, KvType};
use norma::model::llava::Llava;
use norma::model::ops::Kernels;
use norma::model::ops::attention::Segment;
use norma::model::step::{RowInput, Step};
use norma::preprocess::{
    ChatPrompt, ClipPreprocess, ContentPart, Message, PromptToken, TextTokenizer,
};
use norma_adapters::{SelfTest, format};

use crate::device::{open_folder, pages};

struct Phantom {
    base: Base,
    chat: ChatPrompt,
    tokenizer: TextTokenizer,
    preprocess: ClipPreprocess,
}

impl Phantom {
    fn open() -> Self {
        let folder = phantom().join("base");
        Self::of(Base::open(&folder, &OpenOptions::default()).unwrap())
    }

    fn of(base: Base) -> Self {
        let folder = phantom().join("base");
        Self {
            base,
            chat: ChatPrompt::from_folder(&folder).unwrap(),
            tokenizer: TextTokenizer::from_folder(&folder, None).unwrap(),
            preprocess: ClipPreprocess::from_folder(&folder).unwrap(),
        }
    }

    /// Names, rows and self-tests of the adapters beside the base.
    fn adapters(&self) -> Vec<(String, Vec<f32>, SelfTest)> {
        let (row, table) = (self.base.row().unwrap(), &self.base.outline().sites);
        let files = std::fs::read_dir(phantom().join("adapters")).unwrap();
        let paths = files.map(|file| file.unwrap().path());
        let paths = paths.filter(|path| path.extension().is_some_and(|end| end == "safetensors"));
        let read = |path: PathBuf| {
            let bytes = std::fs::read(&path).unwrap();
            let adapter = format::read(&bytes, table, &row, &self.base.digest()).unwrap();
            let name = path.file_stem().unwrap().to_string_lossy().into_owned();
            let test = adapter.manifest.self_test.clone();
            (name, adapter.values.row().to_vec(), test)
        };
        paths.map(read).collect()
    }

    /// The rows of a question about one image.
    fn inputs(&self, prompt: &str, image_tokens: usize) -> Vec<RowInput> {
        let content = vec![ContentPart::Image, ContentPart::Text(prompt.into())];
        let message = [Message::user(content)];
        let prompt = self.chat.prepare(&self.tokenizer, &message, image_tokens);
        let tokens = prompt.unwrap().tokens;
        let rows = tokens.iter().map(|token| match token {
            PromptToken::Text(token) => RowInput::Token(*token),
            PromptToken::Image { patch, .. } => RowInput::Feature(*patch),
        });
        rows.collect()
    }

    /// Greedy answers to a probe with these norm values, compared step by step behind the expected tokens.
    fn replay(
        &self,
        (model, weights): (&Llava, WeightType),
        row: &[f32],
        test: &SelfTest,
    ) -> Result<(), Mismatch> {
        let bank = NormBank::resident(model.sites(), row, 1, model.device()).unwrap();
        let image = norma::probe::image(test.seed, test.size);
        let pixels = self.preprocess.pixels(&image).unwrap();
        let pixels = pixels.unsqueeze(0).unwrap();
        let pixels = pixels.to_device(model.device()).unwrap();
        let features = model.encode_images(&pixels, &[0], &bank).unwrap();
        let shape = *model.shape();
        let mut inputs = self.inputs(&test.prompt, shape.image_tokens);
        let capacity = inputs.len() + test.tokens.len();
        let kv_type = weights.default_kv();
        let cache: Box<dyn KeyValues> = if model.kernels() == Kernels::Composed {
            Box::new(pages(model, capacity, kv_type))
        } else {
            Box::new(KvCache::new(&shape, capacity, kv_type).unwrap())
        };
        let mut first = 0;
        for (index, expected) in test.tokens.iter().enumerate() {
            let step = next_step(&inputs[first..], first, features.clone());
            let logits = model.forward(&step, &bank, Some(&*cache)).unwrap();
            let logits = logits.to_vec2::<f32>().unwrap().remove(0);
            let mut top: Vec<(u32, f32)> = (0..).zip(logits).collect();
            top.sort_by(|(_, a), (_, b)| b.total_cmp(a));
            top.truncate(top_logits(test));
            let token = top[0].0;
            compare(
                &first_steps(test, index + 1),
                index,
                &[Answered { token, top }],
                weights,
            )?;
            first = inputs.len();
            inputs.push(RowInput::Token(*expected));
        }
        Ok(())
    }
}

fn phantom() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/phantom")
}

/// The same tolerance, for it depends on all logits; fewer tokens to answer.
fn first_steps(test: &SelfTest, n: usize) -> SelfTest {
    SelfTest {
        tokens: test.tokens[..n].to_vec(),
        ..test.clone()
    }
}

fn next_step(inputs: &[RowInput], first: usize, features: Tensor) -> Step {
    let rows = inputs.len();
    let positions: Vec<u32> = (0u32..).skip(first).take(rows).collect();
    let has_features = inputs
        .iter()
        .any(|input| matches!(input, RowInput::Feature(_)));
    Step {
        inputs: inputs.to_vec(),
        positions: positions.clone(),
        slots: vec![0; rows],
        segments: vec![Segment {
            rows: 0..rows,
            keys: vec![0..first + rows],
        }],
        cache_rows: Some(positions),
        image_features: has_features.then_some(features),
        logits_rows: vec![rows as u32 - 1],
    }
}

/// Measured on these adapters, the worst logit's distance as a share of the largest: bf16 0.5 %,
/// bf16-dot 1.2 %, int8 1.9 %, q8_0 3.0 %; another adapter or the base 32 % and more.
#[test]
fn a_self_test_holds_on_narrow_weights_and_refuses_every_other_adapter() {
    let phantom = Phantom::open();
    let adapters = phantom.adapters();
    assert!(adapters.len() > 5, "the phantom's adapters are there");
    let own = phantom.base.row().unwrap();
    let types = ["f32", "bf16", "bf16-dot", "int8", "q8_0"].map(|word| word.parse().unwrap());
    for weights in types.into_iter().filter(|one: &WeightType| one.runs_here()) {
        let model = phantom.base.load(Kernels::Fused, weights).unwrap();
        for (name, row, test) in &adapters {
            let replayed = phantom.replay((&model, weights), row, test);
            assert_eq!(replayed, Ok(()), "{name} on {weights}");
            let base = ("the base", &own);
            let others = adapters.iter().map(|(name, row, _)| (name.as_str(), row));
            for (other, row) in others.filter(|(other, _)| other != name).chain([base]) {
                let replayed = phantom.replay((&model, weights), row, test);
                assert!(replayed.is_err(), "{other} passes as {name} on {weights}");
            }
        }
    }
}

/// As above on the device of `NORMA_TEST_DEVICE`, whose bf16 also rounds the rows between maps. Measured on the CPU,
/// with operations composed as for a device: bf16 0.8 %, q8_0 3.1 %.
#[test]
fn a_self_test_holds_on_the_device() {
    let folder = phantom().join("base");
    let phantom = Phantom::of(open_folder(&folder, None));
    let own = phantom.base.row().unwrap();
    for word in ["f32", "bf16", "q8_0"] {
        let weights = word.parse().unwrap();
        let model = phantom.base.load(Kernels::Composed, weights).unwrap();
        for (name, row, test) in &phantom.adapters() {
            let replayed = phantom.replay((&model, weights), row, test);
            assert_eq!(replayed, Ok(()), "{name} on {word}");
            let replayed = phantom.replay((&model, weights), &own, test);
            assert!(replayed.is_err(), "the base passes as {name} on {word}");
        }
    }
}

/// Logits of a probe image's prompt from the first image row on, `[rows][vocab]`.
fn probe_logits(
    phantom: &Phantom,
    (model, kv_type): (&Llava, KvType),
    (seed, prompt): (u64, &str),
) -> Vec<Vec<f32>> {
    let row = phantom.base.row().unwrap();
    let bank = NormBank::resident(model.sites(), &row, 1, &Device::Cpu).unwrap();
    let shape = *model.shape();
    let image = norma::probe::image(seed, shape.image_size as u32);
    let pixels = phantom.preprocess.pixels(&image).unwrap();
    let pixels = pixels.unsqueeze(0).unwrap();
    let features = model.encode_images(&pixels, &[0], &bank).unwrap();
    let inputs = phantom.inputs(prompt, shape.image_tokens);
    let rows = inputs.len();
    let cache = KvCache::new(&shape, rows, kv_type).unwrap();
    let step = Step {
        logits_rows: (0..rows as u32).collect(),
        ..next_step(&inputs, 0, features)
    };
    let logits = model.forward(&step, &bank, Some(&cache)).unwrap();
    logits.to_vec2().unwrap()
}

/// Largest and mean distance of logits from those of f32, and the share of rows with the same best token;
/// keys and values as a server keeps them beside such weights. Measured: bf16 0.064, 0.0038, 100 %;
/// bf16-dot 0.088, 0.0050, 99.7 %; int8 0.218, 0.012, 98.3 %; q8_0 0.330, 0.017, 98.7 %; q4_0 2.20, 0.156,
/// 82.5 %. Bounds are half as much again.
#[test]
fn logits_of_the_phantom_base_stay_close() {
    let phantom = Phantom::open();
    let load = |weights| phantom.base.load(Kernels::Fused, weights).unwrap();
    let prompts = ["Is there a nodule ?", "Write a report of this image."];
    let all = |model: &Llava, kv_type| -> Vec<Vec<f32>> {
        let seeds = (0..4).flat_map(|seed| prompts.map(|prompt| (seed, prompt)));
        seeds
            .flat_map(|ask| probe_logits(&phantom, (model, kv_type), ask))
            .collect()
    };
    let exact = all(&load(WeightType::F32), KvType::F32);
    let best = |row: &[f32]| {
        let best = row
            .iter()
            .enumerate()
            .max_by(|(_, a), (_, b)| a.total_cmp(b));
        best.map(|(token, _)| token)
    };
    for (word, largest, mean, same) in BOUNDS {
        let weights: WeightType = word.parse().unwrap();
        if !weights.runs_here() {
            continue;
        }
        let narrow = all(&load(weights), weights.default_kv());
        let pairs = || exact.iter().flatten().zip(narrow.iter().flatten());
        let distances = || pairs().map(|(a, b)| f64::from((a - b).abs()));
        let got_largest = distances().fold(0f64, f64::max);
        let got_mean = distances().sum::<f64>() / distances().count() as f64;
        let agreeing = exact
            .iter()
            .zip(&narrow)
            .filter(|(a, b)| best(a) == best(b));
        let got_same = agreeing.count() as f64 / exact.len() as f64;
        let got = (got_largest, got_mean, got_same);
        let holds = got_largest < largest && got_mean < mean && got_same > same;
        assert!(holds, "{word}: {got:?}");
    }
}

/// Type, largest and mean distance, share of rows with the same best token.
const BOUNDS: [(&str, f64, f64, f64); 5] = [
    ("bf16", 0.096, 0.0057, 0.995),
    ("bf16-dot", 0.132, 0.0075, 0.99),
    ("int8", 0.33, 0.018, 0.97),
    ("q8_0", 0.5, 0.025, 0.97),
    ("q4_0", 3.3, 0.24, 0.74),
];
