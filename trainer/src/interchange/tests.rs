//! The golden adapter that PEFT saved, and what PEFT saves by default, imitated.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;

use candle_core::{Device, Tensor};
use norma::base::{Base, OpenOptions};
use norma::model::MedVlm;
use norma_adapters::{AdapterValues, Scope};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};

use super::average::{AverageError, average, shares};
use super::diff::diff;
use super::peft::{self, Imported, PeftError};
use crate::batch::{Dialogue, pack};
use crate::frozen::FrozenBase;
use crate::variables::NormVariables;

const IMAGE_TOKEN: u32 = 299;
const HEAD: &str = "base_model.model.";

fn golden(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("../tests/golden")
        .join(path)
}

fn base() -> FrozenBase {
    let base = Base::open(&golden("llava/llama_a"), &OpenOptions::default()).unwrap();
    let (row, digest) = (base.row().unwrap(), base.digest());
    FrozenBase::new(base.config(), base.checkpoint(), row, digest).unwrap()
}

fn saved() -> (Vec<u8>, Vec<u8>) {
    let read = |name: &str| std::fs::read(golden("lntuning/peft").join(name)).unwrap();
    (read(peft::CONFIG_FILE), read(peft::TENSORS_FILE))
}

fn import(tensors: &[u8], drop_others: bool) -> Result<Imported, PeftError> {
    let base = base();
    let files = (&*saved().0, tensors);
    peft::import(files, base.model.sites(), &base.row, drop_others)
}

/// The tensors of a file, f32, by name.
fn tensors(bytes: &[u8]) -> BTreeMap<String, Vec<f32>> {
    let file = SafeTensors::deserialize(bytes).unwrap();
    let values = |view: &TensorView| norma_adapters::format::widened(view).unwrap();
    let all = file.tensors().into_iter();
    all.map(|(name, view)| (name, values(&view))).collect()
}

fn file(tensors: &BTreeMap<String, Vec<f32>>) -> Vec<u8> {
    let bytes: Vec<(&String, Vec<u8>)> = tensors
        .iter()
        .map(|(name, values)| (name, values.iter().flat_map(|v| v.to_le_bytes()).collect()))
        .collect();
    let views = bytes.iter().map(|(name, data)| {
        let view = TensorView::new(Dtype::F32, vec![data.len() / 4], data).unwrap();
        (name.as_str(), view)
    });
    safetensors::serialize(views.collect::<Vec<_>>(), None::<HashMap<_, _>>).unwrap()
}

/// The norms of the last tower layer and behind it, as PEFT names them.
const UNUSED: [&str; 3] = [
    "model.vision_tower.encoder.layers.2.layer_norm1",
    "model.vision_tower.encoder.layers.2.layer_norm2",
    "model.vision_tower.post_layernorm",
];

#[test]
fn an_imported_adapter_gives_pefts_logits() {
    let imported = import(&saved().1, false).unwrap();
    assert_eq!(imported.scope, Scope::All);
    assert_eq!(imported.n_values, imported.row.len());
    assert!(imported.missing.is_empty() && imported.others.is_empty());

    let base = base();
    let norms = NormVariables::new(base.model.sites(), &imported.row, None, &Device::Cpu).unwrap();
    let expected = std::fs::read(golden("lntuning/expected.json")).unwrap();
    let expected: serde_json::Value = serde_json::from_slice(&expected).unwrap();
    let ids: Vec<u32> = serde_json::from_value(expected["trained"]["input_ids"].clone()).unwrap();
    // All tokens behind the image are given as an answer, so that each gets logits but the last.
    let after = ids.iter().rposition(|id| *id == IMAGE_TOKEN).unwrap() + 1;
    let dialogue = Dialogue::from_sequences(&[(ids.clone(), after + 1)], IMAGE_TOKEN).unwrap();
    let packed = pack([&dialogue]);
    let pictures = golden("llava/llama_a.safetensors");
    let pictures = candle_core::safetensors::load(pictures, &Device::Cpu).unwrap();
    let pixels = pictures["wide.pixel_values"].unsqueeze(0).unwrap();
    let features = base.model.encode_images(&pixels, &[0], norms.bank());
    let features = features.unwrap();
    let mut step = packed.step.clone();
    step.image_features = Some(features);
    let got = base.model.forward(&step, norms.bank(), None).unwrap();
    let want = golden("lntuning/expected.safetensors");
    let want = &candle_core::safetensors::load(want, &Device::Cpu).unwrap()["trained.logits"];
    let want = want.narrow(0, after, ids.len() - after - 1).unwrap();
    assert_eq!(got.dims(), want.dims());
    let off = |a: &Tensor, b: &Tensor| (a - b).unwrap().abs().unwrap().max_all().unwrap();
    let off = off(&got, &want).to_scalar::<f32>().unwrap();
    assert!(off < 1e-4, "logits are off by {off}");
}

