//! Loads of fixed length: so many streams at once, each one answer, models taking turns
//! over them.

use std::time::Instant;

use anyhow::bail;
use serde::Serialize;

use super::stats::Spread;
use super::target::{Ask, Prompt, Target, Timed};

/// Rows of a load's prompts, which are words alone: what is measured is decoding.
pub const PROMPT_ROWS: usize = 24;

/// A load.
#[derive(Clone, Debug)]
pub struct Load {
    /// Streams at once.
    pub streams: usize,
    /// The base, or aliases.
    pub models: Vec<String>,
    /// Tokens of every answer.
    pub tokens: usize,
}

/// What a load showed.
#[derive(Clone, Debug, Serialize)]
pub struct LoadFigures {
    /// Streams at once.
    pub streams: usize,
    /// Distinct adapters among them; 0: the base alone.
    pub adapters: usize,
    /// Tokens a second, from the first request to the last token, prompts included.
    pub tokens_per_second: f64,
    /// Tokens a second while all streams were decoding; none if at no moment they all were.
    pub decode_tokens_per_second: Option<f64>,
    /// From request to first token, milliseconds.
    pub first_token_ms: Spread,
    /// From a token to the next, milliseconds.
    pub inter_token_ms: Spread,
}

/// Runs a load `rounds` times with new prompts and puts what came together.
pub async fn measure(target: &Target, load: &Load, rounds: usize) -> anyhow::Result<LoadFigures> {
    let (mut rates, mut decode) = (Vec::new(), Vec::new());
    let (mut first, mut gaps) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        let answers = run(target, load).await?;
        rates.push(rate(&answers));
        decode.extend(decode_rate(&answers));
        first.extend(answers.iter().map(|answer| answer.first().as_secs_f64()));
        gaps.extend(answers.iter().flat_map(Timed::gaps));
    }
    let is_base = load.models.iter().all(|model| model == target.base());
    Ok(LoadFigures {
        streams: load.streams,
        adapters: if is_base { 0 } else { load.models.len() },
        tokens_per_second: Spread::of(&rates, 1.0).p50,
        decode_tokens_per_second: (!decode.is_empty()).then(|| Spread::of(&decode, 1.0).p50),
        first_token_ms: Spread::of(&first, 1e3),
        inter_token_ms: Spread::of(&gaps, 1e3),
    })
}

/// Runs a load once, with prompts that were never asked before.
pub async fn run(target: &Target, load: &Load) -> anyhow::Result<Vec<Timed>> {
    let first_seed = seeds::take(load.streams as u64);
    let ask = |i: usize| Ask {
        model: load.models[i % load.models.len()].clone(),
        prompt: Prompt::Words {
            rows: PROMPT_ROWS,
            seed: first_seed + i as u64,
        },
        tokens: load.tokens,
    };
    let answers = target.ask_all((0..load.streams).map(ask).collect()).await?;
    if let Some(short) = answers.iter().find(|answer| answer.tokens != load.tokens) {
        let (got, want) = (short.tokens, load.tokens);
        bail!("an answer has {got} tokens, {want} were asked for");
    }
    Ok(answers)
}

/// Tokens a second over everything.
pub fn rate(answers: &[Timed]) -> f64 {
    let tokens: usize = answers.iter().map(|answer| answer.tokens).sum();
    let begun = answers.iter().map(|answer| answer.begun).min();
    let ended = answers.iter().filter_map(last).max();
    match begun.zip(ended) {
        Some((begun, ended)) => tokens as f64 / (ended - begun).as_secs_f64(),
        None => 0.0,
    }
}

/// Tokens a second from the last stream's first token to the first stream's last.
pub fn decode_rate(answers: &[Timed]) -> Option<f64> {
    let from = answers.iter().filter_map(|a| a.pieces.first()).max()?;
    let to = answers.iter().filter_map(last).min()?;
    let span = to
        .checked_duration_since(*from)
        .filter(|span| !span.is_zero())?;
    let inside = |answer: &Timed| {
        let pieces = answer.pieces.iter().filter(|at| *at > from && **at <= to);
        // A piece over HTTP may hold more than one token.
        pieces.count() as f64 * answer.tokens as f64 / answer.pieces.len() as f64
    };
    Some(answers.iter().map(inside).sum::<f64>() / span.as_secs_f64())
}

fn last(answer: &Timed) -> Option<Instant> {
    answer.pieces.last().copied()
}

/// Seeds that were never given out before in this process.
pub mod seeds {
    use std::sync::atomic::{AtomicU64, Ordering};

    static NEXT: AtomicU64 = AtomicU64::new(1);

    /// The first of `count` new ones.
    pub fn take(count: u64) -> u64 {
        NEXT.fetch_add(count, Ordering::Relaxed)
    }
}
