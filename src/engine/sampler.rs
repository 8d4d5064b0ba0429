//! Chooses a token from logits.
//!
//! In: one row of logits, the request's rules and a draw. Out: a token, its log probability and the
//! likeliest tokens. A pure function: the same draw gives the same token.

use std::cmp::Ordering;

use thiserror::Error;

use super::request::{Sampling, TopToken};
use crate::model::ops::cpu::lanes::{exp, max, sum};

/// So many tokens or fewer are found without sorting.
const FEW: usize = 32;

/// A number in [0, 1) that is a function of a seed and of a token's place in its answer: the
/// `index + 1`st output of SplitMix64 begun at `seed` (Steele, Lea and Flood, "Fast splittable
/// pseudorandom number generators", OOPSLA 2014), whose state is a counter, so that any output can be
/// had at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Draw {
    /// Of the request.
    pub seed: u64,
    /// Of the token.
    pub index: u64,
}

impl Draw {
    fn bits(self) -> u64 {
        let state = self.seed.wrapping_add(
            self.index
                .wrapping_add(1)
                .wrapping_mul(0x9E37_79B9_7F4A_7C15),
        );
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// The 53 high bits as a fraction.
    fn fraction(self) -> f64 {
        (self.bits() >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// Logits that contain NaN or positive infinity, or nothing that may be chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("the logits are not finite")]
pub struct NotFinite;

/// One row of logits, checked, with what its log probabilities need.
#[derive(Clone, Copy, Debug)]
pub struct Logits<'a> {
    row: &'a [f32],
    max: f32,
    log_sum_exp: f64,
}

impl<'a> Logits<'a> {
    /// Checks a row. Negative infinity is allowed for some tokens: probability 0.
    pub fn new(logits: &'a [f32]) -> Result<Self, NotFinite> {
        // Looks at all of them: without a way out the loop is vector code.
        if logits.iter().fold(false, |any, logit| any | logit.is_nan()) {
            return Err(NotFinite);
        }
        let max = max(logits);
        if !max.is_finite() {
            return Err(NotFinite);
        }
        let sum = weigh(logits, max, 1.0, |_| ());
        Ok(Self {
            row: logits,
            max,
            log_sum_exp: f64::from(max) + sum.ln(),
        })
    }

    /// A token with its logit and its natural log probability.
    pub fn token(&self, token: u32) -> TopToken {
        let logit = self.row[token as usize];
        TopToken {
            token,
            logit,
            logprob: (f64::from(logit) - self.log_sum_exp) as f32,
        }
    }

    /// The `n` likeliest tokens, best first; equal ones by their number.
    pub fn top(&self, n: usize) -> Vec<TopToken> {
        let best = self.best(n, 0..self.row.len() as u32);
        best.into_iter().map(|token| self.token(token)).collect()
    }

    /// Chooses a token that is not `forbidden`.
    pub fn choose(
        &self,
        sampling: &Sampling,
        forbidden: &[u32],
        draw: Draw,
    ) -> Result<u32, NotFinite> {
        if sampling.temperature == 0.0 {
            return self.likeliest(forbidden);
        }
        match sampling.top_k {
            None => self.draw_of_all(sampling, forbidden, draw),
            Some(top_k) => {
                let tokens = self.best(top_k, self.possible(forbidden));
                let logits: Vec<f32> = tokens.iter().map(|t| self.row[*t as usize]).collect();
                let chosen = Logits::new(&logits)?.draw_of_all(sampling, &[], draw)?;
                Ok(tokens[chosen as usize])
            }
        }
    }

    fn likeliest(&self, forbidden: &[u32]) -> Result<u32, NotFinite> {
        let first = self.row.iter().position(|logit| *logit == self.max);
        let first = first.ok_or(NotFinite)? as u32;
        if forbidden.contains(&first) {
            let next = self.best(1, self.possible(forbidden)).pop();
            return next.ok_or(NotFinite);
        }
        Ok(first)
    }

    /// Draws by weight, of the nucleus if there is one.
    fn draw_of_all(
        &self,
        sampling: &Sampling,
        forbidden: &[u32],
        draw: Draw,
    ) -> Result<u32, NotFinite> {
        let mut weights = Vec::with_capacity(self.row.len());
        weigh(self.row, self.max, sampling.temperature, |run| {
            weights.extend_from_slice(run);
        });
        for token in forbidden {
            if let Some(weight) = weights.get_mut(*token as usize) {
                *weight = 0.0;
            }
        }
        let total: f64 = weights.iter().map(|weight| f64::from(*weight)).sum();
        let mut tokens: Vec<u32> = Vec::new();
        if sampling.top_p < 1.0 {
            let top_p = f64::from(sampling.top_p);
            // All tokens below this share together have less than `1 - top_p`, so none of them is
            // among the likeliest that reach `top_p`. What is left is short enough to be sorted.
            let least = (1.0 - top_p) / weights.len() as f64 * total;
            let all = 0..weights.len() as u32;
            tokens.extend(all.filter(|token| f64::from(weights[*token as usize]) >= least));
            tokens.sort_unstable_by(|a, b| self.order(*a, *b));
            let mut sum = 0.0;
            let enough = tokens.iter().position(|token| {
                sum += f64::from(weights[*token as usize]);
                sum >= top_p * total
            });
            tokens.truncate(enough.map_or(tokens.len(), |last| last + 1));
        } else {
            tokens.extend((0..weights.len() as u32).filter(|token| weights[*token as usize] > 0.0));
        }
        let weight = |token: &u32| f64::from(weights[*token as usize]);
        let total: f64 = tokens.iter().map(weight).sum();
        let mut left = draw.fraction() * total;
        for token in &tokens {
            left -= weight(token);
            if left < 0.0 {
                return Ok(*token);
            }
        }
        // Rounding may leave a trifle after the last one.
        let possible = tokens.iter().rev().find(|token| weight(token) > 0.0);
        possible.copied().ok_or(NotFinite)
    }

    /// Best first; equal ones by their number.
    fn order(&self, a: u32, b: u32) -> Ordering {
        let (x, y) = (self.row[a as usize], self.row[b as usize]);
        y.total_cmp(&x).then(a.cmp(&b))
    }

    fn possible(&self, forbidden: &[u32]) -> impl Iterator<Item = u32> {
        (0..self.row.len() as u32).filter(|token| {
            self.row[*token as usize] > f32::NEG_INFINITY && !forbidden.contains(token)
        })
    }

    /// The `n` best of these tokens, which are in ascending order; best first.
    fn best(&self, n: usize, among: impl Iterator<Item = u32>) -> Vec<u32> {
        if n > FEW {
            let mut tokens: Vec<u32> = among.collect();
            if n < tokens.len() {
                tokens.select_nth_unstable_by(n - 1, |a, b| self.order(*a, *b));
                tokens.truncate(n);
            }
            tokens.sort_unstable_by(|a, b| self.order(*a, *b));
            return tokens;
        }
        // Few are kept in order; nearly every token is worse than the last of them.
        let mut best: Vec<u32> = Vec::with_capacity(n + 1);
        for token in among {
            let full = best.len() == n;
            if full
                && best
                    .last()
                    .is_none_or(|last| self.order(token, *last).is_gt())
            {
                continue;
            }
            let place = best.partition_point(|other| self.order(*other, token).is_lt());
            best.insert(place, token);
            best.truncate(n);
        }
        best
    }
}

/// Makes `exp((logit - max) / temperature)` of all logits and gives them to `keep` run by run; returns their
/// sum.
fn weigh(logits: &[f32], max: f32, temperature: f32, mut keep: impl FnMut(&[f32])) -> f64 {
    // Runs short enough for sums in f32, which are vector code.
    const RUN: usize = 1024;
    let mut weights = [0.0; RUN];
    let mut total = 0.0;
    for logits in logits.chunks(RUN) {
        let weights = &mut weights[..logits.len()];
        for (logit, weight) in logits.iter().zip(weights.iter_mut()) {
            *weight = exp((logit - max) / temperature);
        }
        total += f64::from(sum(weights));
        keep(weights);
    }
    total
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sampling(temperature: f32, top_k: Option<usize>, top_p: f32) -> Sampling {
        Sampling {
            temperature,
            top_k,
            top_p,
            seed: None,
        }
    }

    fn counts(logits: &[f32], sampling: &Sampling, forbidden: &[u32]) -> Vec<usize> {
        let logits = Logits::new(logits).unwrap();
        let mut counts = vec![0; logits.row.len()];
        for index in 0..20_000 {
            let draw = Draw { seed: 7, index };
            counts[logits.choose(sampling, forbidden, draw).unwrap() as usize] += 1;
        }
        counts
    }

    #[test]
    fn draws_are_the_published_outputs_of_splitmix64() {
        // The reference implementation's first outputs (Vigna, splitmix64.c) for these seeds.
        let bits = |seed, index| Draw { seed, index }.bits();
        assert_eq!(bits(0, 0), 0xE220_A839_7B1D_CDAF);
        assert_eq!(bits(0, 1), 0x6E78_9E6A_A1B9_65F4);
        assert_eq!(bits(0, 2), 0x06C4_5D18_8009_454F);
        assert_eq!(bits(1_234_567, 0), 6_457_827_717_110_365_317);
        assert_eq!(bits(1_234_567, 1), 3_203_168_211_198_807_973);
    }

    #[test]
    fn greedy_takes_the_first_of_equal_tokens_and_never_a_forbidden_one() {
        let logits = Logits::new(&[1.0, 3.0, 3.0, 2.0]).unwrap();
        let draw = Draw { seed: 0, index: 0 };
        let greedy = |forbidden: &[u32]| logits.choose(&Sampling::default(), forbidden, draw);
        assert_eq!(greedy(&[]), Ok(1));
        assert_eq!(greedy(&[1]), Ok(2));
        assert_eq!(greedy(&[1, 2]), Ok(3));
        assert_eq!(greedy(&[0, 1, 2, 3]), Err(NotFinite));
    }

    #[test]
    fn log_probabilities_are_those_of_the_softmax() {
        // ln softmax([0, ln 2, ln 5]) = ln [1/8, 2/8, 5/8].
        let values = [0.0, 2f32.ln(), 5f32.ln()];
        let top = Logits::new(&values).unwrap().top(2);
        assert_eq!((top.len(), top[0].token, top[1].token), (2, 2, 1));
        assert!((top[0].logprob - 0.625f32.ln()).abs() < 1e-6);
        assert!((top[1].logprob - 0.25f32.ln()).abs() < 1e-6);
        assert_eq!(top[0].logit, values[2]);
        assert_eq!(Logits::new(&values).unwrap().top(9).len(), 3);
        assert_eq!(Logits::new(&values).unwrap().top(0), []);
    }

    #[test]
    fn rows_that_are_no_numbers_are_refused() {
        for row in [
            &[0.0, f32::NAN][..],
            &[f32::INFINITY],
            &[f32::NEG_INFINITY],
            &[],
        ] {
            assert_eq!(Logits::new(row).err(), Some(NotFinite));
        }
        let draw = Draw { seed: 0, index: 3 };
        let logits = Logits::new(&[f32::NEG_INFINITY, 0.0]).unwrap();
        assert_eq!(logits.choose(&sampling(5.0, None, 1.0), &[], draw), Ok(1));
    }

    #[test]
    fn frequencies_follow_the_temperature() {
        // Weights 1, 2, 5 at temperature 1; their squares at one half. 20,000 draws: sd below 0.0036.
        let values = [0.0, 2f32.ln(), 5f32.ln()];
        let share = |counts: Vec<usize>| counts[2] as f64 / 20_000.0;
        assert!((share(counts(&values, &sampling(1.0, None, 1.0), &[])) - 0.625).abs() < 0.015);
        assert!(
            (share(counts(&values, &sampling(0.5, None, 1.0), &[])) - 25.0 / 30.0).abs() < 0.015
        );
    }

    #[test]
    fn top_k_and_top_p_cut_the_tail() {
        let values = [0.0, 2f32.ln(), 5f32.ln()];
        let seen = |s: Sampling, forbidden: &[u32]| -> Vec<bool> {
            counts(&values, &s, forbidden)
                .into_iter()
                .map(|n| n > 0)
                .collect()
        };
        assert_eq!(seen(sampling(1.0, Some(2), 1.0), &[]), [false, true, true]);
        assert_eq!(seen(sampling(1.0, Some(2), 1.0), &[2]), [true, true, false]);
        assert_eq!(seen(sampling(1.0, None, 0.62), &[]), [false, false, true]);
        assert_eq!(seen(sampling(1.0, None, 0.63), &[]), [false, true, true]);
        assert_eq!(seen(sampling(1.0, None, 0.88), &[]), [true, true, true]);
        // Of the two best, 5/7 = 0.714 is the best one's share.
        assert_eq!(
            seen(sampling(1.0, Some(2), 0.71), &[]),
            [false, false, true]
        );
        assert_eq!(seen(sampling(1.0, Some(2), 0.72), &[]), [false, true, true]);
    }

    proptest! {
        #[test]
        fn the_nucleus_is_that_of_a_full_sort(
            values in prop::collection::vec(-6.0f32..6.0, 1..40),
            top_p in 0.01f32..0.999,
            seed in any::<u64>(),
        ) {
            let logits = Logits::new(&values).unwrap();
            let all = logits.top(values.len());
            let mut sum = 0.0;
            let mut nucleus = Vec::new();
            for best in &all {
                // Whoever reaches the limit within rounding may fall on either side.
                if sum >= f64::from(top_p) + 1e-5 { break; }
                sum += f64::from(best.logprob).exp();
                nucleus.push(best.token);
            }
            for index in 0..50 {
                let draw = Draw { seed, index };
                let token = logits.choose(&sampling(1.0, None, top_p), &[], draw).unwrap();
                prop_assert!(nucleus.contains(&token), "{token} of {nucleus:?}");
            }
        }
    }
}
