//! The one integration binary. A file a subject; `golden` reads the committed references.

mod base;
mod golden;
mod mixed_batches;
mod ops;
mod parity;
mod sites;
