//! Checks a request against the model's numbers before it may wait.
//!
//! In: a request and the numbers. Out: the same request, or what is wrong with it, by field. A request
//! that passes cannot make the model refuse a step.

use candle_core::DType;
use thiserror::Error;

use super::request::{Request, RequestImage};
use crate::model::ModelShape;
use crate::preprocess::PromptToken;

/// What the engine's model and limits ask of a request.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// The model's numbers.
    pub shape: ModelShape,
    /// Values of a bank row.
    pub row_len: usize,
    /// Rows (prompt and answer) that one sequence may have.
    pub sequence_limit: usize,
    /// Bank slots that can hold an adapter.
    pub adapter_slots: usize,
}

/// What is wrong with a request.
#[derive(Clone, Debug, PartialEq, Error)]
pub enum InvalidRequest {
    /// A number is out of its range.
    #[error("`{field}` is {got}, it must be {want}")]
    Range {
        /// The request's field.
        field: &'static str,
        /// Its value.
        got: String,
        /// What it must be.
        want: String,
    },
    /// There is nothing to answer.
    #[error("`prompt` is empty")]
    EmptyPrompt,
    /// A token is not in the vocabulary.
    #[error("`prompt[{index}]` is token {token}, the vocabulary has {vocab_size}")]
    Token {
        /// Its place.
        index: usize,
        /// Its number.
        token: u32,
        /// Tokens in the vocabulary.
        vocab_size: usize,
    },
    /// An image row of the prompt does not follow the one before it.
    #[error(
        "`prompt[{index}]` is row {patch} of image {image}; image rows must be complete and in order"
    )]
    ImageRow {
        /// Its place.
        index: usize,
        /// Its image.
        image: u32,
        /// Its row.
        patch: u32,
    },
    /// The prompt has image rows for another number of images.
    #[error("`prompt` has {rows} image rows, {images} images of {each} rows were given")]
    ImageCount {
        /// Image rows in the prompt.
        rows: usize,
        /// Images given.
        images: usize,
        /// Rows of one image.
        each: usize,
    },
    /// An image has another shape or type.
    #[error("`images[{index}]` is {got_type} {got:?}, the model wants f32 {want:?}")]
    Image {
        /// Its place.
        index: usize,
        /// Its type.
        got_type: &'static str,
        /// Its shape.
        got: Vec<usize>,
        /// The shape wanted.
        want: [usize; 3],
    },
    /// An adapter's row has another length.
    #[error("`adapter` has {got} values, the base wants {want}")]
    AdapterRow {
        /// Values given.
        got: usize,
        /// Values wanted.
        want: usize,
    },
    /// The bank has no slot for an adapter.
    #[error("`adapter` is not possible: the bank holds the base alone")]
    NoAdapterSlots,
}

impl InvalidRequest {
    /// The field at fault.
    pub fn field(&self) -> &'static str {
        match self {
            Self::Range { field, .. } => field,
            Self::EmptyPrompt
            | Self::Token { .. }
            | Self::ImageRow { .. }
            | Self::ImageCount { .. } => "prompt",
            Self::Image { .. } => "images",
            Self::AdapterRow { .. } | Self::NoAdapterSlots => "adapter",
        }
    }
}

/// Checks everything but the length. See [`InvalidRequest`].
pub fn check(request: &Request, bounds: &Bounds) -> Result<(), InvalidRequest> {
    check_numbers(request)?;
    check_prompt(request, &bounds.shape)?;
    check_images(request, &bounds.shape)?;
    let Some(adapter) = &request.adapter else {
        return Ok(());
    };
    let (got, want) = (adapter.values.row().len(), bounds.row_len);
    if got != want {
        return Err(InvalidRequest::AdapterRow { got, want });
    }
    if bounds.adapter_slots == 0 {
        return Err(InvalidRequest::NoAdapterSlots);
    }
    Ok(())
}

fn check_numbers(request: &Request) -> Result<(), InvalidRequest> {
    let range = |holds: bool, field, got: &dyn ToString, want: &dyn ToString| {
        let (got, want) = (got.to_string(), want.to_string());
        if holds {
            Ok(())
        } else {
            Err(InvalidRequest::Range { field, got, want })
        }
    };
    let sampling = request.sampling;
    let (temperature, top_p, top_k) = (sampling.temperature, sampling.top_p, sampling.top_k);
    let (least, most) = (request.min_tokens, request.max_tokens);
    range(most > 0, "max_tokens", &most, &"at least 1")?;
    range(
        least <= most,
        "min_tokens",
        &least,
        &format!("at most `max_tokens`, {most}"),
    )?;
    let finite = temperature.is_finite() && temperature >= 0.0;
    range(
        finite,
        "temperature",
        &temperature,
        &"0 or more, and finite",
    )?;
    range(
        top_p > 0.0 && top_p <= 1.0,
        "top_p",
        &top_p,
        &"above 0 and at most 1",
    )?;
    range(top_k != Some(0), "top_k", &0, &"at least 1")?;
    let empty = request.stop.iter().any(String::is_empty);
    range(
        !empty,
        "stop",
        &"an empty text",
        &"a text of one character or more",
    )
}

fn check_prompt(request: &Request, shape: &ModelShape) -> Result<(), InvalidRequest> {
    if request.prompt.is_empty() {
        return Err(InvalidRequest::EmptyPrompt);
    }
    let each = shape.image_tokens;
    let mut rows = 0;
    for (index, token) in request.prompt.iter().enumerate() {
        match *token {
            PromptToken::Text(token) if token as usize >= shape.vocab_size => {
                let vocab_size = shape.vocab_size;
                return Err(InvalidRequest::Token {
                    index,
                    token,
                    vocab_size,
                });
            }
            PromptToken::Text(_) => {}
            PromptToken::Image { image, patch } => {
                let next = (each > 0).then(|| (rows / each, rows % each));
                if next != Some((image as usize, patch as usize)) {
                    return Err(InvalidRequest::ImageRow {
                        index,
                        image,
                        patch,
                    });
                }
                rows += 1;
            }
        }
    }
    let images = request.images.len();
    if rows == images * each {
        Ok(())
    } else {
        Err(InvalidRequest::ImageCount { rows, images, each })
    }
}

fn check_images(request: &Request, shape: &ModelShape) -> Result<(), InvalidRequest> {
    let want = [3, shape.image_size, shape.image_size];
    let wrong = |image: &RequestImage| {
        image.pixels().dims() != want || image.pixels().dtype() != DType::F32
    };
    let Some(index) = request.images.iter().position(wrong) else {
        return Ok(());
    };
    let image = request.images[index].pixels();
    let (got_type, got) = (image.dtype().as_str(), image.dims().to_vec());
    Err(InvalidRequest::Image {
        index,
        got_type,
        got,
        want,
    })
}
