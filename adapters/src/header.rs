//! The header of a safetensors file, before any parser of tensors sees it.
//!
//! In: the start of a file. Out: the manifest's text. Refuses a header above the cap by its length
//! field alone, and a header that says a thing twice. Knows no tensors.

use std::collections::BTreeSet;
use std::fmt;

use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, Visitor};
use thiserror::Error;

/// The largest header that is read, in bytes. A thousand sites with biases need a quarter of it.
pub const MAX_HEADER: usize = 1 << 20;

/// Where the manifest stands in the file's `__metadata__`.
pub const MANIFEST_KEY: &str = "norma";

const METADATA: &str = "__metadata__";
const LENGTH: usize = 8;

/// Why a header is refused.
#[derive(Debug, Error)]
pub enum HeaderError {
    #[error("the file ends inside its header: {got} bytes, the header needs {want}")]
    Truncated { got: usize, want: usize },
    #[error("the header has {got} bytes, the limit is {MAX_HEADER}")]
    TooLarge { got: u64 },
    #[error("the header is not a JSON object of a safetensors file: {0}")]
    Json(#[source] serde_json::Error),
    #[error("`__metadata__` holds no `{MANIFEST_KEY}` manifest")]
    NoManifest,
}

/// The manifest's text out of a file, or out of a start of it that holds the header.
pub fn manifest_text(bytes: &[u8]) -> Result<String, HeaderError> {
    let truncated = |want| HeaderError::Truncated {
        got: bytes.len(),
        want,
    };
    let (length, rest) = bytes
        .split_first_chunk::<LENGTH>()
        .ok_or_else(|| truncated(LENGTH))?;
    let length = u64::from_le_bytes(*length);
    let size = match usize::try_from(length) {
        Ok(size) if size <= MAX_HEADER => size,
        _ => return Err(HeaderError::TooLarge { got: length }),
    };
    let json = rest.get(..size).ok_or_else(|| truncated(LENGTH + size))?;
    let header: Header = serde_json::from_slice(json).map_err(HeaderError::Json)?;
    header.manifest.ok_or(HeaderError::NoManifest)
}

/// The header's object; each tensor is skipped.
struct Header {
    manifest: Option<String>,
}

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Keys;

        impl<'de> Visitor<'de> for Keys {
            type Value = Header;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
                let mut manifest = None;
                each_key(&mut map, |map, key| {
                    if key == METADATA {
                        manifest = map.next_value::<Metadata>()?.manifest;
                    } else {
                        map.next_value::<IgnoredAny>()?;
                    }
                    Ok(())
                })?;
                Ok(Header { manifest })
            }
        }

        deserializer.deserialize_map(Keys)
    }
}

/// The header's `__metadata__`: text by name, of which one is ours.
struct Metadata {
    manifest: Option<String>,
}

impl<'de> Deserialize<'de> for Metadata {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Keys;

        impl<'de> Visitor<'de> for Keys {
            type Value = Metadata;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of texts in `__metadata__`")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Metadata, A::Error> {
                let mut manifest = None;
                each_key(&mut map, |map, key| {
                    let text = map.next_value::<String>()?;
                    if key == MANIFEST_KEY {
                        manifest = Some(text);
                    }
                    Ok(())
                })?;
                Ok(Metadata { manifest })
            }
        }

        deserializer.deserialize_map(Keys)
    }
}

/// Walks a map whose keys must differ. Readers disagree on which of two equal keys counts, so a
/// file could otherwise be one adapter here and another elsewhere.
fn each_key<'de, A: MapAccess<'de>>(
    map: &mut A,
    mut visit: impl FnMut(&mut A, &str) -> Result<(), A::Error>,
) -> Result<(), A::Error> {
    let mut seen = BTreeSet::new();
    while let Some(key) = map.next_key::<String>()? {
        visit(map, &key)?;
        if !seen.insert(key) {
            return Err(serde::de::Error::custom(
                "a name stands in the header twice",
            ));
        }
    }
    Ok(())
}
