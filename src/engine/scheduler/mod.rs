//! Who runs, and which rows of whom the next step computes.
//!
//! In: demands (tenant, rows, images, adapter) and what became of earlier steps. Out: admissions and the
//! work of a step. Pure bookkeeping: no tensor, no clock, no channel, no token.
//!
//! **Admission.** The tenant that has had the least of the engine is next ([`shares`]), within a tenant
//! the oldest request. It is admitted when a place among the running and a bank slot are free, and blocks
//! for all that is known of it, with one to spare for every running sequence. One exception to the order:
//! a request whose adapter finds every slot in use lets others pass that need no new slot (the base, a
//! resident adapter), but only [`Limits::overtakes`] of them; after that nobody behind it is admitted, so
//! running sequences end and a slot comes free. So nobody starves.
//!
//! **A step** first gives every answer in progress its one row, then divides the rest of its rows evenly
//! among the tenants with prompts to read, within a tenant in the order of admission. A prompt longer than
//! its share goes on in the next step. Where answers go on, prompts get fewer rows, so that nobody's tokens
//! wait long, and those in the background, who come last, half of these.
//!
//! **Blocks** are taken when a row needs them ([`blocks`]). A prompt whose beginning lies in the cache
//! takes those blocks over; one whose next block is just being computed for another waits for it, so
//! several answers to one prompt, or several questions about one image, compute it once. When blocks run
//! out the sequence admitted last gives its own back and waits again, before all others of its tenant; its
//! rows are computed anew later, to the same bits. The one admitted first never gives any back and fits
//! alone, so somebody always goes on.

mod blocks;
mod running;
mod shares;

use std::sync::Arc;

use super::request::Priority;
use norma_adapters::{Acquire, BASE_SLOT, Generation, SlotTable};

pub use self::blocks::{BlockKey, BlockPool};
pub use self::running::Work;
use self::running::{Running, Waiting};
use self::shares::{Shares, divide};

/// Whose requests share one account.
pub type Tenant = Arc<str>;

/// Names a sequence; given by the scheduler's owner in ascending order, never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SequenceId(pub u64);

/// The scheduler's limits.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Sequences that run at once; at least 1.
    pub max_sequences: usize,
    /// Rows of one step; at least `max_sequences`.
    pub max_step_rows: usize,
    /// Rows of prompts in a step in which answers go on; at least 1.
    pub max_rows_beside_answers: usize,
    /// Images encoded for one step, unless a single sequence has more.
    pub max_step_images: usize,
    /// How many requests may pass one that waits for a slot.
    pub overtakes: usize,
}

impl Limits {
    /// Of [`Self::max_rows_beside_answers`], those that prompts in the background get; at least 1.
    pub fn background_rows_beside_answers(&self) -> usize {
        (self.max_rows_beside_answers / 2).max(1)
    }
}

/// What a sequence needs.
#[derive(Clone, Debug)]
pub struct Demand {
    /// Who asks.
    pub tenant: Tenant,
    /// Rows of the prompt; at least 1.
    pub prompt_rows: usize,
    /// Rows whose input is known: the prompt and the tokens chosen so far.
    pub known_rows: usize,
    /// Its images.
    pub images: usize,
    /// The position after the last image row.
    pub images_end: usize,
    /// Whether it may keep answers waiting.
    pub priority: Priority,
    /// Its adapter, `None` for the base.
    pub generation: Option<Generation>,
    /// The contents of its whole blocks, in order; none if nothing of it is to be shared.
    pub keys: Vec<BlockKey>,
}

/// A sequence that runs from now on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Admission {
    /// Which one.
    pub id: SequenceId,
    /// Its slot until it ends or is preempted.
    pub slot: u32,
    /// Whether the slot must be filled before anything reads it (or [`Scheduler::fill_failed`]).
    pub fill: bool,
}

/// The next step.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// At most [`Limits::max_step_rows`] rows.
    pub works: Vec<Work>,
    /// Those that wait again, since blocks ran out.
    pub preempted: Vec<SequenceId>,
}

/// Where a sequence was when it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Was {
    /// In the queue.
    Waiting,
    /// Among the running.
    Running,
}

