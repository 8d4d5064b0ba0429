//! API keys: who calls, and what the caller may do.
//!
//! In: a file of one JSON object a line, and the keys that callers show. Out: a [`Caller`]. The file holds
//! SHA-256 hashes only; a key is 256 random bits, so that a plain hash cannot be guessed back. It knows no
//! route.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use norma_adapters::Digest;
use rand::TryRngCore;
use rand::rngs::OsRng;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use thiserror::Error;

/// The tenant of a server without keys.
pub const LOCAL_TENANT: &str = "local";

/// What a key may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Ask questions.
    Infer,
    /// Upload adapters and move aliases.
    Manage,
    /// Read the metrics of all tenants.
    Metrics,
}

impl Role {
    /// The word for it in the file.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Infer => "infer",
            Self::Manage => "manage",
            Self::Metrics => "metrics",
        }
    }
}

impl std::str::FromStr for Role {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        [Self::Infer, Self::Manage, Self::Metrics]
            .into_iter()
            .find(|role| role.as_str() == text)
            .ok_or_else(|| format!("`{text}` is no role: infer, manage and metrics are"))
    }
}

/// Who sent a request.
#[derive(Clone, Debug)]
pub struct Caller {
    /// Whose adapters it sees.
    pub tenant: Arc<str>,
    roles: Vec<Role>,
}

impl Caller {
    /// Whether it has a role.
    pub fn may(&self, role: Role) -> bool {
        self.roles.contains(&role)
    }
}

/// One line of the file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyEntry {
    /// Whose key it is.
    pub tenant: String,
    /// What it may do.
    pub roles: Vec<Role>,
    /// SHA-256 of the key, in hex.
    pub sha256: String,
}

/// Why a file of keys is refused. No message holds a hash.
#[derive(Debug, Error)]
pub enum KeysError {
    /// The file could not be read.
    #[error("the file of keys could not be read")]
    Read(#[source] std::io::Error),
    /// It holds no key: a server with it would answer nobody.
    #[error("the file of keys holds no key")]
    Empty,
    /// A line is wrong.
    #[error("line {line} of the file of keys {problem}")]
    Line {
        /// Counted from 1.
        line: usize,
        /// What is wrong with it.
        problem: String,
    },
}

/// All keys of a server.
#[derive(Clone, Default)]
pub struct Keys {
    known: Vec<([u8; 32], Caller)>,
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Keys({})", self.known.len())
    }
}

impl Keys {
    /// No keys: every caller is [`LOCAL_TENANT`] and may do everything, so the server must not be reachable
    /// from elsewhere.
    pub fn none() -> Self {
        Self::default()
    }

    /// Whether there are no keys.
    pub fn is_open(&self) -> bool {
        self.known.is_empty()
    }

    /// Reads a file. Blank lines and lines that begin with `#` are skipped.
    pub fn read(path: &Path) -> Result<Self, KeysError> {
        Self::parse(&std::fs::read_to_string(path).map_err(KeysError::Read)?)
    }

    /// Reads the text of a file.
    pub fn parse(text: &str) -> Result<Self, KeysError> {
        let mut known: Vec<([u8; 32], Caller)> = Vec::new();
        for (index, line) in text.lines().enumerate() {
            let line_text = line.trim();
            if line_text.is_empty() || line_text.starts_with('#') {
                continue;
            }
            let (hash, caller) = parse_line(line_text).map_err(|problem| KeysError::Line {
                line: index + 1,
                problem,
            })?;
            if known.iter().any(|(other, _)| *other == hash) {
                let problem = "repeats a key".into();
                return Err(KeysError::Line {
                    line: index + 1,
                    problem,
                });
            }
            known.push((hash, caller));
        }
        if known.is_empty() {
            Err(KeysError::Empty)
        } else {
            Ok(Self { known })
        }
    }

    /// Who shows this key. Without keys, anybody is [`LOCAL_TENANT`].
    ///
    /// Hashes are compared in constant time, and all of them, so that the time tells nothing.
    pub fn caller(&self, shown: Option<&str>) -> Option<Caller> {
        if self.is_open() {
            let roles = vec![Role::Infer, Role::Manage, Role::Metrics];
            return Some(Caller {
                tenant: LOCAL_TENANT.into(),
                roles,
            });
        }
        let hash = hash_of(shown?);
        let mut found = None;
        for (known, caller) in &self.known {
            if same(known, &hash) {
                found = Some(caller);
            }
        }
        found.cloned()
    }
}

