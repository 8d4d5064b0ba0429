//! The second question about an image beside the first: hospitals ask several about each.

use serde::Serialize;

use super::load::seeds;
use super::stats::{Spread, median};
use super::target::{Ask, Prompt, Target};

/// What two questions about an image took.
#[derive(Clone, Debug, Serialize)]
pub struct SecondQuestion {
    /// Rows of the first question's prompt, those of the image among them.
    pub prompt_rows: usize,
    /// First token of the first question, milliseconds.
    pub first_ms: Spread,
    /// First token of the second, milliseconds.
    pub second_ms: Spread,
    /// How many times shorter the second one waits, median over the images.
    pub times_shorter: f64,
}

/// Asks two questions about each of so many new images, one after another, nothing else running.
pub async fn measure(target: &Target, images: usize) -> anyhow::Result<SecondQuestion> {
    let (mut first, mut second) = (Vec::new(), Vec::new());
    let mut prompt_rows = 0;
    for image in 0..=images {
        let seed = seeds::take(1);
        let ask = |question| Ask {
            model: target.base().to_owned(),
            prompt: Prompt::Film { seed, question },
            tokens: 1,
        };
        let one = target.ask(ask("Is the heart enlarged?")).await?;
        let two = target.ask(ask("Which side is the effusion on?")).await?;
        // The first image warms up.
        if image > 0 {
            prompt_rows = one.prompt_rows;
            first.push(one.first().as_secs_f64());
            second.push(two.first().as_secs_f64());
        }
    }
    let ratios: Vec<f64> = first.iter().zip(&second).map(|(a, b)| a / b).collect();
    Ok(SecondQuestion {
        prompt_rows,
        first_ms: Spread::of(&first, 1e3),
        second_ms: Spread::of(&second, 1e3),
        times_shorter: median(&ratios),
    })
}
