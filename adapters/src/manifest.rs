//! The manifest inside an adapter file: which base it belongs to, what it is for, how it was made,
//! and the self-test that a server replays before it serves the adapter.
//!
//! In: JSON text from a file, or the fields. Out: a checked manifest, or JSON that is the same
//! text for the same fields. Knows no tensor; holds no time, so that equal recipes give equal
//! bytes.

use std::fmt;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;
use thiserror::Error;

use crate::digest::Digest;
use crate::site::Scope;

/// The version of the manifest that this crate writes and reads.
pub const FORMAT_VERSION: u32 = 1;

/// The generator of self-test images that this version knows.
pub const PROBE: &str = "probe/1";

const MAX_WORD: usize = 128;
const MAX_TEXT: usize = 4096;
const MAX_STEPS: usize = 256;
const MAX_TOP: usize = 64;
const MAX_SIZE: u32 = 4096;

/// Why a manifest is refused. Fields are named by their path (`self_test.tokens`).
#[derive(Debug, Error)]
pub enum ManifestError {
    #[error("the manifest is not JSON: {0}")]
    Json(#[from] serde_json::Error),
    #[error("manifest field `format_version` is {got}; this version reads {FORMAT_VERSION}")]
    Version { got: u64 },
    #[error("manifest field `{field}` is missing")]
    Missing { field: &'static str },
    #[error("manifest field `{field}` cannot be read: {source}")]
    Unreadable {
        field: &'static str,
        source: serde_json::Error,
    },
    #[error("manifest field `{field}` is unknown to this version")]
    Unknown { field: String },
    #[error("manifest field `{field}` {reason}")]
    Field { field: &'static str, reason: String },
}

/// What an adapter is for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Task {
    /// Questions about an image.
    Vqa,
    /// A report on one or more images.
    Report,
    /// Anything else, in the maker's words.
    Other(String),
}

impl Task {
    pub fn as_str(&self) -> &str {
        match self {
            Task::Vqa => "vqa",
            Task::Report => "report",
            Task::Other(text) => text,
        }
    }
}

impl From<String> for Task {
    fn from(text: String) -> Self {
        match text.as_str() {
            "vqa" => Task::Vqa,
            "report" => Task::Report,
            _ => Task::Other(text),
        }
    }
}

impl fmt::Display for Task {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Serialize for Task {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for Task {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(Task::from)
    }
}

/// How to read confidence out of the adapter's answers.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Calibration {
    /// Divides the logits before the softmax; above 0.
    pub temperature: f32,
    /// An answer whose confidence lies below this is an abstention; 0 to 1.
    pub abstention_threshold: f32,
}

/// A probe that a server can replay: no patient data, only a seed for a named generator.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SelfTest {
    /// The generator that draws the image, [`PROBE`].
    pub generator: String,
    pub seed: u64,
    /// Edge of the square image in pixels.
    pub size: u32,
    pub prompt: String,
    /// The greedy answer of the f32 path, one token a step.
    pub tokens: Vec<u32>,
    /// For each step the best logits of the f32 path, best first, two or more: (token, logit).
    pub top_logits: Vec<Vec<(u32, f32)>>,
    /// How far a logit may lie from the expected one in f32; the server's own where it is absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tolerance: Option<f32>,
}

/// All that an adapter file says about itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Value")]
pub struct Manifest {
    /// [`FORMAT_VERSION`]
    pub format_version: u32,
    /// Digest of the base that the values were tuned on.
    pub base_digest: Digest,
    /// The base's family, such as `llava`.
    pub family: String,
    pub task: Task,
    pub scope: Scope,
    /// How the adapter was trained: whatever the trainer needs to train it again.
    pub recipe: Value,
    /// Digest of the training data.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data_digest: Option<Digest>,
    /// Held-out measures before and after.
    pub metrics: Value,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub calibration: Option<Calibration>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub licence: Option<String>,
    pub self_test: SelfTest,
}

impl Manifest {
    /// Reads and checks a manifest. The version is looked at first, so that a file of a later
    /// version is refused for that and not for the fields it adds.
    pub fn from_json(text: &str) -> Result<Self, ManifestError> {
        serde_json::from_str::<Value>(text)?.try_into()
    }

    /// The manifest as JSON: fields in the struct's order, free objects sorted by key, so that
    /// equal manifests give equal text.
    pub fn to_json(&self) -> Result<String, ManifestError> {
        self.check()?;
        let mut sorted = self.clone();
        sorted.recipe.sort_all_objects();
        sorted.metrics.sort_all_objects();
        Ok(serde_json::to_string(&sorted)?)
    }

    /// Checks every field that its type leaves open.
    pub fn check(&self) -> Result<(), ManifestError> {
        if self.format_version != FORMAT_VERSION {
            return Err(ManifestError::Version {
                got: self.format_version.into(),
            });
        }
        word("family", &self.family)?;
        word("task", self.task.as_str())?;
        if let Some(licence) = &self.licence {
            word("licence", licence)?;
        }
        if let Some(calibration) = &self.calibration {
            calibration.check()?;
        }
        self.self_test.check()
    }
}

impl TryFrom<Value> for Manifest {
    type Error = ManifestError;

