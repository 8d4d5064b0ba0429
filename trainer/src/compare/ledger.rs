//! Results of jobs as JSON lines: what a comparison goes on from after it was interrupted. A last line
//! that was torn is dropped; any other line that cannot be read is an error.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use norma_adapters::Digest;
use serde::{Deserialize, Serialize};

use super::job::{Job, Outcome};

/// See the module.
pub struct Ledger {
    path: PathBuf,
    file: File,
    base: Digest,
    known: BTreeMap<String, Outcome>,
}

#[derive(Serialize, Deserialize)]
struct Line {
    base: Digest,
    key: String,
    job: Job,
    outcome: Outcome,
}

impl Ledger {
    /// Reads what stands in the file, if there is one. Lines of another base are left alone.
    pub fn open(path: &Path, base: Digest) -> Result<Self> {
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(error) => {
                return Err(error).with_context(|| format!("cannot read {}", path.display()));
            }
        };
        let whole = text.rfind('\n').map_or(0, |end| end + 1);
        let mut known = BTreeMap::new();
        for (at, line) in text[..whole].lines().enumerate() {
            let line: Line = serde_json::from_str(line)
                .with_context(|| format!("{}, line {}", path.display(), at + 1))?;
            if line.base == base {
                known.insert(line.key, line.outcome);
            }
        }
        let open = OpenOptions::new().create(true).append(true).open(path);
        let file = open.with_context(|| format!("cannot write {}", path.display()))?;
        if whole < text.len() {
            file.set_len(whole as u64)
                .with_context(|| format!("cannot mend {}", path.display()))?;
        }
        Ok(Self {
            path: path.into(),
            file,
            base,
            known,
        })
    }

    /// The result of a job, if it was done.
    pub fn get(&self, job: &Job) -> Option<Outcome> {
        self.known.get(&job.key()).cloned()
    }

    /// Writes a result, and returns it as it will be read from now on: a number's text may be another
    /// number in its last bit.
    pub fn add(&mut self, job: &Job, outcome: Outcome) -> Result<Outcome> {
        let line = Line {
            base: self.base,
            key: job.key(),
            job: job.clone(),
            outcome,
        };
        let text = serde_json::to_string(&line)?;
        ensure!(!text.contains('\n'), "a result spans lines");
        let written = self.file.write_all(format!("{text}\n").as_bytes());
        written
            .and_then(|()| self.file.sync_data())
            .with_context(|| format!("cannot write {}", self.path.display()))?;
        let line: Line = serde_json::from_str(&text)?;
        self.known.insert(line.key, line.outcome.clone());
        Ok(line.outcome)
    }
}
