//! The scheduler against random demands, ends and losses.

use std::collections::{HashMap, HashSet};
use std::ops::Range;

use norma_adapters::Digest;
use proptest::prelude::*;

use super::*;

const BLOCK_ROWS: usize = 4;

fn limits() -> Limits {
    Limits {
        max_sequences: 4,
        max_step_rows: 10,
        max_rows_beside_answers: 10,
        max_step_images: 2,
        overtakes: 3,
    }
}

fn scheduler(limits: Limits, n_blocks: usize, n_slots: usize) -> Scheduler {
    Scheduler::new(
        limits,
        BlockPool::new(n_blocks, BLOCK_ROWS),
        SlotTable::new(n_slots),
    )
}

fn generation(id: u8) -> Generation {
    Generation::of(&[id])
}

fn demand(prompt_rows: usize, adapter: Option<u8>) -> Demand {
    Demand {
        tenant: "tenant".into(),
        prompt_rows,
        known_rows: prompt_rows,
        images: 0,
        images_end: 0,
        generation: adapter.map(generation),
        keys: Vec::new(),
    }
}

/// The names of the whole blocks of these rows.
fn keys(rows: &[u32]) -> Vec<BlockKey> {
    (BLOCK_ROWS..=rows.len())
        .step_by(BLOCK_ROWS)
        .map(|end| BlockKey(content(&rows[..end])))
        .collect()
}

/// What lies in the cache for the last of these rows.
fn content(rows: &[u32]) -> Digest {
    let bytes: Vec<u8> = rows.iter().flat_map(|row| row.to_le_bytes()).collect();
    Digest::of(&bytes)
}

/// A prompt whose blocks may be shared.
fn prompt(rows: &[u32]) -> Demand {
    Demand {
        keys: keys(rows),
        ..demand(rows.len(), None)
    }
}

fn of(tenant: &str, demand: Demand) -> Demand {
    Demand {
        tenant: tenant.into(),
        ..demand
    }
}

fn admitted(scheduler: &mut Scheduler) -> Vec<u64> {
    std::iter::from_fn(|| scheduler.admit_next())
        .map(|admission| admission.id.0)
        .collect()
}

/// Runs one step to its end: every sequence that gives a token goes on.
fn step(scheduler: &mut Scheduler) -> Vec<(u64, Range<usize>, bool)> {
    let works = scheduler.plan().works;
    for work in &works {
        scheduler.computed(work);
        if work.gives_token {
            scheduler.token_chosen(work.id, None);
        }
    }
    works
        .into_iter()
        .map(|work| (work.id.0, work.positions, work.gives_token))
        .collect()
}

#[test]
fn answers_go_first_and_long_prompts_in_pieces() {
    let mut scheduler = scheduler(limits(), 20, 1);
    scheduler.enqueue(SequenceId(0), demand(3, None));
    assert_eq!(admitted(&mut scheduler), [0]);
    assert_eq!(step(&mut scheduler), [(0, 0..3, true)]);
    scheduler.enqueue(SequenceId(1), demand(15, None));
    scheduler.enqueue(SequenceId(2), demand(2, None));
    assert_eq!(admitted(&mut scheduler), [1, 2]);
    assert_eq!(step(&mut scheduler), [(0, 3..4, true), (1, 0..9, false)]);
    assert_eq!(
        step(&mut scheduler),
        [(0, 4..5, true), (1, 9..15, true), (2, 0..2, true)]
    );
}

#[test]
fn prompts_are_read_in_smaller_pieces_where_answers_go_on() {
    let limits = Limits {
        max_rows_beside_answers: 3,
        ..limits()
    };
    let mut scheduler = scheduler(limits, 20, 1);
    scheduler.enqueue(SequenceId(0), demand(3, None));
    admitted(&mut scheduler);
    step(&mut scheduler);
    scheduler.enqueue(SequenceId(1), demand(20, None));
    admitted(&mut scheduler);
    assert_eq!(step(&mut scheduler), [(0, 3..4, true), (1, 0..3, false)]);
    scheduler.end(SequenceId(0));
    assert_eq!(step(&mut scheduler), [(1, 3..13, false)]);
}

#[test]
fn a_long_prompt_does_not_stall_another_tenant() {
    let mut scheduler = scheduler(limits(), 40, 1);
    scheduler.enqueue(SequenceId(0), of("a", demand(60, None)));
    assert_eq!(admitted(&mut scheduler), [0]);
    step(&mut scheduler);
    scheduler.enqueue(SequenceId(1), of("b", demand(4, None)));
    scheduler.enqueue(SequenceId(2), of("c", demand(20, None)));
    assert_eq!(admitted(&mut scheduler), [1, 2]);
    assert_eq!(
        step(&mut scheduler),
        [(0, 10..14, false), (1, 0..3, false), (2, 0..3, false)],
        "a third each, and what does not divide to the longest"
    );
}

