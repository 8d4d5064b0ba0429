//! The scheduler against random demands, ends and losses.

use std::collections::{HashMap, HashSet};

use norma_adapters::Digest;
use proptest::prelude::*;

use super::tests::{
    BLOCK_ROWS, admitted, content, demand, generation, keys, limits, of, scheduler,
};
use super::*;

#[derive(Clone, Debug)]
struct Planned {
    tenant: usize,
    adapter: Option<u8>,
    priority: Priority,
    images: usize,
    /// The rows of its prompt.
    prompt: Vec<u32>,
    /// Tokens of its answer.
    length: usize,
    /// The step before which it comes.
    comes: usize,
    /// The step before which its client leaves, if it does.
    leaves: Option<usize>,
}

impl Planned {
    /// Prompt and answer; equal prompts get equal answers.
    fn rows(&self, n_tokens: usize) -> Vec<u32> {
        let answer = (0..n_tokens as u32).map(|token| 1000 + token);
        self.prompt.iter().copied().chain(answer).collect()
    }

    fn demand(&self) -> Demand {
        Demand {
            tenant: ["a", "b", "c"][self.tenant].into(),
            images: self.images,
            priority: self.priority,
            images_end: self.images.min(self.prompt.len()),
            keys: keys(&self.prompt),
            ..demand(self.prompt.len(), self.adapter)
        }
    }
}

fn planned() -> impl Strategy<Value = Planned> {
    // Few beginnings, so that many share them. What a row holds depends on the adapter and the tenant.
    let prompt = (1usize..24, 0usize..24, 0u32..3);
    let leaves = prop::option::weighted(0.2, 0usize..60);
    let priority = prop_oneof![Just(Priority::Live), Just(Priority::Background)];
    let who = (0usize..3, prop::option::of(0u8..5), priority, 0usize..4);
    (who, prompt, 1usize..12, 0usize..40, leaves).prop_map(
        |((tenant, adapter, priority, images), (n, shared, own), length, comes, leaves)| {
            let maker = tenant as u32 * 10 + adapter.map_or(0, |id| u32::from(id) + 1);
            let row = |row: usize| if row < shared { row as u32 } else { 100 + own };
            Planned {
                tenant,
                adapter,
                priority,
                images,
                prompt: (0..n)
                    .map(|i| if i == 0 { 5000 + maker } else { row(i) })
                    .collect(),
                length,
                comes,
                leaves,
            }
        },
    )
}

/// What the test knows of a sequence that runs.
struct Seen {
    slot: u32,
    /// The row after the last one computed.
    done: usize,
}

