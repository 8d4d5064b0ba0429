//! One loaded base with its engine, its adapters and its way in: everything but HTTP.
//!
//! In: a question with its tenant and its choice of adapter. Out: the answers' streams and what makes them.
//! Methods that block say so.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use norma_adapters::{Digest, Generation, Manifest, Registry, RegistryError, SiteTable, format};
use thiserror::Error;
use tokio::sync::{Semaphore, SemaphorePermit};

use super::adapter_cache::{AdapterCache, LoadedAdapter};
use super::choice::Pinned;
use super::error::{ApiError, Kind};
use super::inputs::{InputFiles, Inputs, InputsError};
use super::question::{Asked, DEFAULT_MAX_TOKENS, MadeBy, Question};
use crate::base::{Base, BaseError, WeightType};
use crate::engine::{Engine, EngineConfig, EngineError, EngineHandle, Request, RequestAdapter};
use crate::model::MedVlm;
use crate::preprocess::ImageLimits;

/// What an operator may limit.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// The engine's.
    pub engine: EngineConfig,
    /// An image file's.
    pub image: ImageLimits,
    /// Images of one request.
    pub max_images: usize,
    /// Bytes of an uploaded adapter.
    pub max_upload_bytes: u64,
    /// Bytes of adapters kept in memory beside the bank.
    pub adapter_cache_bytes: usize,
    /// From a request's arrival to its last token.
    pub request_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            engine: EngineConfig::default(),
            image: ImageLimits::default(),
            max_images: 4,
            max_upload_bytes: 64 << 20,
            adapter_cache_bytes: 256 << 20,
            request_timeout: Duration::from_secs(120),
        }
    }
}

/// Where things lie, and names.
#[derive(Clone, Copy, Debug)]
pub struct ServiceOptions<'a> {
    /// The name by which clients know the base.
    pub name: &'a str,
    /// Adapters and their registry.
    pub data_dir: &'a Path,
    /// What overrides the base's own files.
    pub files: InputFiles<'a>,
    /// What frozen weights are held as.
    pub weights: WeightType,
    /// What a report is asked for with, when the request does not say.
    pub report_prompt: &'a str,
    /// A folder from which controllers may load adapters by path.
    pub lora_folder: Option<&'a Path>,
    /// Limits.
    pub limits: Limits,
}

