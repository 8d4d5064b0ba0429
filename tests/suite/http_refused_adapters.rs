//! Uploads that are refused: why, by which name, and what is left of them.

use norma::http::Limits;
use norma_adapters::{AdapterValues, Scope, format};
use serde_json::json;

use crate::http_maker::{Made, Maker, make};
use crate::http_server::{BASE, Setup, TestServer, chat_body, json_of, refusal};

/// A change to a good adapter, and how it must be refused.
struct Bad {
    file: Vec<u8>,
    code: &'static str,
    says: &'static str,
}

fn bad_files(maker: &Maker) -> Vec<Bad> {
    let good = maker.adapter(3, Scope::All);
    let stored = good.values.stored(maker.table());
    let write = |change: &dyn Fn(&mut Made, &mut norma_adapters::StoredValues)| {
        let (mut made, mut stored) = (good.clone(), stored.clone());
        change(&mut made, &mut stored);
        format::write(&stored, &made.manifest).unwrap()
    };
    let norm = "language_model.model.norm";
    let bad = |file, code, says| Bad { file, code, says };
    let mut nan = good.file.clone();
    let end = nan.len();
    nan[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    let mut huge = good.file.clone();
    huge[..8].copy_from_slice(&(2u64 << 20).to_le_bytes());
    vec![
        bad(Vec::new(), "format", ""),
        bad(b"no adapter at all".to_vec(), "format", "header"),
        bad(good.file[..good.file.len() - 1].to_vec(), "format", ""),
        bad(huge, "format", "header"),
        bad(nan, "not_finite", "NaN or infinite, at index"),
        bad(write(&|_, s| drop(s.remove(norm))), "site", norm),
        bad(
            write(&|_, s| drop(s.insert("language_model.model.nor".into(), s[norm].clone()))),
            "site",
            "language_model.model.nor",
        ),
        bad(
            write(&|_, s| s.get_mut(norm).unwrap().weight.push(1.0)),
            "shape",
            norm,
        ),
        bad(
            write(&|m, _| m.manifest.base_digest = norma_adapters::Digest::of(b"another")),
            "base",
            "base_digest",
        ),
        bad(
            write(&|m, _| m.manifest.scope = Scope::Language),
            "scope",
            "vision",
        ),
        bad(
            write(&|m, _| {
                let test = &mut m.manifest.self_test;
                let other = test.top_logits[2][1].0;
                let best = test.top_logits[2][0].1 + 1.0;
                test.tokens[2] = other;
                test.top_logits[2] = vec![(other, best), (test.top_logits[2][0].0, best - 1.0)];
            }),
            "self_test",
            "self-test step 2",
        ),
        bad(
            write(&|m, _| m.manifest.self_test.top_logits[0][0].1 += 0.5),
            "self_test",
            "self-test step 0: the logit of token",
        ),
        bad(
            write(&|m, _| m.manifest.self_test.seed += 1),
            "self_test",
            "self-test step",
        ),
        bad(
            write(&|m, _| m.manifest.self_test.prompt = "<image>".into()),
            "self_test",
            "self_test.prompt",
        ),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_adapter_is_refused_by_name_leaves_nothing_and_is_counted() {
    let server = TestServer::start();
    let bad = make(bad_files).await;
    for Bad { file, code, says } in &bad {
        let response = server.upload(file, &[("alias", "chest")]).await;
        let (status, error) = refusal(response).await;
        assert_eq!((status, &error["code"]), (422, &json!(code)), "{error}");
        assert_eq!(error["param"], "file");
        assert!(
            error["message"].as_str().unwrap().contains(says),
            "{says}: {error}"
        );
    }
    assert_eq!(json_of(&server, "/v1/adapters").await["data"], json!([]));
    let files = |folder: &str| {
        std::fs::read_dir(server.data_dir.path().join(folder))
            .unwrap()
            .count()
    };
    assert_eq!((files("incoming"), files("blobs/sha256")), (0, 0));
    let metrics = server.metrics().await;
    for code in [
        "format",
        "not_finite",
        "site",
        "shape",
        "base",
        "scope",
        "self_test",
    ] {
        let of = bad.iter().filter(|bad| bad.code == code).count();
        let line = format!("norma_adapter_validation_failures_total{{reason=\"{code}\"}} {of}");
        assert!(metrics.contains(&line), "{line}\n{metrics}");
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn forms_that_ask_for_what_is_not_there_are_refused_before_the_file_is_looked_at() {
    let limits = Limits {
        max_upload_bytes: 10_000,
        ..Setup::default().limits
    };
    let server = TestServer::with(&Setup {
        limits,
        ..Setup::default()
    });
    let all = make(|m| vec![m.adapter(1, Scope::All)]).await;
    let file = &all[0].file;
    assert!(file.len() < 10_000);
    for (fields, param) in [
        (vec![("alias", "a b")], "alias"),
        (vec![("alias", "")], "alias"),
        (vec![("alias", ".hidden")], "alias"),
        (vec![("alias", BASE)], "alias"),
        (vec![("alias", "a"), ("alias", "b")], "alias"),
        (
            vec![("alias", "a"), ("expected_generation", "latest")],
            "expected_generation",
        ),
        (vec![("expected_generation", "")], "expected_generation"),
        (vec![("signature", "x")], "signature"),
        (vec![("colour", "red")], "colour"),
    ] {
        let (status, error) = refusal(server.upload(file, &fields).await).await;
        assert_eq!((status, &error["param"]), (400, &json!(param)), "{error}");
    }
    let empty = reqwest::multipart::Form::new().text("alias", "x");
    let request = server
        .client
        .post(server.url("/v1/adapters"))
        .multipart(empty);
    let (status, error) = refusal(request.send().await.unwrap()).await;
    assert_eq!((status, &error["param"]), (400, &json!("file")));
    for size in [10_001, 15_000] {
        let (status, error) = refusal(server.upload(&vec![0; size], &[]).await).await;
        assert_eq!((status, &error["param"]), (413, &json!("file")), "{error}");
    }
    assert_eq!(json_of(&server, "/v1/adapters").await["data"], json!([]));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn values_at_the_edge_of_f32_are_refused_by_their_self_test_and_end_nothing() {
    let server = TestServer::start();
    let all = make(|m| {
        let table = m.table();
        let mut row = vec![1e30f32; table.row_len()];
        row[0] = -1e30;
        let values = AdapterValues::new(table, row, Scope::All).unwrap();
        let good = m.adapter(1, Scope::All);
        vec![m.write(values, good.manifest.clone()), good]
    })
    .await;
    let response = server.upload(&all[0].file, &[("alias", "wild")]).await;
    let (status, error) = refusal(response).await;
    assert_eq!(
        (status, &error["code"]),
        (422, &json!("self_test")),
        "{error}"
    );
    server.publish(&all[1].file, "tame").await;
    assert_eq!(
        server
            .chat(&chat_body("tame", None, "Hi", 3))
            .await
            .status(),
        200
    );
    assert_eq!(server.upload(&all[1].file, &[]).await.status(), 200);
    server.stop().await;
}
