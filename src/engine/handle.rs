//! The way into the engine: checked requests to its thread, numbers back.
//!
//! A handle may be cloned and shared between threads. It knows no tensor but the requests' pixels.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use thiserror::Error;
use tokio::sync::mpsc::unbounded_channel;

use super::check::{self, Bounds, InvalidRequest};
use super::config::{EngineConfig, EngineError};
use super::prefix::PrefixChain;
use super::request::{Answer, Request};
use super::runner::Runner;
use super::sequence::Submitted;
use super::stats::EngineStats;
use super::thread;
use crate::model::MedVlm;
use crate::preprocess::TextTokenizer;

/// Starts engines.
#[derive(Debug)]
pub struct Engine;

/// A running engine. Clones speak to the same one; it drains and ends when the last is dropped.
#[derive(Clone, Debug)]
pub struct EngineHandle {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    bounds: Bounds,
    config: EngineConfig,
    /// `None` once the engine drains. Everything sent before is answered.
    requests: Mutex<Option<Sender<Submitted>>>,
    board: Arc<Board>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// What the thread and the handles both see.
#[derive(Debug, Default)]
pub(super) struct Board {
    /// Requests accepted and neither admitted nor ended.
    pub waiting: AtomicUsize,
    /// Whether adapters that nobody uses are to be forgotten before the next step.
    pub forget_idle: AtomicBool,
    /// The last step's numbers; `waiting` is kept apart.
    pub stats: Mutex<EngineStats>,
}

/// Why a request was not accepted.
#[derive(Clone, Debug, PartialEq, Error)]
pub enum SubmitError {
    /// Too many requests wait.
    #[error("the queue is full, {limit} requests wait already")]
    QueueFull {
        /// Requests that may wait.
        limit: usize,
    },
    /// The prompt and `max_tokens` are more than a sequence may have.
    #[error("the prompt and `max_tokens` make {tokens} tokens, the limit is {limit}")]
    TooLong {
        /// Rows of the prompt and `max_tokens`.
        tokens: usize,
        /// The most that is possible.
        limit: usize,
    },
    /// The engine is draining or has ended.
    #[error("the engine is shutting down")]
    ShuttingDown,
    /// Something in the request does not fit.
    #[error(transparent)]
    Invalid(#[from] InvalidRequest),
}

impl Engine {
    /// Starts the thread. `base_row`: the base's own norm values, [`norma_adapters::SiteTable::row_len`]
    /// of them.
    pub fn start(
        model: Box<dyn MedVlm>,
        base_row: Vec<f32>,
        tokenizer: Arc<TextTokenizer>,
        config: EngineConfig,
    ) -> Result<EngineHandle, EngineError> {
        config.check()?;
        let shape = *model.shape();
        let row_len = model.sites().row_len();
        let bounds = Bounds {
            shape,
            row_len,
            sequence_limit: shape
                .max_positions
                .min(config.n_blocks() * config.block_rows),
            adapter_slots: config.bank_slots - 1,
        };
        let board = Arc::new(Board::default());
        let (requests, receiver) = channel();
        let runner = Runner::new(model, base_row, tokenizer, config, Arc::clone(&board))?;
        let thread = thread::start(runner, receiver, Arc::clone(&board))?;
        Ok(EngineHandle {
            shared: Arc::new(Shared {
                bounds,
                config,
                requests: Mutex::new(Some(requests)),
                board,
                thread: Mutex::new(Some(thread)),
            }),
        })
    }
}

impl EngineHandle {
    /// Checks a request and puts it in the queue.
    pub fn submit(&self, request: Request) -> Result<Answer, SubmitError> {
        let Shared {
            bounds,
            config,
            board,
            ..
        } = &*self.shared;
        check::check(&request, bounds)?;
        let tokens = request.prompt.len().saturating_add(request.max_tokens);
        if tokens > bounds.sequence_limit {
            return Err(SubmitError::TooLong {
                tokens,
                limit: bounds.sequence_limit,
            });
        }
        // The client's thread has more time than the engine's.
        let prefix = config
            .prefix_cache
            .then(|| PrefixChain::of_prompt(&request, config.block_rows));
        let requests = lock(&self.shared.requests);
        let sender = requests.as_ref().ok_or(SubmitError::ShuttingDown)?;
        // Only submissions add, and they hold the lock; so the limit holds.
        if board.waiting.load(Ordering::Relaxed) >= config.queue_len {
            return Err(SubmitError::QueueFull {
                limit: config.queue_len,
            });
        }
        let (events, receiver) = unbounded_channel();
        board.waiting.fetch_add(1, Ordering::Relaxed);
        let submitted = Submitted {
            request,
            prefix,
            events,
            at: Instant::now(),
        };
        if sender.send(submitted).is_err() {
            board.waiting.fetch_sub(1, Ordering::Relaxed);
            return Err(SubmitError::ShuttingDown);
        }
        Ok(Answer::new(receiver))
    }

    /// The numbers as of the last step.
    pub fn stats(&self) -> EngineStats {
        let mut stats = lock(&self.shared.board.stats).clone();
        stats.waiting = self.shared.board.waiting.load(Ordering::Relaxed);
        stats
    }

    /// Rows (prompt and answer) that one request may ask for.
    pub fn sequence_limit(&self) -> usize {
        self.shared.bounds.sequence_limit
    }

    /// The limits that the engine runs with.
    pub fn config(&self) -> &EngineConfig {
        &self.shared.config
    }

    /// Has the bank forget, before the engine's next step, every adapter that no running sequence uses. A
    /// request for one of them fills a slot again.
    pub fn forget_idle_adapters(&self) {
        self.shared.board.forget_idle.store(true, Ordering::Relaxed);
    }

    /// Accepts no more requests. Those accepted are answered; then the thread ends. Returns at once.
    pub fn drain(&self) {
        drop(lock(&self.shared.requests).take());
    }

    /// Waits until the thread has ended; the first caller does, others return at once. Blocks, so an
    /// asynchronous caller should use a blocking task. Call [`Self::drain`] first.
    pub fn join(&self) {
        let thread = lock(&self.shared.thread).take();
        if let Some(thread) = thread
            && thread.join().is_err()
        {
            tracing::error!("the engine's thread ended by a panic");
        }
    }
}

/// The data under these locks is whole at every moment, so a panic elsewhere does not spoil it.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
