//! `norma-train inspect`: what a data set holds, as a table or as JSON, and a contact sheet.

use std::io::{ErrorKind, Write};
use std::path::PathBuf;

use anyhow::{Context, Result};
use norma::preprocess::TextTokenizer;
use norma_trainer::data::inspect;
use norma_trainer::data::source::Source;

use crate::set_options::{Reading, Set};

/// Arguments of `inspect`.
#[derive(clap::Args)]
pub struct Inspect {
    /// A data set: its folder, or FORMAT:FOLDER to name the layout (slake, vqa-rad, data-rad, path-vqa,
    /// r2gen, openi, mimic-cxr, roco, parquet, jsonl).
    #[arg(value_name = "DATA")]
    data: Source,
    #[command(flatten)]
    reading: Reading,
    /// A base's folder, to count lengths in its tokens too.
    #[arg(long)]
    base: Option<PathBuf>,
    /// Print JSON in place of a table.
    #[arg(long)]
    json: bool,
    /// Do not decode images: no digest, no faulty images, no images found twice.
    #[arg(long, conflicts_with = "contact_sheet")]
    no_images: bool,
    /// Write a PNG of some of the images. It shows them: it may go only where the set may.
    #[arg(long, value_name = "FILE")]
    contact_sheet: Option<PathBuf>,
    /// Images on the contact sheet.
    #[arg(long, default_value_t = 48)]
    sheet_images: usize,
}

/// Reads a set and says what is in it.
pub fn inspect(arguments: &Inspect) -> Result<()> {
    let from = Set::new(arguments.data.clone(), arguments.reading.clone());
    let (set, facts) = if arguments.no_images {
        (from.read()?, None)
    } else {
        let (set, facts) = from.read_images()?;
        (set, Some(facts))
    };
    let tokenizer = match &arguments.base {
        Some(folder) => Some(TextTokenizer::from_folder(folder, None)?),
        None => None,
    };
    // A text that cannot be encoded has no length; none such is known.
    let count = |text: &str| match &tokenizer {
        Some(tokenizer) => tokenizer.encode(text, false).map_or(0, |ids| ids.len()),
        None => 0,
    };
    let count: Option<inspect::CountTokens> = tokenizer.is_some().then_some(&count);
    let mut found = inspect::inspect(&set, facts.as_ref(), count);
    found.card_licence = inspect::card_licence(&arguments.data.path);
    let text = if arguments.json {
        format!("{}\n", serde_json::to_string_pretty(&found)?)
    } else {
        found.to_string()
    };
    match std::io::stdout().write_all(text.as_bytes()) {
        // Whoever reads has seen enough, as `head` has.
        Err(error) if error.kind() == ErrorKind::BrokenPipe => {}
        written => written?,
    }
    if let Some(path) = &arguments.contact_sheet {
        let sheet = inspect::contact_sheet(&set, arguments.sheet_images);
        let saved = sheet.save_with_format(path, image::ImageFormat::Png);
        saved.with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}