/// A new key, to be shown once, and its line for the file.
pub fn new_key(tenant: &str, roles: Vec<Role>) -> std::io::Result<(String, KeyEntry)> {
    let mut bytes = [0u8; 32];
    OsRng
        .try_fill_bytes(&mut bytes)
        .map_err(std::io::Error::other)?;
    let key = format!("norma_{}", URL_SAFE_NO_PAD.encode(bytes));
    let sha256 = Digest(hash_of(&key)).hex();
    Ok((
        key,
        KeyEntry {
            tenant: tenant.into(),
            roles,
            sha256,
        },
    ))
}

/// Whether a name may be a tenant's or an alias's: what the registry takes.
pub fn is_name(name: &str) -> bool {
    (1..=64).contains(&name.len())
        && !name.starts_with('.')
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
}

fn parse_line(line: &str) -> Result<([u8; 32], Caller), String> {
    let entry: KeyEntry = serde_json::from_str(line)
        .map_err(|_| "is not `{\"tenant\": …, \"roles\": […], \"sha256\": …}`".to_owned())?;
    if !is_name(&entry.tenant) {
        return Err("has no usable `tenant`: 1 to 64 of A-Z a-z 0-9 . _ -".into());
    }
    if entry.roles.is_empty() {
        return Err("has no `roles`".into());
    }
    let hash = parse_hash(&entry.sha256).ok_or("has no usable `sha256`: 64 hex digits")?;
    Ok((
        hash,
        Caller {
            tenant: entry.tenant.into(),
            roles: entry.roles,
        },
    ))
}

fn parse_hash(text: &str) -> Option<[u8; 32]> {
    let mut hash = [0u8; 32];
    if text.len() != 64 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    for (byte, digits) in hash.iter_mut().zip(text.as_bytes().chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
    }
    Some(hash)
}

fn hash_of(key: &str) -> [u8; 32] {
    Sha256::digest(key.as_bytes()).into()
}

fn same(a: &[u8; 32], b: &[u8; 32]) -> bool {
    let difference = a.iter().zip(b).fold(0, |all, (a, b)| all | (a ^ b));
    std::hint::black_box(difference) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_key_opens_with_its_line_and_with_no_other() {
        let (key, entry) = new_key("radiology", vec![Role::Infer]).unwrap();
        let (other, other_entry) = new_key("radiology", vec![Role::Manage]).unwrap();
        assert_ne!(key, other);
        let line = |entry: &KeyEntry| serde_json::to_string(entry).unwrap();
        let keys = Keys::parse(&format!("# keys\n\n{}\n", line(&entry))).unwrap();
        let caller = keys.caller(Some(&key)).unwrap();
        assert_eq!(&*caller.tenant, "radiology");
        assert!(caller.may(Role::Infer) && !caller.may(Role::Manage));
        assert!(keys.caller(Some(&other)).is_none() && keys.caller(None).is_none());
        assert!(keys.caller(Some("")).is_none());
        let both = format!("{}\n{}", line(&entry), line(&other_entry));
        assert!(
            Keys::parse(&both)
                .unwrap()
                .caller(Some(&other))
                .unwrap()
                .may(Role::Manage)
        );
    }

    #[test]
    fn files_are_refused_by_line_without_telling_hashes() {
        let hash = "ab".repeat(32);
        let line = format!(r#"{{"tenant":"a","roles":["infer"],"sha256":"{hash}"}}"#);
        for (text, want) in [
            (String::new(), "no key"),
            (
                format!("{line}\n{line}"),
                "line 2 of the file of keys repeats",
            ),
            (line.replace("\"a\"", "\"a b\""), "tenant"),
            (line.replace("[\"infer\"]", "[]"), "roles"),
            (line.replace("infer", "root"), "is not"),
            (line.replace("ab", "xy"), "sha256"),
        ] {
            let message = Keys::parse(&text).unwrap_err().to_string();
            assert!(message.contains(want), "{message}");
            assert!(!message.contains("abab"), "{message}");
        }
    }
}
