//! Every norm site: counted, reached by the forward, trainable.

use std::cell::RefCell;
use std::collections::HashSet;

use candle_core::{Device, Tensor, TensorId, Var};
use norma::base::checkpoint::Checkpoint;
use norma::base::config;
use norma::model::MedVlm;
use norma::model::bank::{NormBank, SiteValues};
use norma::model::llava::Llava;
use norma::model::ops::cross_entropy::cross_entropy;
use norma::model::ops::{Kernels, RowIndex};
use norma::model::outline::Outline;
use norma::model::parameters::{ParameterError, Parameters, Weight};
use norma_adapters::Part;
use serde_json::json;

use crate::golden::{Case, load, max_difference, open, whole_sequence};

/// LLaVA-Med v1.5's published configuration, as far as it determines the computation.
fn llava_med() -> serde_json::Value {
    json!({
        "architectures": ["LlavaMistralForCausalLM"], "model_type": "llava_mistral",
        "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-5, "rope_theta": 1_000_000.0, "sliding_window": null, "vocab_size": 32000,
        "hidden_act": "silu", "tie_word_embeddings": false, "mm_hidden_size": 1024,
        "mm_projector_type": "mlp2x_gelu", "mm_vision_select_layer": -2,
        "mm_vision_select_feature": "patch", "mm_vision_tower": "openai/clip-vit-large-patch14-336",
        "image_aspect_ratio": "pad"
    })
}

#[test]
fn llava_med_has_368640_norm_values_of_which_362496_are_used() {
    let (config, _) = config::parse(&llava_med(), None).unwrap();
    let sites = Outline::of(&config).unwrap().sites;
    let values = |part: Part| {
        sites
            .sites()
            .iter()
            .filter(|s| s.part == part)
            .map(norma_adapters::Site::n_values)
            .sum::<usize>()
    };
    assert_eq!(values(Part::Language), 266_240);
    assert_eq!(values(Part::Vision), 102_400);
    assert_eq!(values(Part::Projector), 0);
    // With feature layer -2 the last tower layer (4,096 values) and post_layernorm (2,048) do nothing.
    assert_eq!(sites.row_len(), 368_640 - 6_144);
}

/// Logits of the two-image prompt with the bank given.
fn logits(model: &dyn MedVlm, bank: &NormBank, case: &Case) -> Tensor {
    let prompt = case.prompt("two_images");
    let pixels = case.pixels(prompt).unwrap();
    let slot = u32::try_from(bank.n_slots() - 1).unwrap();
    let features = model.encode_images(&pixels, &[slot; 2], bank).unwrap();
    let step = whole_sequence(case.inputs(prompt), Some(features), slot);
    model.forward(&step, bank, None).unwrap()
}

#[test]
fn perturbing_any_value_range_of_a_used_site_changes_the_answer() {
    let (base, case) = (open("llama_a"), Case::read("llama_a"));
    let (model, bank) = load(&base, Kernels::Fused);
    let untouched = logits(&model, &bank, &case);
    let row = base.row().unwrap();
    let table = model.sites();
    let mut unused = Vec::new();
    for (idx, site) in table.sites().iter().enumerate() {
        if !site.used {
            unused.push(site.name.as_str());
            continue;
        }
        let range = table.range(idx);
        for range in [Some(range.gain), range.bias].into_iter().flatten() {
            let mut row = row.clone();
            for value in &mut row[range] {
                *value += 0.1;
            }
            let mut bank =
                NormBank::resident(table, &base.row().unwrap(), 2, &Device::Cpu).unwrap();
            bank.fill(1, row.as_slice().into()).unwrap();
            let changed = max_difference(&logits(&model, &bank, &case), &untouched);
            assert!(changed > 1e-3, "site `{}` changes nothing", site.name);
        }
    }
    // Feature layer -2 of three: the last layer and the norm after it are never reached.
    let tower = "vision_tower.vision_model";
    let expected = [
        format!("{tower}.encoder.layers.2.layer_norm1"),
        format!("{tower}.encoder.layers.2.layer_norm2"),
        format!("{tower}.post_layernorm"),
    ];
    assert_eq!(unused, expected);
}

/// Remembers every tensor that the model got.
struct Recording<'a> {
    inner: &'a Checkpoint,
    handed_out: RefCell<HashSet<TensorId>>,
}

impl Parameters for Recording<'_> {
    fn device(&self) -> &Device {
        self.inner.device()
    }

    fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor, ParameterError> {
        let tensor = self.inner.tensor(name, shape)?;
        self.handed_out.borrow_mut().insert(tensor.id());
        Ok(tensor)
    }

    fn linear(
        &self,
        name: &str,
        weight: Tensor,
        bias: Option<Tensor>,
    ) -> Result<Weight, ParameterError> {
        self.handed_out
            .borrow_mut()
            .extend([&weight].into_iter().chain(&bias).map(Tensor::id));
        self.inner.linear(name, weight, bias)
    }
}

#[test]
fn every_used_site_has_a_gradient_and_no_frozen_weight_has_one() {
    for kernels in [Kernels::Fused, Kernels::Composed] {
        let (base, case) = (open("biases"), Case::read("biases"));
        let parameters = Recording {
            inner: base.checkpoint(),
            handed_out: RefCell::default(),
        };
        let model = Llava::new(base.config(), &parameters, kernels).unwrap();
        let table = model.sites();
        let row = base.row().unwrap();
        let mut variables = Vec::new();
        let mut variable = |range: std::ops::Range<usize>| {
            let value = Tensor::new(&row[range], &Device::Cpu)
                .unwrap()
                .unsqueeze(0)
                .unwrap();
            let variable = Var::from_tensor(&value).unwrap();
            variables.push(variable.clone());
            variable.as_tensor().clone()
        };
        let sites = table.sites().iter().enumerate().map(|(idx, site)| {
            site.used.then(|| {
                let range = table.range(idx);
                let gain = variable(range.gain);
                SiteValues {
                    gain,
                    bias: range.bias.map(&mut variable),
                    trainable: true,
                }
            })
        });
        let bank = NormBank::from_values(sites.collect(), 1);
        let prompt = &case.prompts[0];
        let pixels = case.pixels(prompt).unwrap();
        let slots = vec![0; prompt.images.len()];
        let features = model.encode_images(&pixels, &slots, &bank).unwrap();
        let step = whole_sequence(case.inputs(prompt), Some(features), 0);
        let logits = model.forward(&step, &bank, None).unwrap();
        let targets = RowIndex::new(&prompt.input_ids, &Device::Cpu).unwrap();
        let loss = cross_entropy(&logits, &targets, kernels).unwrap();
        let gradients = loss.backward().unwrap();
        for variable in &variables {
            let gradient = gradients.get(variable).expect("every site has a gradient");
            let size = gradient
                .abs()
                .unwrap()
                .max_all()
                .unwrap()
                .to_scalar::<f32>()
                .unwrap();
            assert!(size > 0.0 && size.is_finite());
        }
        for id in gradients.get_ids() {
            assert!(
                !parameters.handed_out.borrow().contains(id),
                "a frozen tensor got a gradient"
            );
        }
    }
}
