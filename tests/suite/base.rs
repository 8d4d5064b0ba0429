//! What is wrong with a folder is said in one line that names the file, and the tensor or field.

use std::fs;
use std::path::Path;

use candle_core::Device;
use norma::base::{Base, BaseError, OpenOptions};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::golden::llava_folder;

/// A copy of a golden folder to break.
fn copy(case: &str) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(llava_folder().join(case)).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), folder.path().join(entry.file_name())).unwrap();
    }
    folder
}

fn edit(folder: &Path, change: impl FnOnce(&mut Value)) {
    let path = folder.join("config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    change(&mut config);
    fs::write(path, config.to_string()).unwrap();
}

fn refusal(folder: &Path) -> String {
    match Base::open(folder, &OpenOptions::default()) {
        Ok(_) => panic!("the folder was accepted"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn a_truncated_file_is_named() {
    let folder = copy("llama_c");
    let path = folder.path().join("model.safetensors");
    let bytes = fs::read(&path).unwrap();
    for length in [0, 4, 100, bytes.len() / 2, bytes.len() - 1] {
        fs::write(&path, &bytes[..length]).unwrap();
        let message = refusal(folder.path());
        assert!(
            message.starts_with("`model.safetensors` is no valid safetensors file"),
            "{message}"
        );
    }
}

#[test]
fn a_missing_shard_is_named() {
    let folder = copy("sharded");
    let shard = "model-00002-of-00005.safetensors";
    fs::remove_file(folder.path().join(shard)).unwrap();
    assert_eq!(
        refusal(folder.path()),
        format!("`{shard}` could not be read")
    );
}

#[test]
fn an_index_may_not_leave_its_folder() {
    let folder = copy("sharded");
    let path = folder.path().join("model.safetensors.index.json");
    fs::write(
        path,
        json!({"weight_map": {"a": "../a.safetensors"}}).to_string(),
    )
    .unwrap();
    let message = refusal(folder.path());
    assert!(
        message.contains("field `weight_map` names `../a.safetensors`"),
        "{message}"
    );
}

#[test]
fn a_tensor_of_another_shape_is_named() {
    let folder = copy("llama_a");
    edit(folder.path(), |config| {
        config["text_config"]["intermediate_size"] = json!(48);
    });
    let message = refusal(folder.path());
    assert_eq!(
        message,
        "tensor `language_model.model.layers.0.mlp.gate_proj.weight` of `model.safetensors` has shape \
         [44, 32], the configuration wants [48, 32]"
    );
}

#[test]
fn a_missing_tensor_is_named() {
    let folder = copy("llama_a");
    edit(folder.path(), |config| {
        config["text_config"]["num_hidden_layers"] = json!(3);
    });
    let message = refusal(folder.path());
    assert!(
        message.starts_with("tensor `language_model.model.layers.2.")
            && message.contains("is missing"),
        "{message}"
    );
}

#[test]
fn a_field_that_cannot_be_computed_with_is_named() {
    let cases: [(&str, Value, &str); 8] = [
        (
            "/model_type",
            json!("idefics3"),
            "field `model_type` is `idefics3`",
        ),
        (
            "/vision_feature_layer",
            json!(-9),
            "field `vision_feature_layer` is -9",
        ),
        (
            "/vision_feature_select_strategy",
            json!("all"),
            "field `vision_feature_select_strategy`",
        ),
        (
            "/text_config/model_type",
            json!("qwen2"),
            "field `text_config.model_type` is `qwen2`",
        ),
        (
            "/text_config/hidden_act",
            json!("mish"),
            "field `text_config.hidden_act`",
        ),
        (
            "/text_config/hidden_size",
            json!(0),
            "field `text_config.hidden_size` is 0",
        ),
        (
            "/vision_config/patch_size",
            json!(7),
            "field `vision_config.patch_size` is 7",
        ),
        (
            "/text_config/vocab_size",
            json!("many"),
            "field `text_config.vocab_size`",
        ),
    ];
    for (pointer, value, expected) in cases {
        let folder = copy("llama_c");
        edit(folder.path(), |config| {
            *config.pointer_mut(pointer).unwrap() = value.clone();
        });
        let message = refusal(folder.path());
        assert!(message.contains(expected), "{pointer}: {message}");
    }
    let folder = copy("llama_c");
    edit(folder.path(), |config| {
        config["text_config"]["rope_parameters"] = json!({"rope_type": "yarn", "rope_theta": 1e4});
    });
    let message = refusal(folder.path());
    assert!(
        message.contains("`text_config.rope_parameters.rope_type` is `yarn`"),
        "{message}"
    );
}

#[test]
fn pickled_weights_and_broken_json_are_told_apart() {
    let folder = tempfile::tempdir().unwrap();
    assert_eq!(refusal(folder.path()), "`config.json` could not be read");
    fs::write(folder.path().join("config.json"), "{").unwrap();
    assert_eq!(refusal(folder.path()), "`config.json` is no valid JSON");
    let config = llava_folder().join("llama_c/config.json");
    fs::copy(config, folder.path().join("config.json")).unwrap();
    assert!(refusal(folder.path()).starts_with("no weights found"));
    fs::write(folder.path().join("pytorch_model.bin"), "x").unwrap();
    assert!(refusal(folder.path()).contains("save it as safetensors first"));
}

#[test]
fn an_original_llava_with_an_unknown_tower_asks_for_its_configuration() {
    let message = refusal(&llava_folder().join("llama_d"));
    assert!(message.contains("field `mm_vision_tower`"), "{message}");
    assert!(message.contains("--vision-config FOLDER"), "{message}");
}

#[test]
fn the_digest_does_not_depend_on_sharding_and_does_on_every_value() {
    let whole = Base::open(&llava_folder().join("llama_c"), &OpenOptions::default()).unwrap();
    let folder = copy("llama_c");
    let path = folder.path().join("model.safetensors");
    let bytes = fs::read(&path).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    // Two shards, split by the parity of the name's length, so every part of the model is in both.
    let mut map = serde_json::Map::new();
    for (parity, file) in ["odd.safetensors", "even.safetensors"].iter().enumerate() {
        let part: Vec<_> = tensors
            .iter()
            .filter(|(name, _)| name.len() % 2 == 1 - parity)
            .collect();
        map.extend(
            part.iter()
                .map(|(name, _)| ((*name).to_owned(), json!(file))),
        );
        safetensors::serialize_to_file(part, None, &folder.path().join(file)).unwrap();
    }
    fs::remove_file(&path).unwrap();
    let index = json!({"metadata": {}, "weight_map": map}).to_string();
    fs::write(folder.path().join("model.safetensors.index.json"), index).unwrap();
    let sharded = Base::open(folder.path(), &OpenOptions::default()).unwrap();
    assert_eq!(sharded.digest(), whole.digest());

    let last = bytes.len() - 1;
    let changed = copy("llama_c");
    let mut bytes = bytes.clone();
    bytes[last] ^= 1;
    fs::write(changed.path().join("model.safetensors"), &bytes).unwrap();
    let changed = Base::open(changed.path(), &OpenOptions::default()).unwrap();
    assert_ne!(changed.digest(), whole.digest());

    let other_eps = copy("llama_c");
    edit(other_eps.path(), |config| {
        config["text_config"]["rms_norm_eps"] = json!(1e-5);
    });
    let other_eps = Base::open(other_eps.path(), &OpenOptions::default()).unwrap();
    assert_ne!(other_eps.digest(), whole.digest());
}

#[test]
fn a_remembered_digest_is_used_until_a_file_changes() {
    let folder = copy("llama_c");
    let cache = folder.path().join("digests.json");
    let options = OpenOptions {
        digest_cache: Some(cache.clone()),
        ..OpenOptions::default()
    };
    let first = Base::open(folder.path(), &options).unwrap().digest();
    let remembered = fs::read_to_string(&cache).unwrap();
    assert!(remembered.contains(&first.to_string()));
    // A forged entry shows that the file is believed while the folder has not changed...
    let forged = norma_adapters::Digest::of(b"forged");
    fs::write(
        &cache,
        remembered.replace(&first.to_string(), &forged.to_string()),
    )
    .unwrap();
    assert_eq!(
        Base::open(folder.path(), &options).unwrap().digest(),
        forged
    );
    // ...and not once it has.
    edit(folder.path(), |config| {
        config["text_config"]["rms_norm_eps"] = json!(1e-5);
    });
    let digest = Base::open(folder.path(), &options).unwrap().digest();
    assert!(digest != forged && digest != first);
}

#[test]
fn a_base_too_large_for_the_machine_is_refused_with_both_numbers() {
    let error = norma::base::memory::require("the base", 1 << 60, &Device::Cpu).unwrap_err();
    assert!(matches!(error, BaseError::Memory { .. }));
    let message = error.to_string();
    assert!(
        message.contains("needs 1099511627776 MB of memory, the machine has"),
        "{message}"
    );
}
