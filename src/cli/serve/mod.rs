//! `norma serve`: opens a base, says what it found, and answers until it is told to stop.

mod memory;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use norma::base::{Base, OpenOptions, WeightType, device};
use norma::engine::EngineConfig;
use norma::http::inputs::InputFiles;
use norma::http::{Keys, Limits, Server, ServerOptions, Service, ServiceOptions, State};
use norma::model::kv_cache::KvType;
use norma::preprocess::ImageLimits;

use self::memory::Memory;

/// Arguments of `norma serve`.
#[derive(Debug, Args)]
pub struct ServeArgs {
    /// The base: a checkpoint folder of a LLaVA.
    #[arg(long, value_name = "FOLDER")]
    base: PathBuf,
    /// The vision tower's folder, for an original LLaVA whose tower is not built in.
    #[arg(long, value_name = "FOLDER")]
    vision_config: Option<PathBuf>,
    /// Another tokenizer.json than the base's own.
    #[arg(long, value_name = "FILE")]
    tokenizer: Option<PathBuf>,
    /// Where the model lives: cpu, or cuda:N where this program was built for it.
    #[arg(long, default_value = "cpu")]
    device: String,
    /// What weights are held as: f32, bf16, bf16-dot (multiplied by rows in bf16; on processors with
    /// AVX512_BF16), int8 (8.5 bits a weight), or a block type of mistralrs-quant: q8_0, q6k, q5k, q5_1,
    /// q5_0, q4k, q4_1, q4_0, q3k, q2k. By default f32 for a base of less than 1 GiB in f32, and bf16 above.
    /// A GPU has f32, bf16 and the block types.
    #[arg(long, value_name = "TYPE")]
    weights: Option<WeightType>,
    /// Where adapters and their registry are kept.
    #[arg(long, value_name = "DIR")]
    data_dir: PathBuf,
    /// The address for clients. Other than this machine's own needs --keys.
    #[arg(long, default_value = "127.0.0.1:8080", value_name = "ADDRESS")]
    listen: SocketAddr,
    /// The address for scrapers and endpoint pickers, who show no key; `none` for none.
    #[arg(long, default_value = "127.0.0.1:9090", value_name = "ADDRESS")]
    metrics_listen: String,
    /// The file of API keys, see `norma key new`. Without one, only this machine may ask.
    #[arg(long, value_name = "FILE")]
    keys: Option<PathBuf>,
    /// The name by which clients know the base; the folder's name by default.
    #[arg(long, value_name = "NAME")]
    served_name: Option<String>,
    /// What a report is asked for with, when the request has no indication.
    #[arg(
        long,
        default_value = "Write a report of this image.",
        value_name = "TEXT"
    )]
    report_prompt: String,
    /// A folder from which controllers may load adapters by path; none by default.
    #[arg(long, value_name = "FOLDER")]
    lora_folder: Option<PathBuf>,
    #[command(flatten)]
    limits: LimitArgs,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Limits")]
