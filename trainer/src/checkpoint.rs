//! The state of a run on disk, whole at any moment. In: a state and what identifies its run. Out: a
//! safetensors file that takes the place of the one before, and the state back, to the bit. It must not
//! know how a state comes about.

mod error;

use std::collections::BTreeMap;
use std::fs::{self, File, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use norma_adapters::Digest;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::atomic_file;
use crate::extras::Validated;
pub use error::CheckpointError;

/// What decides the values that a run comes to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Identity {
    /// The base.
    pub base: Digest,
    /// The recipe as JSON text: the text keeps every number as it is.
    pub recipe: String,
    /// Of the lessons.
    pub lessons: Digest,
    /// Of the lessons that are validated on.
    pub validation: Digest,
}

impl Identity {
    /// What is not the same, there and here.
    fn differences(&self, here: &Self) -> Vec<String> {
        let mut found = Vec::new();
        if self.base != here.base {
            found.push(format!("its base is {}, not {}", self.base, here.base));
        }
        if self.recipe != here.recipe {
            let parse = |text: &str| serde_json::from_str(text).unwrap_or(Value::Null);
            compare(
                "recipe",
                &parse(&self.recipe),
                &parse(&here.recipe),
                &mut found,
            );
        }
        if self.lessons != here.lessons {
            found.push("it learns from other lessons".into());
        }
        if self.validation != here.validation {
            found.push("it is validated on other lessons".into());
        }
        found
    }
}

fn compare(path: &str, there: &Value, here: &Value, found: &mut Vec<String>) {
    if let (Value::Object(there), Value::Object(here)) = (there, here) {
        let only_here = here.keys().filter(|key| !there.contains_key(*key));
        for key in there.keys().chain(only_here) {
            let of =
                |map: &serde_json::Map<String, Value>| map.get(key).cloned().unwrap_or(Value::Null);
            compare(&format!("{path}.{key}"), &of(there), &of(here), found);
        }
    } else if there != here {
        found.push(format!("`{path}` is {there} there and {here} here"));
    }
}

/// Values of one variable.
#[derive(Clone, Debug, PartialEq)]
pub struct SlotState {
    /// Canonical name.
    pub name: String,
    /// The values.
    pub value: Vec<f32>,
    /// AdamW's mean of gradients.
    pub mean: Vec<f32>,
    /// AdamW's mean of squares.
    pub square: Vec<f32>,
    /// The average of the values, if one is taken.
    pub average: Option<Vec<f32>>,
    /// The values of the lowest validation loss, if there was one.
    pub best: Option<Vec<f32>>,
}

impl SlotState {
    /// Drops what the optimiser has anyway.
    pub fn forget(&mut self) {
        for values in [&mut self.value, &mut self.mean, &mut self.square] {
            *values = Vec::new();
        }
    }
}

/// Where a run stands. The order of lessons follows from its seed and the number of steps.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct State {
    /// Loss of each step that was done.
    pub losses: Vec<f64>,
    /// Seconds of each.
    pub seconds: Vec<f64>,
    /// Validation losses.
    pub validated: Vec<Validated>,
    /// The variables, in the optimiser's order.
    pub slots: Vec<SlotState>,
}

impl State {
    /// Steps done.
    pub fn done(&self) -> usize {
        self.losses.len()
    }

    fn to_bytes(&self, identity: &Identity) -> Result<Vec<u8>, String> {
        let mut tensors: BTreeMap<String, (Dtype, Vec<u8>)> = BTreeMap::new();
        let mut wide = |name: &str, values: &mut dyn Iterator<Item = f64>| {
            let bytes = values.flat_map(f64::to_le_bytes).collect();
            tensors.insert(name.into(), (Dtype::F64, bytes));
        };
        wide("losses", &mut self.losses.iter().copied());
        wide("seconds", &mut self.seconds.iter().copied());
        let pairs = self.validated.iter();
        wide(
            "validated",
            &mut pairs.flat_map(|one| [one.done as f64, one.loss]),
        );
        for slot in &self.slots {
            let parts = [
                ("value", Some(&slot.value)),
                ("mean", Some(&slot.mean)),
                ("square", Some(&slot.square)),
                ("average", slot.average.as_ref()),
                ("best", slot.best.as_ref()),
            ];
            for (part, values) in parts {
                let Some(values) = values else { continue };
                let bytes = values
                    .iter()
                    .flat_map(|value| value.to_le_bytes())
                    .collect();
                tensors.insert(format!("{part}/{}", slot.name), (Dtype::F32, bytes));
            }
        }
        let views: Vec<(&String, TensorView)> = tensors
            .iter()
            .map(|(name, (kind, bytes))| {
                let count = bytes.len() / (kind.bitsize() / 8);
                Ok((name, TensorView::new(*kind, vec![count], bytes)?))
            })
            .collect::<Result<_, safetensors::SafeTensorError>>()
            .map_err(|error| error.to_string())?;
        let said = serde_json::to_string(identity).map_err(|error| error.to_string())?;
        let metadata = [(IDENTITY.to_owned(), said)].into();
        safetensors::serialize(views, Some(metadata)).map_err(|error| error.to_string())
    }
}

const IDENTITY: &str = "norma_checkpoint";
const FILE: &str = "checkpoint.safetensors";
const LOCK: &str = "lock";

/// A folder with the last checkpoint of one run, held by one process at a time.
pub struct Keeper {
    folder: PathBuf,
    /// Steps between two checkpoints; 0: only when a run stops.
    pub every: usize,
    _lock: File,
}

