//! An engine in this process with everything around it: a service, a data folder of its own, and a server
//! for what only HTTP can show.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use futures_util::future::try_join_all;
use norma::base::{Base, WeightType};
use norma::engine::{Answer, EngineConfig, EngineStats, Event, Request, RequestAdapter};
use norma::http::choice::ModelChoice;
use norma::http::inputs::InputFiles;
use norma::http::keys::LOCAL_TENANT;
use norma::http::question::{ImageFile, Options, Question};
use norma::http::{Limits, Service, ServiceOptions};
use norma::preprocess::{ContentPart, Message, PromptToken};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::adapters::{self, Maker};
use super::film;
use super::target::{Ask, Prompt, Timed};

/// See the module. Clones share it.
#[derive(Clone)]
pub struct Local {
    service: Arc<Service>,
    maker: Arc<Maker>,
    /// Tokens from which prompts of words are drawn.
    vocab: u32,
    /// Requests so far.
    asked: Arc<AtomicU64>,
}

/// What a service of a benchmark is given.
pub struct Setup<'a> {
    /// The base.
    pub base: &'a Base,
    /// Where its data lie.
    pub data_dir: &'a Path,
    /// Where its tokenizer lies, if not with the base.
    pub tokenizer: Option<&'a Path>,
    /// Adapters, `bench-0` and so on, that it has from the beginning.
    pub adapters: u64,
    /// What its weights are held as.
    pub weights: WeightType,
    /// Slots of the bank, the base's included.
    pub bank_slots: usize,
    /// Adapters whose values are kept in memory.
    pub cached: usize,
}

impl Local {
    /// The base's name.
    pub const NAME: &'static str = "base";
    /// Streams that its engine runs at once.
    pub const MAX_STREAMS: usize = 64;
    /// The least token that a prompt of words has: those below are special in most vocabularies.
    const FIRST_TOKEN: u32 = 8;

    /// Fills the data folder and loads the base. Blocks.
    pub fn open(setup: &Setup) -> anyhow::Result<Self> {
        let base = setup.base;
        adapters::fill(base, setup.data_dir, setup.adapters)?;
        let shape = base.outline().shape;
        let engine = EngineConfig {
            max_sequences: Self::MAX_STREAMS,
            kv_rows: Self::MAX_STREAMS * shape.max_positions.min(1024),
            kv_type: setup.weights.default_kv(),
            bank_slots: setup.bank_slots,
            ..EngineConfig::default()
        };
        let row_bytes = base.outline().sites.row_len() * size_of::<f32>();
        let limits = Limits {
            engine,
            adapter_cache_bytes: setup.cached * row_bytes,
            request_timeout: Duration::from_secs(3600),
            ..Limits::default()
        };
        let options = ServiceOptions {
            name: Self::NAME,
            data_dir: setup.data_dir,
            files: InputFiles {
                tokenizer: setup.tokenizer,
                vision: None,
            },
            report_prompt: "Write a report of this image.",
            lora_folder: None,
            weights: setup.weights,
            limits,
        };
        Ok(Self {
            service: Arc::new(Service::open(base, &options)?),
            maker: Arc::new(Maker::new(base)?),
            vocab: shape.vocab_size as u32,
            asked: Arc::default(),
        })
    }

    /// The service.
    pub fn service(&self) -> &Arc<Service> {
        &self.service
    }

    /// Makes adapters for its base.
    pub fn maker(&self) -> &Maker {
        &self.maker
    }

    /// Counts a request that the engine will book once it is finished.
    pub fn count_request(&self) {
        self.asked.fetch_add(1, Ordering::Relaxed);
    }

