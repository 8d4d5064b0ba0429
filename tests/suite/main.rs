//! The one integration binary. A file a subject; `golden` reads the committed references.

#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot go on should stop there"
)]

mod base;
mod golden;
mod mixed_batches;
mod ops;
mod parity;
mod sites;
