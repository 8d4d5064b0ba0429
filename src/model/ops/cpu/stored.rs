//! The types that packed weights are stored as, and how a panel's rows are rounded to them and read back.
//!
//! A panel's row is [`LANES`] weights: the same input of sixteen outputs. Integers have a scale per output
//! and run of inputs; floats have none.

use half::bf16;

use super::element::Element;
use super::instruction_set::{InstructionSet, LANES};

/// Inputs that share a scale.
pub const RUN: usize = 64;

/// A number that weights are stored as.
pub trait Stored: Copy + Send + Sync + Default + 'static {
    /// Whether each run of inputs has scales.
    const SCALED: bool;
    /// Rows from which on widening a block once for all of them costs less than widening it for every few.
    const MANY: usize;

    /// Rounds a run of rows (of `RUN` inputs, the last one may be shorter) to the nearest stored values,
    /// and returns their scales.
    fn narrow(run: &[[f32; LANES]], stored: &mut [[Self; LANES]]) -> [f32; LANES];

    /// The value that is computed with.
    fn widen(self, scale: f32) -> f32;

    /// The values of a row that are computed with: those of [`Stored::widen`].
    fn load<I: InstructionSet>(isa: I, row: &[Self; LANES], scale: I::Vector) -> I::Vector;
}

impl Stored for f32 {
    const SCALED: bool = false;
    const MANY: usize = usize::MAX;

    fn narrow(run: &[[f32; LANES]], stored: &mut [[Self; LANES]]) -> [f32; LANES] {
        stored.copy_from_slice(run);
        [1.0; LANES]
    }
    #[inline(always)]
    fn widen(self, _scale: f32) -> f32 {
        Element::widen(self)
    }
    #[inline(always)]
    fn load<I: InstructionSet>(isa: I, row: &[Self; LANES], _scale: I::Vector) -> I::Vector {
        Element::load(isa, row)
    }
}

impl Stored for bf16 {
    const SCALED: bool = false;
    const MANY: usize = 48;

    fn narrow(run: &[[f32; LANES]], stored: &mut [[Self; LANES]]) -> [f32; LANES] {
        for (row, stored) in run.iter().zip(stored) {
            *stored = row.map(bf16::nearest);
        }
        [1.0; LANES]
    }
    #[inline(always)]
    fn widen(self, _scale: f32) -> f32 {
        Element::widen(self)
    }
    #[inline(always)]
    fn load<I: InstructionSet>(isa: I, row: &[Self; LANES], _scale: I::Vector) -> I::Vector {
        Element::load(isa, row)
    }
}

/// Symmetric: the largest magnitude of a run becomes 127 or -127, zero stays zero.
impl Stored for i8 {
    const SCALED: bool = true;
    const MANY: usize = 32;

    fn narrow(run: &[[f32; LANES]], stored: &mut [[Self; LANES]]) -> [f32; LANES] {
        const LARGEST: f32 = 127.0;
        let mut largest = [0f32; LANES];
        for row in run {
            for (largest, value) in largest.iter_mut().zip(row) {
                *largest = largest.max(value.abs());
            }
        }
        let scales = largest.map(|largest| largest / LARGEST);
        // A run of zeros, or of numbers too small to be divided by, is stored as zeros.
        let factors = largest.map(|largest| {
            let factor = LARGEST / largest;
            if factor.is_finite() { factor } else { 0.0 }
        });
        for (row, stored) in run.iter().zip(stored) {
            for ((value, factor), stored) in row.iter().zip(factors).zip(stored) {
                *stored = (value * factor).round_ties_even() as i8;
            }
        }
        scales
    }
    #[inline(always)]
    fn widen(self, scale: f32) -> f32 {
        f32::from(self) * scale
    }
    #[inline(always)]
    fn load<I: InstructionSet>(isa: I, row: &[Self; LANES], scale: I::Vector) -> I::Vector {
        isa.multiply(isa.load_i8(row), scale)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(length: usize) -> Vec<[f32; LANES]> {
        (0..length)
            .map(|k| {
                std::array::from_fn(|c| {
                    ((k * 31 + c * 17 + 1) as f32 * 0.37).sin() * (1.0 + c as f32)
                })
            })
            .collect()
    }

    #[test]
    fn int8_is_off_by_at_most_half_a_step_of_its_run() {
        for length in [1, 5, RUN] {
            let run = run(length);
            let mut stored = vec![[0i8; LANES]; length];
            let scales = i8::narrow(&run, &mut stored);
            for (row, stored) in run.iter().zip(&stored) {
                for c in 0..LANES {
                    let error = (stored[c].widen(scales[c]) - row[c]).abs();
                    assert!(error <= 0.501 * scales[c], "{error} of {}", scales[c]);
                }
            }
            for c in 0..LANES {
                assert!(
                    stored.iter().any(|row| row[c].unsigned_abs() == 127),
                    "the range is used"
                );
            }
        }
    }

    #[test]
    fn zeros_and_vanishing_numbers_stay_finite() {
        for value in [0.0, 1e-45, -1e-40] {
            let mut stored = [[1i8; LANES]; 3];
            let scales = i8::narrow(&[[value; LANES]; 3], &mut stored);
            for (stored, scale) in stored.iter().flatten().zip(scales.iter().cycle()) {
                assert!((stored.widen(*scale) - value).abs() <= value.abs());
            }
        }
    }

    #[test]
    fn floats_are_rounded_to_the_nearest_and_exact_where_they_can_be() {
        let run = run(9);
        let mut wide = vec![[0f32; LANES]; 9];
        let _ = f32::narrow(&run, &mut wide);
        assert_eq!(wide, run);
        let mut narrow = vec![[bf16::ZERO; LANES]; 9];
        let scales = bf16::narrow(&run, &mut narrow);
        let widened: Vec<_> = narrow
            .iter()
            .map(|row| row.map(|value| Stored::widen(value, 1.0)))
            .collect();
        for (value, row) in widened.iter().flatten().zip(run.iter().flatten()) {
            assert!((value - row).abs() <= row.abs() / 256.0);
        }
        let mut again = narrow.clone();
        let _ = bf16::narrow(&widened, &mut again);
        assert_eq!((again, scales), (narrow, [1.0; LANES]));
    }
}
