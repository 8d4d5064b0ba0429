//! A softmax over keys that come in blocks, without keeping the scores of more than one block.
//!
//! In: the scores of one block of [`KEY_BLOCK`] positions, negative infinity where a key is not seen or
//! does not exist. Out: their exponentials relative to the block's largest score, and what the sums so
//! far and the block's own must be scaled by to be added. Blocks begin at multiples of their length, so
//! what is added to what depends on positions alone. The form for one row and the form for sixteen rows
//! (a vector lane each) do the same operations in the same order and give the same bits. All is inlined
//! into a [`super::entry::Kernel`].

use super::instruction_set::LANES;
use super::lanes::larger;
use super::sum_tree::{EverySixteenth, tree};
use super::vector_functions::exp;
use super::vector_math::{Lanes, VectorMath};

/// Positions in a block.
pub const KEY_BLOCK: usize = 64;

/// Below every score, yet finite: a row that has seen no key has this maximum, and a difference of
/// two of them is a number.
const NOTHING: f32 = f32::MIN;

/// The largest score so far and the sum of exponentials relative to it, of one row (`f32`) or of
/// sixteen ([`Lanes`]).
#[derive(Clone, Copy, Debug)]
pub struct OnlineSoftmax<T> {
    /// The largest score.
    pub largest: T,
    /// The sum of exponentials.
    pub total: T,
}

/// What scales the sums of the blocks so far, and what scales the new block's.
#[derive(Clone, Copy, Debug)]
pub struct Scales<T> {
    pub before: T,
    pub block: T,
}

impl Default for OnlineSoftmax<f32> {
    fn default() -> Self {
        Self {
            largest: NOTHING,
            total: 0.0,
        }
    }
}

impl OnlineSoftmax<f32> {
    /// One block alone: turns its scores into exponentials.
    #[inline(always)]
    pub fn of<S: VectorMath>(isa: S, scores: &mut [f32; KEY_BLOCK]) -> Self {
        let scores = scores.as_chunks_mut::<LANES>().0;
        let mut largest = isa.splat(NOTHING);
        for score in scores.iter() {
            largest = isa.larger(largest, isa.load(score));
        }
        let mut lanes = [0.0; LANES];
        isa.store(largest, &mut lanes);
        let largest = lanes.into_iter().fold(NOTHING, larger);
        let mut total = isa.splat(0.0);
        for score in scores.iter_mut() {
            let p = exp(isa, isa.subtract(isa.load(score), isa.splat(largest)));
            isa.store(p, score);
            total = isa.add(total, p);
        }
        Self {
            largest,
            total: isa.total(total),
        }
    }

    /// Adds the next block.
    #[inline(always)]
    pub fn add<S: VectorMath>(&mut self, isa: S, block: Self) -> Scales<f32> {
        let largest = larger(self.largest, block.largest);
        let mut lanes = [0.0; LANES];
        (lanes[0], lanes[1]) = (self.largest - largest, block.largest - largest);
        isa.store(exp(isa, isa.load(&lanes)), &mut lanes);
        let (before, here) = (lanes[0], lanes[1]);
        self.largest = largest;
        self.total = isa.multiply_add_one(self.total, before, block.total * here);
        Scales {
            before,
            block: here,
        }
    }

    /// What makes the sum of values by exponentials their mean by probabilities.
    pub fn normaliser(self) -> f32 {
        self.total.recip()
    }
}

impl Default for OnlineSoftmax<Lanes> {
    fn default() -> Self {
        Self {
            largest: [NOTHING; LANES],
            total: [0.0; LANES],
        }
    }
}

impl OnlineSoftmax<Lanes> {
    /// Takes in a block of sixteen rows.
    #[inline(always)]
    pub fn absorb<S: VectorMath>(
        &mut self,
        isa: S,
        scores: &mut [Lanes; KEY_BLOCK],
    ) -> Scales<Lanes> {
        let mut largest_here = isa.splat(NOTHING);
        for score in scores.iter() {
            largest_here = isa.larger(largest_here, isa.load(score));
        }
        for score in scores.iter_mut() {
            let p = exp(isa, isa.subtract(isa.load(score), largest_here));
            isa.store(p, score);
        }
        let [total_here] = tree(isa, &Exponentials(scores));
        let largest_before = isa.load(&self.largest);
        let largest = isa.larger(largest_before, largest_here);
        let before = exp(isa, isa.subtract(largest_before, largest));
        let block = exp(isa, isa.subtract(largest_here, largest));
        let total_here = isa.multiply(total_here, block);
        let total = isa.multiply_add(isa.load(&self.total), before, total_here);
        isa.store(largest, &mut self.largest);
        isa.store(total, &mut self.total);
        let mut scales = Scales {
            before: [0.0; LANES],
            block: [0.0; LANES],
        };
        isa.store(before, &mut scales.before);
        isa.store(block, &mut scales.block);
        scales
    }

