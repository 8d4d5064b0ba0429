//! Runs the sequences: owns the model, the bank and the KV cache, and does what the scheduler says.
//!
//! In: accepted requests. Out: events to their clients and numbers on the board. It knows no thread
//! and no channel but the clients' own.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use candle_core::Tensor;
use norma_adapters::SlotTable;
use rayon::prelude::*;

use super::compute::Compute;
use super::config::{EngineConfig, EngineError};
use super::encoder::Encoder;
use super::handle::{Board, lock};
use super::request::{FinishReason, RequestError};
use super::scheduler::{Admission, BlockPool, Limits, Plan, Scheduler, SequenceId, Was, Work};
use super::sequence::{Chosen, Sequence, Submitted};
use super::stats::EngineStats;
use crate::model::MedVlm;
use crate::preprocess::TextTokenizer;

/// So many logits in a step are worth more than one thread.
const PARALLEL_LOGITS: usize = 1 << 16;

/// Everything that the engine's thread owns.
pub(super) struct Runner {
    compute: Compute,
    tokenizer: Arc<TextTokenizer>,
    config: EngineConfig,
    board: Arc<Board>,
    scheduler: Scheduler,
    encoder: Encoder,
    /// Waiting and running, by age.
    sequences: BTreeMap<SequenceId, Sequence>,
    next_id: u64,
    stats: EngineStats,
}

impl Runner {
    /// `config` must have been checked.
    pub fn new(
        model: Box<dyn MedVlm>,
        base_row: Vec<f32>,
        tokenizer: Arc<TextTokenizer>,
        config: EngineConfig,
        board: Arc<Board>,
    ) -> Result<Self, EngineError> {
        let runner = Self {
            compute: Compute::new(model, base_row, &config)?,
            tokenizer,
            config,
            board,
            scheduler: scheduler(&config),
            encoder: Encoder::new(&config, &limits(&config)),
            sequences: BTreeMap::new(),
            next_id: 0,
            stats: EngineStats::default(),
        };
        Ok(runner)
    }

    /// Takes a request in.
    pub fn accept(&mut self, submitted: Submitted) {
        let id = SequenceId(self.next_id);
        self.next_id += 1;
        let sequence = Sequence::new(submitted, &self.tokenizer);
        self.scheduler.enqueue(id, sequence.demand());
        self.sequences.insert(id, sequence);
    }

    /// Whether there is nothing to do.
    pub fn is_idle(&self) -> bool {
        self.scheduler.is_idle()
    }

    /// One step. An error means that the engine cannot go on.
    pub fn step(&mut self) -> Result<(), EngineError> {
        let begun = Instant::now();
        self.sweep();
        if self.board.forget_idle.swap(false, Ordering::Relaxed) {
            self.forget_idle_adapters();
        }
        self.admit();
        let Plan {
            mut works,
            preempted,
        } = self.scheduler.plan();
        for id in preempted {
            self.board.waiting.fetch_add(1, Ordering::Relaxed);
            if let Some(sequence) = self.sequences.get_mut(&id) {
                sequence.forget_features();
            }
        }
        self.encode_images(&mut works);
        if !works.is_empty() {
            self.forward(&works)?;
            self.stats.steps += 1;
        }
        self.publish();
        // Seen with the next step, since saying it is part of this one.
        self.stats.step_time += begun.elapsed();
        Ok(())
    }

    /// After a panic outside of the model: what had been admitted fails, what waits stays.
    pub fn recover(&mut self) -> Result<(), EngineError> {
        self.stats.panics += 1;
        tracing::error!("a step panicked; the running requests fail");
        self.compute.rebuild()?;
        let before = std::mem::replace(&mut self.scheduler, scheduler(&self.config));
        for (id, sequence) in std::mem::take(&mut self.sequences) {
            if before.is_waiting(id) {
                self.scheduler.enqueue(id, sequence.demand());
                self.sequences.insert(id, sequence);
            } else {
                self.stats.finished.failed += 1;
                sequence.fail(RequestError::Panicked);
            }
        }
        self.publish();
        Ok(())
    }

