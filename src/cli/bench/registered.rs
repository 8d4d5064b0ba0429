//! The registry with few and with many adapters: opening, listing, looking up.
//!
//! A registry knows names, records and digests and no model, so its adapters here are of a base that has one
//! small norm: ten thousand take no room, and the registry does the same for them.

use std::hint::black_box;
use std::path::Path;
use std::time::Instant;

use norma::http::keys::LOCAL_TENANT;
use norma_adapters::{Digest, Part, Registry, Site, SiteKind, SiteTable};
use serde::Serialize;

use super::adapters::{MAX_BYTES, Maker};
use super::stats::median;

/// Aliases of a listed page, the server's default.
const PAGE: usize = 100;
const REPEATS: usize = 20;
const LOOKUPS: u64 = 1000;

/// A registry with so many adapters, each under an alias.
#[derive(Clone, Debug, Serialize)]
pub struct Registered {
    /// Adapters.
    pub adapters: u64,
    /// Opening the data folder, milliseconds.
    pub open_ms: f64,
    /// A page of aliases from the middle, milliseconds.
    pub list_page_ms: f64,
    /// The generation of an alias, microseconds.
    pub resolve_us: f64,
    /// The record of a generation, microseconds.
    pub record_us: f64,
}

/// Grows one data folder below `root` through `counts`, in rising order. Blocks.
pub fn measure(root: &Path, counts: &[u64]) -> anyhow::Result<Vec<Registered>> {
    let base = Digest::of(b"a base with one small norm");
    let maker = small_maker(base)?;
    let mut figures = Vec::new();
    let mut have = 0;
    for &count in counts {
        let registry = Registry::open(root, base, MAX_BYTES)?;
        maker.register(&registry, have..count, alias)?;
        have = count;
        drop(registry);
        figures.push(of_count(root, base, count)?);
    }
    Ok(figures)
}

fn of_count(root: &Path, base: Digest, count: u64) -> anyhow::Result<Registered> {
    let mut opened = Vec::new();
    for _ in 0..5 {
        let at = Instant::now();
        black_box(Registry::open(root, base, MAX_BYTES)?);
        opened.push(at.elapsed().as_secs_f64());
    }
    let registry = Registry::open(root, base, MAX_BYTES)?;
    let mut listed = Vec::new();
    let after = alias(count / 2);
    for _ in 0..REPEATS {
        let at = Instant::now();
        black_box(registry.list(LOCAL_TENANT, PAGE, Some(&after))?);
        listed.push(at.elapsed().as_secs_f64());
    }
    let names: Vec<String> = (0..LOOKUPS).map(|i| alias(i * 7919 % count)).collect();
    let at = Instant::now();
    let found: Vec<_> = names
        .iter()
        .filter_map(|name| registry.resolve(LOCAL_TENANT, name))
        .collect();
    let resolve = at.elapsed().as_secs_f64() / LOOKUPS as f64;
    let at = Instant::now();
    for generation in &found {
        black_box(registry.record(LOCAL_TENANT, generation)?);
    }
    let record = at.elapsed().as_secs_f64() / found.len().max(1) as f64;
    Ok(Registered {
        adapters: count,
        open_ms: median(&opened) * 1e3,
        list_page_ms: median(&listed) * 1e3,
        resolve_us: resolve * 1e6,
        record_us: record * 1e6,
    })
}

fn alias(seed: u64) -> String {
    format!("bench-{seed:06}")
}

fn small_maker(base: Digest) -> anyhow::Result<Maker> {
    let site = Site {
        name: "language_model.model.norm".into(),
        width: 8,
        kind: SiteKind::RmsNorm,
        part: Part::Language,
        used: true,
    };
    let table = SiteTable::new(vec![site])?;
    Ok(Maker::of(table, vec![1.0; 8], base))
}