#[test]
fn an_exported_adapter_is_the_file_that_peft_saves() {
    let base = base();
    let imported = import(&saved().1, false).unwrap();
    let values = AdapterValues::new(base.model.sites(), imported.row, imported.scope).unwrap();
    let exported = peft::export(&values.stored(base.model.sites()), "llama_a").unwrap();
    let ours = tensors(&exported.tensors);
    assert_eq!(ours, tensors(&saved().1));

    let config: serde_json::Value = serde_json::from_slice(&exported.config).unwrap();
    assert_eq!(config["peft_type"], "LN_TUNING");
    let mut targets: Vec<String> =
        serde_json::from_value(config["target_modules"].clone()).unwrap();
    let mut modules: Vec<String> = ours
        .keys()
        .filter_map(|name| name.strip_prefix(HEAD)?.split_once(".ln_tuning_layers."))
        .map(|(module, _)| module.to_owned())
        .collect();
    modules.dedup();
    targets.sort_unstable();
    modules.sort_unstable();
    assert_eq!(targets, modules);
}

#[test]
fn every_layout_of_names_is_read() {
    let whole = import(&saved().1, false).unwrap().row;
    let renamed = |from: [&str; 2], to: [&str; 2]| {
        let rename = |name: String| name.replace(from[0], to[0]).replace(from[1], to[1]);
        let all = tensors(&saved().1).into_iter();
        file(&all.map(|(name, values)| (rename(name), values)).collect())
    };
    let from = ["model.model.language_model.", "model.model.vision_tower."];
    for to in [
        [
            "model.language_model.model.",
            "model.vision_tower.vision_model.",
        ],
        ["model.language_model.model.", "model.vision_tower."],
        [
            "model.model.",
            "model.model.vision_tower.vision_tower.vision_model.",
        ],
    ] {
        assert_eq!(import(&renamed(from, to), false).unwrap().row, whole);
    }
}

#[test]
fn what_is_no_norm_is_refused_or_dropped_and_named() {
    let mut all = tensors(&saved().1);
    for module in UNUSED {
        for leaf in ["weight", "bias"] {
            let name = format!("{HEAD}{module}.ln_tuning_layers.{leaf}");
            all.insert(name, vec![1.0; 32]);
        }
    }
    let projector = format!("{HEAD}model.multi_modal_projector.ln_tuning_layers.linear_1.weight");
    let head = format!("{HEAD}lm_head.ln_tuning_layers.weight");
    for name in [&projector, &head] {
        all.insert(name.clone(), vec![0.5; 32]);
    }
    let error = import(&file(&all), false).unwrap_err();
    assert!(matches!(&error, PeftError::Others { tensors } if tensors.len() == 2));
    assert!(error.to_string().contains(&projector) && error.to_string().contains("--drop-others"));

    let imported = import(&file(&all), true).unwrap();
    assert_eq!(imported.others, [head, projector]);
    assert_eq!(imported.unused.len(), 2 * UNUSED.len());
    assert_eq!(imported.row, import(&saved().1, false).unwrap().row);
}