/// What happened since it was last asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Prompt rows looked up in the cache.
    pub prefix_queries: u64,
    /// Prompt rows found there.
    pub prefix_hits: u64,
    /// Sequences that had to give their blocks back.
    pub preemptions: u64,
}

/// The books of waiting and running sequences.
#[derive(Debug)]
pub struct Scheduler {
    limits: Limits,
    blocks: BlockPool,
    slots: SlotTable,
    shares: Shares,
    /// By age.
    waiting: Vec<Waiting>,
    /// In the order of admission.
    running: Vec<Running>,
    totals: Totals,
}

impl Scheduler {
    /// A scheduler over free blocks and slots.
    pub fn new(limits: Limits, blocks: BlockPool, slots: SlotTable) -> Self {
        Self {
            limits,
            blocks,
            slots,
            shares: Shares::default(),
            waiting: Vec::new(),
            running: Vec::new(),
            totals: Totals::default(),
        }
    }

    /// Puts a sequence in the queue. All rows that it may ever have must fit the pool, and the bank must
    /// have a slot for an adapter if it has one: the owner refuses what can never run.
    pub fn enqueue(&mut self, id: SequenceId, demand: Demand) {
        self.shares.join(&demand.tenant);
        self.wait(Waiting {
            id,
            resumed: demand.known_rows > demand.prompt_rows,
            demand,
            overtaken: 0,
        });
    }

    fn wait(&mut self, waiting: Waiting) {
        let place = self.waiting.partition_point(|other| other.id < waiting.id);
        self.waiting.insert(place, waiting);
    }

    /// Admits one sequence, if one can be. Call until `None` before each step.
    pub fn admit_next(&mut self) -> Option<Admission> {
        if self.running.len() >= self.limits.max_sequences {
            return None;
        }
        let mut order: Vec<usize> = (0..self.waiting.len()).collect();
        order.sort_by_key(|index| self.shares.rows(&self.waiting[*index].demand.tenant));
        for (n_passed, index) in order.iter().copied().enumerate() {
            if !self.blocks_suffice(&self.waiting[index].demand) {
                return None;
            }
            let Some((slot, fill)) = self.acquire(index) else {
                if self.waiting[index].overtaken >= self.limits.overtakes {
                    return None;
                }
                continue;
            };
            for passed in &order[..n_passed] {
                self.waiting[*passed].overtaken += 1;
            }
            return Some(self.admit(index, slot, fill));
        }
        None
    }

    /// Whether all known rows of a sequence have a place, beside what the running still want.
    fn blocks_suffice(&self, demand: &Demand) -> bool {
        let block_rows = self.blocks.block_rows();
        let whole = |rows: usize| rows.div_ceil(block_rows);
        // Blocks that others are using cost nothing; those that nobody uses are among the available.
        let keys = demand.keys.iter();
        let shared = keys
            .take_while(|key| self.blocks.in_use(key) == Some(true))
            .count();
        let wanted = whole(demand.known_rows).saturating_sub(shared);
        let promised: usize = self
            .running
            .iter()
            .map(|running| {
                whole(running.demand.known_rows).saturating_sub(running.blocks.len()) + 1
            })
            .sum();
        self.blocks.available() >= wanted + promised
    }

    fn acquire(&mut self, index: usize) -> Option<(usize, bool)> {
        let Some(generation) = &self.waiting[index].demand.generation else {
            return Some((BASE_SLOT, false));
        };
        match self.slots.acquire(generation) {
            Acquire::Resident(slot) => Some((slot, false)),
            Acquire::Fill(slot) => Some((slot, true)),
            Acquire::Full => None,
        }
    }

    fn admit(&mut self, index: usize, slot: usize, fill: bool) -> Admission {
        let Waiting {
            id,
            demand,
            resumed,
            ..
        } = self.waiting.remove(index);
        let mut running = Running {
            id,
            demand,
            slot,
            resumed,
            blocks: Vec::new(),
            done: 0,
        };
        let won = running.adopt(&mut self.blocks);
        // What is computed again was paid for.
        if !resumed {
            let rows = running.demand.prompt_rows;
            self.shares.charge(running.tenant(), rows - won.min(rows));
            self.totals.prefix_queries += if running.demand.keys.is_empty() {
                0
            } else {
                rows as u64
            };
            self.totals.prefix_hits += won as u64;
        }
        self.running.push(running);
        Admission {
            id,
            slot: slot as u32,
            fill,
        }
    }