    fn try_from(value: Value) -> Result<Self, ManifestError> {
        let mut fields = Fields::of("", value)?;
        let format_version = fields.take("format_version")?;
        if format_version != u64::from(FORMAT_VERSION) {
            return Err(ManifestError::Version {
                got: format_version,
            });
        }
        let calibration = match fields.take_optional("calibration")? {
            None => None,
            Some(value) => {
                let mut fields = Fields::of("calibration", value)?;
                let calibration = Calibration {
                    temperature: fields.take("calibration.temperature")?,
                    abstention_threshold: fields.take("calibration.abstention_threshold")?,
                };
                fields.end()?;
                Some(calibration)
            }
        };
        let mut test = Fields::of("self_test", fields.take("self_test")?)?;
        let self_test = SelfTest {
            generator: test.take("self_test.generator")?,
            seed: test.take("self_test.seed")?,
            size: test.take("self_test.size")?,
            prompt: test.take("self_test.prompt")?,
            tokens: test.take("self_test.tokens")?,
            top_logits: test.take("self_test.top_logits")?,
            tolerance: test.take_optional("self_test.tolerance")?,
        };
        test.end()?;
        let manifest = Self {
            format_version: FORMAT_VERSION,
            base_digest: fields.take("base_digest")?,
            family: fields.take("family")?,
            task: fields.take("task")?,
            scope: fields.take("scope")?,
            recipe: fields.take("recipe")?,
            data_digest: fields.take_optional("data_digest")?,
            metrics: fields.take_optional("metrics")?.unwrap_or(Value::Null),
            calibration,
            licence: fields.take_optional("licence")?,
            self_test,
        };
        fields.end()?;
        manifest.check()?;
        Ok(manifest)
    }
}

/// One object of the manifest, taken apart field by field: serde's own errors do not say in which
/// field they arose.
struct Fields {
    path: &'static str,
    map: serde_json::Map<String, Value>,
}

impl Fields {
    /// `path` is empty for the manifest itself.
    fn of(path: &'static str, value: Value) -> Result<Self, ManifestError> {
        match value {
            Value::Object(map) => Ok(Self { path, map }),
            _ if path.is_empty() => refuse("format_version", "is not there: no object"),
            _ => refuse(path, "must be an object"),
        }
    }

    /// Takes a field by its whole path.
    fn take<T: DeserializeOwned>(&mut self, field: &'static str) -> Result<T, ManifestError> {
        self.take_optional(field)?
            .ok_or(ManifestError::Missing { field })
    }

    /// The same for a field that may be absent or null.
    fn take_optional<T: DeserializeOwned>(
        &mut self,
        field: &'static str,
    ) -> Result<Option<T>, ManifestError> {
        let key = field.rsplit('.').next().unwrap_or(field);
        match self.map.shift_remove(key) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => serde_json::from_value(value)
                .map(Some)
                .map_err(|source| ManifestError::Unreadable { field, source }),
        }
    }

    /// Refuses what nobody took.
    fn end(self) -> Result<(), ManifestError> {
        match self.map.keys().next() {
            None => Ok(()),
            Some(key) => {
                let dot = if self.path.is_empty() { "" } else { "." };
                let key: String = key.chars().take(MAX_WORD).collect();
                Err(ManifestError::Unknown {
                    field: format!("{}{dot}{key}", self.path),
                })
            }
        }
    }
}

impl Calibration {
    fn check(&self) -> Result<(), ManifestError> {
        if !(self.temperature.is_finite() && self.temperature > 0.0) {
            return refuse("calibration.temperature", "must be a number above 0");
        }
        if !(0.0..=1.0).contains(&self.abstention_threshold) {
            return refuse(
                "calibration.abstention_threshold",
                "must lie between 0 and 1",
            );
        }
        Ok(())
    }
}

impl SelfTest {
    fn check(&self) -> Result<(), ManifestError> {
        if self.generator != PROBE {
            return refuse("self_test.generator", format!("must be `{PROBE}`"));
        }
        if !(1..=MAX_SIZE).contains(&self.size) {
            return refuse(
                "self_test.size",
                format!("must lie between 1 and {MAX_SIZE}"),
            );
        }
        if self.prompt.len() > MAX_TEXT {
            return refuse(
                "self_test.prompt",
                format!("must hold at most {MAX_TEXT} bytes"),
            );
        }
        if !(1..=MAX_STEPS).contains(&self.tokens.len()) {
            return refuse(
                "self_test.tokens",
                format!("must hold 1 to {MAX_STEPS} tokens"),
            );
        }
        let field = "self_test.top_logits";
        if self.top_logits.len() != self.tokens.len() {
            let (got, want) = (self.top_logits.len(), self.tokens.len());
            return refuse(
                field,
                format!("holds {got} steps, `self_test.tokens` {want}"),
            );
        }
        for (step, (top, token)) in self.top_logits.iter().zip(&self.tokens).enumerate() {
            if !(2..=MAX_TOP).contains(&top.len()) {
                return refuse(
                    field,
                    format!("must hold 2 to {MAX_TOP} logits at step {step}"),
                );
            }
            if !top.iter().all(|(_, logit)| logit.is_finite()) {
                return refuse(field, format!("is not finite at step {step}"));
            }
            if !top.is_sorted_by(|(_, a), (_, b)| a >= b) {
                return refuse(field, format!("must go from best to worst at step {step}"));
            }
            if top[0].0 != *token {
                return refuse(
                    field,
                    format!("disagrees with `self_test.tokens` at step {step}"),
                );
            }
        }
        match self.tolerance {
            Some(tolerance) if !(tolerance.is_finite() && tolerance >= 0.0) => {
                refuse("self_test.tolerance", "must be a number of 0 or more")
            }
            _ => Ok(()),
        }
    }
}

fn word(field: &'static str, text: &str) -> Result<(), ManifestError> {
    if text.is_empty() || text.len() > MAX_WORD || text.chars().any(char::is_control) {
        return refuse(
            field,
            format!("must hold 1 to {MAX_WORD} bytes and no control characters"),
        );
    }
    Ok(())
}

fn refuse<T>(field: &'static str, reason: impl Into<String>) -> Result<T, ManifestError> {
    Err(ManifestError::Field {
        field,
        reason: reason.into(),
    })
}

#[cfg(test)]
pub(crate) mod tests;
