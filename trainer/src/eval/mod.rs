//! Held-out measures: a model answers through the serving engine, its answers are judged.
//!
//! In: an [`Asker`], an adapter or none, and items it has not seen. Out: scores with 95 % intervals and
//! baselines. It must not know how the adapter's values were found.
//!
//! 1. [`Item`]s are questions with their truth, from records or from phantom films ([`phantom`]).
//! 2. [`ask`] gets answers; the model is shown pictures, or nothing.
//! 3. [`scores`] says which measures are taken of which items; [`run`] puts a whole evaluation together,
//!    with baselines and calibration, and holds it against an earlier one.
//! 4. [`table`] is that for people, [`export`] for other programs.

pub mod export;
pub mod phantom;
pub mod run;
pub mod scores;
pub mod table;

use anyhow::{Context, Result};
use norma::engine::{RequestAdapter, RequestImage};
use serde::{Deserialize, Serialize};

use crate::asking::{ANSWER_TOKENS, Asker, REPORT_TOKENS, Said};

/// What kind of answer is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A choice, as the set's makers call it.
    Closed,
    /// A few words.
    Open,
    /// A report.
    Report,
}

/// One question with its truth.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Item {
    /// What the set calls it.
    pub id: String,
    /// Items of a group err together: they are about the same image, or the same patient.
    pub group: String,
    pub kind: Kind,
    pub question: String,
    pub reference: String,
}

/// A question and what was said.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Answered {
    #[serde(flatten)]
    pub item: Item,
    pub prediction: String,
    /// The answer to the same question without a picture.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blind: Option<String>,
    /// How sure the model was, as the server would say; of questions only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub confidence: Option<f32>,
    /// What confidences are made of.
    #[serde(skip)]
    pub steps: Vec<Vec<f32>>,
}

/// The answers to items, in their order. `pictures[i]`: the number of what `items[i]` is about; `images`:
/// what a number stands for. Questions about the same picture are asked one after the other, so that the
/// engine computes its rows once.
pub fn ask(
    asker: &Asker,
    adapter: Option<&RequestAdapter>,
    items: &[Item],
    pictures: &[usize],
    mut images: impl FnMut(usize) -> Result<Vec<RequestImage>>,
) -> Result<Vec<Said>> {
    let mut order: Vec<usize> = (0..items.len()).collect();
    order.sort_by_key(|at| pictures[*at]);
    let mut shown: Option<(usize, Vec<RequestImage>)> = None;
    let questions = order.iter().map(|at| {
        let (item, picture) = (&items[*at], pictures[*at]);
        let seen = match shown.take() {
            Some((number, seen)) if number == picture => seen,
            _ => images(picture)?,
        };
        shown = Some((picture, seen.clone()));
        let max_tokens = match item.kind {
            Kind::Closed | Kind::Open => ANSWER_TOKENS,
            Kind::Report => REPORT_TOKENS,
        };
        asker
            .question(seen, &item.question, max_tokens)
            .with_context(|| format!("question {} cannot be asked", item.id))
    });
    let mut said = vec![Said::default(); items.len()];
    for (at, one) in order.iter().zip(asker.answers(adapter, questions)?) {
        said[*at] = one;
    }
    Ok(said)
}