    /// The slot of a sequence just admitted could not be filled: the sequence ends and the slot holds
    /// nothing. Nothing may have been admitted since.
    pub fn fill_failed(&mut self, id: SequenceId) {
        if let Some(mut ended) = self.take_running(id) {
            self.slots.forget(ended.slot);
            ended.give_back(&mut self.blocks);
            self.shares.leave(ended.tenant());
        }
    }

    /// The next step. Blocks are taken for it, from sequences that came later if need be.
    pub fn plan(&mut self) -> Plan {
        let mut plan = Plan::default();
        self.plan_answers(&mut plan);
        self.plan_prompts(&mut plan);
        // Prompts alone may have divided the blocks among them so that none can go on.
        while plan.works.is_empty() && self.running.len() > 1 {
            self.preempt_last(&mut plan);
            self.plan_prompts(&mut plan);
        }
        plan
    }

    /// Every answer in progress gets its row.
    fn plan_answers(&mut self, plan: &mut Plan) {
        let block_rows = self.blocks.block_rows();
        let mut index = 0;
        while index < self.running.len() {
            let running = &mut self.running[index];
            if running.answers() {
                if running.make_room(1, &mut self.blocks) == 0 {
                    // The last one may be this one; whoever it is has no work yet.
                    self.preempt_last(plan);
                    continue;
                }
                plan.works.push(running.work(1, block_rows));
            }
            index += 1;
        }
    }

    /// The step's other rows go to prompts (and to what is computed again).
    fn plan_prompts(&mut self, plan: &mut Plan) {
        let block_rows = self.blocks.block_rows();
        let mut readers = self.readers();
        readers.sort_by_key(|index| self.running[*index].demand.priority);
        let answers = !plan.works.is_empty();
        let mut background = if answers {
            self.limits.background_rows_beside_answers()
        } else {
            usize::MAX
        };
        let mut tenants: Vec<(Tenant, usize)> = Vec::new();
        for index in &readers {
            let running = &self.running[*index];
            match tenants
                .iter_mut()
                .find(|(tenant, _)| tenant == running.tenant())
            {
                Some((_, rows)) => *rows += running.wanted(background),
                None => tenants.push((Arc::clone(running.tenant()), running.wanted(background))),
            }
        }
        let wanted: Vec<usize> = tenants.iter().map(|(_, rows)| *rows).collect();
        let free = self.limits.max_step_rows - plan.works.len();
        let free = if answers {
            free.min(self.limits.max_rows_beside_answers)
        } else {
            free
        };
        let shares = divide(free, &wanted);
        for ((_, rows), share) in tenants.iter_mut().zip(shares) {
            *rows = share;
        }
        let mut images = 0;
        for index in readers {
            let running = &mut self.running[index];
            let share = tenants
                .iter_mut()
                .find(|(tenant, _)| tenant == running.tenant());
            let Some((_, share)) = share else { continue };
            let new_images = if running.wants_images() {
                running.demand.images
            } else {
                0
            };
            if *share == 0 || (images > 0 && images + new_images > self.limits.max_step_images) {
                continue;
            }
            let wanted = running.wanted(background).min(*share);
            let rows = running.make_room(wanted, &mut self.blocks);
            if rows > 0 {
                if running.demand.priority == Priority::Background {
                    background -= rows;
                }
                images += new_images;
                *share -= rows;
                plan.works.push(running.work(rows, block_rows));
            }
        }
    }

    /// Those with prompts to read, in the order of admission. What others have computed meanwhile is taken
    /// over; who would compute the same block as one before him is left out for this step.
    fn readers(&mut self) -> Vec<usize> {
        let block_rows = self.blocks.block_rows();
        let mut readers: Vec<usize> = Vec::new();
        for index in 0..self.running.len() {
            let running = &mut self.running[index];
            if running.answers() {
                continue;
            }
            let won = running.adopt(&mut self.blocks);
            if !running.resumed {
                self.shares.refund(running.tenant(), won);
                self.totals.prefix_hits += won as u64;
            }
            let running = &self.running[index];
            let computed_by_another = |(block, key): (usize, &BlockKey)| {
                let others = readers.iter().map(|other| &self.running[*other]);
                let mut same = others.filter(|other| other.demand.keys.get(block) == Some(key));
                running.done == block * block_rows
                    && same.any(|other| other.done < (block + 1) * block_rows)
            };
            // The last block is never taken over whole, so there is nothing to wait for.
            let shareable = running.done + block_rows < running.demand.known_rows;
            let next = running.next_key(block_rows).filter(|_| shareable);
            if !next.is_some_and(computed_by_another) {
                readers.push(index);
            }
        }
        readers
    }