struct LimitArgs {
    /// Sequences that run at once.
    #[arg(long, default_value_t = EngineConfig::default().max_sequences, value_name = "N")]
    max_sequences: usize,
    /// Tokens and image rows computed in one step.
    #[arg(long, default_value_t = EngineConfig::default().max_step_tokens, value_name = "N")]
    max_step_tokens: usize,
    /// Of these, tokens of prompts where answers go on: fewer let answers flow more evenly.
    #[arg(long, default_value_t = EngineConfig::default().max_rows_beside_answers, value_name = "N")]
    max_tokens_beside_answers: usize,
    /// Tokens that the cache of keys and values holds: 16,384 by default, or what half of the memory that
    /// the weights leave can hold.
    #[arg(long, value_name = "N")]
    kv_tokens: Option<usize>,
    /// What keys and values are kept as: f32, or bf16 (half the memory; faster where answers have many
    /// tokens before them). By default f32 with weights in f32, and bf16 with all others.
    #[arg(long, value_name = "TYPE")]
    kv_type: Option<KvType>,
    /// Slots for adapters in use at once, the base's own included.
    #[arg(long, default_value_t = EngineConfig::default().bank_slots, value_name = "N")]
    bank_slots: usize,
    /// Requests that may wait.
    #[arg(long, default_value_t = EngineConfig::default().queue_len, value_name = "N")]
    queue: usize,
    /// Compute every prompt from its beginning, even if an earlier one began alike.
    #[arg(long)]
    no_prefix_cache: bool,
    /// Bytes of image features kept for further questions about the same images, on the model's device; 0 for
    /// none.
    #[arg(long, default_value_t = EngineConfig::default().image_cache_bytes, value_name = "N")]
    image_cache_bytes: usize,
    /// Bytes of an uploaded adapter.
    #[arg(long, default_value_t = Limits::default().max_upload_bytes, value_name = "N")]
    max_upload_bytes: u64,
    /// Bytes of an image file.
    #[arg(long, default_value_t = ImageLimits::default().max_bytes, value_name = "N")]
    max_image_bytes: usize,
    /// Pixels of an image.
    #[arg(long, default_value_t = ImageLimits::default().max_pixels, value_name = "N")]
    max_image_pixels: u64,
    /// Images of one request.
    #[arg(long, default_value_t = Limits::default().max_images, value_name = "N")]
    max_images: usize,
    /// Bytes of adapters kept in memory beside the slots.
    #[arg(long, default_value_t = Limits::default().adapter_cache_bytes, value_name = "N")]
    adapter_cache_bytes: usize,
    /// Seconds from a request's arrival to its last token.
    #[arg(long, default_value_t = 120, value_name = "SECONDS")]
    request_timeout: u64,
    /// Seconds that open answers may go on once the server is told to stop.
    #[arg(long, default_value_t = 60, value_name = "SECONDS")]
    drain_timeout: u64,
    /// Seconds that the server says it is not ready before it closes its door.
    #[arg(long, default_value_t = 0, value_name = "SECONDS")]
    drain_delay: u64,
    /// Threads that speak HTTP.
    #[arg(long, default_value_t = 2, value_name = "N")]
    http_workers: usize,
}

impl LimitArgs {
    fn limits(&self, kv_tokens: usize, kv_type: KvType) -> Limits {
        let engine = EngineConfig {
            max_sequences: self.max_sequences,
            max_step_tokens: self.max_step_tokens,
            max_rows_beside_answers: self.max_tokens_beside_answers,
            kv_rows: kv_tokens,
            kv_type,
            bank_slots: self.bank_slots,
            queue_len: self.queue,
            prefix_cache: !self.no_prefix_cache,
            image_cache_bytes: self.image_cache_bytes,
            ..EngineConfig::default()
        };
        let image = ImageLimits {
            max_bytes: self.max_image_bytes,
            max_pixels: self.max_image_pixels,
            ..ImageLimits::default()
        };
        Limits {
            engine,
            image,
            max_images: self.max_images,
            max_upload_bytes: self.max_upload_bytes,
            adapter_cache_bytes: self.adapter_cache_bytes,
            request_timeout: Duration::from_secs(self.request_timeout),
        }
    }
}

/// Runs the command.
pub fn run(args: &ServeArgs) -> anyhow::Result<()> {
    super::block_on("info,actix_server=warn", serve(args))
}