    /// What makes the sums of values by exponentials their means by probabilities.
    pub fn normaliser(&self) -> Lanes {
        self.total.map(f32::recip)
    }
}

struct Exponentials<'a>(&'a [Lanes; KEY_BLOCK]);

impl EverySixteenth<1> for Exponentials<'_> {
    #[inline(always)]
    fn sum<S: VectorMath>(&self, isa: S, first: usize) -> [S::Vector; 1] {
        let mut sum = isa.splat(0.0);
        for exponential in self.0[first..].iter().step_by(LANES) {
            sum = isa.add(sum, isa.load(exponential));
        }
        [sum]
    }
}

#[cfg(test)]
mod tests {
    use super::super::entry::{Kernel, on_every_set};
    use super::*;

    /// Scores of many magnitudes; one row's first seen position is `lane * 9`, its last `140 + lane`.
    fn score(lane: usize, position: usize) -> f32 {
        if (lane * 9..141 + lane).contains(&position) {
            ((position * 7919 + lane * 104_729) % 2003) as f32 * 0.05 - 50.0
        } else {
            f32::NEG_INFINITY
        }
    }

    #[derive(Clone, Copy)]
    struct Softmaxes;

    impl Kernel for Softmaxes {
        type Output = ();

        #[inline(always)]
        fn run<S: VectorMath>(self, isa: S) {
            rows_and_lanes_agree(isa);
        }
    }

    #[test]
    fn rows_and_lanes_have_the_same_bits_and_the_exact_softmax() {
        on_every_set(Softmaxes);
    }

    #[inline(always)]
    fn rows_and_lanes_agree<S: VectorMath>(isa: S) {
        const BLOCKS: usize = 3;
        let mut lanes = OnlineSoftmax::<Lanes>::default();
        let mut together = Vec::new();
        for block in 0..BLOCKS {
            let mut scores: [Lanes; KEY_BLOCK] = std::array::from_fn(|key| {
                std::array::from_fn(|lane| score(lane, block * KEY_BLOCK + key))
            });
            let scales = lanes.absorb(isa, &mut scores);
            together.push((scores, scales));
        }
        for lane in 0..LANES {
            let mut row = OnlineSoftmax::<f32>::default();
            // The sum of exponential times position, as values are summed.
            let mut mean = 0f64;
            for (block, (lanes_scores, lanes_scales)) in together.iter().enumerate() {
                let mut scores = std::array::from_fn(|key| score(lane, block * KEY_BLOCK + key));
                if scores.iter().all(|score| *score == f32::NEG_INFINITY) {
                    // A row alone does not meet such a block; in company it must change nothing.
                    assert!(lanes_scores.iter().all(|p| p[lane] == 0.0));
                    continue;
                }
                let scales = row.add(isa, OnlineSoftmax::<f32>::of(isa, &mut scores));
                assert_eq!(scales.before, lanes_scales.before[lane]);
                assert_eq!(scales.block, lanes_scales.block[lane]);
                assert!(scores.iter().zip(lanes_scores).all(|(p, q)| *p == q[lane]));
                let here: f64 = scores
                    .iter()
                    .enumerate()
                    .map(|(key, p)| f64::from(*p) * (block * KEY_BLOCK + key) as f64)
                    .sum();
                mean = mean * f64::from(scales.before) + here * f64::from(scales.block);
            }
            assert_eq!(row.normaliser(), lanes.normaliser()[lane]);
            let exact = |f: &dyn Fn(usize) -> f64| -> f64 {
                (0..BLOCKS * KEY_BLOCK)
                    .map(|position| f64::from(score(lane, position)).exp() * f(position))
                    .sum()
            };
            let want = exact(&|position| position as f64) / exact(&|_| 1.0);
            let got = mean * f64::from(row.normaliser());
            assert!((got - want).abs() < 1e-5 * want, "{got} for {want}");
        }
    }
}
