//! One sequence in the scheduler's books, and the work of a step for it.

use std::ops::Range;

use norma_adapters::Generation;

use super::blocks::{self, BlockKey, BlockPool};
use super::{Demand, SequenceId, Tenant};
use crate::engine::request::Priority;

/// What one step does for one sequence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Work {
    /// Which one.
    pub id: SequenceId,
    /// Its slot.
    pub slot: u32,
    /// The positions to compute.
    pub positions: Range<usize>,
    /// Where their keys and values go.
    pub cache_rows: Vec<u32>,
    /// The cache rows that they see, `positions` included, in the order of positions.
    pub keys: Vec<Range<usize>>,
    /// Whether the last of them gives the next token.
    pub gives_token: bool,
}

/// A sequence that waits, for the first time or again.
#[derive(Debug)]
pub(super) struct Waiting {
    pub id: SequenceId,
    pub demand: Demand,
    pub overtaken: usize,
    /// Whether it ran before and had to give its blocks back.
    pub resumed: bool,
}

/// A sequence that runs.
#[derive(Debug)]
pub(super) struct Running {
    pub id: SequenceId,
    /// Its known rows and keys grow with every token.
    pub demand: Demand,
    pub slot: usize,
    pub resumed: bool,
    /// Blocks of its first positions, in order.
    pub blocks: Vec<usize>,
    /// Rows whose keys and values are in the cache.
    pub done: usize,
}

impl Running {
    pub fn tenant(&self) -> &Tenant {
        &self.demand.tenant
    }

    pub fn generation(&self) -> Option<Generation> {
        self.demand.generation
    }

    /// Rows whose input is known and that are not computed.
    pub fn pending(&self) -> usize {
        self.demand.known_rows - self.done
    }

    /// The same, but no more than `background` where nobody waits for it.
    pub fn wanted(&self, background: usize) -> usize {
        match self.demand.priority {
            Priority::Live => self.pending(),
            Priority::Background => self.pending().min(background),
        }
    }

    /// Whether it is past its prompt and has one row to compute.
    pub fn answers(&self) -> bool {
        self.done >= self.demand.prompt_rows && self.pending() == 1
    }

    /// Whether its next rows need images encoded.
    pub fn wants_images(&self) -> bool {
        self.demand.images > 0 && self.done < self.demand.images_end
    }

    /// Takes over whole blocks that others have computed, as far as they go; its last known row is left,
    /// since somebody must compute its logits. Returns the rows won.
    pub fn adopt(&mut self, pool: &mut BlockPool) -> usize {
        let (block_rows, before) = (pool.block_rows(), self.done);
        while self.done == self.blocks.len() * block_rows
            && self.done + block_rows < self.demand.known_rows
            && let Some(key) = self.demand.keys.get(self.blocks.len())
            && let Some(block) = pool.share(key)
        {
            self.blocks.push(block);
            self.done += block_rows;
        }
        self.done - before
    }

    /// Takes blocks for so many more rows, or as many as there are; returns the rows that have a place.
    pub fn make_room(&mut self, rows: usize, pool: &mut BlockPool) -> usize {
        let block_rows = pool.block_rows();
        while self.blocks.len() * block_rows < self.done + rows
            && let Some(block) = pool.take()
        {
            self.blocks.push(block);
        }
        rows.min(self.blocks.len() * block_rows - self.done)
    }

    /// The work of computing its next rows, which have a place.
    pub fn work(&self, rows: usize, block_rows: usize) -> Work {
        let positions = self.done..self.done + rows;
        Work {
            id: self.id,
            slot: self.slot as u32,
            cache_rows: blocks::cache_rows(&self.blocks, block_rows, positions.clone()),
            keys: blocks::spans(&self.blocks, block_rows, positions.end),
            gives_token: positions.end == self.demand.known_rows,
            positions,
        }
    }

    /// Its rows up to `end` have been computed: whole blocks get their names.
    pub fn computed(&mut self, end: usize, pool: &mut BlockPool) {
        let block_rows = pool.block_rows();
        for block in self.done / block_rows..end / block_rows {
            if let Some(key) = self.demand.keys.get(block) {
                pool.name(self.blocks[block], *key);
            }
        }
        self.done = end;
    }

    /// Gives its blocks back; nothing of it is computed any more. The last ones first, so that of its kept
    /// contents the beginning stays longest.
    pub fn give_back(&mut self, pool: &mut BlockPool) {
        self.blocks
            .drain(..)
            .rev()
            .for_each(|block| pool.release(block));
        self.done = 0;
    }

    /// The name of the block that it computes next.
    pub fn next_key(&self, block_rows: usize) -> Option<(usize, &BlockKey)> {
        let block = self.done / block_rows;
        Some((block, self.demand.keys.get(block)?))
    }
}
