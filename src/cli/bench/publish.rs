//! Publishing adapters while answers stream: how long an upload takes, of what that is made, and what the
//! running streams feel of it.
//!
//! The same streams run all the while, through windows of equal length. In a window nobody uploads; or
//! adapters are uploaded over HTTP, as a client does it; or the same steps are taken one by one in this
//! process, each with its time; or only the self-tests are asked, or only the stores written, which shows
//! whose doing the streams' longer gaps are.

use std::sync::Arc;
use std::time::{Duration, Instant};

use norma::http::{Keys, Server, ServerOptions, State};
use serde::Serialize;

use super::local::Local;
use super::stats::{PairedRatio, Spread};
use super::uploads::{Files, Times, Uploads};
use super::windows::{Gaps, Kind, Window, under_load};

/// What is done.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Plan {
    /// Streams that run meanwhile.
    pub streams: usize,
    /// Tokens of each of their answers; a stream goes on with the next one.
    pub tokens: usize,
    /// Rounds of windows of every kind; two or more, or there is no interval.
    pub rounds: usize,
    /// Length of a window, milliseconds.
    pub window_ms: u64,
    /// From the beginning of one publication to the beginning of the next, at least, milliseconds.
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
    /// The same while self-tests alone are asked, as often.
    pub self_tests_inter_token_p99: PairedRatio,
    /// The same while adapters alone are stored and recorded, as often.
    pub stores_inter_token_p99: PairedRatio,
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
    let files = tokio::task::block_in_place(|| Files::make(local, plan))?;
    let (answers, windows) = under_load(local, plan, async {
        take_windows((&uploads, files), plan, &mut times).await
    })
    .await?;
    server.stop().await;
    let gaps = Gaps::of(&answers, &windows);
    let over_quiet = |kind| {
        let p99 = |kind, round| Spread::of(&gaps.of_round(kind, round), 1.0).p99;
        let rounds = 0..plan.rounds;
        let pairs = rounds.map(|round| (p99(kind, round), p99(Kind::Quiet, round)));
        // A window in which no token came has no gaps to compare.
        let pairs = pairs.filter(|(busy, quiet)| *busy > 0.0 && *quiet > 0.0);
        PairedRatio::of(&pairs.collect::<Vec<_>>())
    };
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
        quiet_inter_token_ms: Spread::of(&gaps.of_kind(Kind::Quiet), 1e3),
        busy_inter_token_ms: Spread::of(&gaps.of_kind(Kind::OverHttp), 1e3),
        inter_token_p99: over_quiet(Kind::OverHttp),
        self_tests_inter_token_p99: over_quiet(Kind::SelfTests),
        stores_inter_token_p99: over_quiet(Kind::Stores),
    })
}

/// Every round has a window of each kind; each round begins with another kind.
async fn take_windows(
    (uploads, mut files): (&Uploads, Files),
    plan: Plan,
    times: &mut Times,
) -> anyhow::Result<Vec<Window>> {
    let length = Duration::from_millis(plan.window_ms);
    let mut windows = Vec::new();
    for round in 0..plan.rounds {
        for turn in 0..Kind::ALL.len() {
            let kind = Kind::ALL[(round + turn) % Kind::ALL.len()];
            let each = files.each;
            let mut tested = Vec::new();
            if matches!(kind, Kind::OverHttp | Kind::Steps) {
                tested = Files::take(&mut files.tested, each);
            }
            let from = Instant::now();
            let to = from + length;
            match kind {
                Kind::Quiet => {}
                Kind::OverHttp => uploads.over_http((tested, to), times).await?,
                Kind::Steps => uploads.by_steps((tested, to), times).await?,
                Kind::SelfTests => uploads.self_tests(to).await?,
                Kind::Stores => {
                    let untested = Files::take(&mut files.untested, each);
                    uploads.stores((untested, to)).await?;
                }
            }
            tokio::time::sleep_until(to.into()).await;
            windows.push(Window {
                kind,
                round,
                from,
                to,
            });
        }
    }
    Ok(windows)
}
