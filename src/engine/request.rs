//! What clients send to the engine and what comes back.
//!
//! Values only. They know no thread and no tensor but the pixels.

use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use candle_core::Tensor;
use norma_adapters::{AdapterValues, Digest, Generation};
use thiserror::Error;
use tokio::sync::mpsc::UnboundedReceiver;

use crate::preprocess::PromptToken;

/// The adapter that a request is pinned to.
#[derive(Clone, Debug)]
pub struct RequestAdapter {
    /// Which content it is.
    pub generation: Generation,
    /// Its values, should it not be resident in the bank.
    pub values: AdapterValues,
}

/// An image as the model sees it, and what identifies it.
#[derive(Clone, Debug)]
pub struct RequestImage {
    pixels: Tensor,
    digest: Digest,
}

impl RequestImage {
    /// `pixels`: normalised, `[3, image_size, image_size]`, f32. Digests them, so better not on the thread
    /// of an asynchronous runtime.
    pub fn new(pixels: Tensor) -> candle_core::Result<Self> {
        let values = pixels.flatten_all()?.to_dtype(candle_core::DType::F32)?;
        let digest = Digest::of_f32(&values.to_vec1::<f32>()?);
        Ok(Self { pixels, digest })
    }

    /// `[3, image_size, image_size]`.
    pub fn pixels(&self) -> &Tensor {
        &self.pixels
    }

    /// SHA-256 of the pixels.
    pub fn digest(&self) -> &Digest {
        &self.digest
    }
}

/// One question to the model.
#[derive(Clone, Debug)]
pub struct Request {
    /// Who asks.
    pub tenant: Arc<str>,
    /// With which adapter; the base itself if `None`.
    pub adapter: Option<RequestAdapter>,
    /// The prompt. Image rows must be those of `images`, all of them, in order.
    pub prompt: Vec<PromptToken>,
    /// The images, in order.
    pub images: Vec<RequestImage>,
    /// How a token is chosen.
    pub sampling: Sampling,
    /// Texts that end the answer; they are no part of it.
    pub stop: Vec<String>,
    /// Tokens of the answer, at most; the end-of-text token counts.
    pub max_tokens: usize,
    /// Tokens before which neither the end of text nor a stop string ends the answer.
    pub min_tokens: usize,
    /// Whether the end-of-text tokens are never chosen.
    pub ignore_eos: bool,
    /// How many of the likeliest tokens are reported beside each chosen one.
    pub top_logits: usize,
    /// When the answer ends, finished or not.
    pub deadline: Option<Instant>,
    /// How much it may keep others waiting.
    pub priority: Priority,
}

/// How much of a step a request's prompt and images may take while answers of others go on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Priority {
    /// Somebody waits for its answer.
    #[default]
    Live,
    /// Nobody reads it as it comes, such as an adapter's self-test: half of what others may.
    Background,
}

impl Request {
    /// A greedy request to the base, with no limit but `max_tokens`.
    pub fn new(tenant: Arc<str>, prompt: Vec<PromptToken>, max_tokens: usize) -> Self {
        Self {
            tenant,
            adapter: None,
            prompt,
            images: Vec::new(),
            sampling: Sampling::default(),
            stop: Vec::new(),
            max_tokens,
            min_tokens: 0,
            ignore_eos: false,
            top_logits: 0,
            deadline: None,
            priority: Priority::default(),
        }
    }
}

/// How a token is chosen from the logits.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// 0: the likeliest token, and nothing below matters. Otherwise what divides the logits.
    pub temperature: f32,
    /// Only so many of the likeliest tokens.
    pub top_k: Option<usize>,
    /// Only the likeliest tokens that together reach this probability (above 0, at most 1).
    pub top_p: f32,
    /// Makes the choice repeatable; without one the engine draws a seed.
    pub seed: Option<u64>,
}

impl Default for Sampling {
    /// Greedy.
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_k: None,
            top_p: 1.0,
            seed: None,
        }
    }
}

/// What a client hears about its request.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// One more token.
    Token(TokenEvent),
    /// The last event: the answer is complete, or was cut as asked.
    Finished(Finished),
    /// The last event: the request failed.
    Failed(RequestError),
}

impl Event {
    /// Whether nothing follows.
    pub fn is_terminal(&self) -> bool {
        !matches!(self, Self::Token(_))
    }
}

