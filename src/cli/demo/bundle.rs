//! What the program carries: the phantom base, its adapters, a few films and what is true of them.
//!
//! Everything was made by `norma-train` (see `trainer/README.md`) and lies in `deploy/phantom`.

use std::path::Path;

use anyhow::Context;
use include_dir::{Dir, include_dir};
use serde::Deserialize;

static PHANTOM: Dir = include_dir!("$CARGO_MANIFEST_DIR/deploy/phantom");

/// The contents, as the demo uses them.
pub struct Bundle {
    /// In the order in which they are shown; the last is published while answers stream.
    pub adapters: Vec<Adapter>,
    /// Questions about films, with their answers.
    pub cases: Vec<Case>,
    /// What the base was taught to answer with a report.
    pub report_prompt: String,
}

/// An adapter file.
pub struct Adapter {
    /// The name that it is published under.
    pub alias: String,
    /// What it does, in a few words.
    pub about: String,
    /// The file.
    pub bytes: &'static [u8],
}

/// One question about one film.
#[derive(Debug, Deserialize)]
pub struct Case {
    /// The adapter that was made for it.
    pub alias: String,
    /// The film's file in `films/`.
    pub film: String,
    /// What is asked.
    pub question: String,
    /// What is true.
    pub truth: String,
    /// Whether the answer is a report.
    pub report: bool,
}

#[derive(Deserialize)]
struct Contents {
    report_prompt: String,
    adapters: Vec<Entry>,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Entry {
    alias: String,
    about: String,
}

impl Bundle {
    /// Reads the embedded table of contents, `demo.json`.
    pub fn open() -> anyhow::Result<Self> {
        let contents: Contents =
            serde_json::from_slice(file("demo.json")?).context("demo.json is broken")?;
        let adapters = contents.adapters.into_iter().map(|Entry { alias, about }| {
            let bytes = file(&format!("adapters/{alias}.safetensors"))?;
            Ok(Adapter {
                alias,
                about,
                bytes,
            })
        });
        Ok(Self {
            adapters: adapters.collect::<anyhow::Result<_>>()?,
            cases: contents.cases,
            report_prompt: contents.report_prompt,
        })
    }
}

/// A film's PNG.
pub fn film(name: &str) -> anyhow::Result<&'static [u8]> {
    file(&format!("films/{name}"))
}

/// Writes the base's files to a folder.
pub fn unpack_base(folder: &Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(folder).context("the base's folder could not be made")?;
    let base = PHANTOM
        .get_dir("base")
        .context("the program carries no base")?;
    for file in base.files() {
        let name = file.path().file_name().context("a file without a name")?;
        std::fs::write(folder.join(name), file.contents())
            .with_context(|| format!("{} could not be written", name.display()))?;
    }
    Ok(())
}

fn file(path: &str) -> anyhow::Result<&'static [u8]> {
    let file = PHANTOM
        .get_file(path)
        .with_context(|| format!("the program carries no {path}"))?;
    Ok(file.contents())
}
