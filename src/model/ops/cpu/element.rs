//! The numbers that keys and values are held as: f32 where they are computed with as they come, bf16
//! where a cache keeps them.

use half::bf16;

use super::instruction_set::{InstructionSet, LANES};

/// A number that widens to f32 exactly.
pub trait Element: Copy + Send + Sync + 'static {
    /// Zero.
    const ZERO: Self;

    /// Reads a vector.
    fn load<I: InstructionSet>(isa: I, from: &[Self; LANES]) -> I::Vector;

    /// The same number.
    fn widen(self) -> f32;

    /// The nearest number that can be held.
    fn nearest(value: f32) -> Self;
}

impl Element for f32 {
    const ZERO: Self = 0.0;

    #[inline(always)]
    fn load<I: InstructionSet>(isa: I, from: &[Self; LANES]) -> I::Vector {
        isa.load(from)
    }
    #[inline(always)]
    fn widen(self) -> f32 {
        self
    }
    #[inline(always)]
    fn nearest(value: f32) -> Self {
        value
    }
}

impl Element for bf16 {
    const ZERO: Self = bf16::ZERO;

    #[inline(always)]
    fn load<I: InstructionSet>(isa: I, from: &[Self; LANES]) -> I::Vector {
        isa.load_bf16(from)
    }
    #[inline(always)]
    fn widen(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }
    #[inline(always)]
    fn nearest(value: f32) -> Self {
        bf16::from_f32(value)
    }
}
