//! Attention of sixteen query rows, a vector lane each, over keys that come in blocks.
//!
//! In: the rows' queries, which positions each of them sees, and blocks of keys and values side by side.
//! Out: scores, or the mean of the values. It must not know of segments or of where keys lie in memory.

use std::ops::Range;

use super::super::attention::Heads;
use super::instruction_set::LANES;
use super::lane_block::{mix, products, turn, turn_back};
use super::online_softmax::{KEY_BLOCK, OnlineSoftmax};
use super::vector_math::{Lanes, VectorMath};

/// One head of at most sixteen query rows.
#[derive(Default)]
pub struct LaneRows {
    /// The first and the end of the positions that each row sees. A row further down sees the same
    /// positions or later ones; missing lanes do as the last row does.
    first: [usize; LANES],
    end: [usize; LANES],
    softmax: OnlineSoftmax<Lanes>,
    /// The queries, a vector a column.
    queries: Vec<Lanes>,
    /// The sums of values up to the block, and the block's own.
    sums: Vec<Lanes>,
    block_sums: Vec<Lanes>,
}

impl LaneRows {
    /// What any of the rows sees.
    pub fn positions(&self) -> Range<usize> {
        self.first[0]..self.end[LANES - 1]
    }

    /// Sets the rows, and which positions each of them sees.
    pub fn see(&mut self, rows: &Range<usize>, visible: impl Fn(usize) -> Range<usize>) {
        for lane in 0..LANES {
            let visible = visible((rows.start + lane).min(rows.end - 1));
            (self.first[lane], self.end[lane]) = (visible.start, visible.end);
        }
    }

    /// Sets the rows' queries; missing ones are empty.
    #[inline(always)]
    pub fn start<S: VectorMath>(&mut self, isa: S, queries: [&[f32]; LANES], heads: Heads) {
        self.softmax = OnlineSoftmax::default();
        self.queries.resize(heads.head_dim, [0.0; LANES]);
        self.block_sums.resize(heads.head_dim, [0.0; LANES]);
        self.sums.clear();
        self.sums.resize(heads.head_dim, [0.0; LANES]);
        turn(isa, queries, heads.scale, &mut self.queries);
    }

    /// The scores of the positions `block`, negative infinity where a row does not see one. `keys`:
    /// `[positions, dim]`.
    #[inline(always)]
    pub fn scores<S: VectorMath>(
        &self,
        isa: S,
        block: &Range<usize>,
        keys: &[f32],
        scores: &mut [Lanes],
    ) {
        products(isa, keys, &self.queries, scores);
        if self.first[LANES - 1] > block.start || self.end[0] < block.end {
            self.hide(isa, block, scores);
        }
    }

    /// Makes negative infinity of the scores that a row does not see.
    #[inline(always)]
    fn hide<S: VectorMath>(&self, isa: S, block: &Range<usize>, scores: &mut [Lanes]) {
        // In the block, as numbers that vectors compare; they are exact because blocks are far shorter
        // than 2^24.
        let (mut first, mut end) = ([0.0; LANES], [0.0; LANES]);
        let in_block = |position: usize| position.clamp(block.start, block.end) - block.start;
        for lane in 0..LANES {
            first[lane] = in_block(self.first[lane]) as f32;
            end[lane] = in_block(self.end[lane]) as f32;
        }
        let (first, end) = (isa.load(&first), isa.load(&end));
        let hidden = isa.splat(f32::NEG_INFINITY);
        for (place, scores) in scores.iter_mut().enumerate() {
            let place = isa.splat(place as f32);
            let score = isa.if_below(place, first, hidden, isa.load(scores));
            isa.store(isa.if_below(place, end, score, hidden), scores);
        }
    }

    /// Takes in a block of positions. `keys` and `values`: `[positions, dim]`.
    #[inline(always)]
    pub fn absorb<S: VectorMath>(
        &mut self,
        isa: S,
        block: &Range<usize>,
        keys: &[f32],
        values: &[f32],
    ) {
        let positions = self.positions();
        if positions.start >= block.end || positions.end <= block.start {
            return;
        }
        let mut scores = [[0.0; LANES]; KEY_BLOCK];
        let place = block.start % KEY_BLOCK;
        let here = place..place + block.len();
        self.scores(isa, block, keys, &mut scores[here.clone()]);
        let (before, rest) = scores.split_at_mut(here.start);
        for score in before.iter_mut().chain(&mut rest[block.len()..]) {
            isa.store(isa.splat(f32::NEG_INFINITY), score);
        }
        let scales = self.softmax.absorb(isa, &mut scores);
        mix(isa, values, &scores[here], &mut self.block_sums);
        let (before, here_scale) = (isa.load(&scales.before), isa.load(&scales.block));
        for (sum, here) in self.sums.iter_mut().zip(&self.block_sums) {
            let here = isa.multiply(isa.load(here), here_scale);
            isa.store(isa.multiply_add(isa.load(sum), before, here), sum);
        }
    }

    /// Writes the rows' results; missing rows are empty.
    #[inline(always)]
    pub fn finish<S: VectorMath>(&self, isa: S, out: &mut [&mut [f32]; LANES]) {
        turn_back(isa, &self.sums, &self.softmax.normaliser(), out);
    }
}
