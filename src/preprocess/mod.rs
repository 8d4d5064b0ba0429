//! Between a client's bytes and the model's inputs.
//!
//! In go the bytes of a picture and the messages of a conversation; out come a pixel tensor and a
//! row of prompt tokens. Nothing here knows HTTP, the engine, a tensor of the model or an adapter.
//!
//! The way of a picture: [`decode()`] looks at the container's headers (`container`), refuses what is
//! too large before a pixel is unpacked, decodes, turns it upright and makes it RGB as PIL does.
//! [`ClipPreprocess`] then squares, resizes (`resize`), crops and normalises it as the reference's
//! PIL-based processor does, bit for bit up to the last division.
//!
//! The way of a conversation: [`ChatPrompt`] writes the messages as one text, by the base's own chat
//! template (`template`) or by LLaVA-Med's built-in one (`llava_med`), and tokenises it with a
//! [`TextTokenizer`]; each picture becomes as many rows as the model makes of one. On the way back a
//! [`TextStream`] turns tokens into text, one at a time.

mod clip;
mod clip_config;
mod container;
mod decode;
#[cfg(test)]
mod fixtures;
mod llava_med;
mod message;
mod prompt;
mod reserved;
mod resize;
mod special;
mod stream;
mod template;
mod tokenizer;

pub use clip::{ClipPreprocess, PadToSquare, PreprocessError};
pub use container::ImageFormat;
pub use decode::{ImageError, ImageLimits, Picture, View, decode};
pub use message::{ContentPart, Message, Role};
pub use prompt::{ChatPrompt, Prompt, PromptError, PromptToken};
pub use special::SpecialTokens;
pub use stream::TextStream;
pub use tokenizer::{TextTokenizer, TokenizerError};
