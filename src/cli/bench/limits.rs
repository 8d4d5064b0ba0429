//! How near decoding comes to the memory's limit and reading a prompt to the processor's.
//!
//! In: what the machine can do, the base's shape, an idle engine. Out: fractions. Decoding one token reads
//! every weight of the decoder once; reading a prompt of many rows does two operations a weight and row.

use norma::base::{Base, WeightType};
use norma::model::ops::Kernels;
use norma::model::parameters::Parameters;
use serde::Serialize;

use super::load::{self, Load, seeds};
use super::local::Local;
use super::machine::Machine;
use super::stats::{Spread, median};
use super::target::{Ask, Prompt, Target};

/// A map large enough for a type's bytes a weight to show.
const SQUARE: (usize, usize) = (4096, 4096);

/// Rows of the prompt, where the base takes so many.
const ROWS: usize = 576;

/// What the decoder does.
#[derive(Clone, Debug, Serialize)]
pub struct Reached {
    /// Bytes of weights read for one token.
    pub weight_bytes_per_token: f64,
    /// Tokens a second of one stream.
    pub decode_tokens_per_second: f64,
    /// Bytes of weights read in a second over the machine's.
    pub decode_bandwidth_fraction: f64,
    /// Rows of the prompt.
    pub prefill_rows: usize,
    /// Rows a second, from the request to the first token.
    pub prefill_rows_per_second: f64,
    /// Operations in a second over the machine's single-precision ones.
    pub prefill_fma_fraction: f64,
    /// Of the time of steps of sixteen streams, what was not spent in the model.
    pub outside_model_fraction: f64,
}

/// Measures on an idle engine.
pub async fn measure(
    (base, weights, local): (&Base, WeightType, &Local),
    machine: &Machine,
    (tokens, repeats): (usize, usize),
) -> anyhow::Result<Reached> {
    let work = Work::of(base, weights);
    let target = &Target::Local(local.clone());
    let room = base.outline().shape.max_positions - 1;
    let rows = ROWS.min(room);
    let (mut decode, mut prefill) = (Vec::new(), Vec::new());
    for repeat in 0..=repeats {
        let ask = |rows, tokens| Ask {
            model: target.base().to_owned(),
            prompt: Prompt::Words {
                rows,
                seed: seeds::take(1),
            },
            tokens,
        };
        let answer = target.ask(ask(8, tokens.min(room - 8))).await?;
        let gaps: Vec<f64> = answer.gaps().collect();
        let read = target.ask(ask(rows, 1)).await?.first().as_secs_f64();
        // The first of each warms up.
        if repeat > 0 {
            decode.push(gaps.len() as f64 / gaps.iter().sum::<f64>());
            prefill.push(rows as f64 / read);
        }
    }
    let (decode, prefill) = (Spread::of(&decode, 1.0).p50, Spread::of(&prefill, 1.0).p50);
    let flops = work.flops(rows as f64) / rows as f64 * prefill;
    Ok(Reached {
        weight_bytes_per_token: work.bytes(),
        decode_tokens_per_second: decode,
        decode_bandwidth_fraction: work.bytes() * decode / (machine.read_gb_per_second * 1e9),
        prefill_rows: rows,
        prefill_rows_per_second: prefill,
        prefill_fma_fraction: flops / (machine.fma_gflop_per_second * 1e9),
        outside_model_fraction: outside_model(local, tokens, repeats).await?,
    })
}

/// The median of several loads.
async fn outside_model(local: &Local, tokens: usize, repeats: usize) -> anyhow::Result<f64> {
    let load = Load {
        streams: 16,
        models: vec![Local::NAME.to_owned()],
        tokens,
    };
    let mut fractions = Vec::with_capacity(repeats);
    for _ in 0..repeats {
        let before = local.settled().await?;
        load::run(&Target::Local(local.clone()), &load).await?;
        let after = local.settled().await?;
        let steps = after.step_time.saturating_sub(before.step_time);
        let model = after.model_time.saturating_sub(before.model_time);
        fractions.push(1.0 - model.as_secs_f64() / steps.as_secs_f64());
    }
    Ok(median(&fractions))
}

/// The decoder's weights.
struct Work {
    layers: f64,
    head: f64,
    bytes_per_weight: f64,
    /// Width of all query heads times the number of layers.
    queries: f64,
}

impl Work {
    fn of(base: &Base, weights: WeightType) -> Self {
        let outline = base.outline();
        let kernels = Kernels::for_device(base.checkpoint().device());
        let values = |part: &str| -> f64 {
            let named = outline.parameters.iter();
            let named = named.filter(|(name, _)| name.starts_with(part));
            named
                .map(|(_, shape)| shape.iter().product::<usize>() as f64)
                .sum()
        };
        let decoder = &base.config().decoder;
        // A tied head is the embedding read once more, whole.
        let head = decoder.vocab_size * decoder.hidden_size;
        let heads = decoder.num_attention_heads * decoder.head_dim;
        Self {
            layers: values("language_model.model.layers."),
            head: head as f64,
            bytes_per_weight: weights.bytes(SQUARE, kernels) as f64 / (SQUARE.0 * SQUARE.1) as f64,
            queries: (heads * decoder.num_hidden_layers) as f64,
        }
    }

    fn bytes(&self) -> f64 {
        (self.layers + self.head) * self.bytes_per_weight
    }

    /// Of a prompt whose last row alone asks for logits: the linear maps, the head, and products of queries
    /// with half of the keys and values on average.
    fn flops(&self, rows: f64) -> f64 {
        2.0 * self.layers * rows + 2.0 * self.head + 2.0 * self.queries * rows * rows
    }
}