#[expect(clippy::print_stdout, reason = "the output of a command")]
async fn serve(args: &ServeArgs) -> anyhow::Result<()> {
    let keys = match &args.keys {
        Some(path) => Keys::read(path)?,
        None => Keys::none(),
    };
    if keys.is_open() && !args.listen.ip().is_loopback() {
        bail!(
            "--listen {} can be reached from elsewhere, which needs --keys",
            args.listen
        );
    }
    let metrics_listen = match args.metrics_listen.as_str() {
        "none" => None,
        address => Some(address.parse().context("--metrics-listen is no address")?),
    };
    std::fs::create_dir_all(&args.data_dir).context("--data-dir could not be made")?;
    let base = open_base(args)?;
    let weights = args.weights.unwrap_or_else(|| base.default_weights());
    let name = served_name(args)?;
    println!("base       {name}");
    println!("digest     {}", base.digest());
    println!("sites      {}", sites_line(&base));
    let kv_type = args.limits.kv_type.unwrap_or(weights.default_kv());
    let types = (weights, kv_type);
    let affordable = || memory::affordable_tokens(&base, types, args.limits.bank_slots);
    let kv_tokens = args.limits.kv_tokens.unwrap_or_else(affordable);
    let limits = args.limits.limits(kv_tokens, kv_type);
    println!("weights    {weights}; keys and values {kv_type}");
    let memory = Memory::of(&base, weights, &limits);
    println!("memory     {memory}");
    memory.require(&base)?;
    let state = Arc::new(State::new(keys, &name)?);
    let options = ServerOptions {
        listen: args.listen,
        metrics_listen,
        workers: args.limits.http_workers,
        drain_timeout: Duration::from_secs(args.limits.drain_timeout),
        drain_delay: Duration::from_secs(args.limits.drain_delay),
    };
    // Before the signal handlers are in place a signal ends the program, which then has nothing to lose.
    let stop = stop_signal()?;
    let server = Server::bind(&state, options)?;
    println!("address    http://{}/v1", server.address());
    if let Some(address) = server.metrics_address() {
        println!("metrics    http://{address}/metrics");
    }
    let service = tokio::task::block_in_place(|| {
        let files = InputFiles {
            tokenizer: args.tokenizer.as_deref(),
            vision: args.vision_config.as_deref(),
        };
        let options = ServiceOptions {
            name: &name,
            data_dir: &args.data_dir,
            files,
            weights,
            report_prompt: &args.report_prompt,
            lora_folder: args.lora_folder.as_deref(),
            limits,
        };
        Service::open(&base, &options)
    })?;
    drop(base);
    state.install(Arc::new(service));
    println!("ready");
    tracing::info!(address = %server.address(), base = %name, "ready");
    stop.await;
    tracing::info!("stopping: no new requests, open answers are finished");
    match server.stop().await {
        0 => tracing::info!("stopped"),
        cut => tracing::warn!(cut, "stopped; answers that took too long were cut off"),
    }
    Ok(())
}

fn open_base(args: &ServeArgs) -> anyhow::Result<Base> {
    let options = OpenOptions {
        device: device::named(&args.device).with_context(|| format!("--device {}", args.device))?,
        vision_config: args.vision_config.clone(),
        digest_cache: Some(args.data_dir.join("base-digests.json")),
    };
    Base::open(&args.base, &options)
        .with_context(|| format!("the base {} cannot be used", args.base.display()))
}

/// The base's name, which must not look like `base:alias`.
fn served_name(args: &ServeArgs) -> anyhow::Result<String> {
    let folder = args
        .base
        .canonicalize()
        .unwrap_or_else(|_| args.base.clone());
    let name = match &args.served_name {
        Some(name) => name.clone(),
        None => folder
            .file_name()
            .map_or_else(String::new, |n| n.to_string_lossy().into_owned()),
    };
    if name.is_empty() || name.contains(':') || name.chars().any(|c| !c.is_ascii_graphic()) {
        bail!("--served-name must be printable ASCII without spaces and colons");
    }
    Ok(name)
}

fn sites_line(base: &Base) -> String {
    let table = &base.outline().sites;
    let used = table.sites().iter().filter(|site| site.used).count();
    format!("{used} norms, {} values an adapter", table.row_len())
}

/// Resolves when the program is told to stop.
#[cfg(unix)]
fn stop_signal() -> anyhow::Result<impl Future<Output = ()>> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate()).context("no signals")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("no signals")?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

/// Resolves when the program is told to stop.
#[cfg(not(unix))]
fn stop_signal() -> anyhow::Result<impl Future<Output = ()>> {
    Ok(async {
        drop(tokio::signal::ctrl_c().await);
    })
}
