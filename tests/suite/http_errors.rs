//! Every kind of refusal over HTTP: its status, its field, its code.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use norma::http::Limits;
use reqwest::RequestBuilder;
use serde_json::{Value, json};

use crate::http_server::{BASE, Setup, TestServer, chat_body, data_url, refusal};

/// A change to a good request, and the status, field and code of its refusal.
fn bad_chats() -> Vec<(Value, u16, Value, &'static str)> {
    let image = |url: &str| {
        json!({"messages": [{"role": "user", "content": [
            {"type": "image_url", "image_url": {"url": url}},
        ]}]})
    };
    let broken = format!("data:image/png;base64,{}", STANDARD.encode(b"no picture"));
    let many = json!({"messages": [{"role": "user", "content": vec![
        json!({"type": "image_url", "image_url": {"url": data_url("square.png")}}); 5
    ]}]});
    let url_field = "messages[0].content[0].image_url";
    vec![
        (
            json!({"model": "nobody"}),
            404,
            json!("model"),
            "model_not_found",
        ),
        (
            json!({"model": "llama_a:nobody"}),
            404,
            json!("model"),
            "model_not_found",
        ),
        (
            json!({"adapter": "nobody"}),
            404,
            json!("model"),
            "model_not_found",
        ),
        (
            json!({"adapter_generation": format!("sha256:{}", "0".repeat(64))}),
            404,
            json!("adapter_generation"),
            "generation_not_found",
        ),
        (
            json!({"model": null}),
            400,
            json!("model"),
            "invalid_request",
        ),
        (
            json!({"messages": []}),
            400,
            json!("messages"),
            "invalid_request",
        ),
        (
            json!({"max_tokens": 0}),
            400,
            json!("max_tokens"),
            "invalid_request",
        ),
        (
            json!({"max_tokens": 100_000}),
            400,
            json!("messages"),
            "context_length_exceeded",
        ),
        (
            json!({"temperature": -1}),
            400,
            json!("temperature"),
            "invalid_request",
        ),
        (json!({"top_p": 0}), 400, json!("top_p"), "invalid_request"),
        (json!({"stop": ""}), 400, json!("stop"), "invalid_request"),
        (
            json!({"min_tokens": 9, "max_tokens": 3}),
            400,
            json!("min_tokens"),
            "invalid_request",
        ),
        (json!({"tools": [{}]}), 400, json!("tools"), "unsupported"),
        (json!({"what": 1}), 400, json!("what"), "unknown_field"),
        (
            image("https://example.org/x.png"),
            400,
            json!(url_field),
            "invalid_image_url",
        ),
        (image(&broken), 400, json!(url_field), "invalid_image"),
        (many, 400, json!("messages"), "too_many_images"),
        (
            json!({"messages": [{"role": "user", "content": "an <image> token"}]}),
            400,
            json!("messages"),
            "invalid_request",
        ),
    ]
}

