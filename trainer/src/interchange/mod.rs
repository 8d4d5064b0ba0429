//! Adapters from elsewhere, for elsewhere, and several made into one.
//!
//! - [`peft`]: LN-tuning adapters as PEFT writes and loads them.
//! - [`mod@diff`]: how far two adapters lie from each other and from the base.
//! - [`mod@average`]: adapters of several places as one.

pub mod average;
pub mod diff;
pub mod peft;

#[cfg(test)]
mod tests;
