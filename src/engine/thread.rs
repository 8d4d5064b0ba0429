//! The engine's thread.

use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::thread::JoinHandle;
use std::time::Instant;

use tokio::sync::mpsc::UnboundedSender;

use super::config::{EngineConfig, EngineError};
use super::handle::Board;
use super::request::{Event, Request};
use crate::model::MedVlm;
use crate::preprocess::TextTokenizer;

/// What the thread owns or shares.
pub(super) struct Parts {
    pub model: Box<dyn MedVlm>,
    pub base_row: Vec<f32>,
    pub tokenizer: Arc<TextTokenizer>,
    pub config: EngineConfig,
    pub board: Arc<Board>,
}

/// A request on its way.
pub(super) struct Submitted {
    pub request: Request,
    pub events: UnboundedSender<Event>,
    pub at: Instant,
}

/// Starts the thread.
pub(super) fn start(
    parts: Parts,
    requests: Receiver<Submitted>,
) -> Result<JoinHandle<()>, EngineError> {
    std::thread::Builder::new()
        .name("engine".into())
        .spawn(move || drop((parts.model, requests)))
        .map_err(EngineError::Thread)
}
