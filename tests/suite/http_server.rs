//! A real server in this process for the tests of HTTP.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use norma::base::WeightType;
use norma::http::inputs::InputFiles;
use norma::http::{Keys, Limits, Server, ServerOptions, Service, ServiceOptions, State};
use reqwest::{Client, RequestBuilder, Response, multipart};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::golden;
use crate::http_gate::{Gate, Gated};

pub const BASE: &str = "llama_a";

/// How a test's server differs from the usual one.
pub struct Setup {
    pub keys: Keys,
    pub limits: Limits,
    pub server: ServerOptions,
    pub gate: Option<Arc<Gate>>,
    pub lora_folder: Option<std::path::PathBuf>,
}

impl Default for Setup {
    fn default() -> Self {
        let mut limits = Limits::default();
        limits.engine.kv_rows = 4096;
        Self {
            keys: Keys::none(),
            limits,
            server: ServerOptions::default(),
            gate: None,
            lora_folder: None,
        }
    }
}

/// A server with its folder and a client.
pub struct TestServer {
    pub server: Server,
    pub client: Client,
    pub data_dir: Arc<TempDir>,
}

impl TestServer {
    pub fn start() -> Self {
        Self::with(&Setup::default())
    }

    pub fn with(setup: &Setup) -> Self {
        Self::in_folder(setup, Arc::new(tempfile::tempdir().unwrap()))
    }

    pub fn in_folder(setup: &Setup, data_dir: Arc<TempDir>) -> Self {
        let state = Arc::new(State::new(setup.keys.clone(), BASE).unwrap());
        let server = Server::bind(&state, setup.server).unwrap();
        state.install(Arc::new(open_service(BASE, setup, data_dir.path())));
        Self {
            server,
            client: Client::new(),
            data_dir,
        }
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.server.address())
    }

    pub fn service(&self) -> Arc<Service> {
        Arc::clone(self.server.state().loaded().unwrap())
    }

    pub fn get(&self, path: &str) -> RequestBuilder {
        self.client.get(self.url(path))
    }

    pub fn post(&self, path: &str, body: &Value) -> RequestBuilder {
        self.client.post(self.url(path)).json(body)
    }

    pub async fn metrics(&self) -> String {
        let response = self.get("/metrics").send().await.unwrap();
        response.text().await.unwrap()
    }

    pub async fn chat(&self, body: &Value) -> Response {
        self.post("/v1/chat/completions", body)
            .send()
            .await
            .unwrap()
    }

    /// Uploads a file with further text fields.
    pub async fn upload(&self, file: &[u8], fields: &[(&str, &str)]) -> Response {
        let form = upload_form(file, fields);
        self.client
            .post(self.url("/v1/adapters"))
            .multipart(form)
            .send()
            .await
            .unwrap()
    }

    /// Uploads what must be accepted.
    pub async fn publish(&self, file: &[u8], alias: &str) -> Value {
        let response = self.upload(file, &[("alias", alias)]).await;
        let status = response.status();
        let body: Value = response.json().await.unwrap();
        assert!(status.is_success(), "{status} {body}");
        body
    }

    /// Stops in order and gives the folder back.
    pub async fn stop(self) -> Arc<TempDir> {
        drop(self.client);
        assert_eq!(self.server.stop().await, 0);
        self.data_dir
    }
}

/// A service of a golden base.
pub fn open_service(case: &str, setup: &Setup, data_dir: &Path) -> Service {
    let base = golden::open(case);
    let vision = golden::llava_folder().join(format!("{case}_vision"));
    let options = ServiceOptions {
        name: case,
        data_dir,
        files: InputFiles {
            tokenizer: None,
            vision: vision.is_dir().then_some(vision.as_path()),
        },
        report_prompt: "Write a report.",
        weights: WeightType::F32,
        lora_folder: setup.lora_folder.as_deref(),
        limits: setup.limits,
    };
    let model = base.load_boxed(WeightType::F32).unwrap();
    let model = match &setup.gate {
        Some(gate) => Box::new(Gated::new(model, gate)),
        None => model,
    };
    Service::with_model(&base, model, &options).unwrap()
}

/// The form of an upload.
pub fn upload_form(file: &[u8], fields: &[(&str, &str)]) -> multipart::Form {
    let part = multipart::Part::bytes(file.to_vec()).file_name("adapter.safetensors");
    fields.iter().fold(
        multipart::Form::new().part("file", part),
        |form, (name, value)| form.text((*name).to_owned(), (*value).to_owned()),
    )
}

/// The status and the `error` object of a refusal.
pub async fn refusal(response: Response) -> (u16, Value) {
    let status = response.status().as_u16();
    let text = response.text().await.unwrap();
    let mut body: Value = serde_json::from_str(&text).unwrap_or_else(|_| panic!("{status} {text}"));
    let error = body["error"].take();
    for field in ["message", "type", "param", "code"] {
        assert!(error.get(field).is_some(), "{status} {error}");
    }
    (status, error)
}

/// A file of `tests/golden/images` as a data URL.
pub fn data_url(image: &str) -> String {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/images");
    let bytes = std::fs::read(folder.join(image)).unwrap();
    format!("data:image/png;base64,{}", STANDARD.encode(bytes))
}

/// A greedy chat request of a text, after an image if there is one.
pub fn chat_body(model: &str, image: Option<&str>, text: &str, max_tokens: usize) -> Value {
    let mut content = vec![json!({"type": "text", "text": text})];
    if let Some(image) = image {
        let url = json!({"url": data_url(image)});
        content.insert(0, json!({"type": "image_url", "image_url": url}));
    }
    json!({
        "model": model,
        "messages": [{"role": "user", "content": content}],
        "max_tokens": max_tokens,
        "temperature": 0,
    })
}

/// The text of the first choice.
pub fn text_of(completion: &Value) -> &str {
    completion["choices"][0]["message"]["content"]
        .as_str()
        .unwrap()
}

/// The pieces of a stream, without the closing mark, which must be there.
pub fn pieces(stream: &str) -> Vec<Value> {
    let mut events: Vec<&str> = stream
        .split("\n\n")
        .filter(|event| !event.is_empty())
        .map(|event| event.strip_prefix("data: ").unwrap())
        .collect();
    assert_eq!(events.pop(), Some("[DONE]"));
    events
        .into_iter()
        .map(|event| serde_json::from_str(event).unwrap())
        .collect()
}

/// Waits for a condition that another thread brings about.
pub async fn until(what: &str, holds: impl Fn() -> bool) {
    for _ in 0..6000 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("never: {what}");
}

/// What a path answers.
pub async fn json_of(server: &TestServer, path: &str) -> Value {
    server.get(path).send().await.unwrap().json().await.unwrap()
}
