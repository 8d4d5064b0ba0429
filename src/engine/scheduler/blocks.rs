//! The rows of the KV cache, given out in blocks of equal size and shared where their contents are equal.
//!
//! In: takes, shares and releases of blocks, and the names of their contents. Out: block numbers. It knows
//! no tensor and no sequence.
//!
//! A block that nobody uses keeps its contents, under its name, until its place is needed; the one unused
//! longest goes first. A named block is never written again, so sharing it needs no copy.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;

use norma_adapters::Digest;

/// Names the contents of a whole block: all that its keys and values depend on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BlockKey(pub Digest);

#[derive(Clone, Debug, Default)]
struct Block {
    users: usize,
    key: Option<BlockKey>,
    /// When its last user left, on the pool's own count.
    released_at: u64,
}

/// Who uses which block, and what lies in those that nobody uses.
#[derive(Debug)]
pub struct BlockPool {
    blocks: Vec<Block>,
    block_rows: usize,
    /// Without contents worth keeping. Low blocks are given out first, so that a sequence's blocks tend to
    /// lie together.
    free: BTreeSet<usize>,
    /// Unused, with contents, by the time of their release.
    unused: BTreeMap<u64, usize>,
    by_key: HashMap<BlockKey, usize>,
    releases: u64,
}

impl BlockPool {
    /// `n_blocks` free blocks of `block_rows` rows each; block `b` begins at row `b * block_rows`.
    pub fn new(n_blocks: usize, block_rows: usize) -> Self {
        Self {
            blocks: vec![Block::default(); n_blocks],
            block_rows,
            free: (0..n_blocks).collect(),
            unused: BTreeMap::new(),
            by_key: HashMap::new(),
            releases: 0,
        }
    }

    /// A block for new contents, and its first user; `None` if all are in use.
    pub fn take(&mut self) -> Option<usize> {
        let block = match self.free.pop_first() {
            Some(block) => block,
            None => self.unused.pop_first()?.1,
        };
        if let Some(key) = self.blocks[block].key.take() {
            self.by_key.remove(&key);
        }
        self.blocks[block].users = 1;
        Some(block)
    }

    /// The block with these contents, and one more user of it.
    pub fn share(&mut self, key: &BlockKey) -> Option<usize> {
        let block = *self.by_key.get(key)?;
        let held = &mut self.blocks[block];
        if held.users == 0 {
            self.unused.remove(&held.released_at);
        }
        held.users += 1;
        Some(block)
    }

    /// Whether [`Self::share`] would find a block that somebody uses; `None` if it would find none.
    pub fn in_use(&self, key: &BlockKey) -> Option<bool> {
        let block = *self.by_key.get(key)?;
        Some(self.blocks[block].users > 0)
    }

    /// One user less.
    ///
    /// # Panics
    /// When nobody uses the block.
    pub fn release(&mut self, block: usize) {
        let held = &mut self.blocks[block];
        assert!(held.users > 0, "block {block} is released by nobody");
        held.users -= 1;
        if held.users > 0 {
            return;
        }
        if held.key.is_some() {
            self.releases += 1;
            held.released_at = self.releases;
            self.unused.insert(self.releases, block);
        } else {
            self.free.insert(block);
        }
    }

    /// All rows of a block in use have been computed. Where another block has the same contents already,
    /// that one keeps the name.
    pub fn name(&mut self, block: usize, key: BlockKey) {
        let held = &mut self.blocks[block];
        if held.key.is_none() && !self.by_key.contains_key(&key) {
            held.key = Some(key);
            self.by_key.insert(key, block);
        }
    }

    /// The cache was replaced: no block has contents any more.
    pub fn forget_contents(&mut self) {
        self.by_key.clear();
        self.free
            .extend(std::mem::take(&mut self.unused).into_values());
        self.blocks.iter_mut().for_each(|block| block.key = None);
    }

    /// Blocks that [`Self::take`] could give.
    pub fn available(&self) -> usize {
        self.free.len() + self.unused.len()
    }

    /// Rows of one block.
    pub fn block_rows(&self) -> usize {
        self.block_rows
    }

    /// Rows in blocks that somebody uses.
    pub fn rows_used(&self) -> usize {
        (self.blocks.len() - self.available()) * self.block_rows
    }

