//! A manifest in full, its JSON, and each way of spoiling it.

use super::*;
use serde_json::json;

/// A manifest that passes every check.
pub(crate) fn example(base: Digest, scope: Scope) -> Manifest {
    Manifest {
        format_version: FORMAT_VERSION,
        base_digest: base,
        family: "llava".into(),
        task: Task::Vqa,
        scope,
        recipe: serde_json::json!({"steps": 20, "lr": 0.001}),
        data_digest: Some(Digest::of(b"data")),
        metrics: serde_json::json!({"before": {"closed": 0.5}, "after": {"closed": 0.75}}),
        calibration: Some(Calibration {
            temperature: 1.25,
            abstention_threshold: 0.5,
        }),
        licence: Some("CC0-1.0".into()),
        self_test: SelfTest {
            generator: PROBE.into(),
            seed: u64::MAX,
            size: 32,
            prompt: "what is seen?".into(),
            tokens: vec![5, 2],
            top_logits: vec![
                vec![(5, 3.5), (7, 1.0)],
                vec![(2, 0.1), (0, 0.1), (3, -2.0)],
            ],
            tolerance: None,
        },
    }
}

fn good() -> Manifest {
    example(Digest::of(b"base"), Scope::All)
}

#[test]
fn json_goes_both_ways_and_forgets_key_order() {
    let manifest = good();
    let text = manifest.to_json().unwrap();
    assert_eq!(Manifest::from_json(&text).unwrap(), manifest);
    let mut turned = manifest;
    turned.recipe = json!({"lr": 0.001, "steps": 20});
    turned.metrics = json!({"after": {"closed": 0.75}, "before": {"closed": 0.5}});
    assert_eq!(turned.to_json().unwrap(), text);
}

#[test]
fn optional_fields_may_be_absent_and_others_may_not() {
    let mut value = serde_json::to_value(good()).unwrap();
    let map = value.as_object_mut().unwrap();
    for field in ["data_digest", "metrics", "calibration", "licence"] {
        map.shift_remove(field).unwrap();
    }
    let manifest = Manifest::from_json(&value.to_string()).unwrap();
    assert_eq!(
        (manifest.calibration, manifest.metrics),
        (None, Value::Null)
    );
    for field in [
        "base_digest",
        "family",
        "task",
        "scope",
        "recipe",
        "self_test",
    ] {
        let mut value = serde_json::to_value(good()).unwrap();
        value.as_object_mut().unwrap().shift_remove(field).unwrap();
        let err = Manifest::from_json(&value.to_string()).unwrap_err();
        assert!(err.to_string().contains(&format!("`{field}`")), "{err}");
    }
}

#[test]
fn every_refusal_names_the_field() {
    for (path, value) in [
        ("/base_digest", json!("sha256:00")),
        ("/family", json!("")),
        ("/family", json!("a\u{0}b")),
        ("/task", json!("x".repeat(129))),
        ("/scope", json!("tower")),
        ("/licence", json!("\n")),
        ("/calibration/temperature", json!(0)),
        ("/calibration/temperature", json!(1e300)),
        ("/calibration/abstention_threshold", json!(1.5)),
        ("/self_test/generator", json!("probe/2")),
        ("/self_test/size", json!(0)),
        ("/self_test/size", json!(100_000)),
        ("/self_test/prompt", json!("x".repeat(5000))),
        ("/self_test/tokens", json!([])),
        ("/self_test/tokens", json!([5])),
        ("/self_test/tokens", json!([5, 3])),
        ("/self_test/top_logits/0", json!([[5, 1.0]])),
        ("/self_test/top_logits/0", json!([[5, 1.0], [7, 2.0]])),
        ("/self_test/top_logits/0", json!([[5, 1e300], [7, 2.0]])),
    ] {
        let mut manifest = serde_json::to_value(good()).unwrap();
        *manifest.pointer_mut(path).unwrap() = value.clone();
        let err = Manifest::from_json(&manifest.to_string())
            .unwrap_err()
            .to_string();
        let field = path
            .trim_start_matches('/')
            .trim_end_matches("/0")
            .replace('/', ".");
        assert!(err.contains(&format!("`{field}`")), "{path} {value}: {err}");
    }
}

#[test]
fn versions_and_unknown_fields_are_refused() {
    let with = |field: &str, value: Value| {
        let mut manifest = serde_json::to_value(good()).unwrap();
        manifest
            .as_object_mut()
            .unwrap()
            .insert(field.into(), value);
        Manifest::from_json(&manifest.to_string())
            .unwrap_err()
            .to_string()
    };
    assert!(with("format_version", json!(2)).contains("`format_version` is 2"));
    assert!(with("created", json!("today")).contains("`created` is unknown"));
    let nested = with(
        "calibration",
        json!({"temperature": 1, "abstention_threshold": 0, "x": 0}),
    );
    assert!(nested.contains("`calibration.x` is unknown"), "{nested}");
    assert!(with("self_test", json!(3)).contains("`self_test` must be an object"));
    for text in [
        "",
        "3",
        "{\"format_version\": 1",
        "{\"format_version\": -1}",
    ] {
        assert!(Manifest::from_json(text).is_err(), "{text}");
    }
    assert!(Manifest::from_json(&"[".repeat(100_000)).is_err());
}
