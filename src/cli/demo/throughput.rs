//! What mixing costs: the same load on the base alone and over all adapters, in turns.

use std::time::Instant;

use anyhow::Context;
use futures_util::future::try_join_all;

use super::BASE;
use super::bundle::{self, Bundle};
use super::client::Client;

const STREAMS: usize = 16;
const TOKENS: usize = 64;
const ROUNDS: usize = 4;

/// Runs the loads in turns and prints tokens per second and their ratio.
#[expect(clippy::print_stdout, reason = "the output of a command")]
pub async fn run(client: &Client, bundle: &Bundle) -> anyhow::Result<()> {
    println!("\n4. {STREAMS} streams of {TOKENS} tokens at once, {ROUNDS} rounds in turns\n");
    let aliases: Vec<&str> = bundle
        .adapters
        .iter()
        .map(|adapter| &*adapter.alias)
        .collect();
    let base = [BASE];
    let mut rates = [Vec::new(), Vec::new()];
    for round in 0..=ROUNDS {
        for (models, rates) in [&base[..], &aliases].into_iter().zip(&mut rates) {
            let rate = load(client, bundle, models).await?;
            // The first round warms up.
            if round > 0 {
                rates.push(rate);
            }
        }
    }
    let [base, mixed] = rates.map(median);
    println!("   base alone           {base:>7.0} tokens/s");
    println!(
        "   {:>2} adapters mixed    {mixed:>7.0} tokens/s",
        aliases.len()
    );
    println!("   ratio                {:>7.2}", mixed / base);
    Ok(())
}

async fn load(client: &Client, bundle: &Bundle, models: &[&str]) -> anyhow::Result<f64> {
    let film = bundle::film(&bundle.cases.first().context("no films")?.film)?;
    let begun = Instant::now();
    let streams = (0..STREAMS).map(|i| {
        let model = models[i % models.len()];
        client.stream(film, (&bundle.report_prompt, model), TOKENS, || ())
    });
    let tokens: u64 = try_join_all(streams).await?.into_iter().sum();
    Ok(tokens as f64 / begun.elapsed().as_secs_f64())
}

fn median(mut rates: Vec<f64>) -> f64 {
    rates.sort_by(f64::total_cmp);
    rates[rates.len() / 2]
}
