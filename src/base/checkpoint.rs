//! The safetensors files of a folder under canonical tensor names.
//!
//! Opening reads headers only, and checks them against the files' lengths, so that a truncated file is
//! found before anything is computed. Tensors are read when asked for.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use norma_adapters::{Digest, Hasher, names};
use safetensors::Dtype;
use serde_json::Value;

use super::error::BaseError;
use super::shard::{Place, Shard};
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

/// Where a tensor lies.
#[derive(Clone, Debug)]
struct Entry {
    shard: usize,
    stored_name: String,
    place: Place,
}

impl Checkpoint {
    /// Opens the files of `folder`. Tensors will be made on `device`.
    pub fn open(folder: &Path, device: &Device) -> Result<Self, BaseError> {
        let (files, index) = files(folder)?;
        let mut shards = Vec::new();
        let mut entries: BTreeMap<String, Entry> = BTreeMap::new();
        for file in files {
            let (shard, places) = Shard::open(folder, &file)?;
            for (stored_name, place) in places {
                let Some(name) = names::canonical(&stored_name) else {
                    continue;
                };
                let entry = Entry {
                    shard: shards.len(),
                    stored_name,
                    place,
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
            shards.push(shard);
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

    /// The dtype of a tensor and the digest of its bytes, as stored.
    pub fn stored(
        &self,
        name: &str,
        shape: &[usize],
    ) -> Result<(&'static str, Digest), ParameterError> {
        let entry = self.entry(name, shape)?;
        let mut hasher = Hasher::new();
        self.shards[entry.shard]
            .pieces(&entry.place, |bytes| hasher.update(bytes))
            .map_err(reading(name))?;
        Ok((word(entry.place.dtype), hasher.finish()))
    }

    /// What reads rows of a tensor in f32: it is given the number of the first row and the rows' place,
    /// `[rows, width]`. The tensor is taken as `[shape[0], width]`.
    pub fn rows(
        &self,
        name: &str,
        shape: &[usize],
    ) -> Result<impl Fn(usize, &mut [f32]) -> io::Result<()> + Sync, ParameterError> {
        let entry = self.entry(name, shape)?;
        let width: usize = shape.iter().skip(1).product();
        Ok(move |first: usize, to: &mut [f32]| {
            self.shards[entry.shard].floats(&entry.place, first * width, to)
        })
    }

    /// A tensor in sixteen bits: as stored, or rounded to bf16 if it is stored in f32.
    pub fn narrow(&self, name: &str, shape: &[usize]) -> Result<Tensor, ParameterError> {
        let entry = self.entry(name, shape)?;
        let failed = ParameterError::reading(name);
        let dtype = match entry.place.dtype {
            Dtype::F16 => DType::F16,
            Dtype::BF16 => DType::BF16,
            _ => {
                return self
                    .tensor(name, shape)?
                    .to_dtype(DType::BF16)
                    .map_err(failed);
            }
        };
        let mut bytes = vec![0u8; entry.place.len as usize];
        self.shards[entry.shard]
            .read(entry.place.start, &mut bytes)
            .map_err(reading(name))?;
        Tensor::from_raw_buffer(&bytes, dtype, shape, &self.device).map_err(failed)
    }

    /// A tensor in f32 in the CPU's memory, wherever the others are made.
    pub fn on_cpu(&self, name: &str, shape: &[usize]) -> Result<Tensor, ParameterError> {
        self.read(name, shape, &Device::Cpu)
    }

    fn read(&self, name: &str, shape: &[usize], device: &Device) -> Result<Tensor, ParameterError> {
        let mut values = vec![0f32; shape.iter().product()];
        self.rows(name, shape)?(0, &mut values).map_err(reading(name))?;
        Tensor::from_vec(values, shape, device).map_err(ParameterError::reading(name))
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
        if entry.place.shape != shape {
            return Err(ParameterError::Shape {
                name: name.into(),
                file: file(),
                got: entry.place.shape.clone(),
                want: shape.into(),
            });
        }
        if word(entry.place.dtype).is_empty() {
            let got = format!("{:?}", entry.place.dtype);
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
        self.read(name, shape, &self.device)
    }
}

/// The types that a base may have, as its digest spells them; empty for all others.
fn word(dtype: Dtype) -> &'static str {
    match dtype {
        Dtype::F32 => "F32",
        Dtype::F16 => "F16",
        Dtype::BF16 => "BF16",
        _ => "",
    }
}

fn reading(name: &str) -> impl Fn(io::Error) -> ParameterError + '_ {
    move |error| ParameterError::reading(name)(error.into())
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
