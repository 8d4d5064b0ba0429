//! One request on its way through the engine: what is known of its tokens and what its client heard.
//!
//! In: logits of its last row. Out: events to its client, and whether it has ended. It knows no batch,
//! no cache and no other sequence.

use std::hash::{BuildHasher, RandomState};
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use candle_core::Tensor;
use tokio::sync::mpsc::UnboundedSender;

use super::prefix::{PrefixChain, Row};
use super::request::{Event, FinishReason, Finished, Request, RequestError, Timings, TokenEvent};
use super::sampler::{Draw, Logits, NotFinite};
use super::scheduler::{BlockKey, Demand};
use super::text::{AnswerText, Stops};
use crate::model::ops::cpu::with_slices;
use crate::preprocess::{PromptToken, TextTokenizer, TokenizerError};

/// A request on its way to the thread.
#[derive(Debug)]
pub(super) struct Submitted {
    pub request: Request,
    /// Names the prompt's contents, if anything is to be shared.
    pub prefix: Option<PrefixChain>,
    pub events: UnboundedSender<Event>,
    pub at: Instant,
}

/// A sequence's next token.
#[derive(Debug)]
pub(super) struct Chosen {
    /// What its client is to hear.
    pub event: TokenEvent,
    /// Why it is the last, if it is.
    pub end: Option<FinishReason>,
}

/// A request inside the engine.
#[derive(Debug)]
pub(super) struct Sequence {
    pub request: Request,
    /// By image `[image_tokens, hidden]`, once encoded and until the prompt has been read.
    pub features: Vec<Option<Tensor>>,
    prefix: Option<PrefixChain>,
    /// Rows of the prompt that need not be computed; `None` until the first are.
    cached_rows: Option<usize>,
    /// The answer so far.
    tokens: Vec<u32>,
    tokenizer: Arc<TextTokenizer>,
    text: AnswerText,
    seed: u64,
    events: UnboundedSender<Event>,
    submitted: Instant,
    admitted: Option<Instant>,
    last_token: Option<Instant>,
    timings: Timings,
}

impl Sequence {
    pub fn new(submitted: Submitted, tokenizer: &Arc<TextTokenizer>) -> Self {
        let Submitted {
            request,
            prefix,
            events,
            at,
        } = submitted;
        Self {
            features: vec![None; request.images.len()],
            prefix,
            cached_rows: None,
            tokens: Vec::new(),
            text: AnswerText::new(tokenizer.stream(), request.stop.clone()),
            // The standard library's hasher is keyed with the system's randomness.
            seed: request
                .sampling
                .seed
                .unwrap_or_else(|| RandomState::new().hash_one(at)),
            tokenizer: Arc::clone(tokenizer),
            request,
            events,
            submitted: at,
            admitted: None,
            last_token: None,
            timings: Timings::default(),
        }
    }

    /// What the scheduler must know of it.
    pub fn demand(&self) -> Demand {
        let Request {
            tenant,
            adapter,
            prompt,
            images,
            priority,
            ..
        } = &self.request;
        let last_image_row = prompt.iter().rposition(is_image);
        let prefix = self.prefix.as_ref();
        Demand {
            tenant: Arc::clone(tenant),
            prompt_rows: prompt.len(),
            known_rows: prompt.len() + self.tokens.len(),
            images: images.len(),
            images_end: last_image_row.map_or(0, |row| row + 1),
            priority: *priority,
            generation: adapter.as_ref().map(|adapter| adapter.generation),
            keys: prefix.map_or_else(Vec::new, |prefix| prefix.keys().to_vec()),
        }
    }

