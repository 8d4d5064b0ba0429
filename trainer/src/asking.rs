//! Questions to a base through the serving engine: what is measured is what a server would answer.
//!
//! In: a loaded model and what goes around it, then pictures and questions. Out: greedy answers with the
//! likeliest tokens behind each token, many questions at once, the adapter in a slot of the bank. It must
//! not know what is asked, nor what is right.

use std::collections::VecDeque;
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use candle_core::{DType, Tensor};
use norma::confidence;
use norma::engine::{
    Answer, Engine, EngineConfig, EngineHandle, Event, Request, RequestAdapter, RequestImage,
    TopToken,
};
use norma::model::kv_cache::KvType;
use norma::model::{MedVlm, ModelShape};
use norma::preprocess::{ContentPart, Message, PromptToken, View};
use norma_adapters::{AdapterValues, Digest, Generation, Scope};

use crate::adapter::Surroundings;
use crate::frozen::FrozenBase;

/// An answer to a question, at most so long: what the server's `/v1/vqa` allows.
pub const ANSWER_TOKENS: usize = 64;
/// A report, at most so long: what the server's `/v1/report` allows.
pub const REPORT_TOKENS: usize = 512;

/// Questions that are under way at once: enough to keep every step of the engine full.
const UNDER_WAY: usize = 64;
/// Images encoded before one step. No client waits meanwhile.
const STEP_IMAGES: usize = 8;
/// Rows of the KV cache for each running sequence beyond the image's.
const TEXT_ROWS: usize = 192;

/// A base behind an engine, until it is dropped.
pub struct Asker<'a> {
    engine: EngineHandle,
    around: &'a Surroundings,
    shape: ModelShape,
}

/// One question.
#[derive(Clone, Debug)]
pub struct Question {
    prompt: Vec<PromptToken>,
    images: Vec<RequestImage>,
    /// Tokens of the answer, at most; fewer where the sequence has no room.
    max_tokens: usize,
}

/// One answer.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Said {
    /// Its text, without blanks around it, as the server gives it.
    pub text: String,
    /// Its tokens, the ending one included.
    pub tokens: Vec<u32>,
    /// For every token the likeliest ones, best first, as many as were asked for.
    pub top: Vec<Vec<TopToken>>,
}

impl Said {
    /// The likeliest tokens' log probabilities at each token, as [`confidence::of_greedy`] takes them.
    pub fn steps(&self) -> Vec<Vec<f32>> {
        let logprobs = |top: &Vec<TopToken>| top.iter().map(|one| one.logprob).collect();
        self.top.iter().map(logprobs).collect()
    }

    /// How sure the model was, at a temperature, as the server says it.
    pub fn confidence(&self, temperature: f32) -> f32 {
        let steps = self.steps();
        confidence::of_greedy(steps.iter().map(Vec::as_slice), temperature)
    }
}

impl<'a> Asker<'a> {
    /// Starts an engine on a model. `base_row`: the base's own norm values.
    pub fn start(
        model: Box<dyn MedVlm>,
        base_row: Vec<f32>,
        around: &'a Surroundings,
        kv_type: KvType,
    ) -> Result<Self> {
        let shape = *model.shape();
        let config = engine_config(&shape, kv_type);
        let tokenizer = Arc::new(around.tokenizer.clone());
        let engine = Engine::start(model, base_row, tokenizer, config)?;
        Ok(Self {
            engine,
            around,
            shape,
        })
    }

    /// An engine on a base in memory, which is shared with it.
    pub fn of(base: &FrozenBase, around: &'a Surroundings, kv_type: KvType) -> Result<Self> {
        let model = Box::new(Arc::clone(&base.model));
        Self::start(model, base.row.clone(), around, kv_type)
    }

