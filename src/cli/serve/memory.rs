//! What a server takes of the machine's memory, before it takes it.

use std::fmt;

use anyhow::Context;
use norma::base::{Base, WeightType, memory};
use norma::engine::EngineConfig;
use norma::http::Limits;
use norma::model::kv_cache::KvType;

/// The large parts, in bytes.
pub struct Memory {
    weights: u64,
    keys_and_values: u64,
    bank: u64,
    images: u64,
}

impl Memory {
    /// Of a server with these limits.
    pub fn of(base: &Base, weights: WeightType, limits: &Limits) -> Self {
        let engine = &limits.engine;
        Self {
            weights: base.weight_bytes(weights),
            keys_and_values: (engine.kv_rows * engine.kv_type.token_bytes(&base.outline().shape))
                as u64,
            bank: bank_bytes(base, engine.bank_slots),
            images: engine.image_cache_bytes as u64,
        }
    }

    fn total(&self) -> u64 {
        self.weights + self.keys_and_values + self.bank + self.images
    }

    /// Refuses what the machine cannot hold. What lies on another device is that device's affair.
    pub fn require(&self, base: &Base) -> anyhow::Result<()> {
        if !on_cpu(base) {
            return Ok(());
        }
        memory::require("the server", self.total()).context(
            "choose narrower --weights or --kv-type, fewer --kv-tokens or fewer --bank-slots",
        )
    }
}

impl fmt::Display for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let megabytes = |bytes: u64| format!("{:.1} MB", bytes as f64 / f64::from(1 << 20));
        write!(
            f,
            "{} weights + {} keys and values + {} bank + {} image features at most = {}; free: {}",
            megabytes(self.weights),
            megabytes(self.keys_and_values),
            megabytes(self.bank),
            megabytes(self.images),
            megabytes(self.total()),
            memory::available().map_or_else(|| "unknown".to_owned(), megabytes),
        )
    }
}

/// Tokens whose keys and values half of the memory can hold that weights and bank leave; no more than the
/// engine's own default, and never less than a thousand.
pub fn affordable_tokens(
    base: &Base,
    (weights, kv_type): (WeightType, KvType),
    bank_slots: usize,
) -> usize {
    const LEAST: usize = 1024;
    let default = EngineConfig::default();
    let Some(free) = memory::available().filter(|_| on_cpu(base)) else {
        return default.kv_rows;
    };
    let taken = base.weight_bytes(weights) + bank_bytes(base, bank_slots);
    let bytes = (free.saturating_sub(taken) / 2) as usize;
    let tokens = bytes / kv_type.token_bytes(&base.outline().shape);
    let blocks = tokens / default.block_rows;
    (blocks * default.block_rows).clamp(LEAST, default.kv_rows)
}

fn bank_bytes(base: &Base, slots: usize) -> u64 {
    (slots * base.outline().sites.row_len() * size_of::<f32>()) as u64
}

fn on_cpu(base: &Base) -> bool {
    use norma::model::parameters::Parameters;
    base.checkpoint().device().is_cpu()
}
