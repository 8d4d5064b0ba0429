//! Answers as OpenAI's clients read them.
//!
//! In: the engine's events. Out: JSON, as one completion or as pieces.

use norma_adapters::Digest;
use serde_json::{Value, json};

use crate::engine::{FinishReason, Finished, TokenEvent};
use crate::http::inputs::Inputs;
use crate::http::question::MadeBy;

/// What all JSON of one request has in common.
#[derive(Clone, Debug)]
pub struct Envelope {
    /// The completion's id.
    pub id: String,
    /// Unix seconds.
    pub created: u64,
    /// The alias or the base's name.
    pub model: String,
    /// The adapter's generation, or null.
    pub generation: Value,
    /// The base.
    pub base_digest: Digest,
}

impl Envelope {
    /// For one request.
    pub fn new(id: String, created: u64, made_by: &MadeBy) -> Self {
        let (model, base_digest) = (made_by.model.clone(), made_by.base_digest);
        Self {
            id,
            created,
            model,
            generation: json!(made_by.generation()),
            base_digest,
        }
    }

    /// The fields that begin every answer.
    pub fn object(&self, object: &str) -> Value {
        json!({
            "id": self.id,
            "object": object,
            "created": self.created,
            "model": self.model,
            "adapter_generation": self.generation,
            "base_digest": self.base_digest,
        })
    }

    /// A piece of an answer.
    pub fn chunk(&self, choices: Value) -> Value {
        let mut chunk = self.object("chat.completion.chunk");
        chunk["choices"] = choices;
        chunk
    }
}

/// One complete answer.
#[derive(Clone, Debug, Default)]
pub struct Collected {
    /// Its text.
    pub text: String,
    /// Its tokens, in order.
    pub tokens: Vec<TokenEvent>,
    /// Why it ended.
    pub finish_reason: &'static str,
    /// Its tokens, counted.
    pub completion_tokens: usize,
    /// Rows of the prompt that were not computed for it.
    pub cached_tokens: usize,
}

/// Tokens, counted as clients read them. The prompt counts once, however many answers it got.
#[derive(Clone, Copy, Debug)]
pub struct Usage {
    prompt: usize,
    /// The least of all answers: what no answer had to compute.
    cached: Option<usize>,
    completion: usize,
}

impl Usage {
    /// Of a prompt without answers.
    pub fn new(prompt_tokens: usize) -> Self {
        Self {
            prompt: prompt_tokens,
            cached: None,
            completion: 0,
        }
    }

    /// Adds an answer.
    pub fn add(&mut self, cached_tokens: usize, completion_tokens: usize) {
        let least = self.cached.unwrap_or(cached_tokens);
        self.cached = Some(least.min(cached_tokens));
        self.completion += completion_tokens;
    }

    /// The `usage` of an answer.
    pub fn to_json(self) -> Value {
        json!({
            "prompt_tokens": self.prompt,
            "completion_tokens": self.completion,
            "total_tokens": self.prompt + self.completion,
            "prompt_tokens_details": {"cached_tokens": self.cached.unwrap_or(0)},
        })
    }
}

/// The completion of a request that did not ask for pieces.
pub fn completion(
    envelope: &Envelope,
    answers: &[Collected],
    prompt_tokens: usize,
    logprobs: Option<&Inputs>,
) -> Value {
    let choices: Vec<Value> = answers
        .iter()
        .enumerate()
        .map(|(index, answer)| {
            json!({
                "index": index,
                "message": {"role": "assistant", "content": answer.text, "refusal": null},
                "logprobs": logprobs.map(|inputs| logprobs_of(&answer.tokens, inputs)),
                "finish_reason": answer.finish_reason,
            })
        })
        .collect();
    let mut completion = envelope.object("chat.completion");
    completion["choices"] = json!(choices);
    let mut usage = Usage::new(prompt_tokens);
    for answer in answers {
        usage.add(answer.cached_tokens, answer.completion_tokens);
    }
    completion["usage"] = usage.to_json();
    completion
}

/// The log probabilities of tokens; the end of text is none of the answer's.
pub fn logprobs_of(tokens: &[TokenEvent], inputs: &Inputs) -> Value {
    let entry = |token: u32, logprob: f32| {
        let text = inputs.token_text(token);
        // A token that is no whole character by itself has no text of its own, and so no bytes here.
        let bytes = (!text.contains('\u{fffd}')).then(|| text.clone().into_bytes());
        // JSON has no infinity; vLLM writes this for a token that cannot be.
        let logprob = if logprob.is_finite() {
            f64::from(logprob)
        } else {
            -9999.0
        };
        json!({"token": text, "logprob": logprob, "bytes": bytes})
    };
    let content: Vec<Value> = tokens
        .iter()
        .filter(|token| !token.end_of_text)
        .map(|token| {
            let top: Vec<Value> = token
                .top
                .iter()
                .map(|t| entry(t.token, t.logprob))
                .collect();
            let mut value = entry(token.token, token.logprob);
            value["top_logprobs"] = json!(top);
            value
        })
        .collect();
    json!({"content": content, "refusal": null})
}

/// The word for a proper end; `None` where the answer must not be taken for one.
pub fn finish_reason(finished: &Finished) -> Option<&'static str> {
    match finished.reason {
        FinishReason::Stop => Some("stop"),
        FinishReason::Length => Some("length"),
        FinishReason::Cancelled | FinishReason::Deadline => None,
    }
}