proptest! {
    #[test]
    fn every_request_ends_once_sees_its_own_rows_and_gives_everything_back(
        mut plans in prop::collection::vec(planned(), 1..40),
        max_sequences in 1usize..6,
        spare_rows in 0usize..12,
        beside_answers in 1usize..12,
        n_slots in 2usize..5,
        lost in prop::collection::hash_set(0usize..80, 0..4),
    ) {
        plans.sort_by_key(|plan| plan.comes);
        let limits = Limits { max_sequences, max_step_rows: max_sequences + spare_rows, max_rows_beside_answers: beside_answers, ..limits() };
        // The longest sequence has 34 rows, 9 blocks.
        let n_blocks = 12;
        let mut scheduler = scheduler(limits, n_blocks, n_slots);
        let mut cache: Vec<Option<Digest>> = vec![None; n_blocks * BLOCK_ROWS];
        let mut tokens: Vec<usize> = vec![0; plans.len()];
        let mut running: HashMap<u64, Seen> = HashMap::new();
        let mut ended: HashSet<u64> = HashSet::new();
        let mut waiting: HashSet<u64> = HashSet::new();
        let mut holds: HashMap<u32, Generation> = HashMap::new();
        // A step computes a row of the oldest sequence at least.
        let rows: usize = plans.iter().map(|plan| plan.prompt.len() + plan.length).sum();
        let enough = 41 + rows + lost.len() * n_blocks * BLOCK_ROWS;

        for now in 0.. {
            prop_assert!(now <= enough, "{waiting:?} starve");
            for (id, plan) in plans.iter().enumerate().filter(|(_, plan)| plan.comes == now) {
                scheduler.enqueue(SequenceId(id as u64), plan.demand());
                waiting.insert(id as u64);
            }
            for (id, plan) in plans.iter().enumerate().filter(|(_, plan)| plan.leaves == Some(now)) {
                let id = id as u64;
                let was = if waiting.remove(&id) {
                    Some(Was::Waiting)
                } else {
                    running.remove(&id).map(|_| Was::Running)
                };
                prop_assert_eq!(scheduler.end(SequenceId(id)), was);
                if was.is_some() {
                    ended.insert(id);
                } else {
                    prop_assert!(plan.comes > now || ended.contains(&id));
                }
            }
            while let Some(Admission { id, slot, fill }) = scheduler.admit_next() {
                prop_assert!(waiting.remove(&id.0));
                let generation = plans[id.0 as usize].adapter.map(generation);
                if fill {
                    prop_assert!(slot > 0 && running.values().all(|seen| seen.slot != slot));
                    holds.insert(slot, generation.unwrap());
                }
                match generation {
                    None => prop_assert_eq!(slot, 0),
                    Some(generation) => prop_assert_eq!(holds[&slot], generation),
                }
                running.insert(id.0, Seen { slot, done: 0 });
            }
            prop_assert!(running.len() <= max_sequences);
            prop_assert_eq!(scheduler.n_running(), running.len());

            let Plan { works, preempted } = scheduler.plan();
            for id in preempted {
                prop_assert!(running.remove(&id.0).is_some());
                prop_assert!(scheduler.is_waiting(id) && waiting.insert(id.0));
            }
            let n_rows: usize = works.iter().map(|work| work.positions.len()).sum();
            prop_assert!(n_rows <= limits.max_step_rows);
            prop_assert!(n_rows > 0 || running.is_empty(), "a step without work");
            let mut written = HashSet::new();
            for work in &works {
                let rows = plans[work.id.0 as usize].rows(tokens[work.id.0 as usize]);
                for (position, row) in work.positions.clone().zip(&work.cache_rows) {
                    prop_assert!(written.insert(*row), "two sequences write a row");
                    cache[*row as usize] = Some(content(&rows[..=position]));
                }
            }
            for work in &works {
                let id = work.id.0 as usize;
                let rows = plans[id].rows(tokens[id]);
                let seen = running.get_mut(&work.id.0).unwrap();
                prop_assert_eq!(work.slot, seen.slot);
                prop_assert!(work.positions.start >= seen.done || !lost.is_empty());
                seen.done = work.positions.end;
                let keys: Vec<usize> = work.keys.iter().cloned().flatten().collect();
                prop_assert_eq!(keys.len(), work.positions.end);
                for (position, key) in keys.into_iter().enumerate() {
                    prop_assert_eq!(cache[key], Some(content(&rows[..=position])));
                }
                prop_assert_eq!(work.gives_token, work.positions.end == rows.len());
            }
            if lost.is_empty() {
                let answers = running.iter().filter(|(id, seen)| {
                    let plan = &plans[**id as usize];
                    seen.done >= plan.prompt.len() && tokens[**id as usize] > 0
                });
                let had_work = |id: &u64| works.iter().any(|work| work.id.0 == *id);
                let left_out: Vec<_> = answers.filter(|(id, _)| !had_work(id)).collect();
                prop_assert!(left_out.is_empty(), "an answer in progress was left out");
            }

            for work in works {
                scheduler.computed(&work);
                if !work.gives_token { continue; }
                let id = work.id.0 as usize;
                tokens[id] += 1;
                if tokens[id] == plans[id].length {
                    prop_assert_eq!(scheduler.end(work.id), Some(Was::Running));
                    prop_assert!(ended.insert(work.id.0));
                    running.remove(&work.id.0);
                } else {
                    let rows = plans[id].rows(tokens[id]);
                    let completes = rows.len() % BLOCK_ROWS == 0;
                    scheduler.token_chosen(work.id, completes.then(|| BlockKey(content(&rows))));
                }
            }
            if lost.contains(&now) {
                scheduler.cache_lost();
                cache.fill(None);
                for seen in running.values_mut() {
                    seen.done = 0;
                }
            }
            if scheduler.is_idle() && now > 40 { break; }
        }
        prop_assert_eq!(ended.len(), plans.len());
        prop_assert_eq!(scheduler.blocks().rows_used(), 0);
        prop_assert_eq!(scheduler.blocks().available(), n_blocks);
        prop_assert_eq!(scheduler.slots().in_use(), 0);
        prop_assert_eq!(scheduler.n_running(), 0);
    }

    #[test]
    fn tenants_who_always_want_more_get_equal_shares(
        prompts in prop::collection::vec((0usize..2, 1usize..24, 1usize..12), 60..120),
        max_sequences in 1usize..6,
    ) {
        let limits = Limits { max_sequences, max_step_rows: 12, ..limits() };
        let mut scheduler = scheduler(limits, 200, 1);
        let mut left: HashMap<u64, usize> = HashMap::new();
        let mut waiting = [0usize; 2];
        for (id, (tenant, prompt_rows, length)) in prompts.iter().enumerate() {
            scheduler.enqueue(SequenceId(id as u64), of(["a", "b"][*tenant], demand(*prompt_rows, None)));
            left.insert(id as u64, *length);
            waiting[*tenant] += 1;
        }
        let mut served = [0usize; 2];
        loop {
            for id in admitted(&mut scheduler) {
                waiting[prompts[id as usize].0] -= 1;
            }
            if waiting.contains(&0) { break; }
            for work in scheduler.plan().works {
                let id = work.id.0;
                served[prompts[id as usize].0] += work.positions.len();
                scheduler.computed(&work);
                if !work.gives_token { continue; }
                let left = left.get_mut(&id).unwrap();
                *left -= 1;
                if *left == 0 {
                    scheduler.end(work.id);
                } else {
                    scheduler.token_chosen(work.id, None);
                }
            }
            // What one may be ahead: the sequences admitted in its favour, whole.
            let apart = served[0].abs_diff(served[1]);
            prop_assert!(apart <= 2 * (max_sequences + 1) * (24 + 12), "{served:?}");
        }
    }
}