    /// The input at each of these positions: the prompt, then the answer so far.
    ///
    /// # Panics
    /// When a position is beyond them.
    pub fn inputs(&self, positions: Range<usize>) -> impl Iterator<Item = PromptToken> + '_ {
        let prompt = &self.request.prompt;
        positions.map(|position| match prompt.get(position) {
            Some(token) => *token,
            None => PromptToken::Text(self.tokens[position - prompt.len()]),
        })
    }

    /// The images that these positions need and whose features are not there, in order.
    pub fn lacking_images(&self, positions: Range<usize>) -> Vec<usize> {
        if self.features.iter().all(Option::is_some) {
            return Vec::new();
        }
        let mut images: Vec<usize> = self
            .inputs(positions)
            .filter_map(|input| match input {
                PromptToken::Image { image, .. } => Some(image as usize),
                PromptToken::Text(_) => None,
            })
            .filter(|image| self.features[*image].is_none())
            .collect();
        images.dedup();
        images
    }

    /// These positions have been computed.
    pub fn computed(&mut self, positions: &Range<usize>) {
        self.cached_rows.get_or_insert(positions.start);
        if positions.end >= self.request.prompt.len() {
            self.forget_features();
        }
    }

    /// Lets go of image features, which can be had again.
    pub fn forget_features(&mut self) {
        self.features.fill(None);
    }

    /// Whether its client has gone or its time is over.
    pub fn interrupted(&self, now: Instant) -> Option<FinishReason> {
        if self.events.is_closed() {
            Some(FinishReason::Cancelled)
        } else if self
            .request
            .deadline
            .is_some_and(|deadline| deadline <= now)
        {
            Some(FinishReason::Deadline)
        } else {
            None
        }
    }

    /// Runs from now on, for the first time or again.
    pub fn admit(&mut self, now: Instant) {
        self.admitted.get_or_insert(now);
    }

    /// Whether no token has been given out yet.
    pub fn is_fresh(&self) -> bool {
        self.tokens.is_empty()
    }

    /// The key of the block that the last token completes.
    pub fn name_last_token(&mut self) -> Option<BlockKey> {
        let token = *self.tokens.last()?;
        self.prefix.as_mut()?.push(Row::Token(token))
    }

    /// Chooses the next token of a row of logits.
    pub fn choose(&mut self, row: &Tensor) -> Result<Chosen, RequestError> {
        let chosen = with_slices([row], |[row]| Ok(self.choose_of(row)));
        chosen.map_err(|error| RequestError::Model {
            message: error.to_string(),
        })?
    }

    /// Tells the client a token.
    pub fn tell(&self, event: TokenEvent) {
        // Without a listener the next sweep ends the sequence.
        let _ = self.events.send(Event::Token(event));
    }

    fn choose_of(&mut self, logits: &[f32]) -> Result<Chosen, RequestError> {
        let logits = Logits::new(logits)?;
        let index = self.tokens.len();
        let may_end = index >= self.request.min_tokens;
        let eos = self.tokenizer.eos_ids();
        let forbidden = if self.request.ignore_eos || !may_end {
            eos
        } else {
            &[]
        };
        let draw = Draw {
            seed: self.seed,
            index: index as u64,
        };
        let token = logits.choose(&self.request.sampling, forbidden, draw)?;
        let end_of_text = eos.contains(&token);
        self.tokens.push(token);

        let stops = if may_end { Stops::Watch } else { Stops::Ignore };
        let full = self.tokens.len() == self.request.max_tokens;
        let (text, end) = self.text_after(token, end_of_text, (stops, full))?;
        self.note_time(Instant::now());
        let event = TokenEvent {
            token,
            text,
            end_of_text,
            logprob: logits.token(token).logprob,
            top: if self.request.top_logits == 0 {
                Vec::new()
            } else {
                logits.top(self.request.top_logits)
            },
        };
        Ok(Chosen { event, end })
    }

    fn text_after(
        &mut self,
        token: u32,
        end_of_text: bool,
        (stops, full): (Stops, bool),
    ) -> Result<(String, Option<FinishReason>), RequestError> {
        let mut text = String::new();
        if !end_of_text {
            let piece = self.text.push(token, stops)?;
            text = piece.text;
            if piece.stopped {
                return Ok((text, Some(FinishReason::Stop)));
            }
        }
        if !end_of_text && !full {
            return Ok((text, None));
        }
        let rest = self.text.finish()?;
        let by_stop = end_of_text || rest.stopped;
        let reason = if by_stop {
            FinishReason::Stop
        } else {
            FinishReason::Length
        };
        Ok((text + &rest.text, Some(reason)))
    }

    fn note_time(&mut self, now: Instant) {
        match self.last_token.replace(now) {
            None => self.timings.first_token = Some(now - self.submitted),
            Some(before) => self.timings.inter_token.push(now - before),
        }
    }

    /// Tells the client that the answer is complete or cut.
    pub fn finish(mut self, reason: FinishReason) {
        let now = Instant::now();
        self.timings.queue = self.admitted.unwrap_or(now) - self.submitted;
        self.timings.total = now - self.submitted;
        let finished = Finished {
            reason,
            prompt_tokens: self.request.prompt.len(),
            cached_tokens: self.cached_rows.unwrap_or(0),
            completion_tokens: self.tokens.len(),
            timings: self.timings,
        };
        // A client that has gone need not hear it.
        let _ = self.events.send(Event::Finished(finished));
    }

    /// Tells the client that the request failed.
    pub fn fail(self, error: RequestError) {
        let _ = self.events.send(Event::Failed(error));
    }
}

fn is_image(row: &PromptToken) -> bool {
    matches!(row, PromptToken::Image { .. })
}

impl From<NotFinite> for RequestError {
    fn from(_: NotFinite) -> Self {
        Self::Logits
    }
}

impl From<TokenizerError> for RequestError {
    fn from(error: TokenizerError) -> Self {
        Self::Text {
            message: error.to_string(),
        }
    }
}
