use norma::base::{Base, OpenOptions};
use norma::model::MedVlm;
use serde_json::json;

use super::*;
use crate::frozen::FrozenBase;
use crate::optimizer::AdamConfig;
use crate::tune::Tuner;

fn golden(case: &str) -> Base {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/golden/llava");
    let folder = std::path::Path::new(folder).join(case);
    Base::open(&folder, &OpenOptions::default()).unwrap()
}

fn build(choice: &Choice) -> anyhow::Result<FrozenBase> {
    build_on("llama_a", choice)
}

fn build_on(case: &str, choice: &Choice) -> anyhow::Result<FrozenBase> {
    let base = golden(case);
    let (row, digest) = (base.row()?, base.digest());
    FrozenBase::with_method(base.config(), base.checkpoint(), row, digest, choice)
}

fn choice(method: Method, scope: Scope) -> Choice {
    Choice {
        method,
        scope,
        seed: 1,
    }
}

fn is_bias(name: &str) -> bool {
    name.rsplit('.').next() == Some("bias")
}

/// The names of everything that learns.
fn learns(choice: &Choice) -> anyhow::Result<Vec<String>> {
    let base = build(choice)?;
    let tuner = Tuner::new(&base, choice, AdamConfig::default(), 1)?;
    let all = base.variables.iter().chain(tuner.norms().all());
    Ok(all.map(|one| one.name.clone()).collect())
}

fn refusal(method: Method, scope: Scope) -> String {
    learns(&choice(method, scope)).unwrap_err().to_string()
}

fn every_method() -> Vec<Method> {
    vec![
        Method::default(),
        Method::Ffn,
        Method::Attention,
        Method::Full,
        Method::Bias,
        Method::Lora(Lora::default()),
        Method::Ia3,
        Method::Prefix(Prefix::default()),
    ]
}

#[test]
fn a_scope_holds_for_every_method() {
    for method in every_method() {
        for (scope, part) in [
            (Scope::Vision, Part::Vision),
            (Scope::Language, Part::Language),
        ] {
            let nothing_there = match method {
                Method::Prefix(_) => part == Part::Vision,
                // A Llama decoder has no biases.
                Method::Bias => part == Part::Language,
                _ => false,
            };
            if nothing_there {
                let error = refusal(method.clone(), scope);
                assert!(error.contains("nothing would be trained"), "{error}");
                continue;
            }
            let names = learns(&choice(method.clone(), scope)).unwrap();
            assert!(!names.is_empty());
            assert!(names.iter().all(|name| part_of(name) == part), "{names:?}");
        }
    }
    let names = learns(&choice(Method::Full, Scope::Projector)).unwrap();
    assert_eq!(names.len(), 4, "{names:?}");
}

#[test]
fn methods_train_what_their_names_say() {
    let all = |method| learns(&choice(method, Scope::All)).unwrap();
    assert!(all(Method::Ffn).iter().all(|name| name.contains(".mlp.")));
    assert!(
        all(Method::Attention)
            .iter()
            .all(|name| name.contains(".self_attn."))
    );
    assert!(all(Method::Bias).iter().all(|name| is_bias(name)));
    let base = build(&choice(Method::Full, Scope::All)).unwrap();
    let tuner = Tuner::new(
        &base,
        base.choice.as_ref().unwrap(),
        AdamConfig::default(),
        1,
    );
    assert_eq!(tuner.unwrap().n_trainable(), base.n_values());
    let sites = Method::LayerNorm(LayerNorm {
        sites: Some(r"layers\.1\.input_layernorm$".into()),
        values: NormValues::Both,
    });
    assert_eq!(
        all(sites),
        ["language_model.model.layers.1.input_layernorm.weight"]
    );
    let biases = Method::LayerNorm(LayerNorm {
        sites: None,
        values: NormValues::Bias,
    });
    assert!(
        all(biases)
            .iter()
            .all(|name| name.contains("norm") && is_bias(name))
    );
}

/// A head that is the embedding is trained once; keys are narrower than queries.
#[test]
fn a_tied_base_with_grouped_queries_is_trained_whole() {
    let full = choice(Method::Full, Scope::All);
    let base = build_on("gqa_tied", &full).unwrap();
    let tuner = Tuner::new(&base, &full, AdamConfig::default(), 1).unwrap();
    assert_eq!(tuner.n_trainable(), base.n_values());
    let prefix = choice(Method::Prefix(Prefix { tokens: 3 }), Scope::All);
    let base = build_on("gqa_tied", &prefix).unwrap();
    let mut shapes = base.variables.iter().map(|one| one.var.dims());
    assert!(base.variables.len() == 4 && shapes.all(|shape| shape == [3, 32]));
}

