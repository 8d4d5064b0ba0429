//! Whether an adapter answers its own self-test here as it did where it was made.
//!
//! In: the expected tokens and logits (of f32), what the engine gave, and the type of its weights. Out:
//! agreement, or the first step that differs. It knows no engine and no file.

use norma_adapters::SelfTest;
use thiserror::Error;

use crate::base::WeightType;

/// The most that a manifest may allow itself, relative to the largest expected magnitude.
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

/// How far a logit may lie off. On f32 what the manifest says, within its bound, or the type's own share
/// of the largest expected magnitude; on narrower weights never less than the type's share, because a
/// manifest speaks of the f32 path.
pub fn tolerance(test: &SelfTest, weights: WeightType) -> f32 {
    let logits = test.top_logits.iter().flatten();
    let largest = logits.map(|(_, logit)| logit.abs()).fold(0f32, f32::max);
    let share = weights.tolerance() * largest;
    let own = test.tolerance.map(|own| own.min(MAX_TOLERANCE * largest));
    match (own, weights) {
        (Some(own), WeightType::F32) => own,
        (own, _) => share.max(own.unwrap_or(0.0)),
    }
}

/// Compares the steps from `first` on, and returns how many steps of the test are settled: all, or those
/// up to the one where the answers parted for no fault. A token counts only where the two best expected
/// logits lie further apart than both may move. Where they do not and the other one was taken, what follows
/// says nothing, and the rest has to be asked again behind the expected tokens.
pub fn compare(
    test: &SelfTest,
    first: usize,
    got: &[Step],
    weights: WeightType,
) -> Result<usize, Mismatch> {
    let tolerance = tolerance(test, weights);
    let wanted = test.tokens.iter().zip(&test.top_logits).enumerate();
    for (step, (expected, top)) in wanted.skip(first) {
        let Some(given) = got.get(step - first) else {
            return Err(Mismatch::Ended {
                step,
                expected: *expected,
            });
        };
        compare_logits(step, top, &given.top, tolerance)?;
        if given.token == *expected {
            continue;
        }
        let is_clear = top.len() < 2 || top[0].1 - top[1].1 > 2.0 * tolerance;
        if is_clear {
            return Err(Mismatch::Token {
                step,
                expected: *expected,
                got: given.token,
            });
        }
        return Ok(step + 1);
    }
    Ok(test.tokens.len())
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
        assert!((tolerance(&test, WeightType::F32) - 0.01).abs() < 1e-6);
        let first = step(4, &[(4, 10.005), (6, 7.995)]);
        let second = step(5, &[(5, 7.0), (9, 6.99)]);
        assert_eq!(
            compare(&test, 0, &[first.clone(), second.clone()], WeightType::F32),
            Ok(2)
        );
        let off = step(4, &[(4, 10.02), (6, 8.0)]);
        let error = compare(&test, 0, &[off, second.clone()], WeightType::F32).unwrap_err();
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
        let error = compare(&test, 0, &[absent, second], WeightType::F32).unwrap_err();
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
        let error = compare(&test, 0, &[first], WeightType::F32).unwrap_err();
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
        assert_eq!(compare(&test, 0, &[first, tie], WeightType::F32), Ok(2));
        // The rest is asked again behind the expected token.
        let last = step(5, &[(5, 7.0), (9, 6.995)]);
        assert_eq!(compare(&test, 1, &[last], WeightType::F32), Ok(2));
        let early = SelfTest {
            top_logits: vec![vec![(4, 8.0), (6, 8.0)], vec![(5, 7.0), (9, 6.0)]],
            ..test.clone()
        };
        let parted = step(6, &[(6, 8.0), (4, 8.0)]);
        assert_eq!(compare(&early, 0, &[parted], WeightType::F32), Ok(1));
        let wrong = step(6, &[(4, 10.0), (6, 8.0)]);
        let error = compare(&test, 0, &[wrong], WeightType::F32).unwrap_err();
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
        assert!((tolerance(&lax, WeightType::F32) - 0.1).abs() < 1e-6);
        let strict = SelfTest {
            tolerance: Some(1e-6),
            ..test()
        };
        assert!(tolerance(&strict, WeightType::F32) < 2e-6);
    }

    #[test]
    fn narrower_weights_have_their_own_room_whatever_the_manifest_says() {
        for own in [None, Some(1e-6)] {
            let test = SelfTest {
                tolerance: own,
                ..test()
            };
            let room = |weights| tolerance(&test, weights) / 10.0;
            let want = WeightType::Int8.tolerance();
            assert!((room(WeightType::Int8) - want).abs() < 1e-6);
            assert!(room(WeightType::F32) < room(WeightType::Bf16));
        }
        let off = step(4, &[(4, 10.15), (6, 7.85)]);
        let second = step(5, &[(5, 7.0), (9, 6.995)]);
        let answer = [off, second];
        assert!(compare(&test(), 0, &answer, WeightType::F32).is_err());
        assert_eq!(compare(&test(), 0, &answer, WeightType::Int8), Ok(2));
    }
}
