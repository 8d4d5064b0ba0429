//! Greedy answers to many questions at once, over the same forward as the server's.
//!
//! In: a model, its norm values, dialogues and their image features. Out: the tokens of each answer
//! and the best logits behind them. The shared rows of a dialogue are computed and cached once. It
//! must not know text.

use anyhow::{Result, ensure};
use candle_core::Tensor;
use norma::model::MedVlm;
use norma::model::bank::NormBank;
use norma::model::kv_cache::{KvCache, KvType};
use norma::model::ops::attention::Segment;
use norma::model::step::{RowInput, Step};

use crate::batch::Dialogue;

/// When an answer ends.
#[derive(Clone, Copy, Debug)]
pub struct Limits<'a> {
    /// Tokens after which an answer is cut.
    pub max_tokens: usize,
    /// Tokens that end an answer; empty lets it run to `max_tokens`.
    pub end: &'a [u32],
}

/// A greedy answer.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Answer {
    /// Its tokens, the ending one included.
    pub tokens: Vec<u32>,
    /// The two best logits of every token, best first.
    pub top: Vec<[(u32, f32); 2]>,
}

/// A branch that is being answered.
struct Running {
    dialogue: usize,
    branch: usize,
    /// The cache rows of the shared rows, and those of this branch that are in use.
    prefix: std::ops::Range<usize>,
    own: std::ops::Range<usize>,
    answer: Answer,
}

/// Answers every branch of every dialogue: `answers[dialogue][branch]`. The answers in the dialogues
/// are not looked at. `features`: of the dialogues in order, `[rows, hidden]`.
pub fn greedy(
    model: &dyn MedVlm,
    bank: &NormBank,
    dialogues: &[&Dialogue],
    features: Option<&Tensor>,
    limits: Limits,
) -> Result<Vec<Vec<Answer>>> {
    ensure!(limits.max_tokens > 0, "an answer needs room for one token");
    let mut answers: Vec<Vec<Answer>> = dialogues
        .iter()
        .map(|one| vec![Answer::default(); one.branches.len()])
        .collect();
    let (mut step, mut running, capacity) = prefill(dialogues, limits.max_tokens);
    if running.is_empty() {
        return Ok(answers);
    }
    step.image_features = features.cloned();
    let shape = model.shape();
    let cache = KvCache::new(shape, capacity, KvType::F32, model.device())?;
    loop {
        let logits = model.forward(&step, bank, Some(&cache))?.to_vec2::<f32>()?;
        for (one, logits) in running.iter_mut().zip(&logits) {
            let top = best_two(logits);
            one.answer.tokens.push(top[0].0);
            one.answer.top.push(top);
        }
        let mut still = Vec::with_capacity(running.len());
        for one in running {
            let last = one.answer.tokens.last().copied().unwrap_or_default();
            if one.answer.tokens.len() == limits.max_tokens || limits.end.contains(&last) {
                answers[one.dialogue][one.branch] = one.answer;
            } else {
                still.push(one);
            }
        }
        running = still;
        if running.is_empty() {
            return Ok(answers);
        }
        step = next_step(&mut running);
    }
}

/// The first step: all shared rows and all prompts. Also the branches in the order of their logits,
/// and how many cache rows they need.
fn prefill(dialogues: &[&Dialogue], max_tokens: usize) -> (Step, Vec<Running>, usize) {
    let mut step = Step::default();
    let mut cache_rows = Vec::new();
    let (mut running, mut next, mut features) = (Vec::new(), 0, 0);
    for (dialogue, one) in dialogues.iter().enumerate() {
        let prefix = next..next + one.prefix.len();
        next = prefix.end;
        let start = step.inputs.len();
        let mut seen = 0;
        for row in &one.prefix {
            step.inputs.push(match row {
                RowInput::Feature(row) => {
                    seen = seen.max(row + 1);
                    RowInput::Feature(features + row)
                }
                RowInput::Token(token) => RowInput::Token(*token),
            });
        }
        features += seen;
        step.positions.extend(0..prefix.len() as u32);
        cache_rows.extend(prefix.clone().map(|row| row as u32));
        if !prefix.is_empty() {
            let rows = start..step.inputs.len();
            step.segments.push(Segment {
                rows,
                keys: vec![prefix.clone()],
            });
        }
        for (branch, asked) in one.branches.iter().enumerate() {
            let start = step.inputs.len();
            step.inputs
                .extend(asked.prompt.iter().map(|token| RowInput::Token(*token)));
            let own = next..next + asked.prompt.len();
            next = own.end + max_tokens;
            let first = prefix.len() as u32;
            step.positions.extend(first..first + own.len() as u32);
            cache_rows.extend(own.clone().map(|row| row as u32));
            let rows = start..step.inputs.len();
            step.logits_rows.push(rows.end as u32 - 1);
            step.segments.push(Segment {
                rows,
                keys: spans(&prefix, &own),
            });
            running.push(Running {
                dialogue,
                branch,
                prefix: prefix.clone(),
                own,
                answer: Answer::default(),
            });
        }
    }
    step.slots = vec![0; step.inputs.len()];
    step.cache_rows = Some(cache_rows);
    (step, running, next)
}

/// One row for every branch: its last token.
fn next_step(running: &mut [Running]) -> Step {
    let n = running.len();
    let mut step = Step {
        slots: vec![0; n],
        logits_rows: (0..n as u32).collect(),
        ..Step::default()
    };
    let mut cache_rows = Vec::with_capacity(n);
    for (row, one) in running.iter_mut().enumerate() {
        let token = one.answer.tokens.last().copied().unwrap_or_default();
        step.inputs.push(RowInput::Token(token));
        step.positions
            .push((one.prefix.len() + one.own.len()) as u32);
        cache_rows.push(one.own.end as u32);
        one.own.end += 1;
        step.segments.push(Segment {
            rows: row..row + 1,
            keys: spans(&one.prefix, &one.own),
        });
    }
    step.cache_rows = Some(cache_rows);
    step
}

fn spans(
    prefix: &std::ops::Range<usize>,
    own: &std::ops::Range<usize>,
) -> Vec<std::ops::Range<usize>> {
    [prefix, own]
        .into_iter()
        .filter(|span| !span.is_empty())
        .cloned()
        .collect()
}

/// The largest and the second largest logit with their tokens; of equals the lower token first.
fn best_two(logits: &[f32]) -> [(u32, f32); 2] {
    let mut best = [(0, f32::NEG_INFINITY); 2];
    for (token, logit) in logits.iter().enumerate() {
        let one = (token as u32, *logit);
        if one.1 > best[0].1 {
            best = [one, best[0]];
        } else if one.1 > best[1].1 {
            best[1] = one;
        }
    }
    best
}
