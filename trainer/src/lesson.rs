//! From phantom examples to what a model is taught: pixels and token rows.
//!
//! In: an example of the phantom world. Out: a [`Lesson`], the same as the server's preprocessing and
//! chat template make of the same picture and question. It must not know losses or a model's weights.

use anyhow::Result;
use candle_core::{Device, Tensor};
use norma::model::step::RowInput;
use norma::preprocess::ClipPreprocess;
use serde_json::{Value, json};

use crate::batch::{Branch, Dialogue};
use crate::phantom::draw::{PATCH, SIDE};
use crate::phantom::tokenizer::{EOS, PROMPT_HEAD, PROMPT_TAIL, encode};
use crate::phantom::{Example, Turn};

/// One picture and all that is asked about it.
#[derive(Clone, Debug)]
pub struct Lesson {
    /// `[3, size, size]`, normalised.
    pub pixels: Vec<f32>,
    /// Questions and answers.
    pub dialogue: Dialogue,
}

/// Rows that a film gives to the decoder.
pub const FILM_ROWS: usize = (SIDE / PATCH) * (SIDE / PATCH);

/// The image processor of the phantom base, as transformers writes it.
pub fn processor_values() -> Value {
    let size = SIDE as u32;
    json!({
        "do_convert_rgb": true,
        "do_resize": true, "size": { "shortest_edge": size }, "resample": 3,
        "do_center_crop": true, "crop_size": { "height": size, "width": size },
        "do_rescale": true, "rescale_factor": 1.0 / 255.0,
        "do_normalize": true, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.25, 0.25, 0.25],
    })
}

/// Makes lessons of examples.
pub struct Teacher {
    preprocess: ClipPreprocess,
    prefix: Vec<RowInput>,
}

impl Teacher {
    /// For the phantom base's processor and tokenizer.
    pub fn new() -> Result<Self> {
        let head = encode(PROMPT_HEAD)?;
        let (_, before) = head.split_last().expect("the head ends with the image");
        let rows = (0..FILM_ROWS as u32).map(RowInput::Feature);
        let prefix = before
            .iter()
            .map(|id| RowInput::Token(*id))
            .chain(rows)
            .collect();
        Ok(Self {
            preprocess: ClipPreprocess::from_json(&processor_values())?,
            prefix,
        })
    }

    /// The lesson of an example.
    pub fn lesson(&self, example: &Example) -> Result<Lesson> {
        let film = example.film().to_rgb();
        let pixels = self
            .preprocess
            .pixels(&film)?
            .flatten_all()?
            .to_vec1::<f32>()?;
        let branches = example.turns.iter().map(branch).collect::<Result<_>>()?;
        Ok(Lesson {
            pixels,
            dialogue: Dialogue {
                prefix: self.prefix.clone(),
                branches,
            },
        })
    }
}

fn branch(turn: &Turn) -> Result<Branch> {
    let prompt = encode(&format!("{} {PROMPT_TAIL}", turn.question))?;
    let mut answer = encode(&turn.answer)?;
    answer.push(EOS);
    Ok(Branch { prompt, answer })
}

/// The pixels of lessons, `[n, 3, size, size]`.
pub fn pixels<'a>(
    lessons: impl ExactSizeIterator<Item = &'a Lesson>,
    size: usize,
    device: &Device,
) -> Result<Tensor> {
    let n = lessons.len();
    let pixels: Vec<f32> = lessons
        .flat_map(|lesson| lesson.pixels.iter().copied())
        .collect();
    Ok(Tensor::from_vec(pixels, (n, 3, size, size), device)?)
}
