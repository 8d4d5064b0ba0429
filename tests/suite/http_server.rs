//! A real server in this process for the tests of HTTP, and a maker of adapters for it.

use std::path::Path;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use candle_core::{Device, Result, Tensor};
use norma::base::Base;
use norma::engine::{Event, Request, RequestAdapter};
use norma::http::inputs::InputFiles;
use norma::http::{Keys, Limits, Server, ServerOptions, Service, ServiceOptions, State, self_test};
use norma::model::bank::NormBank;
use norma::model::kv_cache::KvCache;
use norma::model::step::Step;
use norma::model::{MedVlm, ModelShape};
use norma::preprocess::{ContentPart, Message};
use norma::probe;
use norma_adapters::manifest::FORMAT_VERSION;
use norma_adapters::{
    AdapterValues, Calibration, Generation, Manifest, Scope, SelfTest, SiteTable, Task, format,
};
use reqwest::{Client, RequestBuilder, Response, multipart};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::golden;

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
    pub async fn start() -> Self {
        Self::with(Setup::default()).await
    }

    pub async fn with(setup: Setup) -> Self {
        Self::in_folder(setup, Arc::new(tempfile::tempdir().unwrap())).await
    }

    pub async fn in_folder(setup: Setup, data_dir: Arc<TempDir>) -> Self {
        let state = Arc::new(State::new(setup.keys.clone(), BASE).unwrap());
        let server = Server::bind(&state, setup.server).unwrap();
        state.install(Arc::new(open_service(BASE, &setup, data_dir.path())));
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
        lora_folder: setup.lora_folder.as_deref(),
        limits: setup.limits,
    };
    let model = base.load_boxed().unwrap();
    let model = match &setup.gate {
        Some(gate) => Box::new(Gated {
            model,
            gate: Arc::clone(gate),
        }),
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

/// An adapter file, and what it is.
#[derive(Clone)]
pub struct Made {
    pub file: Vec<u8>,
    pub values: AdapterValues,
    pub manifest: Manifest,
    pub generation: Generation,
}

/// Makes adapters for [`BASE`], and knows what each answers alone: it has an engine of its own.
pub struct Maker {
    base: Base,
    service: Service,
    _folder: TempDir,
}

impl Maker {
    pub fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let service = open_service(BASE, &Setup::default(), folder.path());
        Self {
            base: golden::open(BASE),
            service,
            _folder: folder,
        }
    }

    pub fn table(&self) -> &SiteTable {
        &self.base.outline().sites
    }

    /// An adapter that differs from the base everywhere in its scope, by its seed.
    pub fn adapter(&self, seed: u32, scope: Scope) -> Made {
        let table = self.table();
        let mut row = self.base.row().unwrap();
        for site in table.selected(scope) {
            let range = table.range(site);
            for index in range.gain.chain(range.bias.into_iter().flatten()) {
                row[index] += 0.6 * ((index as f32 + 1.0) * (seed as f32 + 1.3) * 0.7).sin();
            }
        }
        let values = AdapterValues::new(table, row, scope).unwrap();
        let manifest = self.manifest(&values, scope);
        self.write(values, manifest)
    }

    pub fn write(&self, values: AdapterValues, manifest: Manifest) -> Made {
        let file = format::write(&values.stored(self.table()), &manifest).unwrap();
        let generation = Generation::of(&file);
        Made {
            file,
            values,
            manifest,
            generation,
        }
    }

    fn manifest(&self, values: &AdapterValues, scope: Scope) -> Manifest {
        let mut self_test = SelfTest {
            generator: "probe/1".into(),
            seed: 11,
            size: 48,
            prompt: "Is the heart enlarged?".into(),
            tokens: vec![0; 6],
            top_logits: vec![vec![(0, 0.0); 5]],
            tolerance: None,
        };
        let inputs = self.service.inputs();
        let content = vec![
            ContentPart::Image,
            ContentPart::Text(self_test.prompt.clone()),
        ];
        let request = Request {
            images: vec![
                inputs
                    .pixels_of(&probe::image(self_test.seed, self_test.size))
                    .unwrap(),
            ],
            top_logits: 5,
            ..Request::new(
                "maker".into(),
                inputs.prompt(&[Message::user(content)]).unwrap(),
                self_test.tokens.len(),
            )
        };
        let steps = self.answer(request, Some(values));
        self_test.tokens = steps.iter().map(|step| step.token).collect();
        self_test.top_logits = steps.into_iter().map(|step| step.top).collect();
        Manifest {
            format_version: FORMAT_VERSION,
            base_digest: self.base.digest(),
            family: "llava".into(),
            task: Task::Vqa,
            scope,
            recipe: json!({"made": "for a test"}),
            data_digest: None,
            metrics: Value::Null,
            calibration: Some(Calibration {
                temperature: 1.5,
                abstention_threshold: 0.5,
            }),
            licence: None,
            self_test,
        }
    }

    fn answer(&self, request: Request, values: Option<&AdapterValues>) -> Vec<self_test::Step> {
        // The values name the generation, so that no slot of the bank is taken for another.
        let row: Vec<u8> = values
            .iter()
            .flat_map(|v| v.row())
            .flat_map(|v| v.to_le_bytes())
            .collect();
        let generation = Generation::of(&row);
        let adapter = values.map(|values| RequestAdapter {
            generation,
            values: values.clone(),
        });
        let mut answer = self
            .service
            .engine()
            .submit(Request { adapter, ..request })
            .unwrap();
        let mut steps = Vec::new();
        while let Some(event) = answer.blocking_recv() {
            match event {
                Event::Token(token) => steps.push(self_test::Step {
                    token: token.token,
                    top: token.top.iter().map(|top| (top.token, top.logit)).collect(),
                }),
                Event::Finished(_) => {}
                Event::Failed(error) => panic!("{error}"),
            }
        }
        steps
    }
}

