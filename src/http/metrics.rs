//! What the server counts, under the names that existing tools read.
//!
//! In: finished answers, exchanges, publishes, and the engine's own numbers at each scrape. Out:
//! Prometheus' text. `vllm:*` are named and labelled as vLLM does it, so that endpoint pickers and boards
//! work unchanged; `norma_*` are our own. Metrics with a tenant in them are kept apart, because the
//! listener that needs no key must not show them.

use std::collections::HashSet;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use prometheus::{
    Encoder, Error, Histogram, HistogramOpts, HistogramVec, IntCounterVec, Registry, TextEncoder,
};

use super::engine_metrics::{EngineMetrics, Maker};
use super::exchange::Facts;
use super::service::Service;
use crate::engine::Finished;

/// Pairs of tenant and alias that have counters of their own; further ones are counted together.
const MAX_PAIRS: usize = 500;
/// The label of those. No alias has a parenthesis.
const OTHER: &str = "(other)";

const TOKEN_BUCKETS: [f64; 16] = [
    1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1e3, 2e3, 5e3, 1e4, 2e4, 5e4, 1e5,
];
const FIRST_TOKEN_BUCKETS: [f64; 18] = [
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
    20.0, 80.0,
];
const INTER_TOKEN_BUCKETS: [f64; 17] = [
    0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0,
    10.0,
];
const REQUEST_BUCKETS: [f64; 16] = [
    0.05, 0.1, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 20.0, 40.0, 60.0, 120.0, 480.0,
];
const TENANT_BUCKETS: [f64; 7] = [0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 120.0];

/// All counters of a server.
#[derive(Debug)]
pub struct Metrics {
    /// Without tenants.
    open: Registry,
    /// With tenants.
    tenants: Registry,
    engine: EngineMetrics,
    first_token: Histogram,
    inter_token: Histogram,
    e2e: Histogram,
    queue: Histogram,
    prompt: Histogram,
    generation: Histogram,
    publish_seconds: Histogram,
    refusals: IntCounterVec,
    responses: IntCounterVec,
    tenant_requests: IntCounterVec,
    tenant_tokens: IntCounterVec,
    tenant_seconds: HistogramVec,
    tenant_errors: IntCounterVec,
    pairs: Mutex<HashSet<(String, String)>>,
    /// Only one scrape at a time copies the engine's numbers.
    scrape: Mutex<()>,
}

impl Metrics {
    /// All at zero. `base_name` is the label `model_name` of vLLM's metrics.
    pub fn new(base_name: &str) -> Result<Self, Error> {
        let (open, tenants) = (Registry::new(), Registry::new());
        let vllm = Maker {
            registry: &open,
            model: Some(base_name),
        };
        let own = Maker {
            registry: &open,
            model: None,
        };
        let by_tenant = Maker {
            registry: &tenants,
            model: None,
        };
        let pair = ["tenant", "alias"];
        let seconds = HistogramOpts::new("norma_request_seconds", "From request to last byte.");
        Ok(Self {
            engine: EngineMetrics::new(&vllm, &own)?,
            first_token: vllm.histogram(
                "vllm:time_to_first_token_seconds",
                "From submission to the first token.",
                &FIRST_TOKEN_BUCKETS,
            )?,
            inter_token: vllm.histogram(
                "vllm:inter_token_latency_seconds",
                "From a token to the next.",
                &INTER_TOKEN_BUCKETS,
            )?,
            e2e: vllm.histogram(
                "vllm:e2e_request_latency_seconds",
                "From submission to the end.",
                &REQUEST_BUCKETS,
            )?,
            queue: vllm.histogram(
                "vllm:request_queue_time_seconds",
                "From submission to admission.",
                &REQUEST_BUCKETS,
            )?,
            prompt: vllm.histogram(
                "vllm:request_prompt_tokens",
                "Tokens of a prompt.",
                &TOKEN_BUCKETS,
            )?,
            generation: vllm.histogram(
                "vllm:request_generation_tokens",
                "Tokens of an answer.",
                &TOKEN_BUCKETS,
            )?,
            publish_seconds: own.histogram(
                "norma_adapter_publish_seconds",
                "From the last byte of an upload to its publication.",
                &REQUEST_BUCKETS,
            )?,
            refusals: own.counters(
                "norma_adapter_validation_failures_total",
                "Uploads refused, by reason.",
                &["reason"],
            )?,
            responses: own.counters(
                "norma_http_responses_total",
                "Answers by status.",
                &["status"],
            )?,
            tenant_requests: by_tenant.counters(
                "norma_requests_total",
                "Requests that reached a model.",
                &pair,
            )?,
            tenant_tokens: by_tenant.counters(
                "norma_tokens_total",
                "Tokens, of prompts and of answers.",
                &["tenant", "alias", "kind"],
            )?,
            tenant_seconds: by_tenant.keep(HistogramVec::new(
                seconds.buckets(TENANT_BUCKETS.to_vec()),
                &pair,
            )?)?,
            tenant_errors: by_tenant.counters(
                "norma_errors_total",
                "Requests that ended in an error, by its code.",
                &["tenant", "code"],
            )?,
            open,
            tenants,
            pairs: Mutex::default(),
            scrape: Mutex::default(),
        })
    }

