//! The demo's client: what a hospital's system would send, and nothing else.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures_util::StreamExt;
use reqwest::multipart::{Form, Part};
use serde_json::{Value, json};

use super::bundle::{Adapter, Case};

/// Speaks to one server.
#[derive(Clone)]
pub struct Client {
    http: reqwest::Client,
    root: String,
}

/// What the server said of an upload.
pub struct Published {
    /// The adapter's identity.
    pub generation: String,
    /// Norms that it sets.
    pub sites: u64,
    /// Values of them.
    pub values: u64,
    /// From the first byte sent to the answer.
    pub took: Duration,
}

/// An answer and who gave it.
pub struct Answer {
    /// The text.
    pub text: String,
    /// The adapter's identity; `None` for the base.
    pub generation: Option<String>,
}

impl Client {
    /// A client of the server at `address`.
    pub fn new(address: SocketAddr) -> anyhow::Result<Self> {
        let http = reqwest::Client::builder()
            .no_proxy()
            .build()
            .context("no HTTP client")?;
        Ok(Self {
            http,
            root: format!("http://{address}"),
        })
    }

    /// Uploads an adapter and publishes it under its alias.
    pub async fn publish(&self, adapter: &Adapter) -> anyhow::Result<Published> {
        let begun = Instant::now();
        let file = Part::bytes(adapter.bytes).file_name("adapter.safetensors");
        let form = Form::new()
            .part("file", file)
            .text("alias", adapter.alias.clone());
        let request = self
            .http
            .post(format!("{}/v1/adapters", self.root))
            .multipart(form);
        let body = send(request).await?;
        let number = |field: &str| body[field].as_u64().unwrap_or(0);
        Ok(Published {
            generation: body["generation"].as_str().unwrap_or("").into(),
            sites: number("sites"),
            values: number("values"),
            took: begun.elapsed(),
        })
    }

    /// Asks a case's question of a model (an alias, or the base).
    pub async fn ask(&self, case: &Case, film: &[u8], model: &str) -> anyhow::Result<Answer> {
        let (path, field) = if case.report {
            ("report", "images")
        } else {
            ("vqa", "image")
        };
        let image = data_url(film);
        let body = if case.report {
            json!({"images": [image], "indication": case.question, "model": model})
        } else {
            json!({"image": image, "question": case.question, "model": model})
        };
        let request = self
            .http
            .post(format!("{}/v1/{path}", self.root))
            .json(&body);
        let body = send(request).await?;
        let text = body[if case.report { "report" } else { "answer" }].as_str();
        let text = text.with_context(|| format!("the answer about `{field}` has no text"))?;
        let generation = body["adapter_generation"].as_str().map(Into::into);
        Ok(Answer {
            text: text.into(),
            generation,
        })
    }

    /// Streams `tokens` tokens about a film, ended by nothing else; calls `on_token` at each event and
    /// returns the number of tokens.
    pub async fn stream(
        &self,
        film: &[u8],
        (question, model): (&str, &str),
        tokens: usize,
        mut on_token: impl FnMut(),
    ) -> anyhow::Result<u64> {
        let body = json!({
            "model": model, "stream": true, "max_tokens": tokens, "temperature": 0,
            "ignore_eos": true, "stream_options": {"include_usage": true},
            "messages": [{"role": "user", "content": [
                {"type": "image_url", "image_url": {"url": data_url(film)}},
                {"type": "text", "text": question},
            ]}],
        });
        let request = self
            .http
            .post(format!("{}/v1/chat/completions", self.root))
            .json(&body);
        let response = request.send().await.context("the server does not answer")?;
        if !response.status().is_success() {
            bail!(
                "the server refused a stream: {}",
                response.text().await.unwrap_or_default()
            );
        }
        let mut bytes = response.bytes_stream();
        let mut pending = Vec::new();
        let mut generated = 0;
        while let Some(chunk) = bytes.next().await {
            pending.extend_from_slice(&chunk.context("a stream broke off")?);
            while let Some(end) = pending.windows(2).position(|pair| pair == b"\n\n") {
                let event: Vec<u8> = pending.drain(..end + 2).collect();
                let Some(data) = event.strip_prefix(b"data: ") else {
                    continue;
                };
                let Ok(event) = serde_json::from_slice::<Value>(data) else {
                    continue;
                };
                on_token();
                if let Some(tokens) = event["usage"]["completion_tokens"].as_u64() {
                    generated = tokens;
                }
            }
        }
        Ok(generated)
    }
}

fn data_url(png: &[u8]) -> String {
    format!("data:image/png;base64,{}", STANDARD.encode(png))
}

async fn send(request: reqwest::RequestBuilder) -> anyhow::Result<Value> {
    let response = request.send().await.context("the server does not answer")?;
    let status = response.status();
    let body: Value = response
        .json()
        .await
        .context("the server's answer is no JSON")?;
    if !status.is_success() {
        bail!(
            "the server answered {status}: {}",
            body["error"]["message"].as_str().unwrap_or("?")
        );
    }
    Ok(body)
}
