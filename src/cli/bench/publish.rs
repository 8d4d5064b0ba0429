//! Publishing adapters while answers stream: how long an upload takes, of what that is made, and what the
//! running streams feel of it.
//!
//! Three kinds of phases take turns under the same streams: nobody uploads; adapters are uploaded over HTTP,
//! as a client does it; and the same steps are taken one by one in this process, each with its time.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use futures_util::future::try_join_all;
use norma::http::keys::LOCAL_TENANT;
use norma::http::publish::replay;
use norma::http::{Keys, Server, ServerOptions, State};
use norma_adapters::{Expected, format};
use reqwest::multipart::{Form, Part};
use serde::Serialize;

use super::load::{PROMPT_ROWS, seeds};
use super::local::{Local, refused};
use super::stats::{PairedRatio, Spread};
use super::target::{Ask, Prompt, Target, Timed};
use super::tested;

/// What is done.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Plan {
    /// Streams that run meanwhile.
    pub streams: usize,
    /// Tokens of each of their answers; a stream goes on with the next one.
    pub tokens: usize,
    /// Rounds of the three phases.
    pub rounds: usize,
    /// Adapters published in a phase.
    pub publishes: usize,
    /// From the beginning of one to the beginning of the next, at least, milliseconds.
    pub every_ms: u64,
}

/// What came of it. All times in milliseconds.
#[derive(Clone, Debug, Serialize)]
pub struct Publishing {
    /// What was done.
    pub plan: Plan,
    /// Over HTTP, from the first byte sent to the answer that it is published.
    pub over_http_ms: Spread,
    /// The same steps in this process.
    pub steps_ms: Spread,
    /// Of these: the self-test's replay in the engine, among the streams.
    pub self_test_ms: Spread,
    /// Of these: storing and recording, which wait for the file system's syncs.
    pub syncs_ms: Spread,
    /// What is left of the steps, each one's own.
    pub rest_ms: Spread,
    /// Over HTTP less the steps, difference of the medians.
    pub http_ms: f64,
    /// From a request with the new alias to its first token, right after publication.
    pub first_token_ms: Spread,
    /// From a token to the next in the streams while nobody publishes.
    pub quiet_inter_token_ms: Spread,
    /// The same while adapters are published over HTTP.
    pub busy_inter_token_ms: Spread,
    /// p99 while publishing over p99 while not, by rounds.
    pub inter_token_p99: PairedRatio,
}

#[derive(Default)]
struct Times {
    over_http: Vec<f64>,
    steps: Vec<f64>,
    self_test: Vec<f64>,
    syncs: Vec<f64>,
    rest: Vec<f64>,
    first_token: Vec<f64>,
}

/// Measures.
pub async fn measure(local: &Local, plan: Plan) -> anyhow::Result<Publishing> {
    let state = Arc::new(State::new(Keys::none(), Local::NAME)?);
    let server = Server::bind(&state, ServerOptions::default())?;
    state.install(Arc::clone(local.service()));
    let uploads = Uploads {
        http: reqwest::Client::builder().no_proxy().build()?,
        url: format!("http://{}/v1/adapters", server.address()),
        local: local.clone(),
        every: Duration::from_millis(plan.every_ms),
    };
    let mut times = Times::default();
    let (mut quiet, mut publishing, mut p99s) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..plan.rounds {
        let over_http = files(local, plan.publishes)?;
        let by_steps = files(local, plan.publishes)?;
        let begun = Instant::now();
        let (gaps, ()) = under_load(local, plan, uploads.over_http(over_http, &mut times)).await?;
        let took = begun.elapsed();
        let rest = async {
            tokio::time::sleep(took).await;
            Ok(())
        };
        let (calm, ()) = under_load(local, plan, rest).await?;
        p99s.push((Spread::of(&gaps, 1.0).p99, Spread::of(&calm, 1.0).p99));
        publishing.extend(gaps);
        quiet.extend(calm);
        under_load(local, plan, uploads.by_steps(by_steps, &mut times)).await?;
    }
    server.stop().await;
    let over_http_ms = Spread::of(&times.over_http, 1e3);
    let steps_ms = Spread::of(&times.steps, 1e3);
    Ok(Publishing {
        plan,
        http_ms: over_http_ms.p50 - steps_ms.p50,
        over_http_ms,
        steps_ms,
        self_test_ms: Spread::of(&times.self_test, 1e3),
        syncs_ms: Spread::of(&times.syncs, 1e3),
        rest_ms: Spread::of(&times.rest, 1e3),
        first_token_ms: Spread::of(&times.first_token, 1e3),
        quiet_inter_token_ms: Spread::of(&quiet, 1e3),
        busy_inter_token_ms: Spread::of(&publishing, 1e3),
        inter_token_p99: PairedRatio::of(&p99s),
    })
}

/// Adapters that were never uploaded before.
fn files(local: &Local, count: usize) -> anyhow::Result<Vec<Vec<u8>>> {
    // Seeds of their own, so that no two adapters of a run are the same.
    let first = (1 << 40) + seeds::take(count as u64);
    let make = |seed| tokio::task::block_in_place(|| tested::file(local, seed));
    (first..first + count as u64).map(make).collect()
}

