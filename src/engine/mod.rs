//! The engine: one thread that owns the model, the norm bank and the KV cache.
//!
//! In: bounded [`Request`]s through an [`EngineHandle`]; out: an [`Answer`] each, token by token, with
//! exactly one terminal event. It knows no HTTP, no files and no family of models.
//!
//! The life of a request:
//! 1. [`EngineHandle::submit`] checks it against the model's numbers (`check`) and puts it in the
//!    bounded queue.
//! 2. The thread (`thread`) asks the `scheduler` whom to admit: a place among the running, rows of
//!    the KV cache (`blocks`) for prompt and answer, and a bank slot for the adapter, all held until
//!    the last token. A slot that is new to the adapter is filled; the images are encoded.
//! 3. Every step the scheduler says which rows of which sequence are computed; the `runner` makes
//!    one ragged [`crate::model::step::Step`] of them and runs the forward.
//! 4. The `sampler` picks a token of the logits, `text` turns it into text that no stop string can
//!    take back, and the client gets both.
//! 5. End of text, a stop string, the length, the deadline or the client's leaving ends the sequence;
//!    its rows and its slot go back.

mod batch;
mod blocks;
mod check;
mod compute;
mod config;
mod handle;
mod request;
mod runner;
mod sampler;
mod scheduler;
mod sequence;
mod stats;
mod text;
mod thread;

pub use check::InvalidRequest;
pub use config::{EngineConfig, EngineError};
pub use handle::{Engine, EngineHandle, SubmitError};
pub use request::{
    Answer, Event, FinishReason, Finished, Request, RequestAdapter, RequestError, Sampling,
    Timings, TokenEvent, TopToken,
};
pub use stats::{EngineStats, FinishedCounts};
