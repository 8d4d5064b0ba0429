//! An adapter published while answers stream, and used at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use futures_util::future::try_join_all;

use super::BASE;
use super::bundle::{self, Adapter, Bundle};
use super::client::Client;

const STREAMS: usize = 8;
const TOKENS: usize = 96;

/// Publishes `adapter` in the middle of `STREAMS` running streams.
#[expect(clippy::print_stdout, reason = "the output of a command")]
pub async fn run(client: &Client, bundle: &Bundle, adapter: &Adapter) -> anyhow::Result<()> {
    println!(
        "\n3. `{}` is uploaded while {STREAMS} answers stream\n",
        adapter.alias
    );
    let film = bundle::film(&bundle.cases.first().context("no films")?.film)?;
    let events = Arc::new(AtomicUsize::new(0));
    let gaps = {
        let events = Arc::clone(&events);
        let streams = (0..STREAMS).map(move |_| {
            let (client, events, question) = (
                client.clone(),
                Arc::clone(&events),
                bundle.report_prompt.clone(),
            );
            async move {
                let mut last = Instant::now();
                let mut longest = Duration::ZERO;
                let on_token = || {
                    events.fetch_add(1, Ordering::Relaxed);
                    longest = longest.max(last.elapsed());
                    last = Instant::now();
                };
                client
                    .stream(film, (&question, BASE), TOKENS, on_token)
                    .await?;
                anyhow::Ok(longest)
            }
        });
        try_join_all(streams)
    };
    let upload = async {
        // All streams have begun before the upload does.
        while events.load(Ordering::Relaxed) < STREAMS {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let before = events.load(Ordering::Relaxed);
        let published = client.publish(adapter).await?;
        anyhow::Ok((published, events.load(Ordering::Relaxed) - before))
    };
    let (gaps, (published, during)) = tokio::try_join!(gaps, upload)?;
    let longest = gaps.into_iter().max().unwrap_or_default();
    println!(
        "   published in {:.0} ms ({}), {during} tokens streamed meanwhile, longest gap in a stream {:.0} ms",
        published.took.as_secs_f64() * 1e3,
        &published.generation[..published.generation.len().min(23)],
        longest.as_secs_f64() * 1e3
    );
    for case in bundle
        .cases
        .iter()
        .filter(|case| case.alias == adapter.alias)
    {
        let film = bundle::film(&case.film)?;
        let (base, adapted) = tokio::try_join!(
            client.ask(case, film, BASE),
            client.ask(case, film, &case.alias)
        )?;
        println!("\n   {}   {}", case.film, case.question);
        println!("      {:<14} {}", "truth", case.truth);
        println!("      {BASE:<14} {}", base.text);
        println!("      {:<14} {}", case.alias, adapted.text);
    }
    Ok(())
}
