//! Who runs, and which rows of whom the next step computes.
//!
//! In: demands (rows, images, adapter) and what became of earlier steps. Out: admissions and the work
//! of a step. Pure bookkeeping: no tensor, no clock, no channel, no token.
//!
//! **Admission** is first in, first out. The head of the queue is admitted when a place among the
//! running, blocks for its prompt and its whole answer, and a bank slot are free and the step has room
//! for rows of it. Because everything is reserved at admission, a running sequence never waits for
//! memory and never loses its slot. One exception to the order: a request whose adapter finds every
//! slot in use lets others pass that need no new slot (the base, a resident adapter), but only
//! [`Limits::overtakes`] of them; after that nobody behind it is admitted, so running sequences end
//! and a slot comes free. So nobody starves.
//!
//! **A step** first gives every answer in progress its one row, then the rest of its rows to prompts
//! in the order of admission; a prompt longer than that goes on in the next step.

use std::collections::VecDeque;
use std::ops::Range;

use norma_adapters::{Acquire, BASE_SLOT, Generation, SlotTable};

use super::blocks::{BlockPool, Reservation};

/// Names a sequence; given by the scheduler's owner, never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SequenceId(pub u64);

/// The scheduler's limits.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Sequences that run at once; at least 1.
    pub max_sequences: usize,
    /// Rows of one step; at least `max_sequences`.
    pub max_step_rows: usize,
    /// Images of the sequences admitted for one step, unless a single one has more.
    pub max_step_images: usize,
    /// How many requests may pass one that waits for a slot.
    pub overtakes: usize,
}

/// What a sequence needs.
#[derive(Clone, Copy, Debug)]
pub struct Demand {
    /// Rows of the prompt; at least 1.
    pub prompt_rows: usize,
    /// Tokens of the answer, at most; at least 1.
    pub max_tokens: usize,
    /// Images to encode before its first row.
    pub images: usize,
    /// Its adapter, `None` for the base.
    pub generation: Option<Generation>,
}

impl Demand {
    /// Rows of the KV cache: all but the last token's, which is never read.
    fn cache_rows(&self) -> usize {
        self.prompt_rows + self.max_tokens - 1
    }
}

/// A sequence that runs from now on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Admission {
    /// Which one.
    pub id: SequenceId,
    /// Its slot until it ends.
    pub slot: u32,
    /// Whether the slot must be filled before anything reads it (or [`Scheduler::fill_failed`]).
    pub fill: bool,
}

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

#[derive(Debug)]
struct Waiting {
    id: SequenceId,
    demand: Demand,
    overtaken: usize,
}

#[derive(Debug)]
struct Running {
    id: SequenceId,
    demand: Demand,
    slot: usize,
    reservation: Reservation,
    /// Rows whose input is known: the prompt and the tokens chosen so far.
    known: usize,
    /// Rows whose keys and values are in the cache.
    done: usize,
}

impl Running {
    fn pending(&self) -> usize {
        self.known - self.done
    }

    fn answers(&self) -> bool {
        self.done >= self.demand.prompt_rows && self.pending() == 1
    }

    fn work(&self, rows: usize) -> Work {
        let positions = self.done..self.done + rows;
        Work {
            id: self.id,
            slot: self.slot as u32,
            cache_rows: self.reservation.cache_rows(positions.clone()),
            keys: self.reservation.spans(positions.end),
            gives_token: positions.end == self.known,
            positions,
        }
    }
}

/// The books of waiting and running sequences.
#[derive(Debug)]
pub struct Scheduler {
    limits: Limits,
    blocks: BlockPool,
    slots: SlotTable,
    waiting: VecDeque<Waiting>,
    /// In the order of admission.
    running: Vec<Running>,
}

impl Scheduler {
    /// A scheduler over free blocks and slots.
    pub fn new(limits: Limits, blocks: BlockPool, slots: SlotTable) -> Self {
        Self {
            limits,
            blocks,
            slots,
            waiting: VecDeque::new(),
            running: Vec::new(),
        }
    }

    /// Puts a sequence at the end of the queue. Its rows must fit the pool, and the bank must have a
    /// slot for an adapter if it has one: the owner refuses what can never run.
    pub fn enqueue(&mut self, id: SequenceId, demand: Demand) {
        self.waiting.push_back(Waiting {
            id,
            demand,
            overtaken: 0,
        });
    }

