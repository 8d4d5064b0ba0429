//! Samples in, the few numbers that stand for them out.

use serde::Serialize;

/// The middle and the tail of samples.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Spread {
    /// Median.
    pub p50: f64,
    /// 99th percentile.
    pub p99: f64,
    /// How many samples there were.
    pub samples: usize,
}

impl Spread {
    /// Of samples in any order, each times `scale`.
    pub fn of(samples: &[f64], scale: f64) -> Self {
        let mut sorted = samples.to_vec();
        sorted.sort_by(f64::total_cmp);
        Self {
            p50: percentile(&sorted, 0.5) * scale,
            p99: percentile(&sorted, 0.99) * scale,
            samples: samples.len(),
        }
    }
}

/// The middle of samples in any order; 0 of none.
pub fn median(samples: &[f64]) -> f64 {
    Spread::of(samples, 1.0).p50
}

/// Between the two nearest of sorted samples; 0 of none.
fn percentile(sorted: &[f64], share: f64) -> f64 {
    let Some(last) = sorted.len().checked_sub(1) else {
        return 0.0;
    };
    let place = share * last as f64;
    let (low, high) = (place.floor() as usize, place.ceil() as usize);
    sorted[low] + (sorted[high] - sorted[low]) * place.fract()
}

/// A ratio of two things measured in pairs, with the interval that holds its mean with 95 %.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct PairedRatio {
    /// Geometric mean over the pairs.
    pub ratio: f64,
    /// Lower end of the interval.
    pub low: f64,
    /// Upper end.
    pub high: f64,
    /// Pairs.
    pub pairs: usize,
}

impl PairedRatio {
    /// Of (numerator, denominator) pairs: Student's interval of the mean of the ratios' logarithms.
    pub fn of(pairs: &[(f64, f64)]) -> Self {
        let logs: Vec<f64> = pairs.iter().map(|(a, b)| (a / b).ln()).collect();
        let n = logs.len() as f64;
        let mean = logs.iter().sum::<f64>() / n.max(1.0);
        let squares: f64 = logs.iter().map(|log| (log - mean).powi(2)).sum();
        let half = match logs.len() {
            0 | 1 => f64::INFINITY,
            len => student(len - 1) * (squares / (n - 1.0) / n).sqrt(),
        };
        Self {
            ratio: mean.exp(),
            low: (mean - half).exp(),
            high: (mean + half).exp(),
            pairs: pairs.len(),
        }
    }
}

/// The 97.5 % quantile of Student's distribution: the first ones from its table, then the series of
/// Abramowitz and Stegun 26.7.5, which is good to three digits from there on.
fn student(freedom: usize) -> f64 {
    const FIRST: [f64; 6] = [12.706, 4.303, 3.182, 2.776, 2.571, 2.447];
    if let Some(quantile) = FIRST.get(freedom - 1) {
        return *quantile;
    }
    let (z, n) = (1.959_964_f64, freedom as f64);
    let first = (z.powi(3) + z) / 4.0;
    let second = (5.0 * z.powi(5) + 16.0 * z.powi(3) + 3.0 * z) / 96.0;
    let third = (3.0 * z.powi(7) + 19.0 * z.powi(5) + 17.0 * z.powi(3) - 15.0 * z) / 384.0;
    z + first / n + second / n.powi(2) + third / n.powi(3)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_lie_between_the_samples() {
        let spread = Spread::of(&[4.0, 1.0, 3.0, 2.0, 5.0], 10.0);
        assert_eq!((spread.p50, spread.samples), (30.0, 5));
        assert!((spread.p99 - 49.6).abs() < 1e-9, "{spread:?}");
        assert_eq!(Spread::of(&[], 1.0).p50, 0.0);
    }

    #[test]
    fn intervals_are_students() {
        // Logarithms 0.0, 0.1, 0.2: mean 0.1, deviation 0.1, half width 4.303 * 0.1 / sqrt(3).
        let pairs = [(1.0, 1.0), (0.1_f64.exp(), 1.0), (0.2_f64.exp(), 1.0)];
        let ratio = PairedRatio::of(&pairs);
        assert!((ratio.ratio.ln() - 0.1).abs() < 1e-9);
        assert!((ratio.high.ln() - 0.1 - 0.248_434).abs() < 1e-5);
        assert!((ratio.low.ln() + 0.148_434).abs() < 1e-5);
        assert!(PairedRatio::of(&pairs[..1]).high.is_infinite());
        // From tables of the distribution.
        for (freedom, quantile) in [(7, 2.365), (10, 2.228), (30, 2.042), (120, 1.980)] {
            assert!((student(freedom) - quantile).abs() < 2e-3, "{freedom}");
        }
    }
}
