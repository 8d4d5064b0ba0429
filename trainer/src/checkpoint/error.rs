//! What can go wrong with checkpoints.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

/// What can go wrong with checkpoints.
#[derive(Debug, Error)]
pub enum CheckpointError {
    /// The folder or the file cannot be written.
    #[error("cannot write the checkpoint {}: {source}; {}", path.display(), intact(*.last))]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
        /// Steps of the checkpoint that is there.
        last: Option<usize>,
    },
    /// The file cannot be read.
    #[error("cannot read the checkpoint {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file is none of ours.
    #[error("{} is no checkpoint of this run: {problem}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// The file is of another run.
    #[error(
        "{} is a checkpoint of another run: {}. Remove it, or name another folder with --checkpoint",
        path.display(),
        differences.join("; ")
    )]
    OtherRun {
        /// The file.
        path: PathBuf,
        /// What differs, there and here.
        differences: Vec<String>,
    },
    /// Another process has the folder.
    #[error("another run is using the checkpoint folder {}", path.display())]
    InUse {
        /// The folder.
        path: PathBuf,
    },
}

fn intact(last: Option<usize>) -> String {
    match last {
        Some(done) => format!("the last checkpoint, of step {done}, is intact"),
        None => "there is none yet".into(),
    }
}