impl Keeper {
    /// Makes the folder, if need be, and takes it.
    pub fn open(folder: &Path, every: usize) -> Result<Self, CheckpointError> {
        let path = folder.join(FILE);
        let failed = |source| CheckpointError::Write {
            path: path.clone(),
            source,
            last: steps_of(&path),
        };
        fs::create_dir_all(folder).map_err(failed)?;
        let lock = File::create(folder.join(LOCK)).map_err(failed)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(CheckpointError::InUse {
                    path: folder.into(),
                });
            }
            Err(TryLockError::Error(source)) => return Err(failed(source)),
        }
        Ok(Self {
            folder: folder.into(),
            every,
            _lock: lock,
        })
    }

    /// The file.
    pub fn path(&self) -> PathBuf {
        self.folder.join(FILE)
    }

    /// Whether a checkpoint is due after `done` steps.
    pub fn is_due(&self, done: usize) -> bool {
        self.every > 0 && done.is_multiple_of(self.every)
    }

    /// Puts a state in the place of the one before.
    pub fn save(&self, state: &State, identity: &Identity) -> Result<(), CheckpointError> {
        self.save_with(state, identity, |file, bytes| file.write_all(bytes))
    }

    fn save_with(
        &self,
        state: &State,
        identity: &Identity,
        write: impl FnOnce(&mut dyn Write, &[u8]) -> io::Result<()>,
    ) -> Result<(), CheckpointError> {
        let path = self.path();
        let bytes = state.to_bytes(identity).map_err(io::Error::other);
        let written =
            bytes.and_then(|bytes| atomic_file::replace(&path, |file| write(file, &bytes)));
        written.map_err(|source| CheckpointError::Write {
            source,
            last: steps_of(&path),
            path,
        })
    }

    /// The last state of this run, if there is one. `names`: the variables with their lengths.
    pub fn load(
        &self,
        identity: &Identity,
        names: &[(String, usize)],
    ) -> Result<Option<State>, CheckpointError> {
        let path = self.path();
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(CheckpointError::Read { path, source }),
        };
        let content = |problem| CheckpointError::Content {
            path: path.clone(),
            problem,
        };
        let there = identity_of(&bytes).map_err(content)?;
        let differences = there.differences(identity);
        if !differences.is_empty() {
            return Err(CheckpointError::OtherRun { path, differences });
        }
        read(&bytes, names).map(Some).map_err(content)
    }

    /// Removes the folder's files: the run is over.
    pub fn clear(self) -> Result<(), CheckpointError> {
        let path = self.path();
        let removed = fs::remove_file(&path).and_then(|()| fs::remove_file(self.folder.join(LOCK)));
        removed.map_err(|source| CheckpointError::Write {
            source,
            last: steps_of(&path),
            path,
        })?;
        // What else lies there is not ours, and the folder then stays.
        let _ = fs::remove_dir(&self.folder);
        Ok(())
    }
}

/// The steps of a checkpoint, if there is one that can be read.
fn steps_of(path: &Path) -> Option<usize> {
    let bytes = fs::read(path).ok()?;
    let file = SafeTensors::deserialize(&bytes).ok()?;
    Some(file.tensor("losses").ok()?.shape().iter().product())
}

fn identity_of(bytes: &[u8]) -> Result<Identity, String> {
    let (_, metadata) = SafeTensors::read_metadata(bytes).map_err(|error| error.to_string())?;
    let said = metadata
        .metadata()
        .as_ref()
        .and_then(|all| all.get(IDENTITY))
        .ok_or_else(|| format!("it has no `{IDENTITY}`"))?;
    serde_json::from_str(said).map_err(|error| format!("`{IDENTITY}`: {error}"))
}

fn read(bytes: &[u8], names: &[(String, usize)]) -> Result<State, String> {
    let file = SafeTensors::deserialize(bytes).map_err(|error| error.to_string())?;
    let data = |name: &str, kind: Dtype| {
        let view = file.tensor(name).ok()?;
        (view.dtype() == kind).then(|| view.data().to_vec())
    };
    let wide = |name: &str| -> Result<Vec<f64>, String> {
        let bytes = data(name, Dtype::F64).ok_or_else(|| format!("`{name}` is missing"))?;
        let (words, _) = bytes.as_chunks::<8>();
        Ok(words.iter().map(|word| f64::from_le_bytes(*word)).collect())
    };
    let values = |part: &str, (name, count): &(String, usize)| {
        let name = format!("{part}/{name}");
        let Some(bytes) = data(&name, Dtype::F32) else {
            return Ok(None);
        };
        let (words, _) = bytes.as_chunks::<4>();
        if words.len() != *count {
            return Err(format!("`{name}` has {} values, not {count}", words.len()));
        }
        Ok(Some(
            words.iter().map(|word| f32::from_le_bytes(*word)).collect(),
        ))
    };
    let slots = names.iter().map(|one| {
        let needed = |part: &str| -> Result<Vec<f32>, String> {
            let found = values(part, one)?;
            found.ok_or_else(|| format!("`{part}/{}` is missing", one.0))
        };
        Ok(SlotState {
            name: one.0.clone(),
            value: needed("value")?,
            mean: needed("mean")?,
            square: needed("square")?,
            average: values("average", one)?,
            best: values("best", one)?,
        })
    });
    let slots = slots.collect::<Result<_, String>>()?;
    let (losses, seconds, pairs) = (wide("losses")?, wide("seconds")?, wide("validated")?);
    let (pairs, _) = pairs.as_chunks::<2>();
    let validated = pairs.iter().map(|[done, loss]| Validated {
        done: *done as usize,
        loss: *loss,
    });
    Ok(State {
        losses,
        seconds,
        validated: validated.collect(),
        slots,
    })
}

#[cfg(test)]
mod tests;
