//! How sure the model is of an answer, as one number between 0 and 1.
//!
//! In: the likeliest logits of each token of a greedy answer, and a temperature. Out: the probability of
//! the answer. Server and trainer use this one definition, so that a threshold means the same to both.

/// How many of the likeliest logits of a token count; the others are taken as impossible.
pub const TOP_LOGITS: usize = 20;

/// The product over the answer's tokens, its end-of-text token included, of the chosen token's share of
/// the softmax over the [`TOP_LOGITS`] likeliest logits divided by `temperature` (above 0).
///
/// `steps`: one entry a token, the likeliest logits best first, the chosen (greedy) token's first. An
/// answer without tokens has confidence 0.
pub fn of_greedy<'a>(steps: impl IntoIterator<Item = &'a [f32]>, temperature: f32) -> f32 {
    let mut log = 0f64;
    let mut any = false;
    for logits in steps {
        let Some(best) = logits.first() else {
            return 0.0;
        };
        any = true;
        let share = |logit: &f32| (f64::from(logit - best) / f64::from(temperature)).exp();
        log -= logits.iter().take(TOP_LOGITS).map(share).sum::<f64>().ln();
    }
    if any { log.exp() as f32 } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn confidence_is_the_product_of_shares_and_heat_lowers_it() {
        let steps: [&[f32]; 2] = [&[2.0, 2.0], &[1.0, 1.0 - 3f32.ln()]];
        let cool = of_greedy(steps, 1.0);
        // One half, then 1 / (1 + 1/3).
        assert!((cool - 0.375).abs() < 1e-6, "{cool}");
        assert!(of_greedy(steps, 2.0) < cool);
        assert!((of_greedy([&[5.0f32][..]], 1.0) - 1.0).abs() < 1e-6);
        assert!(of_greedy(std::iter::empty(), 1.0).abs() < 1e-6);
    }

    #[test]
    fn only_the_likeliest_count() {
        let many = [0.0f32; 3 * TOP_LOGITS];
        let confidence = of_greedy([&many[..]], 1.0);
        assert!(
            (confidence - 1.0 / TOP_LOGITS as f32).abs() < 1e-6,
            "{confidence}"
        );
    }
}
