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

#[cfg(test)]
mod tests {
    use super::super::fixtures::{PIECES, byte_level, pieces};
    use super::*;

    /// What each push gave, then what `finish` gave.
    fn streamed(tokenizer: &TextTokenizer, ids: &[u32]) -> Vec<Option<String>> {
        let mut stream = tokenizer.stream();
        let mut out: Vec<_> = ids.iter().map(|&id| stream.push(id).unwrap()).collect();
        out.push(stream.finish().unwrap());
        out
    }

    fn check(tokenizer: &TextTokenizer, ids: &[u32]) {
        let joined: String = streamed(tokenizer, ids).into_iter().flatten().collect();
        assert_eq!(joined, tokenizer.decode(ids).unwrap(), "{ids:?}");
    }

    fn bytes(bytes: &[u8]) -> Vec<u32> {
        bytes.iter().map(|&b| 4 + u32::from(b)).collect()
    }

    fn piece(text: &str) -> u32 {
        259 + PIECES.iter().position(|p| *p == text).unwrap() as u32
    }

    #[test]
    fn a_character_leaves_when_its_last_byte_has_come() {
        let text = |s: &str| Some(s.to_owned());
        let out = streamed(&byte_level(), &bytes("aµ🫁".as_bytes()));
        assert_eq!(
            out,
            [
                text("a"),
                None,
                text("µ"),
                None,
                None,
                None,
                text("🫁"),
                None
            ]
        );
    }

    #[test]
    fn a_cut_character_is_flushed_at_the_end() {
        let out = streamed(&byte_level(), &bytes(&"µ".as_bytes()[..1]));
        assert_eq!(out, [None, Some("\u{FFFD}".to_owned())]);
    }

    #[test]
    fn special_tokens_have_no_text() {
        let tokenizer = byte_level();
        let mut ids = bytes(b"ab");
        ids.insert(1, 2);
        assert_eq!(streamed(&tokenizer, &ids)[1], None);
        check(&tokenizer, &ids);
    }

    #[test]
    fn byte_pieces_wait_for_the_end_of_their_run() {
        let tokenizer = pieces();
        // The micro sign is two byte pieces; a third makes the whole run invalid.
        let (run, broken) = ([3 + 0xC2, 3 + 0xB5], [3 + 0xC2, 3 + 0xB5, 3 + 0xC2]);
        let with = |run: &[u32]| [&[piece("▁a")], run, &[piece("b")]].concat();
        assert_eq!(streamed(&tokenizer, &with(&run)).last().unwrap(), &None);
        assert_eq!(tokenizer.decode(&with(&run)).unwrap(), "aµb");
        assert_eq!(
            tokenizer.decode(&with(&broken)).unwrap(),
            "a\u{FFFD}\u{FFFD}\u{FFFD}b"
        );
        for ids in [with(&run), with(&broken), run.to_vec(), broken.to_vec()] {
            check(&tokenizer, &ids);
        }
    }

    /// A small generator of pseudo-random numbers, so that a failure can be repeated.
    fn next(state: &mut u64) -> u64 {
        *state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        *state >> 33
    }

    #[test]
    fn any_tokens_give_the_text_decoded_at_once() {
        let mut state = 7;
        for tokenizer in [byte_level(), pieces()] {
            for round in 0..2000 {
                let length = next(&mut state) % 24;
                let ids: Vec<u32> = (0..length)
                    .map(|_| match (next(&mut state) % 3, round % 2) {
                        (0, _) => next(&mut state) as u32 % tokenizer.vocab_size() as u32,
                        // Bytes that begin or continue a character, or pieces with blanks.
                        (_, 0) => 3 + 0xC0 + next(&mut state) as u32 % 64,
                        _ => tokenizer.vocab_size() as u32 - 1 - next(&mut state) as u32 % 90,
                    })
                    .collect();
                check(&tokenizer, &ids);
            }
        }
    }
}
