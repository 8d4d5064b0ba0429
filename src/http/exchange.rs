//! One request and its answer, from the first header to the last byte.
//!
//! In: what the parts learn on the way (caller, model, tokens, status). Out, when the last holder lets go:
//! one line in the log, the tenant's counters, and one request less in flight. No text of a prompt or an
//! answer enters.

use std::fmt;
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use norma_adapters::Generation;

use super::keys::{Caller, LOCAL_TENANT};
use super::state::State;

/// See the module. Shared by the middleware, the handler and the answer's stream.
pub struct Exchange {
    state: Arc<State>,
    id: String,
    method: String,
    pattern: String,
    started: Instant,
    status: AtomicU16,
    facts: Mutex<Facts>,
}

/// What is known by the end.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// Who asked.
    pub tenant: Option<Arc<str>>,
    /// The alias that answered; `None` before it is known.
    pub alias: Option<String>,
    /// Its generation.
    pub generation: Option<Generation>,
    /// Rows of the prompt.
    pub prompt_tokens: usize,
    /// Tokens of the answers.
    pub completion_tokens: usize,
    /// The code of the error, if there was one.
    pub error: Option<&'static str>,
}

impl fmt::Debug for Exchange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Exchange({})", self.id)
    }
}

impl Exchange {
    /// Starts the clock. `id`: the client's own name for the request.
    pub fn begin(state: &Arc<State>, method: &str, pattern: &str, id: Option<&str>) -> Arc<Self> {
        state.enter();
        let harmless = |id: &&str| {
            (1..=64).contains(&id.len())
                && id
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
        };
        let id = id
            .filter(harmless)
            .map_or_else(|| uuid::Uuid::new_v4().to_string(), str::to_owned);
        Arc::new(Self {
            state: Arc::clone(state),
            id,
            method: method.chars().take(16).collect(),
            pattern: pattern.to_owned(),
            started: Instant::now(),
            status: AtomicU16::new(0),
            facts: Mutex::default(),
        })
    }

    /// The request's id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The tenant that asked.
    pub fn tenant(&self) -> Arc<str> {
        self.facts()
            .tenant
            .clone()
            .unwrap_or_else(|| LOCAL_TENANT.into())
    }

    /// Notes who asked.
    pub fn set_caller(&self, caller: Caller) {
        self.facts().tenant = Some(caller.tenant);
    }

    /// Notes what answers.
    pub fn set_model(&self, alias: &str, generation: Option<Generation>) {
        let mut facts = self.facts();
        facts.alias = Some(alias.to_owned());
        facts.generation = generation;
    }

    /// Notes the prompt's length.
    pub fn set_prompt_tokens(&self, tokens: usize) {
        self.facts().prompt_tokens = tokens;
    }

    /// Counts tokens of an answer.
    pub fn add_completion_tokens(&self, tokens: usize) {
        self.facts().completion_tokens += tokens;
    }

    /// Notes the error that ended it.
    pub fn set_error(&self, code: &'static str) {
        self.facts().error = Some(code);
    }

    /// Notes the status that was sent.
    pub fn set_status(&self, status: u16) {
        self.status.store(status, Ordering::Relaxed);
    }

    fn facts(&self) -> MutexGuard<'_, Facts> {
        self.facts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        let facts = std::mem::take(&mut *self.facts());
        let seconds = self.started.elapsed().as_secs_f64();
        // No status was sent: the client was gone before there was an answer.
        let status = match self.status.load(Ordering::Relaxed) {
            0 => 499,
            status => status,
        };
        tracing::info!(
            target: "norma::access",
            id = %self.id,
            method = %self.method,
            route = %self.pattern,
            status,
            tenant = facts.tenant.as_deref().unwrap_or("-"),
            alias = facts.alias.as_deref().unwrap_or("-"),
            generation = %facts.generation.map_or_else(|| "-".to_owned(), |g| g.to_string()),
            prompt_tokens = facts.prompt_tokens,
            completion_tokens = facts.completion_tokens,
            error = facts.error.unwrap_or("-"),
            seconds = (seconds * 1e4).round() / 1e4,
            "request"
        );
        self.state
            .metrics()
            .observe_exchange(&facts, status, seconds);
        self.state.leave();
    }
}
