//! Adapters that stand for real ones: a seed in, an adapter file of the base's full scope out.
//!
//! Their values are the base's own with a little noise, so that each gives other answers and none gives
//! nonsense. Knows no model; a self-test that a server will accept is the caller's to give.

use std::path::Path;

use anyhow::Context;
use norma::base::Base;
use norma::http::keys::LOCAL_TENANT;
use norma_adapters::manifest::{FORMAT_VERSION, PROBE};
use norma_adapters::{
    Adapter, AdapterValues, Digest, Expected, Manifest, Registry, Scope, SelfTest, SiteTable, Task,
    format,
};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};

/// How far a value lies from the base's, at most.
const NOISE: f32 = 0.02;
/// What a registry accepts.
pub const MAX_BYTES: u64 = 64 << 20;

/// Makes adapters of one base.
#[derive(Clone)]
pub struct Maker {
    table: SiteTable,
    row: Vec<f32>,
    digest: Digest,
}

impl Maker {
    /// A maker for an opened base.
    pub fn new(base: &Base) -> anyhow::Result<Self> {
        let row = base.row().context("the base's norms cannot be read")?;
        Ok(Self::of(base.outline().sites.clone(), row, base.digest()))
    }

    /// A maker for a base of which this is known. `row`: the base's own values.
    pub fn of(table: SiteTable, row: Vec<f32>, digest: Digest) -> Self {
        Self { table, row, digest }
    }

    /// The values of a seed's adapter.
    pub fn values(&self, seed: u64) -> anyhow::Result<AdapterValues> {
        let mut random = StdRng::seed_from_u64(seed);
        let mut row = self.row.clone();
        for value in &mut row {
            *value += random.random_range(-NOISE..NOISE);
        }
        Ok(AdapterValues::new(&self.table, row, Scope::All)?)
    }

    /// The file of a seed's adapter with the self-test that it is to hold.
    pub fn file(&self, seed: u64, self_test: SelfTest) -> anyhow::Result<Vec<u8>> {
        let manifest = Manifest {
            format_version: FORMAT_VERSION,
            base_digest: self.digest,
            family: "llava".into(),
            task: Task::Vqa,
            scope: Scope::All,
            recipe: json!({"made": "noise for a benchmark", "seed": seed}),
            data_digest: None,
            metrics: Value::Null,
            calibration: None,
            licence: None,
            self_test,
        };
        let values = self.values(seed)?;
        Ok(format::write(&values.stored(&self.table), &manifest)?)
    }

    /// A seed's adapter as a server has it after an upload, with its file.
    pub fn adapter(&self, seed: u64, self_test: SelfTest) -> anyhow::Result<(Vec<u8>, Adapter)> {
        let file = self.file(seed, self_test)?;
        let adapter = format::read(&file, &self.table, &self.row, &self.digest)?;
        Ok((file, adapter))
    }

    /// Puts the adapter of each seed into a registry, as the alias that `alias` gives it.
    pub fn register(
        &self,
        registry: &Registry,
        seeds: std::ops::Range<u64>,
        alias: impl Fn(u64) -> String,
    ) -> anyhow::Result<()> {
        for seed in seeds {
            let (file, adapter) = self.adapter(seed, unplayed())?;
            let mut incoming = registry.incoming()?;
            incoming.append(&file)?;
            registry.add(LOCAL_TENANT, incoming, &adapter)?;
            let generation = adapter.generation;
            registry.put_alias(LOCAL_TENANT, &alias(seed), &generation, Expected::Any)?;
        }
        Ok(())
    }
}

/// A self-test that says nothing, for adapters that go past the server's door.
pub fn unplayed() -> SelfTest {
    SelfTest {
        generator: PROBE.into(),
        seed: 0,
        size: 16,
        prompt: "never asked".into(),
        tokens: vec![0],
        top_logits: vec![vec![(0, 1.0), (1, 0.0)]],
        tolerance: None,
    }
}

/// Fills a data folder with the adapters `bench-0` to `bench-{count - 1}`.
pub fn fill(base: &Base, data_dir: &Path, count: u64) -> anyhow::Result<()> {
    std::fs::create_dir_all(data_dir).context("--data-dir could not be made")?;
    let registry = Registry::open(data_dir, base.digest(), MAX_BYTES)
        .context("the data folder cannot be used")?;
    Maker::new(base)?.register(&registry, 0..count, |seed| format!("bench-{seed}"))
}
