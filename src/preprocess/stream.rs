//! Turns an answer's tokens into text as they come.
//! One token id at a time enters; text leaves as soon as it can no longer change. It must not know
//! stop strings or who listens.

use super::tokenizer::{TextTokenizer, TokenizerError};

const REPLACEMENT: char = '\u{FFFD}';

/// An answer's text, token by token. What [`push`](Self::push) and [`finish`](Self::finish) gave,
/// put together, is the text of all tokens decoded at once.
///
/// A push decodes just the last few tokens: a decoder may treat a token by what stands before it
/// (the blank of a first word), so the window keeps the tokens of the last text given out, and what
/// the window adds to their text is new.
#[derive(Debug, Clone)]
pub struct TextStream {
    tokenizer: TextTokenizer,
    window: Vec<u32>,
    /// Tokens of the window whose text has wholly been given out.
    settled: usize,
    /// Bytes of the window's text that have been given out.
    sent: usize,
}

impl TextStream {
    pub(super) fn new(tokenizer: TextTokenizer) -> Self {
        Self {
            tokenizer,
            window: Vec::new(),
            settled: 0,
            sent: 0,
        }
    }

    /// Takes one token; gives the text that is now certain, if any. Special tokens have none.
    pub fn push(&mut self, id: u32) -> Result<Option<String>, TokenizerError> {
        if self.tokenizer.is_special(id) {
            return Ok(None);
        }
        self.window.push(id);
        if self.is_byte(id) {
            // A run of byte pieces is decoded as a whole, and one bad byte spoils all of it.
            return Ok(None);
        }
        let text = self.tokenizer.decode(&self.window)?;
        // A replacement character at the end may be the beginning of a longer character.
        let certain = text.strip_suffix(REPLACEMENT).unwrap_or(&text);
        let new = self.unsent(certain);
        self.sent += new.as_ref().map_or(0, String::len);
        if certain.len() == text.len() && new.is_some() {
            self.slide()?;
        }
        Ok(new)
    }

    /// What is still held back, once no token follows.
    pub fn finish(&mut self) -> Result<Option<String>, TokenizerError> {
        let text = self.tokenizer.decode(&self.window)?;
        let new = self.unsent(&text);
        self.window.clear();
        (self.settled, self.sent) = (0, 0);
        Ok(new)
    }

    fn unsent(&self, text: &str) -> Option<String> {
        text.get(self.sent..)
            .filter(|new| !new.is_empty())
            .map(str::to_owned)
    }

    /// Forgets the tokens before those whose text was given out last.
    fn slide(&mut self) -> Result<(), TokenizerError> {
        self.window.drain(..self.settled);
        self.settled = self.window.len();
        self.sent = self.tokenizer.decode(&self.window)?.len();
        Ok(())
    }

    fn is_byte(&self, id: u32) -> bool {
        let piece = self.tokenizer.inner().id_to_token(id);
        piece.is_some_and(|p| p.len() == 6 && p.starts_with("<0x") && p.ends_with('>'))
    }
}
