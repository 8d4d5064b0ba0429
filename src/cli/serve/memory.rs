//! What a server takes of its device's memory, before it takes it.

use std::fmt;

use anyhow::Context;
use candle_core::Device;
use norma::base::{Base, WeightType, memory};
use norma::engine::EngineConfig;
use norma::http::Limits;
use norma::model::key_values;
use norma::model::kv_cache::KvType;
use norma::model::parameters::Parameters;

/// The large parts, in bytes.
pub struct Memory {
    weights: u64,
    keys_and_values: u64,
    bank: u64,
    images: u64,
    free: Option<u64>,
}

impl Memory {
    /// Of a server with these limits.
    pub fn of(base: &Base, weights: WeightType, limits: &Limits) -> Self {
        let engine = &limits.engine;
        Self {
            weights: base.weight_bytes(weights),
            keys_and_values: engine.kv_rows as u64 * token_bytes(base, engine.kv_type),
            bank: bank_bytes(base, engine.bank_slots),
            images: engine.image_cache_bytes as u64,
            free: memory::available_on(device(base)),
        }
    }

    fn total(&self) -> u64 {
        self.weights + self.keys_and_values + self.bank + self.images
    }

    /// Refuses what the device cannot hold.
    pub fn require(&self, base: &Base) -> anyhow::Result<()> {
        memory::require("the server", self.total(), device(base)).context(
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
            self.free.map_or_else(|| "unknown".to_owned(), megabytes),
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
    let Some(free) = memory::available_on(device(base)) else {
        return default.kv_rows;
    };
    let taken = base.weight_bytes(weights) + bank_bytes(base, bank_slots);
    let tokens = free.saturating_sub(taken) / 2 / token_bytes(base, kv_type);
    let blocks = tokens as usize / default.block_rows;
    (blocks * default.block_rows).clamp(LEAST, default.kv_rows)
}

fn token_bytes(base: &Base, kv_type: KvType) -> u64 {
    key_values::token_bytes(&base.outline().shape, kv_type, device(base)) as u64
}

fn bank_bytes(base: &Base, slots: usize) -> u64 {
    (slots * base.outline().sites.row_len() * size_of::<f32>()) as u64
}

fn device(base: &Base) -> &Device {
    base.checkpoint().device()
}
