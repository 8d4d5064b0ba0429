//! An answer in pieces: server-sent events as OpenAI's clients read them.
//!
//! In: answers in the making. Out: bytes, `data: {…}` a piece and `data: [DONE]` at the end. The stream owns
//! the answers, so that a client that leaves cancels them.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::fmt::Write as _;
use std::sync::Arc;
use std::task::{Context, Poll};

use actix_web::web::Bytes;
use futures_util::Stream;
use serde_json::{Value, json};

use super::answering::{Answering, too_late};
use super::error::ApiError;
use super::exchange::Exchange;
use super::openai::response::{Envelope, Usage, finish_reason, logprobs_of};
use super::service::Service;
use crate::engine::{Event, Finished, TokenEvent};

/// See the module.
pub struct ChatStream {
    service: Arc<Service>,
    exchange: Arc<Exchange>,
    envelope: Envelope,
    /// `None` where the answer is complete.
    answers: Vec<Option<Answering>>,
    /// Tokens whose text is not out yet: they go with the next piece.
    held: Vec<Vec<TokenEvent>>,
    ready: VecDeque<Value>,
    /// What the client wants to see.
    wants: Wants,
    usage: Usage,
    ended: bool,
}

/// What a client wants to see beside the text.
#[derive(Clone, Copy, Debug)]
pub struct Wants {
    /// Log probabilities.
    pub logprobs: bool,
    /// A last piece with counts.
    pub usage: bool,
}

/// What a stream is made of.
pub struct Parts {
    /// For the texts of single tokens.
    pub service: Arc<Service>,
    /// Kept until the last byte.
    pub exchange: Arc<Exchange>,
    /// What all pieces have in common.
    pub envelope: Envelope,
    /// The answers.
    pub answers: Vec<Answering>,
    /// Rows of the prompt.
    pub prompt_tokens: usize,
}

impl ChatStream {
    /// A stream that begins with each answer's role.
    pub fn new(parts: Parts, wants: Wants) -> Self {
        let Parts {
            service,
            exchange,
            envelope,
            answers,
            prompt_tokens,
        } = parts;
        let held = answers.iter().map(|_| Vec::new()).collect();
        let answers: Vec<_> = answers.into_iter().map(Some).collect();
        let mut stream = Self {
            service,
            exchange,
            envelope,
            answers,
            held,
            ready: VecDeque::new(),
            wants,
            usage: Usage::new(prompt_tokens),
            ended: false,
        };
        for index in 0..stream.answers.len() {
            stream.push(
                index,
                &json!({"role": "assistant", "content": ""}),
                None,
                None,
            );
        }
        stream
    }

    fn push(&mut self, index: usize, delta: &Value, logprobs: Option<&Value>, end: Option<&str>) {
        let mut chunk = self.envelope.chunk(json!([{
            "index": index,
            "delta": delta,
            "logprobs": logprobs,
            "finish_reason": end,
        }]));
        if self.wants.usage {
            chunk["usage"] = Value::Null;
        }
        self.ready.push_back(chunk);
    }

    fn token(&mut self, index: usize, mut token: TokenEvent) {
        let text = std::mem::take(&mut token.text);
        if self.wants.logprobs {
            self.held[index].push(token);
        }
        if !text.is_empty() {
            let logprobs = self.logprobs(index);
            self.push(index, &json!({"content": text}), logprobs.as_ref(), None);
        }
    }

    fn logprobs(&mut self, index: usize) -> Option<Value> {
        let tokens = std::mem::take(&mut self.held[index]);
        self.wants
            .logprobs
            .then(|| logprobs_of(&tokens, self.service.inputs()))
    }

    fn finished(&mut self, index: usize, finished: &Finished) -> Result<(), ApiError> {
        let reason = finish_reason(finished).ok_or_else(too_late)?;
        let Finished {
            cached_tokens,
            completion_tokens,
            ..
        } = *finished;
        self.usage.add(cached_tokens, completion_tokens);
        let logprobs = if self.held[index].is_empty() {
            None
        } else {
            self.logprobs(index)
        };
        self.push(index, &json!({}), logprobs.as_ref(), Some(reason));
        Ok(())
    }

    /// Takes all events that are there; says whether every answer is complete.
    fn advance(&mut self, context: &mut Context<'_>) -> Result<bool, ApiError> {
        for index in 0..self.answers.len() {
            while let Some(answering) = &mut self.answers[index] {
                match answering.poll_recv(context) {
                    Poll::Pending => break,
                    Poll::Ready(None) => self.answers[index] = None,
                    Poll::Ready(Some(Event::Token(token))) => self.token(index, token),
                    Poll::Ready(Some(Event::Finished(finished))) => {
                        self.finished(index, &finished)?;
                    }
                    Poll::Ready(Some(Event::Failed(error))) => return Err(error.into()),
                }
            }
        }
        Ok(self.answers.iter().all(Option::is_none))
    }

    /// The last pieces. A failure is told in the stream, since its status is long sent.
    fn end(&mut self, error: Option<&ApiError>) {
        self.ended = true;
        self.answers.clear();
        if let Some(error) = error {
            self.exchange.set_error(error.code());
            self.ready.push_back(error.to_json());
        } else if self.wants.usage {
            let mut chunk = self.envelope.chunk(json!([]));
            chunk["usage"] = self.usage.to_json();
            self.ready.push_back(chunk);
        }
    }
}

impl Stream for ChatStream {
    type Item = Result<Bytes, Infallible>;

    fn poll_next(
        self: std::pin::Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Self::Item>> {
        let stream = self.get_mut();
        if stream.ended {
            return Poll::Ready(None);
        }
        match stream.advance(context) {
            Ok(false) => {}
            Ok(true) => stream.end(None),
            Err(error) => stream.end(Some(&error)),
        }
        if stream.ready.is_empty() && !stream.ended {
            return Poll::Pending;
        }
        let mut text = String::new();
        for value in stream.ready.drain(..) {
            // Writing to a string does not fail.
            let _ = write!(text, "data: {value}\n\n");
        }
        if stream.ended {
            text.push_str("data: [DONE]\n\n");
        }
        Poll::Ready(Some(Ok(Bytes::from(text))))
    }
}
