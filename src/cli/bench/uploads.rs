//! Adapters on their way into a service: over HTTP, or step by step as the server does it.

use std::time::{Duration, Instant};

use anyhow::ensure;
use norma::http::keys::LOCAL_TENANT;
use norma::http::publish::replay;
use norma_adapters::{Adapter, Expected, IncomingFile, format};
use reqwest::multipart::{Form, Part};

use super::load::seeds;
use super::local::{Local, refused};
use super::publish::Plan;
use super::windows::words;
use super::{adapters, tested};

/// Seconds of publications.
#[derive(Default)]
pub struct Times {
    pub over_http: Vec<f64>,
    pub steps: Vec<f64>,
    pub self_test: Vec<f64>,
    pub syncs: Vec<f64>,
    pub rest: Vec<f64>,
    pub first_token: Vec<f64>,
}

/// Adapters that were never uploaded before, made before anything streams.
pub struct Files {
    /// That the server will accept.
    pub tested: Vec<Vec<u8>>,
    /// That are stored past its door.
    pub untested: Vec<Vec<u8>>,
    /// For a window of any kind.
    pub each: usize,
}

impl Files {
    /// As many as the plan's windows can take. Blocks.
    pub fn make(local: &Local, plan: Plan) -> anyhow::Result<Self> {
        let begun = Instant::now();
        let first = tested::file(local, new_seed())?;
        // A publication takes no less than its self-test, so a window has no room for more.
        let every = begun.elapsed().max(Duration::from_millis(plan.every_ms));
        let window = Duration::from_millis(plan.window_ms);
        let each = (window.as_secs_f64() / every.as_secs_f64()).ceil() as usize;
        let mut tested = vec![first];
        for _ in 1..2 * each * plan.rounds {
            tested.push(tested::file(local, new_seed())?);
        }
        let untested = (0..each * plan.rounds)
            .map(|_| local.maker().file(new_seed(), adapters::unplayed()))
            .collect::<anyhow::Result<_>>()?;
        Ok(Self {
            tested,
            untested,
            each,
        })
    }

    /// Some of them.
    pub fn take(files: &mut Vec<Vec<u8>>, count: usize) -> Vec<Vec<u8>> {
        files.split_off(files.len().saturating_sub(count))
    }
}

/// Sends them.
pub struct Uploads {
    pub http: reqwest::Client,
    /// Where they are posted to.
    pub url: String,
    /// The service behind it.
    pub local: Local,
    /// From the beginning of one to the beginning of the next, at least.
    pub every: Duration,
}

/// Files, and when no further one is begun.
pub type Batch = (Vec<Vec<u8>>, Instant);

impl Uploads {
    /// As a client does it; then a first token is asked of each.
    pub async fn over_http(&self, (files, to): Batch, times: &mut Times) -> anyhow::Result<()> {
        for file in files {
            let (alias, begun) = (new_alias(), Instant::now());
            if begun >= to {
                break;
            }
            let form = Form::new()
                .part("file", Part::bytes(file).file_name("a.safetensors"))
                .text("alias", alias.clone());
            let answer = self.http.post(&self.url).multipart(form).send().await?;
            let status = answer.status();
            let text = answer.text().await?;
            ensure!(status == 201, "an upload answered {status}: {text}");
            times.over_http.push(begun.elapsed().as_secs_f64());
            let first = self.local.ask(words(alias, 1)).await?.first();
            times.first_token.push(first.as_secs_f64());
            self.wait(begun).await;
        }
        Ok(())
    }

    /// As the server does it, each step timed.
    pub async fn by_steps(&self, (files, to): Batch, times: &mut Times) -> anyhow::Result<()> {
        for file in files {
            let begun = Instant::now();
            if begun >= to {
                break;
            }
            let local = self.local.clone();
            let steps = tokio::task::spawn_blocking(move || publish(&local, &file)).await??;
            times.steps.push(steps.whole);
            times.self_test.push(steps.self_test);
            times.syncs.push(steps.syncs);
            times.rest.push(steps.whole - steps.self_test - steps.syncs);
            self.wait(begun).await;
        }
        Ok(())
    }

    /// Only what checking new ones asks of the engine.
    pub async fn self_tests(&self, to: Instant) -> anyhow::Result<()> {
        while Instant::now() < to {
            let begun = Instant::now();
            let local = self.local.clone();
            // Playing it for a new adapter is what the server does to check one, less the comparison.
            let play = move || tested::file(&local, new_seed()).map(drop);
            tokio::task::spawn_blocking(play).await??;
            self.wait(begun).await;
        }
        Ok(())
    }

    /// Only what writing new ones down takes.
    pub async fn stores(&self, (files, to): Batch) -> anyhow::Result<()> {
        for file in files {
            let begun = Instant::now();
            if begun >= to {
                break;
            }
            let local = self.local.clone();
            let work = move || {
                let (incoming, adapter) = read(&local, &file)?;
                store(&local, incoming, &adapter)
            };
            tokio::task::spawn_blocking(work).await??;
            self.wait(begun).await;
        }
        Ok(())
    }

    async fn wait(&self, begun: Instant) {
        tokio::time::sleep(self.every.saturating_sub(begun.elapsed())).await;
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
    let begun = Instant::now();
    let (incoming, adapter) = read(local, file)?;
    let at = Instant::now();
    replay(local.service(), &LOCAL_TENANT.into(), &adapter).map_err(|error| refused(&error))?;
    let self_test = at.elapsed().as_secs_f64();
    let syncs = store(local, incoming, &adapter)?;
    Ok(Steps {
        whole: begun.elapsed().as_secs_f64(),
        self_test,
        syncs,
    })
}

fn read(local: &Local, file: &[u8]) -> anyhow::Result<(IncomingFile, Adapter)> {
    let service = local.service();
    let mut incoming = service.registry().incoming()?;
    incoming.append(file)?;
    let bytes = incoming.read()?;
    let (table, row) = (service.table(), service.base_row());
    let adapter = format::read(&bytes, table, row, &service.digest())?;
    Ok((incoming, adapter))
}

/// Stores, records and names an adapter; seconds of what waits for syncs.
fn store(local: &Local, incoming: IncomingFile, adapter: &Adapter) -> anyhow::Result<f64> {
    let (service, alias) = (local.service(), new_alias());
    let registry = service.registry();
    let at = Instant::now();
    registry.add(LOCAL_TENANT, incoming, adapter)?;
    let added = at.elapsed();
    service.remember(adapter, Some(&alias));
    let at = Instant::now();
    registry.put_alias(LOCAL_TENANT, &alias, &adapter.generation, Expected::Any)?;
    Ok((added + at.elapsed()).as_secs_f64())
}

fn new_alias() -> String {
    format!("published-{}", seeds::take(1))
}

/// Of an adapter: no two of a run are the same.
fn new_seed() -> u64 {
    (1 << 40) + seeds::take(1)
}
