//! Questions to a [`super::service::Service`] and what comes back, as values.

use std::sync::Arc;

use norma_adapters::{Digest, Generation};

use super::adapter_cache::LoadedAdapter;
use super::choice::ModelChoice;
use crate::engine::{Answer, Sampling};
use crate::preprocess::Message;

/// How an answer is to be made.
#[derive(Clone, Debug)]
pub struct Options {
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// Answers to the same question.
    pub n: usize,
    /// Texts that end an answer.
    pub stop: Vec<String>,
    /// Tokens of an answer, at most; as many as there is room for, up to [`DEFAULT_MAX_TOKENS`], if absent.
    pub max_tokens: Option<usize>,
    /// Tokens of an answer, at least.
    pub min_tokens: usize,
    /// Whether the end of text is never chosen.
    pub ignore_eos: bool,
    /// Likeliest tokens to report.
    pub top_logits: usize,
}

impl Options {
    /// One greedy answer.
    pub fn greedy(max_tokens: Option<usize>) -> Self {
        Self {
            sampling: Sampling::default(),
            n: 1,
            stop: Vec::new(),
            max_tokens,
            min_tokens: 0,
            ignore_eos: false,
            top_logits: 0,
        }
    }
}

/// An answer's length where the client names none.
pub const DEFAULT_MAX_TOKENS: usize = 512;

/// A question.
#[derive(Debug)]
pub struct Question {
    /// Who asks.
    pub tenant: Arc<str>,
    /// With which adapter.
    pub choice: ModelChoice,
    /// The conversation.
    pub messages: Vec<Message>,
    /// The images in it, in order.
    pub images: Vec<ImageFile>,
    /// How to answer.
    pub options: Options,
}

/// An image as a client sent it.
#[derive(Debug)]
pub struct ImageFile {
    /// The field that held it.
    pub param: String,
    /// PNG or JPEG, or so the client says.
    pub bytes: Vec<u8>,
}

/// Answers in the making.
#[derive(Debug)]
pub struct Asked {
    /// What makes them.
    pub made_by: MadeBy,
    /// Rows of the prompt.
    pub prompt_tokens: usize,
    /// One stream an answer. Dropping it cancels it.
    pub answers: Vec<Answer>,
}

/// What made an answer.
#[derive(Clone, Debug)]
pub struct MadeBy {
    /// The alias, or the base's name.
    pub model: String,
    /// The adapter; `None` is the base itself.
    pub adapter: Option<Arc<LoadedAdapter>>,
    /// The base.
    pub base_digest: Digest,
}

impl MadeBy {
    /// The adapter's generation.
    pub fn generation(&self) -> Option<Generation> {
        self.adapter.as_ref().map(|adapter| adapter.generation)
    }
}
