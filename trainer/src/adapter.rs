//! A tuned norm row as an adapter file: values, manifest, self-test.
//!
//! In: a base, a row, and what is to be said about it. Out: the file's bytes, the same for the same
//! arguments. It must not know how the row was found.

use anyhow::{Context, Result};
use norma::engine::TopToken;
use norma::model::MedVlm;
use norma::model::kv_cache::KvType;
use norma::preprocess::{ChatPrompt, ClipPreprocess, TextTokenizer};
use norma::probe;
use norma_adapters::format;
use norma_adapters::manifest::{Calibration, FORMAT_VERSION, Manifest, PROBE, SelfTest, Task};
use norma_adapters::{AdapterValues, Digest, Scope};
use serde_json::Value;

use crate::asking::{Asker, adapter_of};
use crate::frozen::FrozenBase;

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
/// Logits that it expects at each of them.
const PROBE_TOP: usize = 2;

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

/// The same adapter with this calibration in its manifest, in place of what it had. It is a new file, so
/// a new generation.
pub fn with_calibration(
    bytes: &[u8],
    base: &FrozenBase,
    calibration: Calibration,
) -> Result<Vec<u8>> {
    let table = base.model.sites();
    let adapter = format::read(bytes, table, &base.row, &base.digest)?;
    let manifest = Manifest {
        calibration: Some(calibration),
        ..adapter.manifest
    };
    let bytes = format::write(&adapter.values.stored(table), &manifest)?;
    format::read(&bytes, table, &base.row, &base.digest)
        .context("the adapter file that was just made cannot be read")?;
    Ok(bytes)
}

/// What the f32 path answers to the probe with this row.
fn self_test(base: &FrozenBase, around: &Surroundings, row: &[f32]) -> Result<SelfTest> {
    let size = base.model.shape().image_size as u32;
    let asker = Asker::of(base, around, KvType::F32)?;
    let image = asker.image(&probe::image(PROBE_SEED, size))?;
    let question = asker.question(vec![image], PROBE_PROMPT, PROBE_TOKENS);
    let said = asker.answers(Some(&adapter_of(base, row)?), [question])?;
    let said = said.into_iter().next().context("the probe got no answer")?;
    let best = |top: &Vec<_>| {
        top.iter()
            .take(PROBE_TOP)
            .map(|one: &TopToken| (one.token, one.logit))
            .collect()
    };
    Ok(SelfTest {
        generator: PROBE.into(),
        seed: PROBE_SEED,
        size,
        prompt: PROBE_PROMPT.into(),
        top_logits: said.top.iter().map(best).collect(),
        tokens: said.tokens,
        tolerance: None,
    })
}
