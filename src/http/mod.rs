//! The server: HTTP in front of one loaded base.
//!
//! In: requests of hospitals' systems and of controllers. Out: answers that name what made them. It knows
//! no tensor arithmetic and no family of models; all thinking is the engine's.
//!
//! The life of a request:
//! 1. [`access`] asks who calls and whether the key may use the route; an [`exchange`] begins that will
//!    write one line of the log.
//! 2. A handler reads the body (`body`, `fields`, `openai`, `images`): `chat`, `tasks`,
//!    `models`, `adapters`, `upload`, `lora`, `health`.
//! 3. [`choice`] pins the adapter, [`adapter_cache`] has its values, [`inputs`] makes prompt and pixels,
//!    and the [`service`] submits the [`question`] to the engine.
//! 4. The answer leaves as one JSON or as a stream (`sse`), counted by `answering` and [`metrics`].
//!
//! An upload takes another way: to disk, then [`publish`], whose [`self_test`] is a question like any
//! other. [`server`] binds the sockets and brings everything down in order.

pub mod access;
pub mod adapter_cache;
mod adapters;
mod answering;
mod body;
mod chat;
pub mod choice;
mod engine_metrics;
pub mod error;
pub mod exchange;
mod fields;
mod health;
mod images;
pub mod inputs;
pub mod keys;
mod lora;
pub mod metrics;
mod models;
mod openai;
pub mod publish;
pub mod question;
mod refusals;
mod routes;
pub mod self_test;
pub mod server;
pub mod service;
mod sse;
pub mod state;
mod tasks;
mod upload;

pub use error::ApiError;
pub use keys::{KeyEntry, Keys, Role};
pub use server::{Server, ServerError, ServerOptions};
pub use service::{Limits, Service, ServiceError, ServiceOptions};
pub use state::State;