    /// Admits one sequence, if one can be. Call until `None` before each step.
    pub fn admit_next(&mut self) -> Option<Admission> {
        if self.running.len() >= self.limits.max_sequences || self.rows_left() == 0 {
            return None;
        }
        for index in 0..self.waiting.len() {
            let Waiting {
                id,
                demand,
                overtaken,
            } = self.waiting[index];
            if !self.images_fit(demand.images) || !self.blocks.fits(demand.cache_rows()) {
                return None;
            }
            let Some((slot, fill)) = self.acquire(demand.generation.as_ref()) else {
                if overtaken >= self.limits.overtakes {
                    return None;
                }
                continue;
            };
            let reservation = self.blocks.reserve(demand.cache_rows()).expect("it fits");
            self.waiting.remove(index);
            self.waiting
                .iter_mut()
                .take(index)
                .for_each(|passed| passed.overtaken += 1);
            let known = demand.prompt_rows;
            self.running.push(Running {
                id,
                demand,
                slot,
                reservation,
                known,
                done: 0,
            });
            return Some(Admission {
                id,
                slot: slot as u32,
                fill,
            });
        }
        None
    }

    fn acquire(&mut self, generation: Option<&Generation>) -> Option<(usize, bool)> {
        let Some(generation) = generation else {
            return Some((BASE_SLOT, false));
        };
        match self.slots.acquire(generation) {
            Acquire::Resident(slot) => Some((slot, false)),
            Acquire::Fill(slot) => Some((slot, true)),
            Acquire::Full => None,
        }
    }

    fn rows_left(&self) -> usize {
        let pending: usize = self.running.iter().map(Running::pending).sum();
        self.limits.max_step_rows.saturating_sub(pending)
    }

    fn images_fit(&self, images: usize) -> bool {
        let new = self.running.iter().filter(|running| running.done == 0);
        let before: usize = new.map(|running| running.demand.images).sum();
        before == 0 || before + images <= self.limits.max_step_images
    }

    /// The slot of a sequence just admitted could not be filled: the sequence ends and the slot holds
    /// nothing. Nothing may have been admitted since.
    pub fn fill_failed(&mut self, id: SequenceId) {
        if let Some(ended) = self.take_running(id) {
            self.slots.forget(ended.slot);
            self.blocks.give_back(ended.reservation);
        }
    }

    /// The work of the next step, at most [`Limits::max_step_rows`] rows. Changes nothing.
    pub fn plan(&self) -> Vec<Work> {
        let mut left = self.limits.max_step_rows;
        let mut works = Vec::new();
        for running in self.running.iter().filter(|running| running.answers()) {
            works.push(running.work(1));
            left -= 1;
        }
        for running in self.running.iter().filter(|running| !running.answers()) {
            let rows = running.pending().min(left);
            if rows > 0 {
                works.push(running.work(rows));
                left -= rows;
            }
        }
        works
    }

    /// A step has computed this work.
    pub fn computed(&mut self, work: &Work) {
        if let Some(running) = self
            .running
            .iter_mut()
            .find(|running| running.id == work.id)
        {
            running.done = work.positions.end;
        }
    }

    /// A token was chosen and goes into the next step. Not to be called for the last token of an
    /// answer: that one is never read.
    pub fn token_chosen(&mut self, id: SequenceId) {
        if let Some(running) = self.running.iter_mut().find(|running| running.id == id) {
            running.known += 1;
        }
    }

    /// The cache's contents are lost: every running sequence computes its rows again.
    pub fn cache_lost(&mut self) {
        self.running.iter_mut().for_each(|running| running.done = 0);
    }

    /// Ends a sequence, waiting or running, and takes back what it held. Whether there was one.
    pub fn end(&mut self, id: SequenceId) -> bool {
        if let Some(ended) = self.take_running(id) {
            self.slots.release(ended.slot);
            self.blocks.give_back(ended.reservation);
            return true;
        }
        let before = self.waiting.len();
        self.waiting.retain(|waiting| waiting.id != id);
        self.waiting.len() < before
    }

    fn take_running(&mut self, id: SequenceId) -> Option<Running> {
        let index = self.running.iter().position(|running| running.id == id)?;
        Some(self.running.remove(index))
    }

    /// Whether nothing waits and nothing runs.
    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.running.is_empty()
    }

    /// Sequences that run.
    pub fn n_running(&self) -> usize {
        self.running.len()
    }

    /// The adapters of the running and of the waiting sequences; the same one as often as it is used.
    pub fn adapters(&self) -> [Vec<Generation>; 2] {
        [
            self.running
                .iter()
                .filter_map(|running| running.demand.generation)
                .collect(),
            self.waiting
                .iter()
                .filter_map(|waiting| waiting.demand.generation)
                .collect(),
        ]
    }

    /// The books of the KV cache.
    pub fn blocks(&self) -> &BlockPool {
        &self.blocks
    }

    /// The books of the bank.
    pub fn slots(&self) -> &SlotTable {
        &self.slots
    }
}

#[cfg(test)]
#[path = "scheduler_tests.rs"]
mod tests;
