//! The safetensors files of a folder: canonical tensor names over mapped files.
//!
//! Opening reads headers only, and checks them against the files' lengths, so that a truncated file is
//! found before anything is computed. Tensors are copied out of the mapping when asked for.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use candle_core::safetensors::MmapedSafetensors;
use candle_core::{DType, Device, Tensor};
use norma_adapters::names;
use serde_json::Value;

use super::error::BaseError;
use crate::model::parameters::{ParameterError, Parameters};

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// A folder's tensors by canonical name.
pub struct Checkpoint {
    shards: Vec<Shard>,
    entries: BTreeMap<String, Entry>,
    /// The file to name when a tensor is missing.
    table_of_contents: String,
    device: Device,
}

struct Shard {
    file: String,
    map: MmapedSafetensors,
}

/// Where a tensor lies.
#[derive(Clone, Debug)]
struct Entry {
    shard: usize,
    stored_name: String,
    dtype: String,
    shape: Vec<usize>,
}

impl Checkpoint {
    /// Maps the files of `folder`. Tensors will be made on `device`.
    pub fn open(folder: &Path, device: &Device) -> Result<Self, BaseError> {
        let (files, index) = files(folder)?;
        let mut shards = Vec::new();
        let mut entries: BTreeMap<String, Entry> = BTreeMap::new();
        for file in files {
            let map = map(folder, &file)?;
            for (stored_name, view) in map.tensors() {
                let Some(name) = names::canonical(&stored_name) else {
                    continue;
                };
                let entry = Entry {
                    shard: shards.len(),
                    stored_name,
                    dtype: format!("{:?}", view.dtype()),
                    shape: view.shape().to_vec(),
                };
                if let Some(other) = entries.get(&name) {
                    let other_file = shards.get(other.shard).map_or(&file, |s: &Shard| &s.file);
                    return Err(BaseError::Twice {
                        first: format!("{} of {other_file}", other.stored_name),
                        second: format!("{} of {file}", entry.stored_name),
                        name,
                    });
                }
                entries.insert(name, entry);
            }
            shards.push(Shard { file, map });
        }
        for (tensor, file) in &index {
            let found = names::canonical(tensor).is_none_or(|name| {
                entries
                    .get(&name)
                    .is_some_and(|entry| shards[entry.shard].file == *file)
            });
            if !found {
                let (index, tensor, file) = (INDEX.into(), tensor.clone(), file.clone());
                return Err(BaseError::Index {
                    index,
                    tensor,
                    file,
                });
            }
        }
        let table_of_contents = if index.is_empty() { SINGLE } else { INDEX }.to_owned();
        Ok(Self {
            shards,
            entries,
            table_of_contents,
            device: device.clone(),
        })
    }

    /// Whether there is a tensor of this canonical name.
    pub fn has(&self, name: &str) -> bool {
        self.entries.contains_key(name)
    }

    /// Checks a tensor's presence, shape and dtype without reading it.
    pub fn check(&self, name: &str, shape: &[usize]) -> Result<(), ParameterError> {
        self.entry(name, shape).map(|_| ())
    }

    /// The dtype and the bytes of a tensor as stored.
    pub fn stored(&self, name: &str, shape: &[usize]) -> Result<(&str, &[u8]), ParameterError> {
        let entry = self.entry(name, shape)?;
        let view = self.shards[entry.shard].map.get(&entry.stored_name);
        let view = view.map_err(ParameterError::reading(name))?;
        Ok((&entry.dtype, view.data()))
    }

    fn entry(&self, name: &str, shape: &[usize]) -> Result<&Entry, ParameterError> {
        let Some(entry) = self.entries.get(name) else {
            let file = Some(self.table_of_contents.clone());
            return Err(ParameterError::Missing {
                name: name.into(),
                file,
            });
        };
        let file = || Some(self.shards[entry.shard].file.clone());
        if entry.shape != shape {
            return Err(ParameterError::Shape {
                name: name.into(),
                file: file(),
                got: entry.shape.clone(),
                want: shape.into(),
            });
        }
        if !["F32", "F16", "BF16"].contains(&entry.dtype.as_str()) {
            let got = entry.dtype.clone();
            return Err(ParameterError::Dtype {
                name: name.into(),
                file: file(),
                got,
            });
        }
        Ok(entry)
    }
}

