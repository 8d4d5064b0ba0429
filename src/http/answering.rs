//! The engine's events on their way to a client, counted as they pass.
//!
//! In: an [`Answer`]. Out: the same events, or the whole answer; dropping it cancels the request.

use std::sync::Arc;
use std::task::{Context, Poll};

use actix_web::HttpResponseBuilder;
use actix_web::http::header::HeaderName;

use super::error::{ApiError, Kind};
use super::exchange::Exchange;
use super::openai::response::{Collected, finish_reason};
use super::question::MadeBy;
use super::state::State;
use crate::engine::{Answer, Event};

/// One answer in the making.
#[derive(Debug)]
pub struct Answering {
    answer: Answer,
    state: Arc<State>,
    exchange: Arc<Exchange>,
}

impl Answering {
    /// Watches over an answer.
    pub fn new(answer: Answer, state: Arc<State>, exchange: Arc<Exchange>) -> Self {
        Self {
            answer,
            state,
            exchange,
        }
    }

    /// The next event; `None` after the last.
    pub fn poll_recv(&mut self, context: &mut Context<'_>) -> Poll<Option<Event>> {
        let event = self.answer.poll_recv(context);
        if let Poll::Ready(Some(event)) = &event {
            self.count(event);
        }
        event
    }

    fn count(&self, event: &Event) {
        match event {
            Event::Token(_) => self.exchange.add_completion_tokens(1),
            Event::Finished(finished) => self.state.metrics().observe_finished(finished),
            Event::Failed(_) => {}
        }
    }

    /// The whole answer.
    pub async fn collect(mut self) -> Result<Collected, ApiError> {
        let mut collected = Collected::default();
        while let Some(event) = std::future::poll_fn(|context| self.poll_recv(context)).await {
            match event {
                Event::Token(token) => {
                    collected.text.push_str(&token.text);
                    collected.tokens.push(token);
                }
                Event::Finished(finished) => {
                    collected.finish_reason = finish_reason(&finished).ok_or_else(too_late)?;
                    collected.completion_tokens = finished.completion_tokens;
                    collected.cached_tokens = finished.cached_tokens;
                }
                Event::Failed(error) => return Err(error.into()),
            }
        }
        Ok(collected)
    }
}

/// An answer that was cut by its deadline is none: it must not be read as complete.
pub fn too_late() -> ApiError {
    ApiError::new(
        Kind::Timeout,
        "the answer was not complete within the server's time limit",
    )
}

/// Names what made an answer, in its headers.
pub fn name_maker(response: &mut HttpResponseBuilder, made_by: &MadeBy) {
    let name = HeaderName::from_static;
    response.insert_header((name("x-norma-model"), made_by.model.as_str()));
    response.insert_header((name("x-norma-base-digest"), made_by.base_digest.to_string()));
    if let Some(generation) = made_by.generation() {
        response.insert_header((name("x-norma-adapter-generation"), generation.to_string()));
    }
}
