//! How sure the model is of an answer, as one number between 0 and 1.
//!
//! In: the likeliest tokens' log probabilities at each token of a greedy answer, and a temperature. Out: the
//! probability of the answer. Server and trainer use this one definition, so that a threshold means the
//! same to both.

/// How many of the likeliest tokens are looked at one by one.
pub const TOP_TOKENS: usize = 20;

/// The product over the answer's tokens, its end-of-text token included, of the chosen token's probability
/// once the logits are divided by `temperature` (above 0).
///
/// `steps`: one entry a token, the natural log probabilities of the [`TOP_TOKENS`] likeliest tokens without
/// a temperature, best first; the best is the one that was chosen. All other tokens count as one, with the
/// probability that is left for them; so at temperature 1 the result is exact. An answer without tokens
/// has confidence 0.
pub fn of_greedy<'a>(steps: impl IntoIterator<Item = &'a [f32]>, temperature: f32) -> f32 {
    let temperature = f64::from(temperature);
    let mut log = 0f64;
    let mut any = false;
    for logprobs in steps {
        let Some(best) = logprobs.first().map(|best| f64::from(*best)) else {
            return 0.0;
        };
        any = true;
        let top = || {
            logprobs
                .iter()
                .take(TOP_TOKENS)
                .map(|logprob| f64::from(*logprob))
        };
        let rest = (1.0 - top().map(f64::exp).sum::<f64>()).max(0.0);
        let heated = |logprob: f64| ((logprob - best) / temperature).exp();
        let others = if rest > 0.0 { heated(rest.ln()) } else { 0.0 };
        log -= (top().map(heated).sum::<f64>() + others).ln();
    }
    if any { log.exp() as f32 } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(got: f32, want: f32) {
        assert!((got - want).abs() < 1e-6, "{got} {want}");
    }

    #[test]
    fn at_temperature_one_it_is_the_answers_probability() {
        let steps: [&[f32]; 2] = [&[0.5f32.ln(), 0.25f32.ln()], &[0.9f32.ln(), 0.02f32.ln()]];
        close(of_greedy(steps, 1.0), 0.45);
        close(of_greedy([&[0.0f32][..]], 1.0), 1.0);
        close(of_greedy(std::iter::empty(), 1.0), 0.0);
    }

    #[test]
    fn heat_lowers_it_as_dividing_the_logits_does() {
        // Three tokens of 0.5, 0.25 and 0.25; at temperature 2 their square roots count.
        let roots = [0.5f32.sqrt(), 0.25f32.sqrt(), 0.25f32.sqrt()];
        let want = roots[0] / roots.iter().sum::<f32>();
        close(
            of_greedy([&[0.5f32.ln(), 0.25f32.ln(), 0.25f32.ln()][..]], 2.0),
            want,
        );
        // The last of them may as well be the rest.
        close(of_greedy([&[0.5f32.ln(), 0.25f32.ln()][..]], 2.0), want);
    }
}