impl Parameters for Checkpoint {
    fn device(&self) -> &Device {
        &self.device
    }

    fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor, ParameterError> {
        let entry = self.entry(name, shape)?;
        self.shards[entry.shard]
            .map
            .load(&entry.stored_name, &self.device)
            .and_then(|tensor| tensor.to_dtype(DType::F32))
            .map_err(ParameterError::reading(name))
    }
}

/// The weight files of a folder, and the index's claims (tensor to file; empty for a single file).
fn files(folder: &Path) -> Result<(Vec<String>, BTreeMap<String, String>), BaseError> {
    if folder.join(INDEX).is_file() {
        let index = super::read_json(folder, INDEX)?;
        let map: BTreeMap<String, String> = index
            .get("weight_map")
            .cloned()
            .map(serde_json::from_value::<BTreeMap<String, String>>)
            .transpose()
            .map_err(|source| BaseError::Json {
                file: INDEX.into(),
                source,
            })?
            .unwrap_or_default();
        if map.is_empty() {
            let (file, field) = (INDEX.into(), "weight_map".into());
            return Err(BaseError::Field {
                file,
                field,
                problem: "is missing or empty".into(),
            });
        }
        let files: BTreeSet<String> = map.values().cloned().collect();
        if let Some(file) = files.iter().find(|file| !is_plain_name(file)) {
            let (field, problem) = (
                "weight_map".into(),
                format!("names `{file}`, which is no file name"),
            );
            return Err(BaseError::Field {
                file: INDEX.into(),
                field,
                problem,
            });
        }
        return Ok((files.into_iter().collect(), map));
    }
    if folder.join(SINGLE).is_file() {
        return Ok((vec![SINGLE.into()], BTreeMap::new()));
    }
    let names = fs::read_dir(folder)
        .map_err(|source| BaseError::Read {
            file: folder.display().to_string(),
            source,
        })?
        .filter_map(Result::ok)
        .map(|entry| entry.file_name().to_string_lossy().into_owned());
    let pickled = names
        .into_iter()
        .any(|name| name.starts_with("pytorch_model"));
    Err(BaseError::NoWeights { pickled })
}

/// An index may only name files of its own folder.
fn is_plain_name(file: &str) -> bool {
    Path::new(file).file_name().is_some_and(|name| name == file)
}

fn map(folder: &Path, file: &str) -> Result<MmapedSafetensors, BaseError> {
    let path: PathBuf = folder.join(file);
    // Opened once beforehand, so that a missing file is told from a broken one.
    fs::File::open(&path).map_err(|source| BaseError::Read {
        file: file.into(),
        source,
    })?;
    #[expect(
        unsafe_code,
        reason = "weights are mapped, not read, so that a 7B base loads in seconds"
    )]
    // SAFETY: the mapping is read-only. As for every program that maps its weights, the files must not be
    // changed while they are in use; tensors are copied out of the mapping while the model is built.
    let map = unsafe { MmapedSafetensors::new(&path) };
    map.map_err(|error| BaseError::Weights {
        file: file.into(),
        problem: first_line(&error),
    })
}

/// The message without the path and backtrace that candle may add.
fn first_line(error: &candle_core::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause
        .to_string()
        .lines()
        .next()
        .unwrap_or_default()
        .to_owned()
}

/// A fingerprint of the files that changes when any of them is replaced: names, lengths, times.
pub fn fingerprint(folder: &Path) -> Result<Value, BaseError> {
    let (files, _) = files(folder)?;
    let mut rows = Vec::new();
    for file in files
        .into_iter()
        .chain([super::config::CONFIG_FILE.to_owned()])
    {
        let read = |source| BaseError::Read {
            file: file.clone(),
            source,
        };
        let metadata = fs::metadata(folder.join(&file)).map_err(read)?;
        let modified = metadata.modified().map_err(read)?;
        let since = modified
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap_or_default();
        rows.push(serde_json::json!([
            file,
            metadata.len(),
            since.as_nanos().to_string()
        ]));
    }
    Ok(Value::Array(rows))
}
