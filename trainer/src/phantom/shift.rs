//! Other scanners. In: a film and its seed. Out: the same film as they would have made it.
//! Pre-training never sees a shifted film.

use rand::Rng;
use serde::{Deserialize, Serialize};

use super::draw::{SIDE, gaussian, to_grey};
use super::{Film, Stream, rng};

/// How a film departs from those of pre-training.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Shift {
    #[default]
    None,
    /// Black and white exchanged.
    Inverted,
    /// Low contrast, blur, a gamma curve and strong grain.
    LowDose,
}

impl Shift {
    /// Applies the shift; the seed decides the low-dose scanner's exact setting and grain.
    pub fn apply(self, film: &Film, seed: u64) -> Film {
        let pixels = match self {
            Self::None => return film.clone(),
            Self::Inverted => film.pixels().iter().map(|grey| 255 - grey).collect(),
            Self::LowDose => low_dose(film.pixels(), seed),
        };
        Film::from_pixels(pixels).expect("a shift keeps the number of pixels")
    }
}

fn low_dose(pixels: &[u8], seed: u64) -> Vec<u8> {
    let mut rng = rng(seed, Stream::Shift, 0);
    let gamma = rng.random_range(1.3..1.6);
    let contrast = rng.random_range(0.42..0.52);
    let grain = rng.random_range(9.0..12.0);
    let bright: Vec<f64> = pixels
        .iter()
        .map(|grey| (f64::from(*grey) / 255.0).powf(gamma) * 255.0)
        .collect();
    blur(&bright)
        .into_iter()
        .map(|value| to_grey(70.0 + contrast * value + grain * gaussian(&mut rng)))
        .collect()
}

/// A separable blur with the weights 1/4, 1/2, 1/4; the border repeats.
fn blur(film: &[f64]) -> Vec<f64> {
    let pass = |film: &[f64], step: fn(usize, usize, isize) -> usize| -> Vec<f64> {
        (0..film.len())
            .map(|at| {
                let (x, y) = (at % SIDE, at / SIDE);
                0.25 * film[step(x, y, -1)] + 0.5 * film[at] + 0.25 * film[step(x, y, 1)]
            })
            .collect()
    };
    let across = pass(film, |x, y, by| {
        y * SIDE + x.saturating_add_signed(by).min(SIDE - 1)
    });
    pass(&across, |x, y, by| {
        y.saturating_add_signed(by).min(SIDE - 1) * SIDE + x
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spread(film: &Film) -> f64 {
        let mean = film
            .pixels()
            .iter()
            .map(|grey| f64::from(*grey))
            .sum::<f64>()
            / 4096.0;
        let square = film
            .pixels()
            .iter()
            .map(|grey| (f64::from(*grey) - mean).powi(2));
        (square.sum::<f64>() / 4096.0).sqrt()
    }

    #[test]
    fn inverting_twice_gives_the_film_back() {
        let film = Film::of_seed(3);
        let inverted = Shift::Inverted.apply(&film, 3);
        assert_ne!(inverted, film);
        assert_eq!(Shift::Inverted.apply(&inverted, 3), film);
    }

    #[test]
    fn low_dose_is_reproducible_and_flat() {
        let film = Film::of_seed(3);
        let low = Shift::LowDose.apply(&film, 3);
        assert_eq!(low, Shift::LowDose.apply(&film, 3));
        assert_ne!(low, Shift::LowDose.apply(&film, 4));
        assert!(spread(&low) < 0.7 * spread(&film));
    }

    #[test]
    fn blur_keeps_a_flat_film_flat() {
        assert!(
            blur(&vec![7.0; SIDE * SIDE])
                .iter()
                .all(|value| (value - 7.0).abs() < 1e-12)
        );
    }
}
