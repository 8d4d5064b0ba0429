//! Adapters over HTTP: published, moved, deleted, and who wins a race.

use std::sync::Arc;

use norma_adapters::Scope;
use serde_json::{Value, json};

use crate::http_maker::make;
use crate::http_server::{BASE, Setup, TestServer, chat_body, json_of, refusal, text_of};

async fn put(server: &TestServer, alias: &str, body: Value) -> reqwest::Response {
    let request = server
        .client
        .put(server.url(&format!("/v1/adapters/{alias}")));
    request.json(&body).send().await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_is_described_and_answers_under_all_its_names() {
    let all = make(|m| vec![m.adapter(1, Scope::All), m.adapter(2, Scope::Language)]).await;
    let (one, two) = (&all[0], &all[1]);
    let server = TestServer::start();
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
    let card = json_of(&server, "/v1/models/llama_a:chest").await;
    let names = (&card["id"], &card["root"], &card["parent"]);
    assert_eq!(names, (&json!("chest"), &json!("chest"), &json!(BASE)));
    let mut pinned = ask.clone();
    pinned["adapter_generation"] = json!(two.generation);
    let (status, error) = refusal(server.chat(&pinned).await).await;
    assert_eq!(
        (status, &error["present_generation"]),
        (409, &json!(one.generation))
    );
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn versions_are_published_rolled_back_deleted_and_outlive_a_restart() {
    let all = make(|m| vec![m.adapter(1, Scope::All), m.adapter(2, Scope::Language)]).await;
    let (one, two) = (&all[0], &all[1]);
    let server = TestServer::start();
    let ask = chat_body("chest", Some("wide.png"), "Is the heart enlarged?", 12);
    server.publish(&one.file, "chest").await;
    let first: Value = server.chat(&ask).await.json().await.unwrap();
    server.publish(&two.file, "chest").await;
    let second: Value = server.chat(&ask).await.json().await.unwrap();
    assert_eq!(second["adapter_generation"], json!(two.generation));
    assert_ne!(text_of(&first), text_of(&second));
    let moved = put(&server, "chest", json!({"generation": one.generation})).await;
    let moved: Value = moved.json().await.unwrap();
    assert_eq!(moved["previous_generation"], json!(two.generation));

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

    let folder = server.stop().await;
    let server = TestServer::in_folder(&Setup::default(), folder);
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
async fn a_download_is_the_uploaded_bytes_under_their_tag() {
    let made = make(|m| m.adapter(1, Scope::All)).await;
    let server = TestServer::start();
    server.publish(&made.file, "chest").await;
    let download = server
        .get("/v1/adapters/chest/download")
        .send()
        .await
        .unwrap();
    let tag = download.headers()["etag"].clone();
    assert_eq!(tag, format!("\"{}\"", made.generation).as_str());
    assert_eq!(download.bytes().await.unwrap(), made.file);
    let same = server
        .get("/v1/adapters/chest/download")
        .header("if-none-match", tag);
    assert_eq!(same.send().await.unwrap().status(), 304);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn expectations_of_an_alias_are_kept_by_uploads_and_moves() {
    let all = make(|m| vec![m.adapter(1, Scope::All), m.adapter(2, Scope::All)]).await;
    let (one, two) = (&all[0], &all[1]);
    let server = TestServer::start();
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
    let all = make(|m| {
        (1..=5)
            .map(|seed| m.adapter(seed, Scope::Language))
            .collect::<Vec<_>>()
    })
    .await;
    let server = Arc::new(TestServer::start());
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

#[tokio::test(flavor = "multi_thread")]
async fn controllers_load_and_unload_below_the_allowed_folder_only() {
    let folder = tempfile::tempdir().unwrap();
    let all = make(|m| vec![m.adapter(1, Scope::All), m.adapter(2, Scope::All)]).await;
    std::fs::create_dir(folder.path().join("allowed")).unwrap();
    std::fs::write(folder.path().join("allowed/one.safetensors"), &all[0].file).unwrap();
    std::fs::write(folder.path().join("allowed/two.safetensors"), &all[1].file).unwrap();
    std::fs::write(folder.path().join("outside.safetensors"), &all[0].file).unwrap();
    let lora_folder = Some(folder.path().join("allowed"));
    let server = TestServer::with(&Setup {
        lora_folder,
        ..Setup::default()
    });
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
