//! Adapters over HTTP: what is accepted, what is refused and why, and who wins a race.

use std::sync::Arc;

use norma::http::Limits;
use norma_adapters::{AdapterValues, Scope, format};
use serde_json::{Value, json};

use crate::http_server::{
    BASE, Made, Maker, Setup, TestServer, chat_body, refusal, text_of, upload_form,
};

async fn made(make: impl FnOnce(&Maker) -> Vec<Made> + Send + 'static) -> Vec<Made> {
    tokio::task::spawn_blocking(move || make(&Maker::new()))
        .await
        .unwrap()
}

async fn put(server: &TestServer, alias: &str, body: Value) -> reqwest::Response {
    let request = server
        .client
        .put(server.url(&format!("/v1/adapters/{alias}")));
    request.json(&body).send().await.unwrap()
}

async fn json_of(server: &TestServer, path: &str) -> Value {
    server.get(path).send().await.unwrap().json().await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_adapter_is_published_rolled_back_downloaded_deleted_and_outlives_a_restart() {
    let all = made(|m| vec![m.adapter(1, Scope::All), m.adapter(2, Scope::Language)]).await;
    let (one, two) = (&all[0], &all[1]);
    let server = TestServer::start().await;
    let response = server.upload(&one.file, &[("alias", "chest")]).await;
    assert_eq!(response.status(), 201);
    let body: Value = response.json().await.unwrap();
    for (field, want) in [
        ("object", json!("adapter")),
        ("generation", json!(one.generation)),
        ("alias", json!("chest")),
        ("base_digest", json!(server.service().digest())),
        ("task", json!("vqa")),
        ("scope", json!("all")),
        ("sites", json!(10)),
        ("values", json!(480)),
        ("bytes", json!(one.file.len())),
        ("state", json!("ready")),
    ] {
        assert_eq!(body[field], want, "{field}");
    }
    assert!(body["created"].as_u64().unwrap() > 1_700_000_000);
    let again = server.upload(&one.file, &[]).await;
    assert_eq!(again.status(), 200);
    assert_eq!(again.json::<Value>().await.unwrap()["alias"], Value::Null);

    let ask = chat_body("chest", Some("wide.png"), "Is the heart enlarged?", 12);
    let first: Value = server.chat(&ask).await.json().await.unwrap();
    assert_eq!(first["adapter_generation"], json!(one.generation));
    server.publish(&two.file, "chest").await;
    let second: Value = server.chat(&ask).await.json().await.unwrap();
    assert_eq!(second["adapter_generation"], json!(two.generation));
    assert_ne!(text_of(&first), text_of(&second));
    // Roll back, by all three ways of naming the adapter.
    let moved = put(&server, "chest", json!({"generation": one.generation})).await;
    let moved: Value = moved.json().await.unwrap();
    assert_eq!(moved["previous_generation"], json!(two.generation));
    for change in [
        json!({"model": "llama_a:chest"}),
        json!({"model": BASE, "adapter": "chest"}),
        json!({"model": BASE, "adapter_generation": one.generation}),
        json!({"model": "chest", "adapter_generation": one.generation}),
    ] {
        let mut ask = ask.clone();
        for (field, value) in change.as_object().unwrap() {
            ask[field] = value.clone();
        }
        let answer: Value = server.chat(&ask).await.json().await.unwrap();
        assert_eq!(text_of(&answer), text_of(&first), "{change}");
        assert_eq!(
            answer["adapter_generation"],
            json!(one.generation),
            "{change}"
        );
    }
    let mut pinned = ask.clone();
    pinned["adapter_generation"] = json!(two.generation);
    let (status, error) = refusal(server.chat(&pinned).await).await;
    assert_eq!(
        (status, &error["present_generation"]),
        (409, &json!(one.generation))
    );

    let list = json_of(&server, "/v1/adapters").await;
    assert_eq!(
        (&list["data"][0]["alias"], &list["has_more"]),
        (&json!("chest"), &json!(false))
    );
    let moves = json_of(&server, "/v1/adapters/chest/generations").await;
    let history: Vec<&Value> = moves["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(|step| &step["generation"])
        .collect();
    let (g1, g2) = (json!(one.generation), json!(two.generation));
    assert_eq!(history, [&g1, &g2, &g1]);
    let after = format!(
        "/v1/adapters/chest/generations?limit=1&after={}",
        moves["data"][0]["id"]
    );
    let page = json_of(&server, &after).await;
    assert_eq!(
        (&page["data"][0]["generation"], &page["has_more"]),
        (&g2, &json!(true))
    );
    let card = json_of(&server, "/v1/models/llama_a:chest").await;
    assert_eq!(
        (&card["id"], &card["root"], &card["parent"]),
        (&json!("chest"), &json!("chest"), &json!(BASE))
    );

    let download = server
        .get("/v1/adapters/chest/download")
        .send()
        .await
        .unwrap();
    let tag = download.headers()["etag"].clone();
    assert_eq!(tag, format!("\"{}\"", one.generation).as_str());
    assert_eq!(download.bytes().await.unwrap(), one.file);
    let same = server
        .get("/v1/adapters/chest/download")
        .header("if-none-match", tag);
    assert_eq!(same.send().await.unwrap().status(), 304);

    let folder = server.stop().await;
    let server = TestServer::in_folder(Setup::default(), folder).await;
    let answer: Value = server.chat(&ask).await.json().await.unwrap();
    assert_eq!(text_of(&answer), text_of(&first));
    let deleted = server
        .client
        .delete(server.url("/v1/adapters/chest"))
        .send()
        .await
        .unwrap();
    let deleted: Value = deleted.json().await.unwrap();
    assert_eq!(
        (&deleted["id"], &deleted["deleted"]),
        (&json!("chest"), &json!(true))
    );
    assert_eq!(refusal(server.chat(&ask).await).await.0, 404);
    let revived = put(&server, "heart", json!({"generation": two.generation})).await;
    assert_eq!(revived.status(), 200);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn expectations_of_an_alias_are_kept_by_uploads_and_moves() {
    let all = made(|m| vec![m.adapter(1, Scope::All), m.adapter(2, Scope::All)]).await;
    let (one, two) = (&all[0], &all[1]);
    let server = TestServer::start().await;
    let one_name = one.generation.to_string();
    let fields = [
        ("alias", "chest"),
        ("expected_generation", one_name.as_str()),
    ];
    let (status, error) = refusal(server.upload(&two.file, &fields).await).await;
    assert_eq!(
        (status, &error["present_generation"]),
        (409, &Value::Null),
        "{error}"
    );
    assert_eq!(error["code"], "generation_mismatch");
    let fresh = [("alias", "chest"), ("expected_generation", "")];
    assert_eq!(server.upload(&one.file, &fresh).await.status(), 201);
    assert_eq!(refusal(server.upload(&two.file, &fresh).await).await.0, 409);
    assert_eq!(server.upload(&two.file, &fields).await.status(), 201);
    let body = json!({"generation": one.generation, "expected_generation": one.generation});
    let (status, error) = refusal(put(&server, "chest", body).await).await;
    assert_eq!(
        (status, &error["present_generation"]),
        (409, &json!(two.generation)),
        "{error}"
    );
    let body = json!({"generation": one.generation, "expected_generation": ""});
    assert_eq!(
        refusal(put(&server, "chest", body.clone()).await).await.0,
        409
    );
    assert_eq!(put(&server, "lung", body).await.status(), 200);
    let unknown = json!({"generation": format!("sha256:{}", "1".repeat(64))});
    let (status, error) = refusal(put(&server, "lung", unknown).await).await;
    assert_eq!(
        (status, &error["code"]),
        (404, &json!("generation_not_found"))
    );
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_many_who_expect_the_same_generation_exactly_one_moves_the_alias() {
    let all = made(|m| {
        (1..=5)
            .map(|seed| m.adapter(seed, Scope::Language))
            .collect()
    })
    .await;
    let server = Arc::new(TestServer::start().await);
    for (index, made) in all.iter().enumerate() {
        server.publish(&made.file, &format!("spare-{index}")).await;
    }
    let mut present = all[0].generation;
    put(&server, "chest", json!({"generation": present})).await;
    for round in 0..6 {
        let racers: Vec<_> = (0..12)
            .map(|racer| {
                let (server, target) = (Arc::clone(&server), all[(racer + round) % 5].generation);
                tokio::spawn(async move {
                    let body = json!({"generation": target, "expected_generation": present});
                    (target, put(&server, "chest", body).await.status().as_u16())
                })
            })
            .collect();
        let mut winners = Vec::new();
        for racer in racers {
            let (target, status) = racer.await.unwrap();
            assert!([200, 409].contains(&status), "{status}");
            // Who asks for what is there already changes nothing and may win beside others.
            if status == 200 && target != present {
                winners.push(target);
            }
        }
        assert_eq!(winners.len(), 1, "round {round}");
        present = winners[0];
        let now = json_of(&server, "/v1/adapters/chest").await;
        assert_eq!(now["generation"], json!(present));
    }
    Arc::into_inner(server).unwrap().stop().await;
}

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
        bad(nan, "not_finite", "is not finite"),
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
    let server = TestServer::start().await;
    let bad = tokio::task::spawn_blocking(|| bad_files(&Maker::new()))
        .await
        .unwrap();
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
    let metrics = server
        .get("/metrics")
        .send()
        .await
        .unwrap()
        .text()
        .await
        .unwrap();
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
    let server = TestServer::with(Setup {
        limits,
        ..Setup::default()
    })
    .await;
    let all = made(|m| vec![m.adapter(1, Scope::All)]).await;
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
async fn controllers_load_and_unload_below_the_allowed_folder_only() {
    let folder = tempfile::tempdir().unwrap();
    let all = made(|m| vec![m.adapter(1, Scope::All), m.adapter(2, Scope::All)]).await;
    std::fs::create_dir(folder.path().join("allowed")).unwrap();
    std::fs::write(folder.path().join("allowed/one.safetensors"), &all[0].file).unwrap();
    std::fs::write(folder.path().join("allowed/two.safetensors"), &all[1].file).unwrap();
    std::fs::write(folder.path().join("outside.safetensors"), &all[0].file).unwrap();
    let lora_folder = Some(folder.path().join("allowed"));
    let server = TestServer::with(Setup {
        lora_folder,
        ..Setup::default()
    })
    .await;
    let load = async |name: &str, path: &str, more: Value| {
        let mut body = json!({"lora_name": name, "lora_path": path});
        for (field, value) in more.as_object().unwrap() {
            body[field] = value.clone();
        }
        server
            .post("/v1/load_lora_adapter", &body)
            .send()
            .await
            .unwrap()
    };
    let response = load("chest", "one.safetensors", json!({})).await;
    assert_eq!(response.status(), 200);
    let text = response.text().await.unwrap();
    assert_eq!(text, "Success: LoRA adapter 'chest' added successfully.");
    let (status, error) = refusal(load("chest", "two.safetensors", json!({})).await).await;
    assert_eq!((status, &error["code"]), (400, &json!("InvalidUserInput")));
    let replaced = load("chest", "two.safetensors", json!({"load_inplace": true})).await;
    assert_eq!(replaced.status(), 200);
    let now = json_of(&server, "/v1/adapters/chest").await;
    assert_eq!(now["generation"], json!(all[1].generation));
    let outside = folder
        .path()
        .join("outside.safetensors")
        .display()
        .to_string();
    for path in [
        "../outside.safetensors",
        outside.as_str(),
        "/etc/passwd",
        "absent",
    ] {
        let (status, error) = refusal(load("x", path, json!({})).await).await;
        assert_eq!(
            (status, &error["param"]),
            (400, &json!("lora_path")),
            "{path}"
        );
        assert!(
            !error["message"].as_str().unwrap().contains("etc"),
            "{error}"
        );
    }
    let unload = async |name: &str| {
        let body = json!({"lora_name": name});
        server
            .post("/v1/unload_lora_adapter", &body)
            .send()
            .await
            .unwrap()
    };
    let response = unload("chest").await;
    let text = response.text().await.unwrap();
    assert_eq!(text, "Success: LoRA adapter 'chest' removed successfully.");
    let (status, error) = refusal(unload("chest").await).await;
    assert_eq!((status, &error["code"]), (404, &json!("NotFoundError")));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn values_at_the_edge_of_f32_are_refused_by_their_self_test_and_end_nothing() {
    let server = TestServer::start().await;
    let all = made(|m| {
        let table = m.table();
        let mut row = vec![1e30f32; table.row_len()];
        row[0] = -1e30;
        let values = AdapterValues::new(table, row, Scope::All).unwrap();
        let good = m.adapter(1, Scope::All);
        vec![m.write(values, good.manifest.clone()), good]
    })
    .await;
    let response = server.upload(&all[0].file, &[("alias", "wild")]).await;
    let status = response.status().as_u16();
    assert!([422, 500].contains(&status), "{status}");
    refusal(response).await;
    server.publish(&all[1].file, "tame").await;
    assert_eq!(
        server
            .chat(&chat_body("tame", None, "Hi", 3))
            .await
            .status(),
        200
    );
    let form = upload_form(&all[1].file, &[]);
    let again = server
        .client
        .post(server.url("/v1/adapters"))
        .multipart(form);
    assert_eq!(again.send().await.unwrap().status(), 200);
    server.stop().await;
}
