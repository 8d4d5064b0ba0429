//! The base digest: SHA-256 over everything that determines the base's answers.
//!
//! It covers the configuration values of the computation and, by canonical name, the shape, dtype and
//! bytes of every tensor that the computation reads. So it is the same for all four layouts, for any
//! sharding and for any order of files, and it changes when an answer could.

use std::fs;
use std::path::Path;

use norma_adapters::{Digest, Hasher};
use rayon::prelude::*;
use serde_json::{Map, Value};

use super::checkpoint::{Checkpoint, fingerprint};
use super::error::BaseError;
use crate::model::config::LlavaConfig;
use crate::model::outline::Outline;

/// Reads all tensors once. Seconds for a large base, so see [`cached`].
pub fn compute(
    config: &LlavaConfig,
    outline: &Outline,
    checkpoint: &Checkpoint,
) -> Result<Digest, BaseError> {
    let mut tensors: Vec<(String, Vec<usize>)> = outline.parameters.clone();
    for site in outline.sites.sites().iter().filter(|site| site.used) {
        tensors.push((site.weight_name(), vec![site.width]));
        tensors.extend(site.bias_name().map(|name| (name, vec![site.width])));
    }
    tensors.sort();
    tensors.dedup();
    let lines: Vec<String> = tensors
        .par_iter()
        .map(|(name, shape)| {
            let (dtype, digest) = checkpoint.stored(name, shape)?;
            Ok(format!("{name} {dtype} {shape:?} {digest}\n"))
        })
        .collect::<Result<_, BaseError>>()?;
    let config = serde_json::to_string(config).map_err(|source| BaseError::Json {
        file: "configuration".into(),
        source,
    })?;
    let mut writer = Hasher::new();
    writer.update(b"norma-base/1\n");
    writer.update(config.as_bytes());
    writer.update(b"\n");
    for line in lines {
        writer.update(line.as_bytes());
    }
    Ok(writer.finish())
}

/// [`compute`], remembered in the file `cache` for as long as the folder's files keep their lengths and
/// times. A cache that cannot be read or written is no error: the digest is then computed again.
pub fn cached(
    folder: &Path,
    cache: Option<&Path>,
    compute: impl FnOnce() -> Result<Digest, BaseError>,
) -> Result<Digest, BaseError> {
    let Some(cache) = cache else { return compute() };
    let key = folder
        .canonicalize()
        .unwrap_or_else(|_| folder.into())
        .display()
        .to_string();
    let fingerprint = fingerprint(folder)?;
    let mut known: Map<String, Value> = fs::read(cache)
        .ok()
        .and_then(|bytes| serde_json::from_slice(&bytes).ok())
        .unwrap_or_default();
    let remembered = known
        .get(&key)
        .filter(|entry| entry.get("files") == Some(&fingerprint))
        .and_then(|entry| entry.get("digest")?.as_str()?.parse().ok());
    if let Some(digest) = remembered {
        return Ok(digest);
    }
    let digest = compute()?;
    known.insert(
        key,
        serde_json::json!({"files": fingerprint, "digest": digest.to_string()}),
    );
    if let Err(error) = fs::write(cache, Value::Object(known).to_string()) {
        tracing::warn!(%error, "the base digest could not be remembered");
    }
    Ok(digest)
}