    /// Ends everybody, since the engine does.
    pub fn stop(mut self) {
        for sequence in std::mem::take(&mut self.sequences).into_values() {
            self.stats.finished.failed += 1;
            sequence.fail(RequestError::Stopped);
        }
        self.scheduler = scheduler(&self.config);
        self.publish();
    }

    fn sweep(&mut self) {
        let now = Instant::now();
        let ended: Vec<_> = self
            .sequences
            .iter()
            .filter_map(|(id, sequence)| Some((*id, sequence.interrupted(now)?)))
            .collect();
        for (id, reason) in ended {
            self.finish(id, reason);
        }
    }

    fn forget_idle_adapters(&mut self) {
        for slot in self.scheduler.forget_idle_adapters() {
            // A row that stays takes memory and is read by nobody.
            if let Err(error) = self.compute.clear(slot as u32) {
                tracing::warn!(%error, slot, "an unused slot could not be cleared");
            }
        }
    }

    fn admit(&mut self) {
        while let Some(Admission { id, slot, fill }) = self.scheduler.admit_next() {
            let Some(sequence) = self.sequences.get_mut(&id) else {
                continue;
            };
            sequence.admit(Instant::now());
            self.board.waiting.fetch_sub(1, Ordering::Relaxed);
            let adapter = sequence.request.adapter.as_ref().filter(|_| fill);
            let Some(adapter) = adapter else { continue };
            match self.compute.fill(slot, &adapter.values) {
                Ok(()) => self.stats.slots_filled += 1,
                Err(error) => {
                    self.scheduler.fill_failed(id);
                    self.fail(id, error);
                }
            }
        }
    }

    /// Encodes the images that this work reads. Work whose images are not ready is none for this step.
    fn encode_images(&mut self, works: &mut Vec<Work>) {
        let begun = Instant::now();
        let encoded = self
            .encoder
            .encode(&self.compute, works, &mut self.sequences);
        if !encoded.worked {
            return;
        }
        self.stats.model_time += begun.elapsed();
        self.stats.panics += encoded.panics;
        for (id, error) in encoded.failed {
            self.fail(id, error);
        }
        works.retain(|work| {
            if encoded.wait.contains(&work.id) {
                return false;
            }
            let sequence = self.sequences.get(&work.id);
            sequence
                .is_some_and(|sequence| sequence.lacking_images(work.positions.clone()).is_empty())
        });
    }

    fn forward(&mut self, works: &[Work]) -> Result<(), EngineError> {
        // All of them are there: `encode_images` has left no work without its sequence.
        let batch: Vec<(&Work, &Sequence)> = works
            .iter()
            .filter_map(|work| Some((work, self.sequences.get(&work.id)?)))
            .collect();
        let begun = Instant::now();
        let computed = self.compute.forward(&batch);
        self.stats.model_time += begun.elapsed();
        self.stats.panics += computed.panics;
        let mut rows = BTreeMap::new();
        for (work, outcome) in works.iter().zip(computed.outcomes) {
            match outcome {
                Ok(logits) => {
                    self.scheduler.computed(work);
                    if let Some(sequence) = self.sequences.get_mut(&work.id) {
                        sequence.computed(&work.positions);
                    }
                    rows.extend(logits.map(|logits| (work.id, logits)));
                }
                Err(error) => self.fail(work.id, error),
            }
        }
        self.choose(&rows);
        if computed.cache_lost {
            self.compute.replace_cache()?;
            self.scheduler.cache_lost();
        }
        Ok(())
    }

