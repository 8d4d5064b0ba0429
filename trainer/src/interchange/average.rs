//! Several adapters of one base as their weighted mean: the averaging step of federated learning
//! (FedAvg, McMahan et al., arXiv 1602.05629), where every place weighs as much as it has examples.
//!
//! In: rows and weights. Out: a row. It must not know files.

use thiserror::Error;

/// Why there is no mean.
#[derive(Clone, Debug, PartialEq, Error)]
pub enum AverageError {
    /// Fewer than two.
    #[error("{got} adapter, an average needs at least two")]
    TooFew {
        /// How many.
        got: usize,
    },
    /// Not a weight an adapter.
    #[error("{got} weights for {want} adapters")]
    Count {
        /// Weights.
        got: usize,
        /// Adapters.
        want: usize,
    },
    /// A weight that is negative or no number, or all of them 0.
    #[error("weights must be 0 or more, and one of them above 0; got {got:?}")]
    Weight {
        /// All of them.
        got: Vec<f64>,
    },
}

/// The weights, as shares of their sum.
pub fn shares(weights: &[f64], n_adapters: usize) -> Result<Vec<f64>, AverageError> {
    if n_adapters < 2 {
        return Err(AverageError::TooFew { got: n_adapters });
    }
    if weights.len() != n_adapters {
        return Err(AverageError::Count {
            got: weights.len(),
            want: n_adapters,
        });
    }
    let total: f64 = weights.iter().sum();
    let fine = weights.iter().all(|weight| *weight >= 0.0);
    if !(fine && total > 0.0 && total.is_finite()) {
        return Err(AverageError::Weight {
            got: weights.to_vec(),
        });
    }
    Ok(weights.iter().map(|weight| weight / total).collect())
}

/// The mean of rows of equal length by share, worked out in f64.
pub fn average(rows: &[&[f32]], shares: &[f64]) -> Vec<f32> {
    let length = rows.iter().map(|row| row.len()).min().unwrap_or(0);
    let mean = |place: usize| {
        let terms = rows.iter().zip(shares);
        terms
            .map(|(row, share)| f64::from(row[place]) * share)
            .sum::<f64>() as f32
    };
    (0..length).map(mean).collect()
}