#[test]
fn part_of_the_norms_keeps_the_base_for_the_rest() {
    let is_kept = |name: &str| name.contains("language_model.layers.0.");
    let mut all = tensors(&saved().1);
    all.retain(|name, _| is_kept(name));
    let imported = import(&file(&all), false).unwrap();
    assert_eq!((imported.scope, imported.n_values), (Scope::Language, 64));
    assert_eq!(imported.missing.len(), 3);
    let base = base();
    let changed = imported.row.iter().zip(&base.row).filter(|(a, b)| a != b);
    assert!((1..=64).contains(&changed.count()));
}

#[test]
fn files_that_do_not_fit_are_refused_by_name() {
    let base = base();
    let (table, row) = (base.model.sites(), &*base.row);
    let lora = br#"{"peft_type": "LORA"}"#;
    let error = peft::import((lora, &saved().1), table, row, false).unwrap_err();
    assert!(error.to_string().contains("LORA"), "{error}");
    let error = import(b"no tensors", false).unwrap_err();
    assert!(matches!(error, PeftError::Safetensors(_)), "{error}");

    let all = tensors(&saved().1);
    let (first, values) = all.first_key_value().unwrap();
    let mut short = all.clone();
    short.insert(first.clone(), vec![1.0]);
    let error = import(&file(&short), false).unwrap_err();
    assert!(error.to_string().contains(first), "{error}");
    let mut twice = all.clone();
    let other = first.replace("model.model.language_model.", "model.language_model.model.");
    twice.insert(other, values.clone());
    let error = import(&file(&twice), false).unwrap_err();
    assert!(matches!(error, PeftError::Twice { .. }), "{error}");
    let error = import(&file(&BTreeMap::new()), true).unwrap_err();
    assert!(matches!(error, PeftError::NoNorm), "{error}");
}

#[test]
fn averages_weigh_and_refuse() {
    assert_eq!(shares(&[3.0, 1.0], 2).unwrap(), [0.75, 0.25]);
    assert_eq!(
        average(&[&[1.0, 4.0], &[5.0, 0.0]], &[0.75, 0.25]),
        [2.0, 3.0]
    );
    let error = |weights: &[f64], n| shares(weights, n).unwrap_err();
    assert_eq!(error(&[1.0], 1), AverageError::TooFew { got: 1 });
    assert_eq!(error(&[1.0], 2), AverageError::Count { got: 1, want: 2 });
    for weights in [
        [-1.0, 2.0],
        [0.0, 0.0],
        [f64::NAN, 1.0],
        [f64::INFINITY, 1.0],
    ] {
        assert!(matches!(error(&weights, 2), AverageError::Weight { .. }));
    }
}

#[test]
fn distances_are_those_of_the_rows() {
    let base = base();
    let mut far = base.row.clone();
    let idx = base.model.sites().selected(Scope::Language).next().unwrap();
    let range = base.model.sites().range(idx).gain;
    for value in &mut far[range] {
        *value += 0.5;
    }
    let distances = diff(base.model.sites(), &base.row, [&base.row, &far]);
    let moved: Vec<_> = distances.iter().filter(|one| one.rms > 0.0).collect();
    assert_eq!(moved.len(), 1);
    assert_eq!(moved[0].site, base.model.sites().sites()[idx].name);
    assert!((moved[0].rms - 0.5).abs() < 1e-6 && (moved[0].largest - 0.5).abs() < 1e-6);
    assert_eq!((moved[0].moved[0], moved[0].cosine), (0.0, None));
    let same = diff(base.model.sites(), &base.row, [&far, &far]);
    let same = same.iter().find(|one| one.site == moved[0].site).unwrap();
    assert!((same.cosine.unwrap() - 1.0).abs() < 1e-9 && same.rms == 0.0);
}
