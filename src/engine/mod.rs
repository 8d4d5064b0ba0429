//! The engine: one thread that owns the model, the norm bank and the KV cache.
//!
//! In: bounded [`Request`]s through an [`EngineHandle`]; out: an [`Answer`] each, token by token, with
//! exactly one terminal event. It knows no HTTP, no files and no family of models.
//!
//! The life of a request:
//! 1. [`EngineHandle::submit`] checks it against the model's numbers (`check`) and puts it in the
//!    bounded queue.
//! 2. The thread (`thread`) asks the `scheduler` whom to admit: a place among the running and a bank slot
//!    for the adapter. A slot that is new to the adapter is filled. What lies in the KV cache of an equal
//!    beginning (`prefix`) is taken over.
//! 3. Every step the scheduler says which rows of which sequence are computed and takes cache blocks for
//!    them; images are encoded (`encoder`), unless their `features` are still there; the `runner` makes one ragged
//!    [`crate::model::step::Step`] of the rows and runs the forward. A sequence that loses its blocks to an
//!    older one waits and is computed again.
//! 4. The `sampler` picks a token of the logits, `text` turns it into text that no stop string can
//!    take back, and the client gets both.
//! 5. End of text, a stop string, the length, the deadline or the client's leaving ends the sequence;
//!    its blocks and its slot go back.

mod batch;
mod check;
mod compute;
mod config;
mod encoder;
mod features;
mod handle;
mod prefix;
mod request;
mod runner;
pub mod sampler;
mod scheduler;
mod sequence;
mod stats;
mod text;
mod thread;

pub use check::InvalidRequest;
pub use config::{EngineConfig, EngineError};
pub use handle::{Engine, EngineHandle, SubmitError};
pub use request::{
    Answer, Event, FinishReason, Finished, Priority, Request, RequestAdapter, RequestError,
    RequestImage, Sampling, Timings, TokenEvent, TopToken,
};
pub use stats::{EngineStats, FinishedCounts};
