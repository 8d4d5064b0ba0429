//! Who answers: an engine in this process, or a server somewhere else. Both take the same requests and give
//! the same times, so that a load does not know which it is.

use std::time::{Duration, Instant};

use futures_util::future::try_join_all;

use super::local::Local;
use super::remote::Remote;

/// One request. Its answer is greedy, has exactly `tokens` tokens, and is asked of `model`: the base's name
/// or an alias.
#[derive(Clone, Debug)]
pub struct Ask {
    /// Who is to answer.
    pub model: String,
    /// What is asked.
    pub prompt: Prompt,
    /// Tokens of the answer.
    pub tokens: usize,
}

/// A prompt that no cache has seen, as long as its seed is new.
#[derive(Clone, Debug)]
pub enum Prompt {
    /// Words alone, about so many rows; in this process exactly so many.
    Words {
        /// Rows.
        rows: usize,
        /// Which words.
        seed: u64,
    },
    /// An image and a question about it.
    Film {
        /// Which image.
        seed: u64,
        /// The question.
        question: &'static str,
    },
}

/// When the tokens of an answer came.
#[derive(Clone, Debug)]
pub struct Timed {
    /// When the request was made.
    pub begun: Instant,
    /// When each piece of the answer came.
    pub pieces: Vec<Instant>,
    /// Tokens of the answer, as the other side counts them.
    pub tokens: usize,
    /// Rows of the prompt.
    pub prompt_rows: usize,
}

impl Timed {
    /// From the request to the first piece.
    pub fn first(&self) -> Duration {
        self.pieces
            .first()
            .map_or(Duration::ZERO, |at| *at - self.begun)
    }

    /// From each piece to the next, seconds.
    pub fn gaps(&self) -> impl Iterator<Item = f64> + '_ {
        self.pieces
            .windows(2)
            .map(|pair| (pair[1] - pair[0]).as_secs_f64())
    }
}

/// See the module.
#[derive(Clone)]
pub enum Target {
    /// In this process, past HTTP.
    Local(Local),
    /// Over HTTP.
    Remote(Remote),
}

impl Target {
    /// Asks and waits for the whole answer.
    pub async fn ask(&self, ask: Ask) -> anyhow::Result<Timed> {
        match self {
            Self::Local(local) => local.ask(ask).await,
            Self::Remote(remote) => remote.ask(ask).await,
        }
    }

    /// Asks all at once and waits for all answers. In this process whatever must be looked up or read has
    /// been before the first is asked, so that they come as close together as they can.
    pub async fn ask_all(&self, asks: Vec<Ask>) -> anyhow::Result<Vec<Timed>> {
        match self {
            Self::Local(local) => local.ask_all(asks).await,
            Self::Remote(remote) => try_join_all(asks.into_iter().map(|ask| remote.ask(ask))).await,
        }
    }

    /// The base's name.
    pub fn base(&self) -> &str {
        match self {
            Self::Local(_) => Local::NAME,
            Self::Remote(remote) => remote.base(),
        }
    }
}