#[test]
fn the_tenant_who_had_least_is_next() {
    let mut scheduler = scheduler(
        Limits {
            max_sequences: 2,
            ..limits()
        },
        90,
        1,
    );
    for id in 0..6 {
        scheduler.enqueue(SequenceId(id), of("a", demand(5, None)));
    }
    assert_eq!(admitted(&mut scheduler), [0, 1]);
    scheduler.enqueue(SequenceId(6), of("b", demand(3, None)));
    scheduler.enqueue(SequenceId(7), of("b", demand(9, None)));
    scheduler.enqueue(SequenceId(8), of("b", demand(1, None)));
    scheduler.end(SequenceId(0));
    // `b` begins where `a` stands, at 10, and is then at 13; `a` goes on to 15.
    assert_eq!(admitted(&mut scheduler), [2], "equal: the older one");
    scheduler.end(SequenceId(1));
    scheduler.end(SequenceId(2));
    assert_eq!(admitted(&mut scheduler), [6, 7]);
    scheduler.end(SequenceId(6));
    scheduler.end(SequenceId(7));
    assert_eq!(admitted(&mut scheduler), [3, 4], "`b` stands at 22");
}

#[test]
fn work_names_the_rows_and_the_keys_of_its_blocks() {
    let mut scheduler = scheduler(limits(), 4, 1);
    scheduler.enqueue(SequenceId(0), demand(3, None));
    scheduler.enqueue(SequenceId(1), demand(6, None));
    admitted(&mut scheduler);
    let works = scheduler.plan().works;
    assert_eq!(
        (works[1].cache_rows.clone(), works[1].keys.clone()),
        ((4..10).collect(), vec![4..10])
    );
    assert_eq!(scheduler.end(SequenceId(0)), Some(Was::Running));
    assert_eq!(scheduler.end(SequenceId(0)), None);
    step(&mut scheduler);
    step(&mut scheduler);
    step(&mut scheduler);
    // The block that the first gave back.
    let works = scheduler.plan().works;
    assert_eq!(
        (works[0].cache_rows.clone(), works[0].keys.clone()),
        (vec![0], vec![4..12, 0..1])
    );
}

#[test]
fn images_wait_for_the_next_step_but_many_of_one_request_do_not_wait_for_ever() {
    let mut scheduler = scheduler(
        Limits {
            max_step_rows: 100,
            ..limits()
        },
        40,
        1,
    );
    let with_images = |images| Demand {
        images,
        images_end: 3,
        ..demand(4, None)
    };
    for (id, images) in [1, 1, 5, 1].into_iter().enumerate() {
        scheduler.enqueue(SequenceId(id as u64), with_images(images));
    }
    assert_eq!(admitted(&mut scheduler), [0, 1, 2, 3]);
    let first = |step: Vec<(u64, Range<usize>, bool)>| -> Vec<u64> {
        step.iter()
            .filter(|work| work.1.start == 0)
            .map(|work| work.0)
            .collect()
    };
    assert_eq!(first(step(&mut scheduler)), [0, 1]);
    assert_eq!(first(step(&mut scheduler)), [2]);
    assert_eq!(first(step(&mut scheduler)), [3]);
}

#[test]
fn memory_is_given_in_order() {
    let mut scheduler = scheduler(limits(), 4, 1);
    scheduler.enqueue(SequenceId(0), demand(8, None));
    scheduler.enqueue(SequenceId(1), demand(9, None));
    scheduler.enqueue(SequenceId(2), demand(1, None));
    // The first leaves two blocks; the second wants three, and nobody passes it.
    assert_eq!(admitted(&mut scheduler), [0]);
    scheduler.end(SequenceId(0));
    assert_eq!(admitted(&mut scheduler), [1]);
    // One block is left, which the second will need.
    assert_eq!(admitted(&mut scheduler), [0; 0]);
}

#[test]
fn one_prompt_asked_several_times_is_computed_once() {
    let mut scheduler = scheduler(limits(), 20, 1);
    let rows: Vec<u32> = (0..14).collect();
    for id in 0..3 {
        scheduler.enqueue(SequenceId(id), prompt(&rows));
    }
    assert_eq!(admitted(&mut scheduler), [0, 1, 2]);
    assert_eq!(
        step(&mut scheduler),
        [(0, 0..10, false)],
        "the others wait for it"
    );
    assert_eq!(
        step(&mut scheduler),
        [(0, 10..14, true)],
        "its third block is just being computed"
    );
    assert_eq!(
        step(&mut scheduler),
        [(0, 14..15, true), (1, 12..14, true), (2, 12..14, true)]
    );
    let totals = scheduler.take_totals();
    assert_eq!(
        (totals.prefix_queries, totals.prefix_hits),
        (3 * 14, 2 * 12)
    );
    for id in 0..3 {
        scheduler.end(SequenceId(id));
    }
    // Another question after the same beginning, later.
    let mut rows = rows;
    rows[9] = 99;
    scheduler.enqueue(SequenceId(3), prompt(&rows));
    assert_eq!(admitted(&mut scheduler), [3]);
    assert_eq!(step(&mut scheduler), [(3, 8..14, true)]);
}

