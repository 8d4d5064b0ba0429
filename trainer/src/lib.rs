//! The trainer: pre-trains the phantom base, tunes LayerNorm adapters on a frozen base, evaluates
//! them. It runs the model of the crate `norma`, the same forward as the server.
//!
//! - [`variables`]: what is trained, by name; [`batch`]: examples packed into a step;
//!   [`learner`]: a batch's loss and gradients; [`staged`]: layer by layer; [`optimizer`]: gradients to new values;
//!   [`methods`]: what learns of a frozen base. [`compare`]: methods side by side.
//! - [`run`]: all steps of a recipe, with [`extras`] and [`checkpoint`]s; [`sweep`]: variants of a recipe;
//!   [`run_log`]: what is left to look at.
//! - [`phantom`]: the world that the phantom base learns.
//! - [`data`]: real sets, as they lie on disk; [`records`]: how they are learnt.
//! - [`interchange`]: PEFT's files, averages, differences.
//! - [`asking`]: questions to a base through the serving engine; [`eval`]: answers judged, by [`metrics`].
//! - [`step_bench`]: what a step of tuning takes; [`peak`]: the most memory so far.
//! - [`small_llava`]: the shape of a base that is trained from nothing.

pub mod adapter;
pub mod asking;
pub mod atomic_file;
pub mod augment;
pub mod auxiliary;
pub mod batch;
pub mod bpe;
pub mod checkpoint;
pub mod compare;
pub mod data;
pub mod eval;
pub mod extras;
pub mod folder;
pub mod frozen;
pub mod interchange;
pub mod learner;
pub mod lesson;
pub mod methods;
pub mod metrics;
pub mod model_card;
pub mod opened;
pub mod optimizer;
pub mod order;
pub mod peak;
pub mod phantom;
pub mod phantom_base;
pub mod pictures;
pub mod pretrain;
pub mod recipe;
pub mod records;
pub mod run;
pub mod run_log;
pub mod showcase;
pub mod small_llava;
pub mod staged;
pub mod step_bench;
pub mod sweep;
pub mod tune;
pub mod variables;

#[cfg(test)]
mod proofs;
