//! A server somewhere else, spoken to as any client would.

use std::time::Instant;

use anyhow::{Context, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures_util::StreamExt;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use reqwest::RequestBuilder;
use serde_json::{Value, json};

use super::film;
use super::target::{Ask, Prompt, Timed};

/// Aliases that are asked for, at most.
const MAX_ALIASES: usize = 64;

/// See the module. Clones share its connections.
#[derive(Clone)]
pub struct Remote {
    http: reqwest::Client,
    root: String,
    key: Option<String>,
    base: String,
    aliases: Vec<String>,
}

impl Remote {
    /// Finds out what the server has.
    pub async fn connect(root: &str, key: Option<String>) -> anyhow::Result<Self> {
        let http = reqwest::Client::builder()
            .no_proxy()
            .build()
            .context("no HTTP client")?;
        let mut remote = Self {
            http,
            root: root.trim_end_matches('/').to_owned(),
            key,
            base: String::new(),
            aliases: Vec::new(),
        };
        let models = remote.get("/v1/models").await?;
        let cards = models["data"].as_array().context("a list without `data`")?;
        let base = cards.iter().find(|card| card["parent"].is_null());
        let name = base.and_then(|card| card["id"].as_str());
        name.context("the server names no base")?
            .clone_into(&mut remote.base);
        remote.aliases = cards
            .iter()
            .filter(|card| !card["parent"].is_null())
            .filter_map(|card| card["id"].as_str().map(str::to_owned))
            .take(MAX_ALIASES)
            .collect();
        Ok(remote)
    }

    /// The base's name.
    pub fn base(&self) -> &str {
        &self.base
    }

    /// Aliases of adapters.
    pub fn aliases(&self) -> &[String] {
        &self.aliases
    }

    async fn get(&self, path: &str) -> anyhow::Result<Value> {
        let request = self.http.get(format!("{}{path}", self.root));
        let response = self.with_key(request).send().await;
        let response = response.with_context(|| format!("{} does not answer", self.root))?;
        if !response.status().is_success() {
            bail!("{path} answered {}", response.status());
        }
        response.json().await.context("an answer is no JSON")
    }

    fn with_key(&self, request: RequestBuilder) -> RequestBuilder {
        match &self.key {
            Some(key) => request.bearer_auth(key),
            None => request,
        }
    }

    /// Asks and waits for the whole answer.
    pub async fn ask(&self, ask: Ask) -> anyhow::Result<Timed> {
        let body = json!({
            "model": ask.model, "messages": [{"role": "user", "content": content(&ask.prompt)?}],
            "max_tokens": ask.tokens, "temperature": 0, "ignore_eos": true, "stream": true,
            "stream_options": {"include_usage": true},
        });
        let request = self
            .http
            .post(format!("{}/v1/chat/completions", self.root))
            .json(&body);
        let begun = Instant::now();
        let response = self.with_key(request).send().await?;
        if !response.status().is_success() {
            bail!("a request was refused: {}", response.text().await?);
        }
        let mut timed = Timed {
            begun,
            pieces: Vec::new(),
            tokens: 0,
            prompt_rows: 0,
        };
        let (mut bytes, mut pending) = (response.bytes_stream(), Vec::new());
        while let Some(chunk) = bytes.next().await {
            pending.extend_from_slice(&chunk.context("a stream broke off")?);
            while let Some(end) = pending.windows(2).position(|pair| pair == b"\n\n") {
                let event: Vec<u8> = pending.drain(..end + 2).collect();
                note(&mut timed, &event);
            }
        }
        Ok(timed)
    }
}

fn note(timed: &mut Timed, event: &[u8]) {
    let at = Instant::now();
    let Some(data) = event.strip_prefix(b"data: ") else {
        return;
    };
    let Ok(event) = serde_json::from_slice::<Value>(data) else {
        return;
    };
    let text = event["choices"][0]["delta"]["content"].as_str();
    if text.is_some_and(|text| !text.is_empty()) {
        timed.pieces.push(at);
    }
    let count = |field: &str| event["usage"][field].as_u64().map(|count| count as usize);
    if let (Some(tokens), Some(rows)) = (count("completion_tokens"), count("prompt_tokens")) {
        timed.tokens = tokens;
        timed.prompt_rows = rows;
    }
}

fn content(prompt: &Prompt) -> anyhow::Result<Value> {
    Ok(match prompt {
        Prompt::Words { rows, seed } => {
            let mut random = StdRng::seed_from_u64(*seed);
            let words = (0..*rows).map(|_| random.random_range(0..10).to_string());
            json!(words.collect::<Vec<_>>().join(" "))
        }
        Prompt::Film { seed, question } => {
            let url = format!(
                "data:image/png;base64,{}",
                STANDARD.encode(film::png(*seed)?)
            );
            json!([
                {"type": "image_url", "image_url": {"url": url}},
                {"type": "text", "text": question},
            ])
        }
    })
}
