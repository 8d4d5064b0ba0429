//! The same films under different adapters and the base, all asked at once.

use anyhow::Context;
use futures_util::future::try_join_all;

use super::BASE;
use super::bundle::{self, Adapter, Bundle};
use super::client::Client;

/// Asks every case of the published adapters twice at the same moment, of its adapter and of the base,
/// and prints the answers beside the truth.
#[expect(clippy::print_stdout, reason = "the output of a command")]
pub async fn run(client: &Client, bundle: &Bundle, published: &[Adapter]) -> anyhow::Result<()> {
    let cases: Vec<_> = bundle
        .cases
        .iter()
        .filter(|case| published.iter().any(|adapter| adapter.alias == case.alias))
        .collect();
    let questions = cases.iter().flat_map(|case| {
        [BASE, &case.alias]
            .map(|model| async move { client.ask(case, bundle::film(&case.film)?, model).await })
    });
    let answers = try_join_all(questions).await?;
    println!(
        "\n2. {} requests sent at once, each pinned to its own adapter or to the base",
        answers.len()
    );
    let mut right = [0, 0];
    for (case, answers) in cases.iter().zip(answers.chunks_exact(2)) {
        let [base, adapted] = answers else { continue };
        println!("\n   {}   {}", case.film, case.question);
        println!("      {:<14} {}", "truth", case.truth);
        let rows = [(BASE, base), (case.alias.as_str(), adapted)];
        for (i, (name, answer)) in rows.into_iter().enumerate() {
            let hit = answer.text == case.truth;
            right[i] += usize::from(hit);
            println!(
                "    {} {name:<14} {}",
                if hit { "=" } else { " " },
                answer.text
            );
        }
        let generation = adapted
            .generation
            .as_deref()
            .context("an answer without its adapter")?;
        println!(
            "      {:<14} {}",
            "made by",
            &generation[..generation.len().min(23)]
        );
    }
    println!(
        "\n   exactly right: base {} of {n}, adapters {} of {n} (held-out figures are in README)",
        right[0],
        right[1],
        n = cases.len()
    );
    Ok(())
}
