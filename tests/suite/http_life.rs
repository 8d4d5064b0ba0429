//! A server's life: loading, full, left alone by its clients, too slow, going down.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use norma::engine::EngineConfig;
use norma::http::{Keys, Limits, Server, ServerOptions, State};
use norma_adapters::Scope;
use reqwest::Client;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::http_gate::Gate;
use crate::http_maker::make;
use crate::http_server::{
    BASE, Setup, TestServer, chat_body, open_service, pieces, refusal, until,
};

fn gated(limits: Limits) -> (Arc<Gate>, Setup) {
    let gate = Arc::new(Gate::default());
    (
        Arc::clone(&gate),
        Setup {
            gate: Some(gate),
            limits,
            ..Setup::default()
        },
    )
}

/// Sends a chat request over a connection of its own, which stays in the test's hands.
async fn send(address: SocketAddr, body: &Value) -> TcpStream {
    let body = body.to_string();
    let head = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    let mut connection = TcpStream::connect(address).await.unwrap();
    connection.write_all(head.as_bytes()).await.unwrap();
    connection.write_all(body.as_bytes()).await.unwrap();
    connection
}

#[tokio::test(flavor = "multi_thread")]
async fn while_it_loads_a_server_says_so_and_then_serves() {
    let state = Arc::new(State::new(Keys::none(), BASE).unwrap());
    let server = Server::bind(&state, ServerOptions::default()).unwrap();
    let url = |path: &str| format!("http://{}{path}", server.address());
    let client = Client::new();
    let status = async |path: &str| {
        client
            .get(url(path))
            .send()
            .await
            .unwrap()
            .status()
            .as_u16()
    };
    assert_eq!(
        (status("/health").await, status("/health/live").await),
        (200, 200)
    );
    let ready = client.get(url("/health/ready")).send().await.unwrap();
    assert_eq!(ready.status(), 503);
    assert_eq!(
        ready.json::<Value>().await.unwrap(),
        json!({"status": "loading"})
    );
    let chat = client
        .post(url("/v1/chat/completions"))
        .json(&chat_body(BASE, None, "Hi", 2));
    let early = chat.try_clone().unwrap().send().await.unwrap();
    assert!(early.headers().contains_key("retry-after"));
    let (code, error) = refusal(early).await;
    assert_eq!((code, &error["code"]), (503, &json!("loading")));
    let folder = tempfile::tempdir().unwrap();
    state.install(Arc::new(open_service(
        BASE,
        &Setup::default(),
        folder.path(),
    )));
    assert_eq!(status("/health/ready").await, 200);
    assert_eq!(chat.send().await.unwrap().status(), 200);
    let version: Value = client
        .get(url("/version"))
        .send()
        .await
        .unwrap()
        .json()
        .await
        .unwrap();
    assert_eq!(version["base"]["name"], BASE);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_takes_its_request_along() {
    for stream in [false, true] {
        let (gate, setup) = gated(Setup::default().limits);
        let server = TestServer::with(&setup);
        let mut body = chat_body(BASE, None, "Hi", 100);
        body["stream"] = json!(stream);
        let mut connection = send(server.server.address(), &body).await;
        until("the step", || gate.is_waited_for()).await;
        if stream {
            let mut some = [0; 64];
            assert!(connection.read(&mut some).await.unwrap() > 0);
        }
        drop(connection);
        // The server notices while the engine may not take a single step.
        until("noticed", || server.server.state().in_flight() == 0).await;
        gate.open();
        let service = server.service();
        until("cancelled", || {
            service.engine().stats().finished.cancelled == 1
        })
        .await;
        assert_eq!(service.engine().stats().finished.total(), 1);
        server.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_queue_is_said_at_once_and_what_waits_is_answered() {
    let engine = EngineConfig {
        max_sequences: 1,
        queue_len: 1,
        kv_rows: 4096,
        ..EngineConfig::default()
    };
    let (gate, setup) = gated(Limits {
        engine,
        ..Limits::default()
    });
    let server = Arc::new(TestServer::with(&setup));
    let service = server.service();
    let ask = || {
        let server = Arc::clone(&server);
        tokio::spawn(async move { server.chat(&chat_body(BASE, None, "Hi", 3)).await.status() })
    };
    let running = ask();
    until("the first runs", || gate.is_waited_for()).await;
    let waiting = ask();
    until("the second waits", || service.engine().stats().waiting == 1).await;
    let response = server.chat(&chat_body(BASE, None, "Hi", 3)).await;
    assert_eq!(response.headers()["retry-after"], "1");
    let (status, error) = refusal(response).await;
    assert_eq!((status, &error["code"]), (429, &json!("queue_full")));
    gate.open();
    assert_eq!(
        (running.await.unwrap(), waiting.await.unwrap()),
        (200.try_into().unwrap(), 200.try_into().unwrap())
    );
    Arc::into_inner(server).unwrap().stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_cut_by_its_deadline_is_an_error_whole_or_streamed() {
    let request_timeout = Duration::from_millis(100);
    let (gate, setup) = gated(Limits {
        request_timeout,
        ..Setup::default().limits
    });
    let server = Arc::new(TestServer::with(&setup));
    let mut body = chat_body(BASE, None, "Hi", 100);
    for stream in [false, true] {
        body["stream"] = json!(stream);
        let (task, sent) = (Arc::clone(&server), body.clone());
        let answer = tokio::spawn(async move {
            let response = task.chat(&sent).await;
            (response.status().as_u16(), response.text().await.unwrap())
        });
        until("the step", || gate.is_waited_for()).await;
        tokio::time::sleep(2 * request_timeout).await;
        gate.open();
        let (status, text) = answer.await.unwrap();
        let error = if stream {
            assert_eq!(status, 200);
            pieces(&text).pop().unwrap()
        } else {
            assert_eq!(status, 504);
            serde_json::from_str(&text).unwrap()
        };
        assert_eq!(error["error"]["code"], "deadline_exceeded", "{error}");
        gate.close();
    }
    gate.open();
    Arc::into_inner(server).unwrap().stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn going_down_it_is_not_ready_begins_nothing_and_finishes_what_is_open() {
    let (gate, setup) = gated(Setup::default().limits);
    let server = TestServer::with(&setup);
    let (address, state) = (server.server.address(), Arc::clone(server.server.state()));
    let mut body = chat_body(BASE, None, "Hi", 30);
    body["stream"] = json!(true);
    let open = server.chat(&body).await;
    assert_eq!(open.status(), 200);
    until("the step", || gate.is_waited_for()).await;
    state.drain();
    let ready = server.get("/health/ready").send().await.unwrap();
    assert_eq!(ready.status(), 503);
    assert_eq!(
        ready.json::<Value>().await.unwrap(),
        json!({"status": "draining"})
    );
    let late = server.chat(&body).await;
    assert!(late.headers().contains_key("retry-after"));
    assert_eq!(refusal(late).await.0, 503);
    assert_eq!(
        server.get("/health/live").send().await.unwrap().status(),
        200
    );
    let stopping = tokio::spawn(server.server.stop());
    gate.open();
    let pieces = pieces(&open.text().await.unwrap());
    assert_eq!(
        pieces.last().unwrap()["choices"][0]["finish_reason"],
        "length"
    );
    assert_eq!(stopping.await.unwrap(), 0);
    assert!(TcpStream::connect(address).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_outlasts_the_drain_is_cut_off_and_counted() {
    let (gate, setup) = gated(Setup::default().limits);
    let options = ServerOptions {
        drain_timeout: Duration::ZERO,
        ..ServerOptions::default()
    };
    let server = TestServer::with(&Setup {
        server: options,
        ..setup
    });
    let mut body = chat_body(BASE, None, "Hi", 30);
    body["stream"] = json!(true);
    let open = server.chat(&body).await;
    until("the step", || gate.is_waited_for()).await;
    let stopping = tokio::spawn(server.server.stop());
    assert!(open.text().await.is_err());
    gate.open();
    assert_eq!(stopping.await.unwrap(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_in_the_making_pauses_no_open_stream() {
    let (gate, setup) = gated(Setup::default().limits);
    let server = Arc::new(TestServer::with(&setup));
    let made = make(|maker| maker.adapter(1, Scope::All)).await;
    let mut body = chat_body(BASE, None, "Hi", 40);
    body["stream"] = json!(true);
    let stream = server.chat(&body).await;
    until("the step", || gate.is_waited_for()).await;
    let uploading = {
        let server = Arc::clone(&server);
        tokio::spawn(async move { server.publish(&made.file, "chest").await })
    };
    // The self-test stands in the queue beside the stream: both go on, step by step.
    let service = server.service();
    until("the self-test waits", || {
        service.engine().stats().waiting > 0
    })
    .await;
    gate.open();
    let (text, published) = tokio::join!(stream.text(), uploading);
    assert_eq!(
        pieces(&text.unwrap()).last().unwrap()["choices"][0]["finish_reason"],
        "length"
    );
    assert_eq!(published.unwrap()["alias"], "chest");
    Arc::into_inner(server).unwrap().stop().await;
}
