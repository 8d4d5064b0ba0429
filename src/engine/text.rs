//! The text of an answer as it grows, without the stop strings.
//!
//! In: tokens. Out: text that can no longer change: whole UTF-8 characters that are not the beginning
//! of a stop string. It knows no request but its stop strings.

use crate::preprocess::{TextStream, TokenizerError};

/// Text that became certain.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Piece {
    /// It, without a stop string.
    pub text: String,
    /// Whether a stop string was completed: the answer ends with this text.
    pub stopped: bool,
}

/// One answer's text.
#[derive(Debug)]
pub struct AnswerText {
    stream: TextStream,
    stops: StopFilter,
}

impl AnswerText {
    /// `stop`: texts of one character or more.
    pub fn new(stream: TextStream, stop: Vec<String>) -> Self {
        Self {
            stream,
            stops: StopFilter::new(stop),
        }
    }

    /// Takes a token. With `Stops::Ignore` its text is passed on unread.
    pub fn push(&mut self, token: u32, stops: Stops) -> Result<Piece, TokenizerError> {
        let Some(text) = self.stream.push(token)? else {
            return Ok(Piece::default());
        };
        Ok(self.stops.push(&text, stops))
    }

    /// What was held back, once no token follows.
    pub fn finish(&mut self) -> Result<Piece, TokenizerError> {
        let text = self.stream.finish()?.unwrap_or_default();
        let mut piece = self.stops.push(&text, Stops::Watch);
        if !piece.stopped {
            piece.text.push_str(&std::mem::take(&mut self.stops.held));
        }
        Ok(piece)
    }
}

/// What to do about stop strings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stops {
    /// Look for them.
    Watch,
    /// The answer is too short to be ended.
    Ignore,
}

/// Finds stop strings in pieces of text. The result does not depend on how the text is cut.
#[derive(Debug)]
struct StopFilter {
    stops: Vec<String>,
    /// The longest end of the text so far that a stop string begins with.
    held: String,
}

impl StopFilter {
    fn new(stops: Vec<String>) -> Self {
        Self {
            stops,
            held: String::new(),
        }
    }

    fn push(&mut self, text: &str, stops: Stops) -> Piece {
        let mut text = std::mem::take(&mut self.held) + text;
        if stops == Stops::Ignore {
            return Piece {
                text,
                stopped: false,
            };
        }
        // The one that ends first, as if the text came by characters; the longest of those.
        let found = self
            .stops
            .iter()
            .filter_map(|stop| Some((text.find(stop)?, stop.len())));
        if let Some((start, _)) = found.min_by_key(|(start, len)| (start + len, *start)) {
            text.truncate(start);
            return Piece {
                text,
                stopped: true,
            };
        }
        let begins = |held: &str| self.stops.iter().any(|stop| stop.starts_with(held));
        let start = text
            .char_indices()
            .map(|(start, _)| start)
            .find(|start| begins(&text[*start..]));
        if let Some(start) = start {
            self.held = text.split_off(start);
        }
        Piece {
            text,
            stopped: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// All the text of some pieces, and whether it ended by a stop string.
    fn filter(stops: &[&str], pieces: &[&str]) -> (Vec<String>, bool) {
        let mut filter = StopFilter::new(stops.iter().map(ToString::to_string).collect());
        let mut out = Vec::new();
        for text in pieces {
            let piece = filter.push(text, Stops::Watch);
            out.push(piece.text);
            if piece.stopped {
                return (out, true);
            }
        }
        out.push(filter.held);
        (out, false)
    }

    #[test]
    fn what_may_begin_a_stop_string_is_held_back() {
        assert_eq!(
            filter(&["\n\n"], &["a\n", "b\n", "\nc"]),
            (vec!["a".into(), "\nb".into(), String::new()], true)
        );
        assert_eq!(
            filter(&["END"], &["xE", "NE", "ND"]),
            (vec!["x".into(), "EN".into(), String::new()], true)
        );
        assert_eq!(
            filter(&["END"], &["xE", "N"]),
            (vec!["x".into(), String::new(), "EN".into()], false)
        );
    }

    #[test]
    fn the_stop_string_that_ends_first_wins_and_the_longest_of_equals() {
        assert_eq!(filter(&["abcd", "bc"], &["abcd"]), (vec!["a".into()], true));
        assert_eq!(filter(&["c", "abc"], &["xabc"]), (vec!["x".into()], true));
    }

    #[test]
    fn ignored_text_is_passed_on_and_forgotten() {
        let mut filter = StopFilter::new(vec!["ab".into()]);
        let passed = |text: &str| Piece {
            text: text.into(),
            stopped: false,
        };
        assert_eq!(filter.push("ab a", Stops::Ignore), passed("ab a"));
        assert_eq!(filter.push("b", Stops::Watch), passed("b"));
        assert_eq!(filter.push("a", Stops::Watch), passed(""));
        assert_eq!(
            filter.push("b", Stops::Watch),
            Piece {
                text: String::new(),
                stopped: true
            }
        );
    }

    proptest! {
        #[test]
        fn the_text_does_not_depend_on_how_it_is_cut(
            text in "[abé]{0,24}",
            stops in prop::collection::vec("[abé]{1,4}", 0..4),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..6),
        ) {
            let chars: Vec<char> = text.chars().collect();
            let mut places: Vec<usize> = cuts.iter().map(|cut| cut.index(chars.len() + 1)).collect();
            places.extend([0, chars.len()]);
            places.sort_unstable();
            let pieces: Vec<String> =
                places.windows(2).map(|w| chars[w[0]..w[1]].iter().collect()).collect();
            let pieces: Vec<&str> = pieces.iter().map(String::as_str).collect();
            let stops: Vec<&str> = stops.iter().map(String::as_str).collect();

            let (out, stopped) = filter(&stops, &pieces);
            let ends = |stop: &&str| text.find(*stop).map(|at| (at + stop.len(), at));
            match stops.iter().filter_map(ends).min() {
                None => prop_assert_eq!((out.concat(), stopped), (text, false)),
                Some((_, at)) => prop_assert_eq!((out.concat(), stopped), (text[..at].to_owned(), true)),
            }
        }
    }
}