    fn preempt_last(&mut self, plan: &mut Plan) {
        let Some(mut last) = self.running.pop() else {
            return;
        };
        self.slots.release(last.slot);
        last.give_back(&mut self.blocks);
        self.totals.preemptions += 1;
        plan.preempted.push(last.id);
        self.wait(Waiting {
            id: last.id,
            demand: last.demand,
            overtaken: 0,
            resumed: true,
        });
    }

    /// A step has computed this work.
    pub fn computed(&mut self, work: &Work) {
        let running = self
            .running
            .iter_mut()
            .find(|running| running.id == work.id);
        if let Some(running) = running {
            running.computed(work.positions.end, &mut self.blocks);
            // Prompts were charged at admission; an answer pays as it grows.
            let answers = work.positions.start >= running.demand.prompt_rows;
            if answers && work.positions.len() == 1 {
                self.shares.charge(running.tenant(), 1);
            }
        }
    }

    /// A token was chosen and goes into the next step; `key`: of the block that it completes. Not to be
    /// called for the last token of an answer: that one is never read.
    pub fn token_chosen(&mut self, id: SequenceId, key: Option<BlockKey>) {
        if let Some(running) = self.running.iter_mut().find(|running| running.id == id) {
            running.demand.known_rows += 1;
            running.demand.keys.extend(key);
        }
    }

    /// The cache's contents are lost: every running sequence computes its rows again.
    pub fn cache_lost(&mut self) {
        for running in &mut self.running {
            running.give_back(&mut self.blocks);
            running.resumed = true;
        }
        self.blocks.forget_contents();
    }

    /// Ends a sequence and takes back what it held. Where it was, if there was one.
    pub fn end(&mut self, id: SequenceId) -> Option<Was> {
        if let Some(mut ended) = self.take_running(id) {
            self.slots.release(ended.slot);
            ended.give_back(&mut self.blocks);
            self.shares.leave(ended.tenant());
            return Some(Was::Running);
        }
        let index = self.waiting.iter().position(|waiting| waiting.id == id)?;
        let ended = self.waiting.remove(index);
        self.shares.leave(&ended.demand.tenant);
        Some(Was::Waiting)
    }

    fn take_running(&mut self, id: SequenceId) -> Option<Running> {
        let index = self.running.iter().position(|running| running.id == id)?;
        Some(self.running.remove(index))
    }

    /// Forgets the adapters that no running sequence uses; the slots that held them.
    pub fn forget_idle_adapters(&mut self) -> Vec<usize> {
        self.slots.forget_unused()
    }

    /// Whether nothing waits and nothing runs.
    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.running.is_empty()
    }

    /// Whether a sequence is in the queue.
    pub fn is_waiting(&self, id: SequenceId) -> bool {
        self.waiting.iter().any(|waiting| waiting.id == id)
    }

    /// Sequences that run.
    pub fn n_running(&self) -> usize {
        self.running.len()
    }

    /// The adapters of the running and of the waiting sequences; the same one as often as it is used.
    pub fn adapters(&self) -> [Vec<Generation>; 2] {
        let running = self.running.iter().filter_map(Running::generation);
        let waiting = self.waiting.iter();
        let waiting = waiting.filter_map(|waiting| waiting.demand.generation);
        [running.collect(), waiting.collect()]
    }

    /// The books of the KV cache.
    pub fn blocks(&self) -> &BlockPool {
        &self.blocks
    }

    /// The books of the bank.
    pub fn slots(&self) -> &SlotTable {
        &self.slots
    }

    /// What was looked up, found and given back since the last call.
    pub fn take_totals(&mut self) -> Totals {
        std::mem::take(&mut self.totals)
    }
}

#[cfg(test)]
mod properties;
#[cfg(test)]
mod tests;
