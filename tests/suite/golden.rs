//! Reads `tests/golden`: references that its scripts computed with transformers.

use std::collections::HashMap;
use std::fs;
use std::path::PathBuf;

use candle_core::{Device, Tensor};
use norma::base::{Base, OpenOptions, WeightType};
use norma::model::MedVlm;
use norma::model::bank::NormBank;
use norma::model::llava::Llava;
use norma::model::ops::Kernels;
use norma::model::ops::attention::Segment;
use norma::model::step::{RowInput, Step};
use serde_json::Value;

/// `tests/golden/llava`.
pub fn llava_folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/llava")
}

/// Opens the base of a case; `llama_d` with its vision configuration.
pub fn open(case: &str) -> Base {
    let options = OpenOptions {
        vision_config: vision_config(case),
        ..OpenOptions::default()
    };
    Base::open(&llava_folder().join(case), &options).unwrap()
}

/// The vision configuration beside a case, where it has one.
pub fn vision_config(case: &str) -> Option<PathBuf> {
    let vision = llava_folder().join(format!("{case}_vision"));
    vision.is_dir().then_some(vision)
}

/// One prompt of a case with its references.
pub struct Prompt {
    pub name: String,
    pub images: Vec<String>,
    pub input_ids: Vec<u32>,
    pub greedy: Vec<u32>,
}

/// A case: its prompts and reference tensors.
pub struct Case {
    pub image_token: u32,
    pub prompts: Vec<Prompt>,
    pub tensors: HashMap<String, Tensor>,
}

impl Case {
    pub fn read(case: &str) -> Self {
        let folder = llava_folder();
        let json = fs::read(folder.join(format!("{case}.json"))).unwrap();
        let json: Value = serde_json::from_slice(&json).unwrap();
        let numbers = |value: &Value| serde_json::from_value(value.clone()).unwrap();
        let prompts = json["prompts"]
            .as_array()
            .unwrap()
            .iter()
            .map(|prompt| Prompt {
                name: prompt["name"].as_str().unwrap().into(),
                images: serde_json::from_value(prompt["images"].clone()).unwrap(),
                input_ids: numbers(&prompt["input_ids"]),
                greedy: numbers(&prompt["greedy"]),
            });
        let tensors = folder.join(format!("{case}.safetensors"));
        Self {
            image_token: json["image_token_id"].as_u64().unwrap().try_into().unwrap(),
            prompts: prompts.collect(),
            tensors: candle_core::safetensors::load(tensors, &Device::Cpu).unwrap(),
        }
    }

    pub fn prompt(&self, name: &str) -> &Prompt {
        self.prompts
            .iter()
            .find(|prompt| prompt.name == name)
            .unwrap()
    }

    /// The pixels of a prompt's images, `[n, 3, size, size]`; `None` without images.
    pub fn pixels(&self, prompt: &Prompt) -> Option<Tensor> {
        let pixels: Vec<&Tensor> = prompt
            .images
            .iter()
            .map(|file| &self.tensors[&format!("{}.pixel_values", stem(file))])
            .collect();
        (!pixels.is_empty()).then(|| Tensor::stack(&pixels, 0).unwrap())
    }

    /// The rows of a prompt: image tokens stand for feature rows in order.
    pub fn inputs(&self, prompt: &Prompt) -> Vec<RowInput> {
        let mut features = 0..;
        prompt
            .input_ids
            .iter()
            .map(|token| {
                if *token == self.image_token {
                    RowInput::Feature(features.next().unwrap())
                } else {
                    RowInput::Token(*token)
                }
            })
            .collect()
    }
}

pub fn stem(file: &str) -> &str {
    file.split('.').next().unwrap()
}

/// A loaded model with a bank of one slot, the base's.
pub fn load(base: &Base, kernels: Kernels) -> (Llava, NormBank) {
    let model = base.load(kernels, WeightType::F32).unwrap();
    let row = base.row().unwrap();
    let bank = NormBank::resident(model.sites(), &row, 1, &Device::Cpu).unwrap();
    (model, bank)
}

/// A step of one whole sequence in one slot, without a cache, with the logits of every row.
pub fn whole_sequence(inputs: Vec<RowInput>, features: Option<Tensor>, slot: u32) -> Step {
    let rows = inputs.len();
    let all: Vec<u32> = (0..u32::try_from(rows).unwrap()).collect();
    Step {
        inputs,
        positions: all.clone(),
        slots: vec![slot; rows],
        segments: vec![Segment {
            rows: 0..rows,
            keys: vec![0..rows],
        }],
        cache_rows: None,
        image_features: features,
        logits_rows: all,
    }
}

/// The largest absolute difference.
pub fn max_difference(a: &Tensor, b: &Tensor) -> f32 {
    assert_eq!(a.shape(), b.shape());
    let difference = (a - b).unwrap().abs().unwrap().flatten_all().unwrap();
    difference.max(0).unwrap().to_scalar().unwrap()
}
