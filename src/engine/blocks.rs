//! The rows of the KV cache, given out in blocks of equal size.
//!
//! In: how many rows a sequence will need. Out: a reservation that maps its positions to cache rows.
//! It knows row numbers only.

use std::collections::BTreeSet;
use std::ops::Range;

/// Which blocks are free.
#[derive(Debug)]
pub struct BlockPool {
    /// Low blocks are given out first, so that a sequence's blocks tend to lie together.
    free: BTreeSet<usize>,
    block_rows: usize,
    n_blocks: usize,
}

/// The blocks of one sequence. Cannot be copied; it goes back to its pool.
#[derive(Debug)]
#[must_use = "blocks that are not given back are lost"]
pub struct Reservation {
    blocks: Vec<usize>,
    block_rows: usize,
}

impl BlockPool {
    /// `n_blocks` free blocks of `block_rows` rows each; block `b` begins at row `b * block_rows`.
    pub fn new(n_blocks: usize, block_rows: usize) -> Self {
        Self {
            free: (0..n_blocks).collect(),
            block_rows,
            n_blocks,
        }
    }

    /// Whether [`Self::reserve`] would succeed.
    pub fn fits(&self, rows: usize) -> bool {
        rows.div_ceil(self.block_rows) <= self.free.len()
    }

    /// Blocks for so many rows; `None` if there are not enough.
    pub fn reserve(&mut self, rows: usize) -> Option<Reservation> {
        if !self.fits(rows) {
            return None;
        }
        let n_blocks = rows.div_ceil(self.block_rows);
        let blocks = (0..n_blocks).map_while(|_| self.free.pop_first()).collect();
        Some(Reservation {
            blocks,
            block_rows: self.block_rows,
        })
    }

    /// Takes blocks back.
    pub fn give_back(&mut self, reservation: Reservation) {
        self.free.extend(reservation.blocks);
    }

    /// Rows in reserved blocks.
    pub fn rows_used(&self) -> usize {
        (self.n_blocks - self.free.len()) * self.block_rows
    }

    /// Rows in all blocks.
    pub fn rows_total(&self) -> usize {
        self.n_blocks * self.block_rows
    }
}

impl Reservation {
    /// The cache row of each position.
    ///
    /// # Panics
    /// When a position is beyond the reservation.
    pub fn cache_rows(&self, positions: Range<usize>) -> Vec<u32> {
        let row =
            |p: usize| self.blocks[p / self.block_rows] * self.block_rows + p % self.block_rows;
        positions.map(|position| row(position) as u32).collect()
    }

    /// The cache rows of the first `n_rows` positions, in order, as few spans as possible.
    ///
    /// # Panics
    /// When `n_rows` is beyond the reservation.
    pub fn spans(&self, n_rows: usize) -> Vec<Range<usize>> {
        let mut spans: Vec<Range<usize>> = Vec::new();
        for first in (0..n_rows).step_by(self.block_rows) {
            let start = self.blocks[first / self.block_rows] * self.block_rows;
            let end = start + self.block_rows.min(n_rows - first);
            match spans.last_mut() {
                Some(last) if last.end == start => last.end = end,
                _ => spans.push(start..end),
            }
        }
        spans
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbouring_blocks_make_one_span_and_a_gap_makes_two() {
        let mut pool = BlockPool::new(5, 4);
        let first = pool.reserve(3).unwrap();
        let second = pool.reserve(8).unwrap();
        assert_eq!(pool.rows_used(), 12);
        assert_eq!(second.spans(6), [4..10]);
        pool.give_back(first);
        let third = pool.reserve(9).unwrap();
        assert_eq!(third.spans(4), [0..4]);
        assert_eq!(third.spans(9), [0..4, 12..17]);
        assert_eq!(third.cache_rows(2..9), [2, 3, 12, 13, 14, 15, 16]);
        assert!(pool.reserve(1).is_none());
        pool.give_back(second);
        pool.give_back(third);
        assert_eq!((pool.rows_used(), pool.rows_total()), (0, 20));
    }

    #[test]
    fn a_reservation_that_does_not_fit_takes_nothing() {
        let mut pool = BlockPool::new(2, 4);
        assert!(pool.reserve(9).is_none());
        assert!(pool.fits(8) && !pool.fits(9));
        assert_eq!(pool.rows_used(), 0);
    }
}
