//! Proportions with intervals. In: counts. Out: scores. It knows no texts.

use serde::{Deserialize, Serialize};

/// A score between 0 and 1 with its 95 % interval.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Score {
    pub value: f64,
    pub low: f64,
    pub high: f64,
    /// Observations behind the score.
    pub n: usize,
}

/// A proportion with Wilson's interval (E. B. Wilson, JASA 22, 1927); of nothing it is 0 in
/// `[0, 1]`.
pub fn proportion(hits: usize, n: usize) -> Score {
    if n == 0 {
        return Score {
            value: 0.0,
            low: 0.0,
            high: 1.0,
            n,
        };
    }
    let (size, value) = (n as f64, hits as f64 / n as f64);
    let z2 = Z * Z;
    let centre = (value + z2 / (2.0 * size)) / (1.0 + z2 / size);
    let spread = (value * (1.0 - value) / size + z2 / (4.0 * size * size)).sqrt();
    let half = Z / (1.0 + z2 / size) * spread;
    // The interval holds the value itself; rounding may not take it out.
    let (low, high) = (
        (centre - half).clamp(0.0, value),
        (centre + half).clamp(value, 1.0),
    );
    Score {
        value,
        low,
        high,
        n,
    }
}

/// The share of true observations.
pub fn share(observations: impl IntoIterator<Item = bool>) -> Score {
    let (hits, n) = observations
        .into_iter()
        .fold((0, 0), |(hits, n), hit| (hits + usize::from(hit), n + 1));
    proportion(hits, n)
}

/// The 0.975 quantile of the standard normal distribution.
const Z: f64 = 1.959_963_984_540_054;

#[cfg(test)]
mod tests {
    use super::*;

    /// Expected values from Wilson's formula in exact arithmetic, rounded to four places.
    #[test]
    fn wilson_intervals_are_right() {
        for (hits, n, low, high) in [
            (0, 10, 0.0, 0.2775),
            (5, 10, 0.2366, 0.7634),
            (450, 500, 0.8706, 0.9233),
        ] {
            let score = proportion(hits, n);
            assert!((score.low - low).abs() < 5e-5, "{score:?}");
            assert!((score.high - high).abs() < 5e-5, "{score:?}");
        }
        assert_eq!(
            proportion(0, 0),
            Score {
                value: 0.0,
                low: 0.0,
                high: 1.0,
                n: 0
            }
        );
        assert!(proportion(10, 10).high <= 1.0);
    }
}