/// Why a service could not start.
#[derive(Debug, Error)]
pub enum ServiceError {
    /// The base could not be loaded.
    #[error(transparent)]
    Base(#[from] BaseError),
    /// The base's way in cannot be used.
    #[error(transparent)]
    Inputs(#[from] InputsError),
    /// The engine could not start.
    #[error("the engine could not start")]
    Engine(#[from] EngineError),
    /// The data folder cannot be used.
    #[error("the data folder cannot be used")]
    Registry(#[from] RegistryError),
}

/// See the module.
#[derive(Debug)]
pub struct Service {
    name: String,
    digest: Digest,
    table: SiteTable,
    row: Vec<f32>,
    inputs: Inputs,
    engine: EngineHandle,
    weights: WeightType,
    registry: Registry,
    cache: AdapterCache,
    limits: Limits,
    report_prompt: String,
    lora_folder: Option<PathBuf>,
    started: u64,
    /// Unpacked images are large: only so many requests are prepared at once.
    preparing: Semaphore,
    /// The same for uploads.
    publishing: Semaphore,
}

/// Uploads that are checked at once.
const PUBLISHING: usize = 4;

impl Service {
    /// Loads the base and opens the data folder. Blocks, for as long as that takes.
    pub fn open(base: &Base, options: &ServiceOptions) -> Result<Self, ServiceError> {
        Self::with_model(base, base.load_boxed(options.weights)?, options)
    }

    /// The same around a model that is loaded already, with weights as the options say.
    pub fn with_model(
        base: &Base,
        model: Box<dyn MedVlm>,
        options: &ServiceOptions,
    ) -> Result<Self, ServiceError> {
        let limits = options.limits;
        let inputs = Inputs::open(base, options.files, limits.image)?;
        let registry = Registry::open(options.data_dir, base.digest(), limits.max_upload_bytes)?;
        let row = base.row()?;
        let tokenizer = Arc::clone(inputs.tokenizer());
        let engine = Engine::start(model, row.clone(), tokenizer, limits.engine)?;
        Ok(Self {
            name: options.name.to_owned(),
            digest: base.digest(),
            table: base.outline().sites.clone(),
            row,
            inputs,
            engine,
            weights: options.weights,
            registry,
            cache: AdapterCache::new(limits.adapter_cache_bytes),
            limits,
            report_prompt: options.report_prompt.to_owned(),
            lora_folder: options.lora_folder.map(Path::to_path_buf),
            started: unix_now(),
            preparing: Semaphore::new(std::thread::available_parallelism().map_or(2, usize::from)),
            publishing: Semaphore::new(PUBLISHING),
        })
    }

    /// The name by which clients know the base.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What identifies the base.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// The base's sites.
    pub fn table(&self) -> &SiteTable {
        &self.table
    }

    /// The base's own row.
    pub fn base_row(&self) -> &[f32] {
        &self.row
    }

    /// The way in.
    pub fn inputs(&self) -> &Inputs {
        &self.inputs
    }

    /// The engine.
    pub fn engine(&self) -> &EngineHandle {
        &self.engine
    }

    /// What frozen weights are held as.
    pub fn weights(&self) -> WeightType {
        self.weights
    }

    /// Who owns which adapter. Its methods but `resolve` block.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// The limits.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// What a report is asked for with.
    pub fn report_prompt(&self) -> &str {
        &self.report_prompt
    }

    /// The folder from which controllers may load adapters.
    pub fn lora_folder(&self) -> Option<&Path> {
        self.lora_folder.as_deref()
    }

    /// When it was loaded, Unix seconds.
    pub fn started(&self) -> u64 {
        self.started
    }

    /// Puts a question to the engine. The adapter is pinned first: whatever happens to its alias
    /// afterwards, this question is answered by the generation that it named at this moment.
    pub async fn ask(self: &Arc<Self>, question: Question) -> Result<Asked, ApiError> {
        let deadline = Instant::now() + self.limits.request_timeout;
        let Question {
            tenant,
            choice,
            messages,
            images,
            options,
        } = question;
        if images.len() > self.limits.max_images {
            let (got, limit) = (images.len(), self.limits.max_images);
            let message = format!("the request has {got} images, the limit is {limit}");
            return Err(ApiError::bad("messages", message).with_code("too_many_images"));
        }
        let pinned = choice.pin(&self.name, &tenant, &self.registry)?;
        let made_by = self.made_by(&tenant, pinned).await?;
        let service = Arc::clone(self);
        let preparing = self
            .preparing
            .acquire()
            .await
            .map_err(|error| ApiError::internal(&error))?;
        let (prompt, images) = blocking(move || {
            let prompt = service.inputs.prompt(&messages)?;
            let images: Vec<_> = images
                .iter()
                .map(|image| {
                    let made = service.inputs.image(&image.bytes);
                    made.map_err(|error| error.with_param(&image.param))
                })
                .collect::<Result<_, ApiError>>()?;
            Ok((prompt, images))
        })
        .await?;
        drop(preparing);
        let prompt_tokens = prompt.len();
        let room = self.engine.sequence_limit().saturating_sub(prompt_tokens);
        let request = Request {
            adapter: made_by.adapter.as_ref().map(|adapter| RequestAdapter {
                generation: adapter.generation,
                values: adapter.values.clone(),
            }),
            images,
            sampling: options.sampling,
            stop: options.stop,
            min_tokens: options.min_tokens,
            ignore_eos: options.ignore_eos,
            top_logits: options.top_logits,
            deadline: Some(deadline),
            ..Request::new(
                tenant,
                prompt,
                options
                    .max_tokens
                    .unwrap_or(DEFAULT_MAX_TOKENS.min(room.max(1))),
            )
        };
        let answers = (0..options.n)
            .map(|index| {
                let mut request = request.clone();
                // Answers to one question must not be the same one.
                let seed = request.sampling.seed;
                request.sampling.seed = seed.map(|seed| seed.wrapping_add(index as u64));
                self.engine.submit(request)
            })
            .collect::<Result<_, _>>()?;
        Ok(Asked {
            made_by,
            prompt_tokens,
            answers,
        })
    }

    async fn made_by(
        self: &Arc<Self>,
        tenant: &Arc<str>,
        pinned: Pinned,
    ) -> Result<MadeBy, ApiError> {
        let Pinned {
            model,
            generation,
            owned,
        } = pinned;
        let base_digest = self.digest;
        let Some(generation) = generation else {
            return Ok(MadeBy {
                model,
                adapter: None,
                base_digest,
            });
        };
        let name = owned.then_some(model.as_str());
        if owned && let Some(adapter) = self.cache.get(&generation, name) {
            return Ok(MadeBy {
                model,
                adapter: Some(adapter),
                base_digest,
            });
        }
        let (service, tenant) = (Arc::clone(self), Arc::clone(tenant));
        let alias = name.map(str::to_owned);
        let adapter =
            blocking(move || service.load(&tenant, &generation, alias.as_deref())).await?;
        Ok(MadeBy {
            model,
            adapter: Some(adapter),
            base_digest,
        })
    }

    /// An adapter of a tenant, from memory or from the store. Blocks.
    pub fn load(
        &self,
        tenant: &str,
        generation: &Generation,
        name: Option<&str>,
    ) -> Result<Arc<LoadedAdapter>, ApiError> {
        let unknown = || {
            ApiError::from(RegistryError::UnknownGeneration {
                generation: *generation,
            })
            .with_param("adapter_generation")
        };
        self.registry
            .record(tenant, generation)?
            .ok_or_else(unknown)?;
        if let Some(adapter) = self.cache.get(generation, name) {
            return Ok(adapter);
        }
        let bytes = self.registry.open_blob(tenant, generation)?;
        let adapter = format::read(&bytes, &self.table, &self.row, &self.digest)?;
        Ok(self.remember(&adapter, name))
    }

    /// Puts an adapter that was just read into memory.
    pub fn remember(
        &self,
        adapter: &norma_adapters::Adapter,
        name: Option<&str>,
    ) -> Arc<LoadedAdapter> {
        let Manifest {
            calibration, task, ..
        } = adapter.manifest.clone();
        let (generation, values) = (adapter.generation, adapter.values.clone());
        let loaded = Arc::new(LoadedAdapter {
            generation,
            values,
            calibration,
            task,
        });
        self.cache.put(Arc::clone(&loaded), name);
        loaded
    }

    /// Waits for one of the few places where uploads are checked.
    pub async fn place_to_publish(&self) -> Result<SemaphorePermit<'_>, ApiError> {
        self.publishing
            .acquire()
            .await
            .map_err(|error| ApiError::internal(&error))
    }

    /// Generations by the names under which they were last asked for, for metrics.
    pub fn names_of(&self, generations: &[Generation]) -> String {
        let mut names: Vec<String> = generations
            .iter()
            .map(|generation| {
                self.cache
                    .name(generation)
                    .unwrap_or_else(|| generation.to_string())
            })
            .collect();
        names.sort();
        names.dedup();
        names.join(",")
    }
}

/// Runs what takes processor time or waits for a disk on a thread that may.
pub async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) if error.is_panic() => Err(ApiError::internal(&error)),
        Err(_) => Err(ApiError::new(
            Kind::Unavailable,
            "the server is shutting down",
        )),
    }
}

/// Unix time in seconds.
pub fn unix_now() -> u64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}