    /// Rows in blocks that nobody uses and that have contents.
    pub fn rows_kept(&self) -> usize {
        self.unused.len() * self.block_rows
    }

    /// Rows in all blocks.
    pub fn rows_total(&self) -> usize {
        self.blocks.len() * self.block_rows
    }
}

/// The cache row of each position of a sequence whose rows lie in `blocks`.
///
/// # Panics
/// When a position is beyond the blocks.
pub fn cache_rows(blocks: &[usize], block_rows: usize, positions: Range<usize>) -> Vec<u32> {
    positions
        .map(|position| (blocks[position / block_rows] * block_rows + position % block_rows) as u32)
        .collect()
}

/// The cache rows of the first `n_rows` positions, in order, as few spans as possible.
///
/// # Panics
/// When `n_rows` is beyond the blocks.
pub fn spans(blocks: &[usize], block_rows: usize, n_rows: usize) -> Vec<Range<usize>> {
    let mut spans: Vec<Range<usize>> = Vec::new();
    for first in (0..n_rows).step_by(block_rows) {
        let start = blocks[first / block_rows] * block_rows;
        let end = start + block_rows.min(n_rows - first);
        match spans.last_mut() {
            Some(last) if last.end == start => last.end = end,
            _ => spans.push(start..end),
        }
    }
    spans
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(id: u8) -> BlockKey {
        BlockKey(Digest::of(&[id]))
    }

    #[test]
    fn neighbouring_blocks_make_one_span_and_a_gap_makes_two() {
        assert_eq!(spans(&[1, 2], 4, 6), [4..10]);
        assert_eq!(spans(&[0, 3, 4], 4, 9), [0..4, 12..17]);
        assert_eq!(cache_rows(&[0, 3, 4], 4, 2..9), [2, 3, 12, 13, 14, 15, 16]);
    }

    #[test]
    fn contents_outlive_their_users_until_the_place_is_needed() {
        let mut pool = BlockPool::new(3, 4);
        let (a, b, c) = (
            pool.take().unwrap(),
            pool.take().unwrap(),
            pool.take().unwrap(),
        );
        assert_eq!(
            (pool.take(), pool.available(), pool.rows_used()),
            (None, 0, 12)
        );
        pool.name(a, key(1));
        pool.name(b, key(2));
        // The same contents twice: the first keeps the name.
        pool.name(c, key(1));
        for block in [b, a, c] {
            pool.release(block);
        }
        assert_eq!((pool.available(), pool.rows_kept()), (3, 8));
        assert_eq!(
            (pool.in_use(&key(1)), pool.in_use(&key(3))),
            (Some(false), None)
        );
        assert_eq!(pool.share(&key(1)), Some(a));
        assert_eq!(pool.in_use(&key(1)), Some(true));
        // The free block goes first, then the one unused longest.
        assert_eq!(
            (pool.take(), pool.take(), pool.take()),
            (Some(c), Some(b), None)
        );
        assert_eq!(pool.share(&key(2)), None);
        pool.release(a);
        assert_eq!(
            pool.share(&key(1)),
            Some(a),
            "an unused block keeps its contents"
        );
    }

    #[test]
    fn a_shared_block_stays_until_its_last_user_leaves() {
        let mut pool = BlockPool::new(1, 4);
        let block = pool.take().unwrap();
        pool.name(block, key(1));
        assert_eq!(pool.share(&key(1)), Some(block));
        pool.release(block);
        assert_eq!(pool.take(), None);
        pool.release(block);
        assert_eq!(pool.take(), Some(block));
        assert_eq!(pool.share(&key(1)), None);
    }

    #[test]
    fn a_replaced_cache_has_no_contents() {
        let mut pool = BlockPool::new(2, 4);
        let (a, b) = (pool.take().unwrap(), pool.take().unwrap());
        pool.name(a, key(1));
        pool.name(b, key(2));
        pool.release(b);
        pool.forget_contents();
        assert_eq!((pool.share(&key(1)), pool.share(&key(2))), (None, None));
        pool.release(a);
        assert_eq!((pool.available(), pool.rows_kept()), (2, 0));
    }
}
