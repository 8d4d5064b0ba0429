//! Whether an adapter answers its own self-test here as it did where it was made.
//!
//! In: the expected tokens and logits, and what the engine gave. Out: agreement, or the first step that
//! differs. It knows no engine and no file.

use norma_adapters::SelfTest;
use thiserror::Error;

/// How far a logit may lie from the expected one, relative to the largest expected magnitude, where the
/// manifest does not say.
pub const TOLERANCE: f32 = 1e-3;
/// The most that a manifest may allow itself, relative to the same.
pub const MAX_TOLERANCE: f32 = 1e-2;

/// One step of the answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    /// The token that was chosen.
    pub token: u32,
    /// The likeliest tokens with their logits, best first.
    pub top: Vec<(u32, f32)>,
}

/// The first difference.
#[derive(Clone, Debug, PartialEq, Error)]
pub enum Mismatch {
    /// The answer ended early.
    #[error("self-test step {step}: expected token {expected}, the answer had ended")]
    Ended {
        /// Counted from 0.
        step: usize,
        /// The token that should have come.
        expected: u32,
    },
    /// Another token.
    #[error("self-test step {step}: expected token {expected}, got {got}")]
    Token {
        /// Counted from 0.
        step: usize,
        /// The token that should have come.
        expected: u32,
        /// The token that came.
        got: u32,
    },
    /// Another logit.
    #[error(
        "self-test step {step}: the logit of token {token} should be {expected}, got {}, tolerance {tolerance}",
        got.map_or_else(|| "less than any that was looked at".to_owned(), |got| got.to_string())
    )]
    Logit {
        /// Counted from 0.
        step: usize,
        /// Whose logit.
        token: u32,
        /// What it should be.
        expected: f32,
        /// What it is; `None` where it is not among the likeliest.
        got: Option<f32>,
        /// How far it may lie off.
        tolerance: f32,
    },
}

/// How many of the likeliest logits to ask the engine for: a few more than are expected, so that those
/// that lie close together may change places.
pub fn top_logits(test: &SelfTest) -> usize {
    test.top_logits
        .iter()
        .map(Vec::len)
        .max()
        .unwrap_or_default()
        + 8
}

/// How far a logit may lie off.
pub fn tolerance(test: &SelfTest) -> f32 {
    let logits = test.top_logits.iter().flatten();
    let largest = logits.map(|(_, logit)| logit.abs()).fold(0f32, f32::max);
    let own = test.tolerance.unwrap_or(TOLERANCE * largest);
    own.min(MAX_TOLERANCE * largest)
}

/// Compares. A token counts only where the two best expected logits lie further apart than the tolerance;
/// where they do not and the other one was taken, the answers part and the rest says nothing.
pub fn compare(test: &SelfTest, got: &[Step]) -> Result<(), Mismatch> {
    let tolerance = tolerance(test);
    for (step, (expected, top)) in test.tokens.iter().zip(&test.top_logits).enumerate() {
        let Some(given) = got.get(step) else {
            return Err(Mismatch::Ended {
                step,
                expected: *expected,
            });
        };
        compare_logits(step, top, &given.top, tolerance)?;
        if given.token == *expected {
            continue;
        }
        let is_clear = top.len() < 2 || top[0].1 - top[1].1 > tolerance;
        if is_clear {
            return Err(Mismatch::Token {
                step,
                expected: *expected,
                got: given.token,
            });
        }
        return Ok(());
    }
    Ok(())
}

fn compare_logits(
    step: usize,
    expected: &[(u32, f32)],
    got: &[(u32, f32)],
    tolerance: f32,
) -> Result<(), Mismatch> {
    for &(token, expected) in expected {
        let got = got
            .iter()
            .find(|(other, _)| *other == token)
            .map(|(_, logit)| *logit);
        if !got.is_some_and(|got| (got - expected).abs() <= tolerance) {
            return Err(Mismatch::Logit {
                step,
                token,
                expected,
                got,
                tolerance,
            });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn test() -> SelfTest {
        SelfTest {
            generator: "probe/1".into(),
            seed: 1,
            size: 32,
            prompt: "what".into(),
            tokens: vec![4, 5],
            top_logits: vec![vec![(4, 10.0), (6, 8.0)], vec![(5, 7.0), (9, 6.995)]],
            tolerance: None,
        }
    }

    fn step(token: u32, top: &[(u32, f32)]) -> Step {
        Step {
            token,
            top: top.to_vec(),
        }
    }

    #[test]
    fn agreement_within_the_tolerance_passes_and_beyond_it_names_the_step() {
        let test = test();
        assert!((tolerance(&test) - 0.01).abs() < 1e-6);
        let first = step(4, &[(4, 10.005), (6, 7.995)]);
        let second = step(5, &[(5, 7.0), (9, 6.99)]);
        assert_eq!(compare(&test, &[first.clone(), second.clone()]), Ok(()));
        let off = step(4, &[(4, 10.02), (6, 8.0)]);
        let error = compare(&test, &[off, second.clone()]).unwrap_err();
        assert!(
            matches!(
                error,
                Mismatch::Logit {
                    step: 0,
                    token: 4,
                    ..
                }
            ),
            "{error}"
        );
        let absent = step(4, &[(4, 10.0), (7, 9.0)]);
        let error = compare(&test, &[absent, second]).unwrap_err();
        assert!(
            matches!(
                error,
                Mismatch::Logit {
                    token: 6,
                    got: None,
                    ..
                }
            ),
            "{error}"
        );
        let error = compare(&test, &[first]).unwrap_err();
        assert_eq!(
            error,
            Mismatch::Ended {
                step: 1,
                expected: 5
            }
        );
    }

    #[test]
    fn a_token_counts_only_where_the_choice_was_clear() {
        let test = test();
        let first = step(4, &[(4, 10.0), (6, 8.0)]);
        let tie = step(9, &[(9, 7.0), (5, 6.998)]);
        assert_eq!(compare(&test, &[first, tie]), Ok(()));
        let wrong = step(6, &[(4, 10.0), (6, 8.0)]);
        let error = compare(&test, &[wrong]).unwrap_err();
        assert_eq!(
            error,
            Mismatch::Token {
                step: 0,
                expected: 4,
                got: 6
            }
        );
    }

    #[test]
    fn a_manifest_may_ask_for_more_room_up_to_a_bound() {
        let lax = SelfTest {
            tolerance: Some(5.0),
            ..test()
        };
        assert!((tolerance(&lax) - 0.1).abs() < 1e-6);
        let strict = SelfTest {
            tolerance: Some(1e-6),
            ..test()
        };
        assert!(tolerance(&strict) < 2e-6);
    }
}
