//! The one integration binary. A file a subject; `golden` reads the committed references.

#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot go on should stop there"
)]

mod base;
mod device;
mod engine;
mod engine_answers;
mod engine_caches;
mod engine_faults;
mod engine_llava;
mod engine_toy;
mod golden;
mod http_access;
mod http_adapters;
mod http_calibration;
mod http_chat;
mod http_errors;
mod http_gate;
mod http_life;
mod http_maker;
mod http_mixed;
mod http_process;
mod http_refused_adapters;
mod http_server;
mod http_tasks;
mod mixed_batches;
mod on_device;
mod ops;
mod pages;
mod parity;
mod pixels;
mod prompt;
mod sites;
mod weights;
mod weights_self_test;