#[test]
fn what_cannot_be_is_refused_with_field_and_limit() {
    let lora = |lora| refusal(Method::Lora(lora), Scope::All);
    let error = lora(Lora {
        rank: 0,
        ..Lora::default()
    });
    assert_eq!(error, "`rank` of lora is 0, the least is 1");
    let error = lora(Lora {
        alpha: f64::NAN,
        ..Lora::default()
    });
    assert!(error.contains("`alpha` of lora is NaN"), "{error}");
    let error = lora(Lora {
        targets: "(".into(),
        ..Lora::default()
    });
    assert!(error.contains("`targets` `(` is no regular expression"));
    let error = lora(Lora {
        targets: "nowhere".into(),
        ..Lora::default()
    });
    assert!(
        error.contains("`targets` `nowhere` matches nothing in scope `all`"),
        "{error}"
    );
    let error = refusal(Method::Prefix(Prefix { tokens: 0 }), Scope::All);
    assert_eq!(error, "`tokens` of prefix is 0, the least is 1");
    let sites = Method::LayerNorm(LayerNorm {
        sites: Some("fc1".into()),
        values: NormValues::Both,
    });
    assert!(refusal(sites, Scope::All).contains("`sites` `fc1` matches nothing"));
}

#[test]
fn recipes_name_methods_as_the_command_line_does() {
    for method in every_method() {
        let value = serde_json::to_value(&method).unwrap();
        assert_eq!(value["name"], method.name());
        assert_eq!(serde_json::from_value::<Method>(value).unwrap(), method);
    }
    let lora: Method = serde_json::from_value(json!({ "name": "lora", "rank": 2 })).unwrap();
    assert_eq!(
        lora,
        Method::Lora(Lora {
            rank: 2,
            ..Lora::default()
        })
    );
    assert!(serde_json::from_value::<Method>(json!({ "name": "lora", "r": 2 })).is_err());
}

#[test]
fn the_trained_file_comes_back_to_the_bit() {
    for method in every_method() {
        let choice = choice(method, Scope::All);
        let base = build(&choice).unwrap();
        for (at, variable) in base.variables.iter().enumerate() {
            let moved = (variable.var.as_tensor() + 0.01 * (at + 1) as f64).unwrap();
            variable.var.set(&moved).unwrap();
        }
        let mut row = base.row.clone();
        for (_, range) in trained::norm_tensors(base.model.sites(), &choice).unwrap() {
            row[range].iter_mut().for_each(|value| *value += 0.5);
        }
        let header = trained::Header {
            base_digest: base.digest,
            choice: choice.clone(),
            recipe: json!({ "steps": 3 }),
            metrics: serde_json::Value::Null,
        };
        let bytes = trained::write(&base, &row, &header).unwrap();
        assert_eq!(trained::header(&bytes).unwrap(), header);
        let other = build(&choice).unwrap();
        assert_eq!(trained::restore(&other, &bytes).unwrap(), row);
        for (one, two) in base.variables.iter().zip(&other.variables) {
            let values = |var: &candle_core::Var| var.flatten_all().unwrap().to_vec1::<f32>();
            assert_eq!(values(&one.var).unwrap(), values(&two.var).unwrap());
        }
        assert_eq!(trained::write(&other, &row, &header).unwrap(), bytes);
    }
}

#[test]
fn foreign_and_damaged_files_are_refused() {
    let lora = choice(Method::Lora(Lora::default()), Scope::All);
    let base = build(&lora).unwrap();
    let header = trained::Header {
        base_digest: base.digest,
        choice: lora,
        recipe: serde_json::Value::Null,
        metrics: serde_json::Value::Null,
    };
    let bytes = trained::write(&base, &base.row, &header).unwrap();
    let refuse = |base: &FrozenBase, bytes: &[u8]| trained::restore(base, bytes).unwrap_err();
    assert!(matches!(
        refuse(&base, &bytes[..bytes.len() - 1]),
        MethodError::File(_)
    ));
    let plain = build(&choice(Method::Ia3, Scope::All)).unwrap();
    assert!(matches!(refuse(&plain, &bytes), MethodError::Tensor { .. }));
    let foreign = trained::Header {
        base_digest: norma_adapters::Digest::of_f32(&[1.0]),
        ..header
    };
    let bytes = trained::write(&base, &base.row, &foreign).unwrap();
    assert!(matches!(
        refuse(&base, &bytes),
        MethodError::OtherBase { .. }
    ));
    let nothing = safetensors::serialize(
        Vec::<(String, safetensors::tensor::TensorView)>::new(),
        None,
    );
    assert!(matches!(
        refuse(&base, &nothing.unwrap()),
        MethodError::Header { .. }
    ));
}