/// A request, and the status and code of its refusal.
fn bad_calls(server: &TestServer) -> Vec<(RequestBuilder, u16, &'static str)> {
    let client = &server.client;
    vec![
        (client.get(server.url("/")), 404, "not_found"),
        (client.get(server.url("/v1/nothing")), 404, "not_found"),
        (
            client.get(server.url("/v1/chat/completions")),
            405,
            "method_not_allowed",
        ),
        (
            client.delete(server.url("/v1/models")),
            405,
            "method_not_allowed",
        ),
        (
            client.get(server.url("/v1/models/nobody")),
            404,
            "model_not_found",
        ),
        (
            client.get(server.url("/v1/adapters/nobody")),
            404,
            "alias_not_found",
        ),
        (
            client.get(server.url("/v1/adapters/nobody/generations")),
            404,
            "alias_not_found",
        ),
        (
            client.get(server.url("/v1/adapters/nobody/download")),
            404,
            "alias_not_found",
        ),
        (
            client.delete(server.url("/v1/adapters/nobody")),
            404,
            "alias_not_found",
        ),
        (
            client.get(server.url("/v1/adapters?limit=0")),
            400,
            "invalid_request",
        ),
        (
            client.get(server.url("/v1/adapters?limit=x")),
            400,
            "invalid_request",
        ),
        (
            client.get(server.url("/v1/adapters?page=2")),
            400,
            "invalid_request",
        ),
        (
            client.post(server.url("/v1/chat/completions")),
            400,
            "invalid_json",
        ),
        (
            client
                .post(server.url("/v1/chat/completions"))
                .body("{\"a\":"),
            400,
            "invalid_json",
        ),
        (
            client.post(server.url("/v1/chat/completions")).body("[1]"),
            400,
            "invalid_request",
        ),
        (
            client.post(server.url("/v1/vqa")).body("{}"),
            400,
            "invalid_request",
        ),
        (
            client.post(server.url("/v1/report")).body("nothing"),
            400,
            "invalid_json",
        ),
        (
            client.post(server.url("/v1/adapters")).body("x"),
            400,
            "invalid_form",
        ),
        (
            client.put(server.url("/v1/adapters/x")).body("{}"),
            400,
            "invalid_request",
        ),
        (
            client
                .post(server.url("/v1/adapters"))
                .header("content-type", "multipart/form-data; boundary=b")
                .body("--b\r\nContent-Disposition: form-data; name=\"file\"\r\n\r\nabc"),
            400,
            "invalid_form",
        ),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn chat_refusals_name_the_field() {
    let server = TestServer::start();
    for (change, status, param, code) in bad_chats() {
        let mut body = chat_body(BASE, None, "Hi", 3);
        for (field, value) in change.as_object().unwrap() {
            body[field] = value.clone();
        }
        let (got, error) = refusal(server.chat(&body).await).await;
        assert_eq!(
            (got, &error["param"], &error["code"]),
            (status, &param, &json!(code)),
            "{error}"
        );
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn paths_methods_and_bodies_that_are_not_there_get_the_same_form() {
    let server = TestServer::start();
    for (request, status, code) in bad_calls(&server) {
        let response = request.send().await.unwrap();
        let url = response.url().clone();
        assert!(response.headers().contains_key("x-request-id"));
        let (got, error) = refusal(response).await;
        assert_eq!(
            (got, &error["code"]),
            (status, &json!(code)),
            "{url} {error}"
        );
    }
    let response = server.get("/v1/chat/completions").send().await.unwrap();
    assert_eq!(response.headers()["allow"], "POST");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_and_images_above_their_limits_are_refused_as_too_large() {
    let mut limits = Limits {
        max_images: 1,
        ..Setup::default().limits
    };
    limits.image.max_bytes = 2000;
    let server = TestServer::with(&Setup {
        limits,
        ..Setup::default()
    });
    let long = "x".repeat(3 << 20);
    let (status, error) = refusal(server.chat(&chat_body(BASE, None, &long, 3)).await).await;
    assert_eq!((status, &error["code"]), (413, &json!("too_large")));
    let url = format!("data:image/png;base64,{}", STANDARD.encode(vec![0; 2001]));
    let body = json!({"model": BASE, "image": url, "question": "what"});
    let (status, error) = refusal(server.post("/v1/vqa", &body).send().await.unwrap()).await;
    assert_eq!((status, &error["code"]), (413, &json!("image_too_large")));
    assert_eq!(error["param"], "image");
    let part = reqwest::multipart::Part::bytes(vec![0; 2001]).file_name("x.png");
    let form = reqwest::multipart::Form::new()
        .text("model", BASE)
        .part("image", part);
    let response = server
        .client
        .post(server.url("/v1/vqa"))
        .multipart(form)
        .send()
        .await
        .unwrap();
    assert_eq!(refusal(response).await.0, 413);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pixels_are_counted_before_they_are_unpacked() {
    let mut limits = Setup::default().limits;
    limits.image.max_pixels = 100;
    let server = TestServer::with(&Setup {
        limits,
        ..Setup::default()
    });
    let body = json!({"model": BASE, "image": data_url("wide.png"), "question": "what"});
    let (status, error) = refusal(server.post("/v1/vqa", &body).send().await.unwrap()).await;
    assert_eq!(
        (status, &error["code"]),
        (413, &json!("image_too_large")),
        "{error}"
    );
    assert!(
        error["message"].as_str().unwrap().contains("100 pixels"),
        "{error}"
    );
    server.stop().await;
}