#[test]
fn who_waits_for_a_block_computes_it_once_the_other_has_left() {
    let mut scheduler = scheduler(limits(), 20, 1);
    let rows: Vec<u32> = (0..20).collect();
    scheduler.enqueue(SequenceId(0), prompt(&rows));
    scheduler.enqueue(SequenceId(1), prompt(&rows));
    admitted(&mut scheduler);
    assert_eq!(step(&mut scheduler), [(0, 0..10, false)]);
    scheduler.end(SequenceId(0));
    assert_eq!(step(&mut scheduler), [(1, 8..18, false)]);
}

#[test]
fn the_last_admitted_gives_its_blocks_to_an_older_answer() {
    let mut scheduler = scheduler(limits(), 4, 1);
    scheduler.enqueue(SequenceId(0), demand(4, None));
    scheduler.enqueue(SequenceId(1), prompt(&[1, 2, 3, 4, 5]));
    assert_eq!(admitted(&mut scheduler), [0, 1]);
    step(&mut scheduler);
    for _ in 0..3 {
        assert_eq!(step(&mut scheduler).len(), 2);
    }
    let plan = scheduler.plan();
    assert_eq!(plan.preempted, [SequenceId(1)]);
    assert!(scheduler.is_waiting(SequenceId(1)));
    assert_eq!(plan.works.len(), 1);
    scheduler.computed(&plan.works[0]);
    assert_eq!(scheduler.take_totals().preemptions, 1);
    assert!(admitted(&mut scheduler).is_empty(), "there is no room yet");
    scheduler.end(SequenceId(0));
    assert_eq!(admitted(&mut scheduler), [1]);
    // Its first block is still there; prompt and answer so far are read again.
    assert_eq!(step(&mut scheduler), [(1, 4..9, true)]);
}

#[test]
fn a_request_without_a_slot_is_passed_but_not_for_ever() {
    let mut scheduler = scheduler(
        Limits {
            max_sequences: 99,
            max_step_rows: 99,
            ..limits()
        },
        99,
        2,
    );
    scheduler.enqueue(SequenceId(0), demand(1, Some(1)));
    scheduler.enqueue(SequenceId(1), demand(1, Some(2)));
    for id in 2..8 {
        let adapter = if id % 2 == 0 { None } else { Some(1) };
        scheduler.enqueue(SequenceId(id), demand(1, adapter));
    }
    assert_eq!(admitted(&mut scheduler), [0, 2, 3, 4]);
    assert_eq!(
        scheduler.adapters(),
        [vec![generation(1); 2], [2, 1, 1].map(generation).to_vec()]
    );
    scheduler.end(SequenceId(0));
    assert!(
        admitted(&mut scheduler).is_empty(),
        "the other user of its slot still runs"
    );
    scheduler.end(SequenceId(3));
    let next = scheduler.admit_next();
    assert_eq!(
        next,
        Some(Admission {
            id: SequenceId(1),
            slot: 1,
            fill: true
        })
    );
    assert_eq!(
        admitted(&mut scheduler),
        [6],
        "the base passes those that wait for the first adapter"
    );
}

#[test]
fn a_failed_fill_gives_everything_back() {
    let mut scheduler = scheduler(limits(), 9, 2);
    scheduler.enqueue(SequenceId(0), demand(1, Some(1)));
    scheduler.enqueue(SequenceId(1), demand(1, Some(1)));
    assert!(
        scheduler
            .admit_next()
            .is_some_and(|admission| admission.fill)
    );
    scheduler.fill_failed(SequenceId(0));
    assert_eq!(scheduler.end(SequenceId(0)), None);
    assert_eq!(
        (scheduler.slots().in_use(), scheduler.blocks().rows_used()),
        (0, 0)
    );
    assert!(
        scheduler
            .admit_next()
            .is_some_and(|admission| admission.fill)
    );
}

#[derive(Clone, Debug)]
struct Planned {
    tenant: usize,
    adapter: Option<u8>,
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
    let who = (0usize..3, prop::option::of(0u8..5), 0usize..4);
    (who, prompt, 1usize..12, 0usize..40, leaves).prop_map(
        |((tenant, adapter, images), (n, shared, own), length, comes, leaves)| {
            let maker = tenant as u32 * 10 + adapter.map_or(0, |id| u32::from(id) + 1);
            let row = |row: usize| if row < shared { row as u32 } else { 100 + own };
            Planned {
                tenant,
                adapter,
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