    /// A picture as the model sees it.
    pub fn image<'p>(&self, picture: impl Into<View<'p>>) -> Result<RequestImage> {
        Ok(RequestImage::new(self.around.preprocess.pixels(picture)?)?)
    }

    /// A square of the preprocessing's mean colour: nothing to see.
    pub fn blank(&self) -> Result<RequestImage> {
        let side = self.shape.image_size;
        let device = &candle_core::Device::Cpu;
        Ok(RequestImage::new(Tensor::zeros(
            (3, side, side),
            DType::F32,
            device,
        )?)?)
    }

    /// A question about images, which stand before the text, through the base's chat template.
    pub fn question(
        &self,
        images: Vec<RequestImage>,
        text: &str,
        max_tokens: usize,
    ) -> Result<Question> {
        let mut content = vec![ContentPart::Image; images.len()];
        content.push(ContentPart::Text(text.into()));
        let Surroundings {
            chat, tokenizer, ..
        } = self.around;
        let messages = [Message::user(content)];
        let prompt = chat.prepare(tokenizer, &messages, self.shape.image_tokens)?;
        let limit = self.engine.sequence_limit();
        let room = limit.saturating_sub(prompt.tokens.len());
        ensure!(
            room > 0,
            "{} rows of a prompt leave no room for an answer in {limit}",
            prompt.tokens.len()
        );
        Ok(Question {
            prompt: prompt.tokens,
            images,
            max_tokens: max_tokens.min(room),
        })
    }

    /// The answers to `questions`, in their order, each token with the [`confidence::TOP_TOKENS`]
    /// likeliest. `adapter`: `None` asks the base itself. Questions are taken as the engine gets to them,
    /// so that only those under way are in memory.
    pub fn answers(
        &self,
        adapter: Option<&RequestAdapter>,
        questions: impl IntoIterator<Item = Result<Question>>,
    ) -> Result<Vec<Said>> {
        let (mut said, mut under_way) = (Vec::new(), VecDeque::new());
        for question in questions {
            let Question {
                prompt,
                images,
                max_tokens,
            } = question?;
            if under_way.len() == UNDER_WAY
                && let Some(first) = under_way.pop_front()
            {
                said.push(whole(first)?);
            }
            let request = Request {
                adapter: adapter.cloned(),
                images,
                top_logits: confidence::TOP_TOKENS,
                ..Request::new("trainer".into(), prompt, max_tokens)
            };
            under_way.push_back(self.engine.submit(request)?);
        }
        under_way.into_iter().try_for_each(|answer| {
            said.push(whole(answer)?);
            anyhow::Ok(())
        })?;
        Ok(said)
    }
}

impl Drop for Asker<'_> {
    /// Gives the engine's memory back before anything else is loaded.
    fn drop(&mut self) {
        self.engine.drain();
        self.engine.join();
    }
}

/// A row of norm values as an adapter that an engine takes, named by its values.
pub fn adapter_of(base: &FrozenBase, row: &[f32]) -> Result<RequestAdapter> {
    Ok(RequestAdapter {
        generation: Generation(Digest::of_f32(row)),
        values: AdapterValues::new(base.model.sites(), row.to_vec(), Scope::All)?,
    })
}

/// Limits for answers that nobody waits for one by one.
fn engine_config(shape: &ModelShape, kv_type: KvType) -> EngineConfig {
    let usual = EngineConfig::default();
    let each = (shape.image_tokens + TEXT_ROWS).min(shape.max_positions);
    let all = usual.max_sequences * each;
    // One sequence may be as long as the model allows, within reason; together they have what they need.
    let kv_rows = all.clamp(shape.max_positions.min(4096), usual.kv_rows.max(each));
    EngineConfig {
        max_rows_beside_answers: usual.max_step_tokens,
        max_step_images: STEP_IMAGES,
        kv_rows: kv_rows.next_multiple_of(usual.block_rows),
        kv_type,
        bank_slots: 4,
        queue_len: UNDER_WAY,
        ..usual
    }
}

fn whole(mut answer: Answer) -> Result<Said> {
    let mut said = Said::default();
    loop {
        match answer
            .blocking_recv()
            .context("an answer ended without its end")?
        {
            Event::Token(token) => {
                said.text.push_str(&token.text);
                said.tokens.push(token.token);
                said.top.push(token.top);
            }
            Event::Finished(_) => {
                said.text = said.text.trim().into();
                return Ok(said);
            }
            Event::Failed(error) => bail!(error),
        }
    }
}
