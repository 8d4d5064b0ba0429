//! The trainer: pre-trains the phantom base, tunes adapters, evaluates them.

pub mod phantom;