/// One token of an answer.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenEvent {
    /// The token.
    pub token: u32,
    /// The text that became certain with it; empty within a UTF-8 character or while it may be the
    /// beginning of a stop string. All texts put together are the answer.
    pub text: String,
    /// Whether it is an end-of-text token, which ends the answer and has no text of its own.
    pub end_of_text: bool,
    /// Its natural log probability in the model's own distribution (no temperature, nothing left out).
    pub logprob: f32,
    /// The likeliest tokens, best first; equal ones by their number.
    pub top: Vec<TopToken>,
}

/// One of the likeliest tokens, as the model gives it (no temperature, nothing left out).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TopToken {
    /// The token.
    pub token: u32,
    /// The model's output.
    pub logit: f32,
    /// Its natural log probability.
    pub logprob: f32,
}

/// Why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FinishReason {
    /// End of text, or a stop string.
    Stop,
    /// `max_tokens` were given.
    Length,
    /// The client dropped its [`Answer`]. Nobody hears this; it is counted.
    Cancelled,
    /// The deadline passed, perhaps before the first token. Text held back is not given out.
    Deadline,
}

/// The end of an answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Finished {
    /// Why it ended.
    pub reason: FinishReason,
    /// Rows of the prompt, image rows included.
    pub prompt_tokens: usize,
    /// Rows of the prompt that lay in the cache and were not computed.
    pub cached_tokens: usize,
    /// Tokens of the answer, the end-of-text token included.
    pub completion_tokens: usize,
    /// How long it took.
    pub timings: Timings,
}

/// How long a request took.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Timings {
    /// From submission to admission; to the end if it never was admitted.
    pub queue: Duration,
    /// From submission to the first token.
    pub first_token: Option<Duration>,
    /// From each token to the next.
    pub inter_token: Vec<Duration>,
    /// From submission to the end.
    pub total: Duration,
}

/// Why an accepted request failed. The text names no other request and no path.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum RequestError {
    /// The model refused the request's inputs, or failed on them.
    #[error("the model failed: {message}")]
    Model {
        /// What it said.
        message: String,
    },
    /// The model gave logits that are no numbers.
    #[error("the model's logits are not finite")]
    Logits,
    /// The tokens could not be made text.
    #[error("the answer's tokens could not be made text: {message}")]
    Text {
        /// Why.
        message: String,
    },
    /// A step in which the request took part panicked.
    #[error("the engine hit an internal fault")]
    Panicked,
    /// The engine has ended.
    #[error("the engine has stopped")]
    Stopped,
}

/// The events of one request: tokens, then exactly one terminal event. Dropping it cancels the
/// request. There are never more than `max_tokens` events and one waiting in it.
#[derive(Debug)]
pub struct Answer {
    events: UnboundedReceiver<Event>,
    ended: bool,
}

impl Answer {
    pub(super) fn new(events: UnboundedReceiver<Event>) -> Self {
        Self {
            events,
            ended: false,
        }
    }

    /// The next event; `None` after the terminal one.
    pub async fn recv(&mut self) -> Option<Event> {
        std::future::poll_fn(|context| self.poll_recv(context)).await
    }

    /// As [`Self::recv`], for streams.
    pub fn poll_recv(&mut self, context: &mut Context<'_>) -> Poll<Option<Event>> {
        if self.ended {
            return Poll::Ready(None);
        }
        self.events
            .poll_recv(context)
            .map(|event| Some(self.seen(event)))
    }

    /// As [`Self::recv`], outside of an asynchronous runtime.
    pub fn blocking_recv(&mut self) -> Option<Event> {
        if self.ended {
            return None;
        }
        let event = self.events.blocking_recv();
        Some(self.seen(event))
    }

    /// A thread that ended without a word is told here, so that every request has its terminal event.
    fn seen(&mut self, event: Option<Event>) -> Event {
        let event = event.unwrap_or(Event::Failed(RequestError::Stopped));
        self.ended = event.is_terminal();
        event
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::sync::mpsc::unbounded_channel;

    #[test]
    fn an_answer_whose_engine_is_gone_ends_with_one_failure() {
        let (events, receiver) = unbounded_channel();
        let mut answer = Answer::new(receiver);
        let token = TokenEvent {
            token: 1,
            text: "a".into(),
            end_of_text: false,
            logprob: -1.0,
            top: vec![],
        };
        events.send(Event::Token(token.clone())).unwrap();
        drop(events);
        assert_eq!(answer.blocking_recv(), Some(Event::Token(token)));
        assert_eq!(
            answer.blocking_recv(),
            Some(Event::Failed(RequestError::Stopped))
        );
        assert_eq!(answer.blocking_recv(), None);
    }
}
