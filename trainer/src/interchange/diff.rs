//! How far two adapters lie from each other, and each from the base, site by site.
//!
//! In: rows of one base. Out: distances. It must not know files.

use norma_adapters::{Scope, SiteTable};
use serde::Serialize;

/// Distances of one site's values, gains and biases together.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SiteDistance {
    /// Canonical name.
    pub site: String,
    /// Root mean square of the differences between the two.
    pub rms: f64,
    /// The largest difference.
    pub largest: f32,
    /// How far each lies from the base, root mean square.
    pub moved: [f64; 2],
    /// The cosine between the two movements; none where one stands still.
    pub cosine: Option<f64>,
}

/// Distances of all used sites, in the base's order. `rows`: the two adapters', `[row_len]`.
pub fn diff(table: &SiteTable, base: &[f32], rows: [&[f32]; 2]) -> Vec<SiteDistance> {
    table
        .selected(Scope::All)
        .map(|idx| {
            let range = table.range(idx);
            let places = range.gain.chain(range.bias.into_iter().flatten());
            let movements: Vec<[f64; 2]> = places
                .map(|place| rows.map(|row| f64::from(row[place]) - f64::from(base[place])))
                .collect();
            distance(table.sites()[idx].name.clone(), &movements)
        })
        .collect()
}

fn distance(site: String, movements: &[[f64; 2]]) -> SiteDistance {
    let n = movements.len().max(1) as f64;
    let sum = |term: &dyn Fn(&[f64; 2]) -> f64| movements.iter().map(term).sum::<f64>();
    let squares = [sum(&|m| m[0] * m[0]), sum(&|m| m[1] * m[1])];
    let lengths = squares.map(f64::sqrt);
    let moving = lengths[0] > 0.0 && lengths[1] > 0.0;
    let differences = movements.iter().map(|m| (m[0] - m[1]).abs());
    SiteDistance {
        site,
        rms: (sum(&|m| (m[0] - m[1]).powi(2)) / n).sqrt(),
        largest: differences.fold(0.0, f64::max) as f32,
        moved: squares.map(|square| (square / n).sqrt()),
        cosine: moving.then(|| sum(&|m| m[0] * m[1]) / (lengths[0] * lengths[1])),
    }
}
