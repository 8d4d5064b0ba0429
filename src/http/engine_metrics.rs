//! The engine's own numbers as metrics, copied at each scrape.
//!
//! In: a snapshot of the engine. Out: gauges and counters in a registry, named as vLLM names them where it
//! has them.

use std::time::{SystemTime, UNIX_EPOCH};

use prometheus::core::Collector;
use prometheus::{
    Error, Gauge, GaugeVec, Histogram, HistogramOpts, IntCounter, IntCounterVec, Opts, Registry,
};

use crate::engine::EngineStats;

/// What is copied from the engine at each scrape.
#[derive(Debug)]
pub struct EngineMetrics {
    running: Gauge,
    waiting: Gauge,
    kv_usage: Gauge,
    cache_config: GaugeVec,
    lora: GaugeVec,
    prompt_tokens: IntCounter,
    generation_tokens: IntCounter,
    prefix_queries: IntCounter,
    prefix_hits: IntCounter,
    preemptions: IntCounter,
    success: IntCounterVec,
    slots_used: Gauge,
    slots_total: Gauge,
    slots_filled: IntCounter,
    kv_kept: Gauge,
    image_queries: IntCounter,
    image_hits: IntCounter,
    image_bytes: Gauge,
    steps: IntCounter,
    panics: IntCounter,
    failed: IntCounter,
}

/// Makes and registers metrics.
pub struct Maker<'a> {
    /// Where they are gathered.
    pub registry: &'a Registry,
    /// The label `model_name`, if they have one.
    pub model: Option<&'a str>,
}

impl Maker<'_> {
    /// Registers a metric.
    pub fn keep<M: Collector + Clone + 'static>(&self, metric: M) -> Result<M, Error> {
        self.registry.register(Box::new(metric.clone()))?;
        Ok(metric)
    }

    fn opts(&self, name: &str, help: &str) -> Opts {
        let opts = Opts::new(name, help);
        match self.model {
            Some(model) => opts.const_label("model_name", model),
            None => opts,
        }
    }

    fn gauge(&self, name: &str, help: &str) -> Result<Gauge, Error> {
        self.keep(Gauge::with_opts(self.opts(name, help))?)
    }

    fn gauges(&self, name: &str, help: &str, labels: &[&str]) -> Result<GaugeVec, Error> {
        self.keep(GaugeVec::new(self.opts(name, help), labels)?)
    }

    fn counter(&self, name: &str, help: &str) -> Result<IntCounter, Error> {
        self.keep(IntCounter::with_opts(self.opts(name, help))?)
    }

    /// Counters by label.
    pub fn counters(
        &self,
        name: &str,
        help: &str,
        labels: &[&str],
    ) -> Result<IntCounterVec, Error> {
        self.keep(IntCounterVec::new(self.opts(name, help), labels)?)
    }

    /// A histogram.
    pub fn histogram(&self, name: &str, help: &str, buckets: &[f64]) -> Result<Histogram, Error> {
        let opts = HistogramOpts::from(self.opts(name, help)).buckets(buckets.to_vec());
        self.keep(Histogram::with_opts(opts)?)
    }
}