/// Runs `work` while the plan's streams stream, and gives the streams' gaps of that time, seconds.
async fn under_load<T>(
    local: &Local,
    plan: Plan,
    work: impl Future<Output = anyhow::Result<T>>,
) -> anyhow::Result<(Vec<f64>, T)> {
    let (ended, begun) = (AtomicBool::new(false), tokio::sync::Semaphore::new(0));
    let target = Target::Local(local.clone());
    let stream = || async {
        let mut answers: Vec<Timed> = Vec::new();
        while !ended.load(Ordering::Relaxed) {
            let ask = Ask {
                model: Local::NAME.into(),
                prompt: Prompt::Words {
                    rows: PROMPT_ROWS,
                    seed: seeds::take(1),
                },
                tokens: plan.tokens,
            };
            answers.push(target.ask(ask).await?);
            begun.add_permits(1);
        }
        anyhow::Ok(answers)
    };
    let streams = try_join_all((0..plan.streams).map(|_| stream()));
    let watched = async {
        // Every stream's first answer warms up.
        let all = u32::try_from(plan.streams).context("too many streams")?;
        begun.acquire_many(all).await?.forget();
        let from = Instant::now();
        let result = work.await;
        ended.store(true, Ordering::Relaxed);
        Ok((from, Instant::now(), result?))
    };
    let (answers, (from, to, result)) = tokio::try_join!(streams, watched)?;
    let gaps = answers
        .iter()
        .flatten()
        .flat_map(|answer| answer.pieces.windows(2))
        .filter(|pair| pair[0] >= from && pair[1] <= to)
        .map(|pair| (pair[1] - pair[0]).as_secs_f64())
        .collect();
    Ok((gaps, result))
}

struct Uploads {
    http: reqwest::Client,
    url: String,
    local: Local,
    every: Duration,
}

impl Uploads {
    async fn over_http(&self, files: Vec<Vec<u8>>, times: &mut Times) -> anyhow::Result<()> {
        for file in files {
            let (alias, begun) = (new_alias(), Instant::now());
            let form = Form::new()
                .part("file", Part::bytes(file).file_name("a.safetensors"))
                .text("alias", alias.clone());
            let answer = self.http.post(&self.url).multipart(form).send().await?;
            let status = answer.status();
            let text = answer.text().await?;
            ensure!(status == 201, "an upload answered {status}: {text}");
            times.over_http.push(begun.elapsed().as_secs_f64());
            let ask = Ask {
                model: alias,
                prompt: Prompt::Words {
                    rows: PROMPT_ROWS,
                    seed: seeds::take(1),
                },
                tokens: 1,
            };
            let first = self.local.ask(ask).await?.first();
            times.first_token.push(first.as_secs_f64());
            tokio::time::sleep(self.every.saturating_sub(begun.elapsed())).await;
        }
        Ok(())
    }

    async fn by_steps(&self, files: Vec<Vec<u8>>, times: &mut Times) -> anyhow::Result<()> {
        for file in files {
            let begun = Instant::now();
            let local = self.local.clone();
            let steps = tokio::task::spawn_blocking(move || publish(&local, &file)).await??;
            times.steps.push(steps.whole);
            times.self_test.push(steps.self_test);
            times.syncs.push(steps.syncs);
            times.rest.push(steps.whole - steps.self_test - steps.syncs);
            tokio::time::sleep(self.every.saturating_sub(begun.elapsed())).await;
        }
        Ok(())
    }
}

/// Seconds of one publication.
struct Steps {
    whole: f64,
    self_test: f64,
    syncs: f64,
}

/// What the server does with an upload, in its order.
fn publish(local: &Local, file: &[u8]) -> anyhow::Result<Steps> {
    let (service, alias) = (local.service(), new_alias());
    let begun = Instant::now();
    let registry = service.registry();
    let mut incoming = registry.incoming()?;
    incoming.append(file)?;
    let bytes = incoming.read()?;
    let adapter = format::read(
        &bytes,
        service.table(),
        service.base_row(),
        &service.digest(),
    )?;
    let at = Instant::now();
    replay(service, &LOCAL_TENANT.into(), &adapter).map_err(|error| refused(&error))?;
    let self_test = at.elapsed().as_secs_f64();
    let at = Instant::now();
    registry.add(LOCAL_TENANT, incoming, &adapter)?;
    let mut syncs = at.elapsed().as_secs_f64();
    service.remember(&adapter, Some(&alias));
    let at = Instant::now();
    registry.put_alias(LOCAL_TENANT, &alias, &adapter.generation, Expected::Any)?;
    syncs += at.elapsed().as_secs_f64();
    Ok(Steps {
        whole: begun.elapsed().as_secs_f64(),
        self_test,
        syncs,
    })
}

fn new_alias() -> String {
    format!("published-{}", seeds::take(1))
}
