//! The images that are asked about: drawn, of nobody, a new one for every seed.

use std::io::Cursor;

use anyhow::Context;
use image::ImageFormat;
use norma::probe;

/// Pixels of a side: little enough that decoding is nothing beside the model.
const SIDE: u32 = 256;

/// A PNG.
pub fn png(seed: u64) -> anyhow::Result<Vec<u8>> {
    let mut file = Cursor::new(Vec::new());
    probe::image(seed, SIDE)
        .write_to(&mut file, ImageFormat::Png)
        .context("an image could not be written")?;
    Ok(file.into_inner())
}
