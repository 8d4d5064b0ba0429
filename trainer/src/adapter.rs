//! A tuned norm row as an adapter file: values, manifest, self-test.
//!
//! In: a base, a row, and what is to be said about it. Out: the file's bytes, the same for the same
//! arguments. It must not know how the row was found.

use anyhow::{Context, Result};
use candle_core::Tensor;
use norma::model::MedVlm;
use norma::model::step::RowInput;
use norma::preprocess::{
    ChatPrompt, ClipPreprocess, ContentPart, Message, PromptToken, TextTokenizer,
};
use norma::probe;
use norma_adapters::format;
use norma_adapters::manifest::{FORMAT_VERSION, Manifest, PROBE, SelfTest, Task};
use norma_adapters::{AdapterValues, Digest, Scope};
use serde_json::Value;

use crate::batch::{Branch, Dialogue};
use crate::decode::{Limits, greedy};
use crate::frozen::FrozenBase;
use crate::variables::NormVariables;

/// What goes around a base's model: how pictures and messages become rows.
pub struct Surroundings {
    /// Pictures to pixels.
    pub preprocess: ClipPreprocess,
    /// Messages to tokens.
    pub chat: ChatPrompt,
    /// Text to tokens.
    pub tokenizer: TextTokenizer,
}

/// What a manifest says beyond the values.
pub struct Card {
    /// What the adapter is for.
    pub task: Task,
    /// Which sites it holds.
    pub scope: Scope,
    /// What is needed to train it again.
    pub recipe: Value,
    /// Digest of the training data.
    pub data_digest: Option<Digest>,
    /// Held-out measures.
    pub metrics: Value,
    /// The licence of the values.
    pub licence: Option<String>,
}

/// What the self-test asks about its picture.
const PROBE_PROMPT: &str = "Write a report.";
/// Seed of the self-test's picture.
const PROBE_SEED: u64 = 1;
/// Tokens that the self-test expects.
const PROBE_TOKENS: usize = 16;

/// The adapter file of `row`.
pub fn write(
    base: &FrozenBase,
    around: &Surroundings,
    row: Vec<f32>,
    card: Card,
) -> Result<Vec<u8>> {
    let table = base.model.sites();
    let self_test = self_test(base, around, &row)?;
    let values = AdapterValues::new(table, row, card.scope)?;
    let manifest = Manifest {
        format_version: FORMAT_VERSION,
        base_digest: base.digest,
        family: "llava".into(),
        task: card.task,
        scope: card.scope,
        recipe: card.recipe,
        data_digest: card.data_digest,
        metrics: card.metrics,
        calibration: None,
        licence: card.licence,
        self_test,
    };
    let bytes = format::write(&values.stored(table), &manifest)?;
    format::read(&bytes, table, &base.row, &base.digest)
        .context("the adapter file that was just made cannot be read")?;
    Ok(bytes)
}

/// What the f32 path answers to the probe with this row.
fn self_test(base: &FrozenBase, around: &Surroundings, row: &[f32]) -> Result<SelfTest> {
    let model = &base.model;
    let shape = *model.shape();
    let picture = probe::image(PROBE_SEED, shape.image_size as u32);
    let pixels: Tensor = around.preprocess.pixels(&picture)?.unsqueeze(0)?;
    let message = Message::user(vec![
        ContentPart::Image,
        ContentPart::Text(PROBE_PROMPT.into()),
    ]);
    let prompt = around
        .chat
        .prepare(&around.tokenizer, &[message], shape.image_tokens)?;
    let mut rows: Vec<RowInput> = prompt
        .tokens
        .iter()
        .map(|token| match token {
            PromptToken::Text(token) => RowInput::Token(*token),
            PromptToken::Image { patch, .. } => RowInput::Feature(*patch),
        })
        .collect();
    let after = rows
        .iter()
        .rposition(|row| matches!(row, RowInput::Feature(_)))
        .map_or(0, |at| at + 1);
    let question = rows
        .split_off(after)
        .into_iter()
        .filter_map(|row| match row {
            RowInput::Token(token) => Some(token),
            RowInput::Feature(_) => None,
        })
        .collect();
    let dialogue = Dialogue {
        prefix: rows,
        branches: vec![Branch {
            prompt: question,
            answer: Vec::new(),
        }],
    };
    let norms = NormVariables::new(model.sites(), row, None, model.device())?;
    let features = model.encode_images(&pixels, &[0], norms.bank())?;
    let limits = Limits {
        max_tokens: PROBE_TOKENS,
        end: around.tokenizer.eos_ids(),
    };
    let answers = greedy(model, norms.bank(), &[&dialogue], Some(&features), limits)?;
    let answer = answers
        .into_iter()
        .flatten()
        .next()
        .context("the probe got no answer")?;
    Ok(SelfTest {
        generator: PROBE.into(),
        seed: PROBE_SEED,
        size: shape.image_size as u32,
        prompt: PROBE_PROMPT.into(),
        tokens: answer.tokens,
        top_logits: answer.top.iter().map(|top| top.to_vec()).collect(),
        tolerance: None,
    })
}
