//! Distinct adapters beside the base alone: the same engine, the same lengths, in turns.

use serde::Serialize;

use super::load::{self, Load};
use super::pairs::{self, Compared, Pairs};
use super::target::Target;

/// Streams at once in whatever is compared.
const STREAMS: usize = 16;

/// A load with adapters beside the same without.
#[derive(Clone, Debug, Serialize)]
pub struct Mixed {
    /// Streams at once.
    pub streams: usize,
    /// Distinct adapters among them.
    pub adapters: usize,
    /// Tokens of every answer.
    pub tokens: usize,
    /// Throughput with them over throughput without.
    #[serde(flatten)]
    pub compared: Compared,
}

/// Sixteen streams with as many adapters.
pub fn load(aliases: &[String], tokens: usize) -> Load {
    Load {
        streams: STREAMS,
        models: aliases.iter().take(STREAMS).cloned().collect(),
        tokens,
    }
}

/// Measures: each pair is one run of either load, in the other order than the pair before.
pub async fn measure(target: &Target, aliases: &[String], pairs: Pairs) -> anyhow::Result<Mixed> {
    let mixed = load(aliases, pairs.tokens);
    let alone = Load {
        models: vec![target.base().to_owned()],
        ..mixed.clone()
    };
    // One of each to warm up.
    load::run(target, &mixed).await?;
    load::run(target, &alone).await?;
    let (mut first, mut second) = (Vec::new(), Vec::new());
    let mut turns = pairs.turns();
    while let Some(turn) = turns.next_one() {
        let order = if turn % 2 == 0 {
            [(&mixed, &mut first), (&alone, &mut second)]
        } else {
            [(&alone, &mut second), (&mixed, &mut first)]
        };
        for (load, runs) in order {
            runs.push(pairs::Rates::of(&load::run(target, load).await?));
        }
    }
    Ok(Mixed {
        streams: mixed.streams,
        adapters: mixed.models.len(),
        tokens: mixed.tokens,
        compared: Compared::of(&first, &second),
    })
}