    /// The engine's numbers once it has booked every counted request, which it does after their last token.
    pub async fn settled(&self) -> anyhow::Result<EngineStats> {
        const PATIENCE: Duration = Duration::from_secs(10);
        let (begun, asked) = (Instant::now(), self.asked.load(Ordering::Relaxed));
        loop {
            let stats = self.service.engine().stats();
            if stats.finished.total() >= asked {
                return Ok(stats);
            }
            if begun.elapsed() > PATIENCE {
                bail!("the engine has not booked what it finished");
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// Makes the adapter of a seed known to the service without a file, as it is right after an upload.
    pub async fn remember(&self, seed: u64) -> anyhow::Result<RequestAdapter> {
        let this = self.clone();
        let adapter = tokio::task::spawn_blocking(move || {
            let (_, adapter) = this.maker.adapter(seed, adapters::unplayed())?;
            let loaded = this.service.remember(&adapter, None);
            anyhow::Ok(RequestAdapter {
                generation: loaded.generation,
                values: loaded.values.clone(),
            })
        });
        adapter.await?
    }

    /// Lets each of these adapters answer one token, which brings it into the bank.
    pub async fn bring_in(&self, adapters: &[RequestAdapter]) -> anyhow::Result<()> {
        for group in adapters.chunks(Self::MAX_STREAMS) {
            let request = |adapter: &RequestAdapter| Request {
                adapter: Some(adapter.clone()),
                ..Request::new(LOCAL_TENANT.into(), self.words(1, 0), 1)
            };
            self.submit(group.iter().map(request).collect()).await?;
        }
        Ok(())
    }

    /// Asks the engine and waits for the whole answer.
    pub async fn ask(&self, ask: Ask) -> anyhow::Result<Timed> {
        let begun = Instant::now();
        match ask.prompt {
            Prompt::Words { rows, seed } => {
                let request = self.request(&ask.model, (rows, seed), ask.tokens).await?;
                let submitted = Instant::now();
                self.count_request();
                let answer = self.service.engine().submit(request)?;
                collect((begun, submitted), answer).await
            }
            Prompt::Film { seed, question } => {
                self.ask_about_film((seed, question), ask.model, ask.tokens)
                    .await
            }
        }
    }

    /// See [`super::target::Target::ask_all`]; all of words.
    pub async fn ask_all(&self, asks: Vec<Ask>) -> anyhow::Result<Vec<Timed>> {
        let mut requests = Vec::with_capacity(asks.len());
        for ask in asks {
            let Prompt::Words { rows, seed } = ask.prompt else {
                bail!("a load asks about words alone");
            };
            requests.push(self.request(&ask.model, (rows, seed), ask.tokens).await?);
        }
        self.submit(requests).await
    }

    async fn submit(&self, requests: Vec<Request>) -> anyhow::Result<Vec<Timed>> {
        let begun = Instant::now();
        let mut answers = Vec::with_capacity(requests.len());
        for request in requests {
            self.count_request();
            let submitted = Instant::now();
            answers.push((submitted, self.service.engine().submit(request)?));
        }
        let answers = answers.into_iter();
        try_join_all(answers.map(|(submitted, answer)| collect((begun, submitted), answer))).await
    }

    /// A request of words, with its adapter as the engine wants it.
    async fn request(
        &self,
        model: &str,
        (rows, seed): (usize, u64),
        tokens: usize,
    ) -> anyhow::Result<Request> {
        let adapter = if model == Self::NAME {
            None
        } else {
            let (this, model) = (self.clone(), model.to_owned());
            Some(tokio::task::spawn_blocking(move || this.adapter(&model)).await??)
        };
        Ok(Request {
            adapter,
            ignore_eos: true,
            ..Request::new(LOCAL_TENANT.into(), self.words(rows, seed), tokens)
        })
    }

    async fn ask_about_film(
        &self,
        (seed, question): (u64, &str),
        model: String,
        tokens: usize,
    ) -> anyhow::Result<Timed> {
        let image = ImageFile {
            param: "image".into(),
            bytes: film::png(seed)?,
        };
        let text = ContentPart::Text(question.into());
        let question = Question {
            tenant: LOCAL_TENANT.into(),
            choice: ModelChoice {
                model,
                adapter: None,
                generation: None,
            },
            messages: vec![Message::user(vec![ContentPart::Image, text])],
            images: vec![image],
            options: Options {
                ignore_eos: true,
                ..Options::greedy(Some(tokens))
            },
        };
        self.count_request();
        let begun = Instant::now();
        let asked = self
            .service
            .ask(question)
            .await
            .map_err(|error| refused(&error))?;
        let submitted = Instant::now();
        let answer = asked.answers.into_iter().next().context("no answer")?;
        collect((begun, submitted), answer).await
    }

    fn words(&self, rows: usize, seed: u64) -> Vec<PromptToken> {
        let mut random = StdRng::seed_from_u64(seed);
        let draw = |_| PromptToken::Text(random.random_range(Self::FIRST_TOKEN..self.vocab));
        (0..rows).map(draw).collect()
    }

    /// The adapter of an alias as a request carries it. Blocks where it has to be read.
    fn adapter(&self, model: &str) -> anyhow::Result<RequestAdapter> {
        let generation = self
            .service
            .registry()
            .resolve(LOCAL_TENANT, model)
            .with_context(|| format!("there is no alias `{model}`"))?;
        let loaded = self
            .service
            .load(LOCAL_TENANT, &generation, Some(model))
            .map_err(|error| refused(&error))?;
        Ok(RequestAdapter {
            generation,
            values: loaded.values.clone(),
        })
    }
}

/// What the service's error says.
pub fn refused(error: &norma::http::ApiError) -> anyhow::Error {
    anyhow::anyhow!("{}", error.message())
}

/// Waits for an answer. Its times are the engine's own, counted from `submitted`: this task may be
/// woken late.
async fn collect(
    (begun, submitted): (Instant, Instant),
    mut answer: Answer,
) -> anyhow::Result<Timed> {
    while let Some(event) = answer.recv().await {
        match event {
            Event::Token(_) => {}
            Event::Finished(finished) => {
                let mut at = submitted + finished.timings.first_token.unwrap_or_default();
                let mut pieces = vec![at];
                for gap in &finished.timings.inter_token {
                    at += *gap;
                    pieces.push(at);
                }
                return Ok(Timed {
                    begun,
                    pieces,
                    tokens: finished.completion_tokens,
                    prompt_rows: finished.prompt_tokens,
                });
            }
            Event::Failed(error) => bail!("a request failed: {error}"),
        }
    }
    bail!("an answer has no end")
}

/// A folder for one service's data below `root`.
pub fn data_dir(root: &Path, name: &str) -> anyhow::Result<PathBuf> {
    let folder = root.join(name);
    std::fs::create_dir_all(&folder).context("a data folder could not be made")?;
    Ok(folder)
}
