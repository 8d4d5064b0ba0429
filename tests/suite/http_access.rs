//! Who may use which route: everything is closed but health.

use norma::http::access::{Access, ROUTES};
use norma::http::keys::new_key;
use norma::http::{Keys, Role, Server, ServerError, ServerOptions, State};
use norma_adapters::Scope;
use reqwest::{Client, Method, Response};
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::sync::Arc;

use crate::http_maker::make;
use crate::http_server::{Setup, TestServer, refusal, until, upload_form};

/// A file of keys with one key for each entry, and the keys.
fn keys(entries: &[(&str, &[Role])]) -> (Keys, Vec<String>) {
    let mut lines = String::new();
    let mut secrets = Vec::new();
    for (tenant, roles) in entries {
        let (secret, entry) = new_key(tenant, roles.to_vec()).unwrap();
        lines.push_str(&serde_json::to_string(&entry).unwrap());
        lines.push('\n');
        secrets.push(secret);
    }
    (Keys::parse(&lines).unwrap(), secrets)
}

/// Sends an empty request to a route.
async fn call(client: &Client, server: &TestServer, route: usize, key: Option<&str>) -> Response {
    let route = &ROUTES[route];
    let path = route
        .pattern
        .replace("{alias}", "some")
        .replace("{id:.*}", "some");
    let method = Method::from_bytes(route.method.as_bytes()).unwrap();
    let mut request = client.request(method, server.url(&path));
    if let Some(key) = key {
        request = request.bearer_auth(key);
    }
    request.send().await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_route_but_health_asks_for_a_key_with_its_role() {
    let roles = [Role::Infer, Role::Manage, Role::Metrics];
    let entries: Vec<(&str, &[Role])> = roles
        .iter()
        .map(|role| ("hospital", std::slice::from_ref(role)))
        .collect();
    let (keys, secrets) = keys(&entries);
    let server = TestServer::with(&Setup {
        keys,
        ..Setup::default()
    });
    let client = Client::new();
    for (index, route) in ROUTES.iter().enumerate() {
        let without = call(&client, &server, index, None).await;
        if route.access == Access::Public {
            assert_eq!(without.status(), 200, "{route:?}");
            continue;
        }
        assert_eq!(without.headers()["www-authenticate"], "Bearer", "{route:?}");
        assert_eq!(refusal(without).await.0, 401, "{route:?}");
        let wrong = call(&client, &server, index, Some("norma_wrong")).await;
        assert_eq!(refusal(wrong).await.0, 401, "{route:?}");
        for (role, secret) in roles.iter().zip(&secrets) {
            let response = call(&client, &server, index, Some(secret)).await;
            let status = response.status().as_u16();
            if route.access == Access::AnyKey || route.access == Access::With(*role) {
                // The handler answers, and finds the empty request wanting.
                assert!(
                    [200, 400, 404].contains(&status),
                    "{route:?} {role:?} {status}"
                );
                let body = response.text().await.unwrap();
                assert!(!body.contains("no such path"), "{route:?} has no handler");
            } else {
                let (status, error) = refusal(response).await;
                assert_eq!(
                    (status, &error["code"]),
                    (403, &json!("missing_role")),
                    "{route:?}"
                );
            }
        }
    }
    // What is in no table is closed too, and does not tell strangers what is there.
    for path in [
        "/",
        "/v1/nothing",
        "/v1/%61dapters",
        "/metrics/",
        "/v1//adapters",
    ] {
        assert_eq!(
            refusal(server.get(path).send().await.unwrap()).await.0,
            401,
            "{path}"
        );
        let known = server
            .get(path)
            .bearer_auth(&secrets[0])
            .send()
            .await
            .unwrap();
        assert_eq!(refusal(known).await.0, 404, "{path}");
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tenants_see_and_use_their_own_adapters_only() {
    let all = [Role::Infer, Role::Manage];
    let (keys, secrets) = keys(&[("north", &all), ("south", &all)]);
    let server = TestServer::with(&Setup {
        keys,
        ..Setup::default()
    });
    let made = make(|maker| maker.adapter(2, Scope::All)).await;
    let upload = async |key: &str, alias: &str| {
        let form = upload_form(&made.file, &[("alias", alias)]);
        let request = server
            .client
            .post(server.url("/v1/adapters"))
            .multipart(form);
        request.bearer_auth(key).send().await.unwrap()
    };
    assert_eq!(upload(&secrets[0], "chest").await.status(), 201);
    let names = async |key: &str| -> Value {
        let response = server
            .get("/v1/models")
            .bearer_auth(key)
            .send()
            .await
            .unwrap();
        let body: Value = response.json().await.unwrap();
        body["data"]
            .as_array()
            .unwrap()
            .iter()
            .map(|model| model["id"].clone())
            .collect()
    };
    assert_eq!(names(&secrets[0]).await, json!(["llama_a", "chest"]));
    assert_eq!(names(&secrets[1]).await, json!(["llama_a"]));
    let ask = async |key: &str, body: Value| {
        let request = server.post("/v1/chat/completions", &body);
        request.bearer_auth(key).send().await.unwrap()
    };
    let mut body = crate::http_server::chat_body("chest", None, "Hi", 2);
    assert_eq!(ask(&secrets[0], body.clone()).await.status(), 200);
    assert_eq!(refusal(ask(&secrets[1], body.clone()).await).await.0, 404);
    body["model"] = json!("llama_a");
    body["adapter_generation"] = json!(made.generation);
    assert_eq!(ask(&secrets[0], body.clone()).await.status(), 200);
    // It is in memory by now, and still not the other's.
    assert_eq!(refusal(ask(&secrets[1], body.clone()).await).await.0, 404);
    let put = json!({"generation": made.generation});
    let put = server
        .client
        .put(server.url("/v1/adapters/mine"))
        .json(&put);
    assert_eq!(
        refusal(put.bearer_auth(&secrets[1]).send().await.unwrap())
            .await
            .0,
        404
    );
    // The same file is new to the other, whoever else has it.
    assert_eq!(upload(&secrets[1], "lung").await.status(), 201);
    assert_eq!(ask(&secrets[1], body).await.status(), 200);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_keys_only_this_machine_and_its_own_pages_are_answered() {
    let server = TestServer::start();
    for (header, value, status) in [
        ("origin", "http://evil.example", 403),
        ("origin", "http://localhost:5173", 200),
        ("host", "rebound.example", 403),
        ("host", "localhost", 200),
    ] {
        let response = server
            .get("/v1/models")
            .header(header, value)
            .send()
            .await
            .unwrap();
        assert_eq!(response.status(), status, "{header}: {value}");
    }
    let state = Arc::new(State::new(Keys::none(), "base").unwrap());
    let listen = SocketAddr::from(([0, 0, 0, 0], 0));
    let options = ServerOptions {
        listen,
        ..ServerOptions::default()
    };
    assert!(matches!(
        Server::bind(&state, options),
        Err(ServerError::Open { .. })
    ));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_open_listener_shows_no_tenant_and_the_main_one_does() {
    let (keys, secrets) = keys(&[("north", &[Role::Infer]), ("ops", &[Role::Metrics])]);
    let metrics_listen = Some(SocketAddr::from(([127, 0, 0, 1], 0)));
    let options = ServerOptions {
        metrics_listen,
        ..ServerOptions::default()
    };
    let server = TestServer::with(&Setup {
        keys,
        server: options,
        ..Setup::default()
    });
    let body = crate::http_server::chat_body("llama_a", None, "Hi", 4);
    let request = server
        .post("/v1/chat/completions", &body)
        .bearer_auth(&secrets[0]);
    assert_eq!(request.send().await.unwrap().status(), 200);
    let service = server.service();
    // The client has its answer a moment before the counters have it.
    until("counted", || {
        let stats = service.engine().stats();
        stats.running == 0 && stats.finished.length == 1 && server.server.state().in_flight() == 0
    })
    .await;
    let address = server.server.metrics_address().unwrap();
    let open = reqwest::get(format!("http://{address}/metrics"))
        .await
        .unwrap()
        .text()
        .await
        .unwrap();
    for line in [
        "vllm:num_requests_running{model_name=\"llama_a\"} 0",
        "vllm:num_requests_waiting{model_name=\"llama_a\"} 0",
        "vllm:kv_cache_usage_perc{model_name=\"llama_a\"} 0",
        "vllm:generation_tokens_total{model_name=\"llama_a\"} 4",
        "vllm:request_success_total{finished_reason=\"length\",model_name=\"llama_a\"} 1",
        "vllm:request_generation_tokens_sum{model_name=\"llama_a\"} 4",
        "vllm:time_to_first_token_seconds_count{model_name=\"llama_a\"} 1",
        "vllm:inter_token_latency_seconds_count{model_name=\"llama_a\"} 3",
        "vllm:e2e_request_latency_seconds_count{model_name=\"llama_a\"} 1",
        "vllm:request_queue_time_seconds_count{model_name=\"llama_a\"} 1",
        "vllm:cache_config_info{block_size=\"16\",model_name=\"llama_a\",num_gpu_blocks=\"256\"} 1",
        "norma_bank_slots_total 63",
    ] {
        assert!(open.contains(line), "{line}\n{open}");
    }
    assert!(
        open.contains("vllm:lora_requests_info{max_lora=\"63\","),
        "{open}"
    );
    assert!(
        !open.contains("north") && !open.contains("tenant"),
        "{open}"
    );
    let all = server
        .get("/metrics")
        .bearer_auth(&secrets[1])
        .send()
        .await
        .unwrap();
    let all = all.text().await.unwrap();
    let line = "norma_requests_total{alias=\"(base)\",tenant=\"north\"} 1";
    assert!(all.contains(line), "{all}");
    let elsewhere = reqwest::get(format!("http://{address}/v1/models"))
        .await
        .unwrap();
    assert_eq!(refusal(elsewhere).await.0, 404);
    server.stop().await;
}