/// A model that steps only when it is let: what it does in between can be looked at without haste.
struct Gated {
    model: Box<dyn MedVlm>,
    gate: Arc<Gate>,
}

/// Counts steps that may be taken.
#[derive(Default)]
pub struct Gate {
    state: Mutex<GateState>,
    changed: Condvar,
}

#[derive(Default)]
struct GateState {
    permits: usize,
    is_open: bool,
    waiting: bool,
}

impl Gate {
    /// Lets so many steps more pass.
    pub fn permit(&self, steps: usize) {
        self.state.lock().unwrap().permits += steps;
        self.changed.notify_all();
    }

    /// Lets all steps pass from now on.
    pub fn open(&self) {
        self.state.lock().unwrap().is_open = true;
        self.changed.notify_all();
    }

    /// Lets no step pass but the permitted ones.
    pub fn close(&self) {
        *self.state.lock().unwrap() = GateState::default();
    }

    /// Whether a step waits to be let.
    pub fn is_waited_for(&self) -> bool {
        self.state.lock().unwrap().waiting
    }

    fn pass(&self) {
        let mut state = self.state.lock().unwrap();
        while !state.is_open && state.permits == 0 {
            state.waiting = true;
            state = self.changed.wait(state).unwrap();
        }
        state.waiting = false;
        state.permits = state.permits.saturating_sub(1);
    }
}

impl MedVlm for Gated {
    fn sites(&self) -> &SiteTable {
        self.model.sites()
    }

    fn shape(&self) -> &ModelShape {
        self.model.shape()
    }

    fn device(&self) -> &Device {
        self.model.device()
    }

    fn encode_images(&self, pixels: &Tensor, slots: &[u32], bank: &NormBank) -> Result<Tensor> {
        self.model.encode_images(pixels, slots, bank)
    }

    fn forward(&self, step: &Step, bank: &NormBank, cache: Option<&KvCache>) -> Result<Tensor> {
        self.gate.pass();
        self.model.forward(step, bank, cache)
    }
}
