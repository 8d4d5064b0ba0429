//! The phantom world: procedurally drawn chest films, what is true of them, and everything that
//! is said about them. In: seeds. Out: pixels, truth, questions, answers, reports, scores.
//! It knows no model, no tensor and no training loop. Phantom images, not a diagnosis.
//!
//! A seed samples a [`scene::Scene`] (what is true), [`draw`] paints it, [`shift`] spoils the
//! picture as another scanner would. [`language`] fixes the words, [`question`], [`report`] and
//! [`codes`] put the truth into words, [`style`] says in which of the compositional styles.
//! [`turns`] and [`dataset`] string all of it together into reproducible splits, [`tokenizer`] turns the words
//! into the files that a Hugging Face loader expects, and [`metrics`] and
//! [`score`] read answers back.
//!
//! Sides are the patient's, as on every radiograph: the patient's right lung lies at the left of
//! the image. The heart's apex points to the patient's left, the image's right.

mod anatomy;
pub mod codes;
pub mod dataset;
pub mod draw;
pub mod language;
mod lesion;
pub mod metrics;
pub mod question;
pub mod report;
pub mod scene;
pub mod score;
pub mod sheet;
pub mod shift;
pub mod style;
pub mod tokenizer;
pub mod turns;

pub use dataset::{Example, Split, Task};
pub use draw::Film;
pub use scene::{Finding, Kind, Scene, Side, Size, Zone};
pub use sheet::contact_sheet;
pub use style::Style;
pub use turns::{Mix, Turn};

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

/// What the phantom world refuses.
#[derive(Debug, thiserror::Error)]
pub enum PhantomError {
    /// A film has a fixed side; other pixel counts are no film.
    #[error("a film has {want} pixels, got {got}")]
    PixelCount { want: usize, got: usize },
    /// Only the words of the list can be spoken.
    #[error("word `{word}` is not in the phantom vocabulary")]
    UnknownWord { word: String },
    /// An index beyond a split's range of image seeds would leave its range.
    #[error("{field} {got} is beyond the limit {limit}")]
    OutOfRange {
        field: &'static str,
        got: u64,
        limit: u64,
    },
    /// The tokenizer description was refused by the `tokenizers` library.
    #[error("the tokenizer cannot be built")]
    Tokenizer(#[source] tokenizers::Error),
    /// A value could not be written as JSON.
    #[error("cannot write JSON")]
    Json(#[from] serde_json::Error),
}

/// Independent random streams of one image seed, so that a change to one part of the world (say,
/// a finding removed) leaves every other part (anatomy, noise) bit for bit as it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stream {
    Scene = 1,
    Anatomy = 2,
    Noise = 3,
    Shift = 4,
    Language = 5,
    Codes = 6,
    Bootstrap = 7,
    /// The first of six: one per finding kind.
    Finding = 16,
}

/// The generator of `stream` for an image seed; `lane` numbers its parallel sub-streams.
pub(crate) fn rng(seed: u64, stream: Stream, lane: u64) -> ChaCha8Rng {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(stream as u64 + lane);
    rng
}