    /// Gives each of these sequences its next token.
    fn choose(&mut self, rows: &BTreeMap<SequenceId, Tensor>) {
        let logits: usize = rows.values().map(Tensor::elem_count).sum();
        let mut choosing: Vec<(SequenceId, &mut Sequence, &Tensor)> = self
            .sequences
            .iter_mut()
            .filter_map(|(id, sequence)| Some((*id, sequence, rows.get(id)?)))
            .collect();
        for (_, sequence, _) in choosing
            .iter()
            .filter(|(_, sequence, _)| sequence.is_fresh())
        {
            self.stats.prompt_tokens += sequence.request.prompt.len() as u64;
        }
        // Whatever is wrong with one answer's text or tokens is its own affair.
        let choose = |(id, sequence, row): &mut (SequenceId, &mut Sequence, &Tensor)| {
            let chosen = catch_unwind(AssertUnwindSafe(|| sequence.choose(row)));
            (*id, chosen)
        };
        let chosen: Vec<_> = if logits < PARALLEL_LOGITS {
            choosing.iter_mut().map(choose).collect()
        } else {
            choosing.par_iter_mut().map(choose).collect()
        };
        // Clients are told one right after the other: the first word wakes the thread that serves them, and
        // until it runs the others cost next to nothing.
        let mut ends = Vec::with_capacity(chosen.len());
        for ((id, outcome), (_, sequence, _)) in chosen.into_iter().zip(&choosing) {
            ends.push((
                id,
                outcome.map(|outcome| {
                    outcome.map(|Chosen { event, end }| {
                        sequence.tell(event);
                        end
                    })
                }),
            ));
        }
        for (id, outcome) in ends {
            match outcome {
                Ok(Ok(end)) => {
                    self.stats.generated_tokens += 1;
                    self.go_on(id, end);
                }
                Ok(Err(error)) => self.fail(id, error),
                Err(_) => {
                    self.stats.panics += 1;
                    self.fail(id, RequestError::Panicked);
                }
            }
        }
    }

    fn go_on(&mut self, id: SequenceId, end: Option<FinishReason>) {
        match end {
            None => {
                let sequence = self.sequences.get_mut(&id);
                let key = sequence.and_then(Sequence::name_last_token);
                self.scheduler.token_chosen(id, key);
            }
            Some(reason) => self.finish(id, reason),
        }
    }

    fn finish(&mut self, id: SequenceId, reason: FinishReason) {
        if let Some(sequence) = self.remove(id) {
            self.stats.finished.count(reason);
            sequence.finish(reason);
        }
    }

    fn fail(&mut self, id: SequenceId, error: RequestError) {
        if let Some(sequence) = self.remove(id) {
            self.stats.finished.failed += 1;
            tracing::warn!(tenant = &*sequence.request.tenant, %error, "a request failed");
            sequence.fail(error);
        }
    }

    fn remove(&mut self, id: SequenceId) -> Option<Sequence> {
        if self.scheduler.end(id) == Some(Was::Waiting) {
            self.board.waiting.fetch_sub(1, Ordering::Relaxed);
        }
        self.sequences.remove(&id)
    }

    fn publish(&mut self) {
        let [running, waiting] = self.scheduler.adapters().map(|mut adapters| {
            adapters.sort_unstable();
            adapters.dedup();
            adapters
        });
        self.stats.running = self.scheduler.n_running();
        let totals = self.scheduler.take_totals();
        self.stats.prefix_queries += totals.prefix_queries;
        self.stats.prefix_hits += totals.prefix_hits;
        self.stats.preemptions += totals.preemptions;
        let features = self.encoder.features();
        self.stats.image_queries = features.queries;
        self.stats.image_hits = features.hits;
        self.stats.image_bytes = features.bytes();
        self.stats.kv_rows_used = self.scheduler.blocks().rows_used();
        self.stats.kv_rows_kept = self.scheduler.blocks().rows_kept();
        self.stats.kv_rows_total = self.scheduler.blocks().rows_total();
        self.stats.slots_used = self.scheduler.slots().in_use();
        self.stats.slots_total = self.scheduler.slots().capacity();
        self.stats.running_adapters = running;
        self.stats.waiting_adapters = waiting;
        lock(&self.board.stats).clone_from(&self.stats);
    }
}

fn limits(config: &EngineConfig) -> Limits {
    Limits {
        max_sequences: config.max_sequences,
        max_step_rows: config.max_step_tokens,
        max_rows_beside_answers: config.max_rows_beside_answers,
        max_step_images: config.max_step_images,
        overtakes: config.max_sequences,
    }
}

fn scheduler(config: &EngineConfig) -> Scheduler {
    let blocks = BlockPool::new(config.n_blocks(), config.block_rows);
    Scheduler::new(limits(config), blocks, SlotTable::new(config.bank_slots))
}

#[cfg(test)]
#[path = "runner_tests.rs"]
mod tests;
