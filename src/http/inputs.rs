//! One base's way from messages and image files to the model's inputs.
//!
//! In: a base's folder, then a conversation with the bytes of its images. Out: prompt tokens and pixels.
//! All of it takes processor time, so callers are on a blocking thread.

use std::path::Path;
use std::sync::Arc;

use image::RgbImage;
use thiserror::Error;

use super::error::ApiError;
use crate::base::{Base, Flavour};
use crate::engine::RequestImage;
use crate::preprocess::{
    ChatPrompt, ClipPreprocess, ImageLimits, Message, PadToSquare, PreprocessError, PromptError,
    PromptToken, TextTokenizer, TokenizerError, View, decode,
};

/// Why a folder's own way in cannot be used.
#[derive(Debug, Error)]
pub enum InputsError {
    /// No tokenizer.
    #[error("the base's tokenizer cannot be used")]
    Tokenizer(#[from] TokenizerError),
    /// No preprocessing of images.
    #[error("the base's image preprocessing cannot be used")]
    Preprocess(#[from] PreprocessError),
    /// No chat template.
    #[error("the base's chat template cannot be used")]
    Prompt(#[from] PromptError),
    /// Preprocessing and tower disagree.
    #[error(
        "the image preprocessing makes images of {got} pixels a side, the vision tower wants {want}"
    )]
    ImageSize {
        /// The preprocessing's.
        got: usize,
        /// The tower's.
        want: usize,
    },
}

/// See the module.
#[derive(Debug)]
pub struct Inputs {
    preprocess: ClipPreprocess,
    tokenizer: Arc<TextTokenizer>,
    prompt: ChatPrompt,
    image_tokens: usize,
    limits: ImageLimits,
}

/// Folders and files that override the base's own.
#[derive(Clone, Copy, Debug, Default)]
pub struct InputFiles<'a> {
    /// Another `tokenizer.json`.
    pub tokenizer: Option<&'a Path>,
    /// The vision tower's folder, for an original LLaVA; its `preprocessor_config.json` is used.
    pub vision: Option<&'a Path>,
}

impl Inputs {
    /// Reads what the base's kind of folder has.
    pub fn open(base: &Base, files: InputFiles, limits: ImageLimits) -> Result<Self, InputsError> {
        let folder = base.folder();
        let tokenizer = TextTokenizer::from_folder(folder, files.tokenizer)?;
        let (preprocess, tokenizer, prompt) = match base.flavour() {
            Flavour::HuggingFace { image_token } => (
                ClipPreprocess::from_folder(folder)?,
                tokenizer.with_image_token(*image_token)?,
                ChatPrompt::from_folder(folder)?,
            ),
            Flavour::Original {
                vision_tower,
                pad_to_square,
                mistral,
            } => {
                let clip = match files.vision {
                    Some(vision) => ClipPreprocess::from_folder(vision)?,
                    None => ClipPreprocess::builtin(vision_tower)?,
                };
                let pad = if *pad_to_square {
                    PadToSquare::MeanColour
                } else {
                    PadToSquare::None
                };
                // A template that somebody put beside the weights is meant to be used.
                let prompt = match ChatPrompt::from_folder(folder) {
                    Err(PromptError::NoTemplate { .. }) if *mistral => ChatPrompt::llava_med(),
                    other => other?,
                };
                (clip.with_pad(pad), tokenizer, prompt)
            }
        };
        let shape = base.outline().shape;
        let (got, want) = (preprocess.image_size() as usize, shape.image_size);
        if got != want {
            return Err(InputsError::ImageSize { got, want });
        }
        let (tokenizer, image_tokens) = (Arc::new(tokenizer), shape.image_tokens);
        Ok(Self {
            preprocess,
            tokenizer,
            prompt,
            image_tokens,
            limits,
        })
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &Arc<TextTokenizer> {
        &self.tokenizer
    }

    /// What an image file may be.
    pub fn limits(&self) -> &ImageLimits {
        &self.limits
    }

    /// What the model sees of an image file.
    pub fn image(&self, file: &[u8]) -> Result<RequestImage, ApiError> {
        self.seen(&decode(file, &self.limits)?)
    }

    /// What the model sees of an image that never was a file.
    pub fn image_of(&self, image: &RgbImage) -> Result<RequestImage, ApiError> {
        self.seen(image)
    }

    fn seen<'a>(&self, image: impl Into<View<'a>>) -> Result<RequestImage, ApiError> {
        let pixels = self.preprocess.pixels(image)?;
        RequestImage::new(pixels).map_err(|error| ApiError::internal(&error))
    }

    /// The prompt of a conversation.
    pub fn prompt(&self, messages: &[Message]) -> Result<Vec<PromptToken>, ApiError> {
        Ok(self
            .prompt
            .prepare(&self.tokenizer, messages, self.image_tokens)?
            .tokens)
    }

    /// The text of one token alone; what it adds to an answer may differ.
    pub fn token_text(&self, token: u32) -> String {
        self.tokenizer
            .inner()
            .decode(&[token], false)
            .unwrap_or_default()
    }
}