impl EngineMetrics {
    /// All at zero.
    pub fn new(vllm: &Maker, own: &Maker) -> Result<Self, Error> {
        let lora_labels = ["max_lora", "running_lora_adapters", "waiting_lora_adapters"];
        Ok(Self {
            running: vllm.gauge("vllm:num_requests_running", "Sequences that run.")?,
            waiting: vllm.gauge("vllm:num_requests_waiting", "Requests that wait.")?,
            kv_usage: vllm.gauge(
                "vllm:kv_cache_usage_perc",
                "KV cache in use, 1 is all of it.",
            )?,
            cache_config: vllm.gauges(
                "vllm:cache_config_info",
                "The KV cache's blocks.",
                &["block_size", "num_gpu_blocks"],
            )?,
            lora: vllm.gauges(
                "vllm:lora_requests_info",
                "Adapters of running and of waiting requests; the value is the time in seconds.",
                &lora_labels,
            )?,
            prompt_tokens: vllm.counter("vllm:prompt_tokens_total", "Prompt tokens computed.")?,
            generation_tokens: vllm.counter("vllm:generation_tokens_total", "Tokens given out.")?,
            prefix_queries: vllm.counter(
                "vllm:prefix_cache_queries_total",
                "Prompt tokens looked up in the KV cache.",
            )?,
            prefix_hits: vllm.counter(
                "vllm:prefix_cache_hits_total",
                "Prompt tokens found in the KV cache.",
            )?,
            preemptions: vllm.counter(
                "vllm:num_preemptions_total",
                "Sequences that gave their KV cache blocks to an older one.",
            )?,
            success: vllm.counters(
                "vllm:request_success_total",
                "Requests ended, by reason.",
                &["finished_reason"],
            )?,
            slots_used: own.gauge("norma_bank_slots_used", "Bank slots of running sequences.")?,
            slots_total: own.gauge("norma_bank_slots_total", "Bank slots for adapters.")?,
            slots_filled: own.counter("norma_bank_slots_filled_total", "Bank slots filled.")?,
            kv_kept: own.gauge(
                "norma_kv_tokens_kept",
                "Tokens of ended sequences whose keys and values are kept.",
            )?,
            image_queries: own.counter(
                "norma_image_cache_queries_total",
                "Images looked up in the cache of image features.",
            )?,
            image_hits: own.counter(
                "norma_image_cache_hits_total",
                "Images found in the cache of image features.",
            )?,
            image_bytes: own.gauge("norma_image_cache_bytes", "Bytes of image features kept.")?,
            steps: own.counter("norma_engine_steps_total", "Steps computed.")?,
            panics: own.counter("norma_engine_panics_total", "Panics caught in steps.")?,
            failed: own.counter("norma_engine_failed_total", "Requests ended by a fault.")?,
        })
    }

    /// Sets what never changes.
    pub fn describe_cache(&self, block_rows: usize, n_blocks: usize) {
        let labels = [block_rows.to_string(), n_blocks.to_string()];
        self.cache_config.with_label_values(&labels).set(1.0);
    }

    /// Copies the engine's numbers. `lora`: the most adapters at once, those that run, those that wait.
    pub fn copy(&self, stats: &EngineStats, lora: [&str; 3]) {
        self.running.set(stats.running as f64);
        self.waiting.set(stats.waiting as f64);
        self.kv_usage
            .set(stats.kv_rows_used as f64 / stats.kv_rows_total.max(1) as f64);
        self.lora.reset();
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        self.lora
            .with_label_values(&lora)
            .set(now.as_secs_f64().floor());
        let set = |counter: &IntCounter, total: u64| {
            counter.inc_by(total.saturating_sub(counter.get()));
        };
        set(&self.prompt_tokens, stats.prompt_tokens);
        set(&self.generation_tokens, stats.generated_tokens);
        for (reason, total) in [
            ("stop", stats.finished.stop),
            ("length", stats.finished.length),
            ("abort", stats.finished.cancelled),
            ("deadline", stats.finished.deadline),
        ] {
            set(&self.success.with_label_values(&[reason]), total);
        }
        self.slots_used.set(stats.slots_used as f64);
        self.slots_total.set(stats.slots_total as f64);
        set(&self.slots_filled, stats.slots_filled);
        set(&self.prefix_queries, stats.prefix_queries);
        set(&self.prefix_hits, stats.prefix_hits);
        set(&self.preemptions, stats.preemptions);
        self.kv_kept.set(stats.kv_rows_kept as f64);
        set(&self.image_queries, stats.image_queries);
        set(&self.image_hits, stats.image_hits);
        self.image_bytes.set(stats.image_bytes as f64);
        set(&self.steps, stats.steps);
        set(&self.panics, stats.panics);
        set(&self.failed, stats.finished.failed);
    }
}
