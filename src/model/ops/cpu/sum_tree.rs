//! Sums of vectors in the order in which a dot product adds the places of one vector.
//!
//! In: the sums of every sixteenth term. Out: the sum of all terms, lane by lane to the bit what
//! `lanes::total` makes of one row's sixteen sums. It must not know what the terms are.

use super::vector_math::VectorMath;

/// `N` sums whose every sixteenth terms are added up first, as `vector_functions::dot` does.
pub trait EverySixteenth<const N: usize> {
    /// The sums of the terms `first`, `first + 16` and so on. Implementations are `#[inline(always)]`.
    fn sum<S: VectorMath>(&self, isa: S, first: usize) -> [S::Vector; N];
}

/// The sums of all terms, in the order of `lanes::total`. Written out, not as a loop over an array of
/// sums, which would live in memory.
#[inline(always)]
pub fn tree<S: VectorMath, const N: usize>(
    isa: S,
    terms: &impl EverySixteenth<N>,
) -> [S::Vector; N] {
    plus(isa, two(isa, terms, 0), two(isa, terms, 1))
}

#[inline(always)]
fn two<S: VectorMath, const N: usize>(
    isa: S,
    terms: &impl EverySixteenth<N>,
    i: usize,
) -> [S::Vector; N] {
    plus(isa, four(isa, terms, i), four(isa, terms, i + 2))
}

#[inline(always)]
fn four<S: VectorMath, const N: usize>(
    isa: S,
    terms: &impl EverySixteenth<N>,
    i: usize,
) -> [S::Vector; N] {
    plus(isa, eight(isa, terms, i), eight(isa, terms, i + 4))
}

#[inline(always)]
fn eight<S: VectorMath, const N: usize>(
    isa: S,
    terms: &impl EverySixteenth<N>,
    i: usize,
) -> [S::Vector; N] {
    plus(isa, terms.sum(isa, i), terms.sum(isa, i + 8))
}

#[inline(always)]
fn plus<S: VectorMath, const N: usize>(
    isa: S,
    one: [S::Vector; N],
    other: [S::Vector; N],
) -> [S::Vector; N] {
    let mut sums = [isa.splat(0.0); N];
    for ((sum, one), other) in sums.iter_mut().zip(&one).zip(&other) {
        *sum = isa.add(*one, *other);
    }
    sums
}
