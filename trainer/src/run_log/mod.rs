//! What is left of a run for people to look at. In: a run's events, and what it came to. Out: a log of
//! one JSON object a line ([`jsonl`]), TensorBoard's event files ([`tensorboard`]), a page ([`html`]). It
//! must not know how values are found.

use std::io;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};

use crate::run::Event;
use jsonl::JsonLog;
use tensorboard::EventFile;

pub mod chart;
pub mod html;
pub mod jsonl;
pub mod tensorboard;

/// Where a run is logged.
#[derive(Clone, Debug, Default)]
pub struct Places {
    /// A file of JSON lines.
    pub json: Option<PathBuf>,
    /// A folder for TensorBoard's event files.
    pub board: Option<PathBuf>,
    /// The run's name where several share a log.
    pub variant: Option<String>,
}

/// The logs of one run. They are opened when it starts: one that goes on keeps what is there up to the
/// step that it goes on from.
pub struct RunLog {
    places: Places,
    json: Option<JsonLog>,
    board: Option<EventFile>,
}

impl RunLog {
    /// Logs in these places.
    pub fn new(places: Places) -> Self {
        Self {
            places,
            json: None,
            board: None,
        }
    }

    /// Writes an event down.
    pub fn write(&mut self, event: &Event) -> Result<()> {
        if let Event::Start { resumed, .. } = *event {
            let Places {
                json,
                board,
                variant,
            } = &self.places;
            if let Some(path) = json {
                let log = JsonLog::open(path, variant.clone(), resumed);
                self.json = Some(log.with_context(|| cannot(path))?);
            }
            if let Some(folder) = board {
                let folder = match variant {
                    Some(variant) => folder.join(variant),
                    None => folder.clone(),
                };
                let file = EventFile::create(&folder, resumed);
                self.board = Some(file.with_context(|| cannot(&folder))?);
            }
        }
        self.put(event).context("cannot write the log")
    }

    fn put(&mut self, event: &Event) -> io::Result<()> {
        if let Some(json) = &mut self.json {
            json.write(event)?;
        }
        if let Some(board) = &mut self.board {
            board.write(event)?;
        }
        Ok(())
    }
}

fn cannot(path: &Path) -> String {
    format!("cannot write the log {}", path.display())
}

/// Seconds since 1970.
fn now() -> f64 {
    let passed = SystemTime::now().duration_since(UNIX_EPOCH);
    passed.map_or(0.0, |passed| passed.as_secs_f64())
}