    /// Sets what never changes once the base is loaded.
    pub fn describe(&self, service: &Service) {
        let config = service.engine().config();
        self.engine
            .describe_cache(config.block_rows, config.n_blocks());
    }

    /// Counts a finished answer.
    pub fn observe_finished(&self, finished: &Finished) {
        let timings = &finished.timings;
        self.queue.observe(timings.queue.as_secs_f64());
        self.e2e.observe(timings.total.as_secs_f64());
        if let Some(first) = timings.first_token {
            self.first_token.observe(first.as_secs_f64());
        }
        for gap in &timings.inter_token {
            self.inter_token.observe(gap.as_secs_f64());
        }
        self.prompt.observe(finished.prompt_tokens as f64);
        self.generation.observe(finished.completion_tokens as f64);
    }

    /// Counts a publication.
    pub fn observe_publish(&self, took: Duration) {
        self.publish_seconds.observe(took.as_secs_f64());
    }

    /// Counts a refused upload.
    pub fn count_refusal(&self, reason: &'static str) {
        self.refusals.with_label_values(&[reason]).inc();
    }

    /// Counts an exchange that has ended.
    pub fn observe_exchange(&self, facts: &Facts, status: u16, seconds: f64) {
        self.responses
            .with_label_values(&[&status.to_string()])
            .inc();
        let Some(tenant) = &facts.tenant else { return };
        if let Some(code) = facts.error {
            let (tenant, _) = self.pair(tenant, OTHER);
            self.tenant_errors
                .with_label_values(&[tenant.as_str(), code])
                .inc();
        }
        let Some(alias) = &facts.alias else { return };
        let (tenant, alias) = self.pair(tenant, alias);
        let pair = [tenant.as_str(), alias.as_str()];
        self.tenant_requests.with_label_values(&pair).inc();
        self.tenant_seconds
            .with_label_values(&pair)
            .observe(seconds);
        for (kind, tokens) in [
            ("prompt", facts.prompt_tokens),
            ("completion", facts.completion_tokens),
        ] {
            let labels = [tenant.as_str(), alias.as_str(), kind];
            self.tenant_tokens
                .with_label_values(&labels)
                .inc_by(tokens as u64);
        }
    }

    /// The labels of a pair, as long as there are not too many.
    fn pair(&self, tenant: &str, alias: &str) -> (String, String) {
        let pair = (tenant.to_owned(), alias.to_owned());
        let mut pairs = lock(&self.pairs);
        if pairs.contains(&pair) {
            return pair;
        }
        if pairs.len() >= MAX_PAIRS {
            return (OTHER.to_owned(), OTHER.to_owned());
        }
        pairs.insert(pair.clone());
        pair
    }

    /// The text of a scrape.
    pub fn text(&self, service: Option<&Service>, scope: Scrape) -> Result<String, Error> {
        let _one = lock(&self.scrape);
        if let Some(service) = service {
            let stats = service.engine().stats();
            let max = stats.slots_total.to_string();
            let running = service.names_of(&stats.running_adapters);
            let waiting = service.names_of(&stats.waiting_adapters);
            self.engine.copy(&stats, [&max, &running, &waiting]);
        }
        let mut families = self.open.gather();
        if scope == Scrape::WithTenants {
            families.extend(self.tenants.gather());
        }
        let mut text = Vec::new();
        TextEncoder::new().encode(&families, &mut text)?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    }
}

/// Which metrics a scraper may see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scrape {
    /// Those without a tenant in them.
    Open,
    /// All.
    WithTenants,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_stay_bounded_and_tenants_stay_apart() {
        let metrics = Metrics::new("base").unwrap();
        for index in 0..MAX_PAIRS + 50 {
            let facts = Facts {
                tenant: Some("hospital".into()),
                alias: Some(format!("alias-{index}")),
                prompt_tokens: 3,
                ..Facts::default()
            };
            metrics.observe_exchange(&facts, 200, 0.1);
        }
        let open = metrics.text(None, Scrape::Open).unwrap();
        assert!(!open.contains("hospital"), "{open}");
        assert!(
            open.contains("vllm:num_requests_running{model_name=\"base\"} 0"),
            "{open}"
        );
        let all = metrics.text(None, Scrape::WithTenants).unwrap();
        assert_eq!(all.matches("norma_requests_total{").count(), MAX_PAIRS + 1);
        let other = "norma_requests_total{alias=\"(other)\",tenant=\"(other)\"} 50";
        assert!(all.contains(other), "{all}");
    }
}
