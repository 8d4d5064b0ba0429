//! A log of one JSON object a line. In: events. Out: lines; those of a run that goes on follow the lines
//! of the steps that it keeps.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;

use serde_json::{Value, json};

use super::now;
use crate::atomic_file;
use crate::run::Event;

/// An open log.
pub struct JsonLog {
    file: File,
    variant: Option<String>,
}

impl JsonLog {
    /// Opens a log. Lines of the same variant from steps after `resumed` are dropped: they are written
    /// anew. Lines of other variants stay.
    pub fn open(path: &Path, variant: Option<String>, resumed: usize) -> io::Result<Self> {
        let old = match fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            Err(error) => return Err(error),
        };
        let stays = |line: &&str| {
            // A line that was cut off by the end of the process is no JSON.
            serde_json::from_str::<Value>(line).is_ok_and(|line| {
                let own = line["variant"].as_str() == variant.as_deref();
                let step = line["step"].as_u64().unwrap_or(0);
                !own || resumed > 0 && step <= resumed as u64
            })
        };
        let kept: Vec<&str> = old.lines().filter(stays).collect();
        atomic_file::replace(path, |file| {
            kept.iter().try_for_each(|line| writeln!(file, "{line}"))
        })?;
        let file = OpenOptions::new().append(true).open(path)?;
        Ok(Self { file, variant })
    }

    /// Adds a line.
    pub fn write(&mut self, event: &Event) -> io::Result<()> {
        let mut line = describe(event);
        if let Some(variant) = &self.variant {
            line["variant"] = variant.as_str().into();
        }
        line["time"] = now().into();
        self.file.write_all(format!("{line}\n").as_bytes())
    }
}

fn describe(event: &Event) -> Value {
    match *event {
        Event::Start {
            trainable,
            total,
            steps,
            resumed,
        } => json!({ "event": "start", "step": resumed, "steps": steps,
                     "trainable": trainable, "total": total }),
        Event::Step {
            done,
            loss,
            rate,
            norm,
            tokens,
            seconds,
        } => json!({ "event": "step", "step": done, "loss": loss, "rate": rate,
                     "gradient_norm": norm, "tokens": tokens, "seconds": seconds }),
        Event::Validated { done, loss, best } => {
            json!({ "event": "validation", "step": done, "loss": loss, "best": best })
        }
        Event::Saved { done } => json!({ "event": "checkpoint", "step": done }),
        Event::StoppedEarly { done } => json!({ "event": "stopped_early", "step": done }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_that_goes_on_writes_its_steps_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log.jsonl");
        let start = |resumed| Event::Start {
            trainable: 1,
            total: 2,
            steps: 4,
            resumed,
        };
        let saved = |done| Event::Saved { done };
        let variant = |name: &str| Some(name.to_owned());
        let mut other = JsonLog::open(&path, variant("b"), 0).unwrap();
        other.write(&saved(9)).unwrap();
        let mut log = JsonLog::open(&path, variant("a"), 0).unwrap();
        for event in [start(0), saved(1), saved(2), saved(3)] {
            log.write(&event).unwrap();
        }
        fs::write(
            &path,
            fs::read_to_string(&path).unwrap() + "{\"step\": 4, \"ev",
        )
        .unwrap();
        let mut log = JsonLog::open(&path, variant("a"), 2).unwrap();
        for event in [start(2), saved(3)] {
            log.write(&event).unwrap();
        }
        let lines: Vec<(String, String, u64)> = fs::read_to_string(&path)
            .unwrap()
            .lines()
            .map(|line| {
                let line: Value = serde_json::from_str(line).unwrap();
                let text = |field: &str| line[field].as_str().unwrap().to_owned();
                (
                    text("variant"),
                    text("event"),
                    line["step"].as_u64().unwrap(),
                )
            })
            .collect();
        let a = |event: &str, step| ("a".to_owned(), event.to_owned(), step);
        let want = [
            ("b".to_owned(), "checkpoint".to_owned(), 9),
            a("start", 0),
            a("checkpoint", 1),
            a("checkpoint", 2),
            a("start", 2),
            a("checkpoint", 3),
        ];
        assert_eq!(lines, want);
    }
}
