//! The scheduler against random demands, ends and losses.

use std::collections::{HashMap, HashSet};

use proptest::prelude::*;

use super::*;

const BLOCK_ROWS: usize = 4;

fn limits() -> Limits {
    Limits {
        max_sequences: 4,
        max_step_rows: 10,
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

fn demand(prompt_rows: usize, max_tokens: usize, adapter: Option<u8>) -> Demand {
    Demand {
        prompt_rows,
        max_tokens,
        images: 0,
        generation: adapter.map(generation),
    }
}

fn admitted(scheduler: &mut Scheduler) -> Vec<u64> {
    std::iter::from_fn(|| scheduler.admit_next())
        .map(|admission| admission.id.0)
        .collect()
}

/// Runs one step to its end: every sequence that gives a token goes on.
fn step(scheduler: &mut Scheduler) -> Vec<(u64, Range<usize>, bool)> {
    let works = scheduler.plan();
    for work in &works {
        scheduler.computed(work);
        if work.gives_token {
            scheduler.token_chosen(work.id);
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
    scheduler.enqueue(SequenceId(0), demand(3, 9, None));
    assert_eq!(admitted(&mut scheduler), [0]);
    assert_eq!(step(&mut scheduler), [(0, 0..3, true)]);
    scheduler.enqueue(SequenceId(1), demand(15, 2, None));
    scheduler.enqueue(SequenceId(2), demand(2, 2, None));
    // The long prompt leaves no row of this step to another.
    assert_eq!(admitted(&mut scheduler), [1]);
    assert_eq!(step(&mut scheduler), [(0, 3..4, true), (1, 0..9, false)]);
    assert_eq!(admitted(&mut scheduler), [2]);
    assert_eq!(
        step(&mut scheduler),
        [(0, 4..5, true), (1, 9..15, true), (2, 0..2, true)]
    );
}

#[test]
fn work_names_the_rows_and_the_keys_of_its_blocks() {
    let mut scheduler = scheduler(limits(), 3, 1);
    scheduler.enqueue(SequenceId(0), demand(3, 1, None));
    scheduler.enqueue(SequenceId(1), demand(6, 2, None));
    admitted(&mut scheduler);
    let works = scheduler.plan();
    assert_eq!(
        (works[1].cache_rows.clone(), works[1].keys.clone()),
        ((4..10).collect(), vec![4..10])
    );
    assert!(scheduler.end(SequenceId(0)) && !scheduler.end(SequenceId(0)));
    step(&mut scheduler);
    let works = scheduler.plan();
    assert_eq!(
        (works[0].cache_rows.clone(), works[0].keys.clone()),
        (vec![10], vec![4..11])
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
        ..demand(4, 2, None)
    };
    for (id, images) in [1, 1, 5, 1].into_iter().enumerate() {
        scheduler.enqueue(SequenceId(id as u64), with_images(images));
    }
    assert_eq!(admitted(&mut scheduler), [0, 1]);
    step(&mut scheduler);
    assert_eq!(admitted(&mut scheduler), [2]);
    step(&mut scheduler);
    assert_eq!(admitted(&mut scheduler), [3]);
}

#[test]
fn memory_is_given_in_order() {
    let mut scheduler = scheduler(limits(), 4, 1);
    scheduler.enqueue(SequenceId(0), demand(8, 1, None));
    scheduler.enqueue(SequenceId(1), demand(8, 2, None));
    scheduler.enqueue(SequenceId(2), demand(1, 1, None));
    // Rows of the first leave two blocks; the second wants three, and nobody passes it.
    assert_eq!(admitted(&mut scheduler), [0]);
    scheduler.end(SequenceId(0));
    assert_eq!(admitted(&mut scheduler), [1, 2]);
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
    scheduler.enqueue(SequenceId(0), demand(1, 9, Some(1)));
    scheduler.enqueue(SequenceId(1), demand(1, 9, Some(2)));
    for id in 2..8 {
        let adapter = if id % 2 == 0 { None } else { Some(1) };
        scheduler.enqueue(SequenceId(id), demand(1, 9, adapter));
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
    scheduler.enqueue(SequenceId(0), demand(1, 9, Some(1)));
    scheduler.enqueue(SequenceId(1), demand(1, 9, Some(1)));
    assert!(
        scheduler
            .admit_next()
            .is_some_and(|admission| admission.fill)
    );
    scheduler.fill_failed(SequenceId(0));
    assert!(!scheduler.end(SequenceId(0)));
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
    demand: Demand,
    /// The step before which it comes.
    comes: usize,
    /// Its answer's own length, if it ends before `max_tokens`.
    length: usize,
    /// The step before which its client leaves, if it does.
    leaves: Option<usize>,
}

fn planned() -> impl Strategy<Value = Planned> {
    let demand = (1usize..24, 1usize..12, 0usize..4, prop::option::of(0u8..5)).prop_map(
        |(prompt_rows, max_tokens, images, adapter)| Demand {
            images,
            ..demand(prompt_rows, max_tokens, adapter)
        },
    );
    let leaves = prop::option::weighted(0.2, 0usize..60);
    (demand, 0usize..40, 1usize..14, leaves).prop_map(|(demand, comes, length, leaves)| Planned {
        demand,
        comes,
        length,
        leaves,
    })
}

/// What the test knows of a sequence that runs.
struct Seen {
    slot: u32,
    tokens: usize,
    rows: HashSet<u32>,
}

proptest! {
    #[test]
    fn every_request_ends_once_and_everything_is_given_back(
        mut plans in prop::collection::vec(planned(), 1..40),
        max_sequences in 1usize..6,
        spare_rows in 0usize..12,
        n_slots in 2usize..5,
        lost in prop::collection::hash_set(0usize..80, 0..4),
    ) {
        plans.sort_by_key(|plan| plan.comes);
        let limits = Limits { max_sequences, max_step_rows: max_sequences + spare_rows, ..limits() };
        // The longest demand has 34 rows, 9 blocks.
        let mut scheduler = scheduler(limits, 12, n_slots);
        let mut running: HashMap<u64, Seen> = HashMap::new();
        let mut ended: HashSet<u64> = HashSet::new();
        let mut waiting: Vec<u64> = Vec::new();
        let mut overtaken: HashMap<u64, usize> = HashMap::new();
        let mut holds: HashMap<u32, Generation> = HashMap::new();
        // Each step computes a row at least; a lost cache costs the rows of those that run.
        let rows: usize = plans.iter().map(|plan| plan.demand.cache_rows()).sum();
        let enough = 41 + rows + lost.len() * 12 * BLOCK_ROWS;

        for now in 0.. {
            prop_assert!(now <= enough, "{waiting:?} starve");
            for (id, _) in plans.iter().enumerate().filter(|(_, plan)| plan.comes == now) {
                scheduler.enqueue(SequenceId(id as u64), plans[id].demand);
                waiting.push(id as u64);
            }
            for (id, plan) in plans.iter().enumerate().filter(|(_, plan)| plan.leaves == Some(now)) {
                let id = id as u64;
                let was_there = plan.comes <= now && !ended.contains(&id);
                prop_assert_eq!(scheduler.end(SequenceId(id)), was_there);
                if was_there {
                    ended.insert(id);
                    running.remove(&id);
                    waiting.retain(|other| *other != id);
                }
            }
            while let Some(Admission { id, slot, fill }) = scheduler.admit_next() {
                let demand = plans[id.0 as usize].demand;
                let place = waiting.iter().position(|other| *other == id.0).unwrap();
                waiting.remove(place);
                for passed in &waiting[..place] {
                    prop_assert!(plans[*passed as usize].demand.generation.is_some());
                    *overtaken.entry(*passed).or_default() += 1;
                    prop_assert!(overtaken[passed] <= limits.overtakes);
                }
                if fill {
                    prop_assert!(slot > 0 && running.values().all(|seen| seen.slot != slot));
                    holds.insert(slot, demand.generation.unwrap());
                }
                match demand.generation {
                    None => prop_assert_eq!(slot, 0),
                    Some(generation) => prop_assert_eq!(holds[&slot], generation),
                }
                running.insert(id.0, Seen { slot, tokens: 0, rows: HashSet::new() });
            }
            prop_assert!(running.len() <= max_sequences);

            let works = scheduler.plan();
            let n_rows: usize = works.iter().map(|work| work.positions.len()).sum();
            prop_assert!(n_rows <= limits.max_step_rows);
            prop_assert!(n_rows > 0 || running.is_empty(), "a step without work");
            for work in &works {
                let demand = plans[work.id.0 as usize].demand;
                let seen = running.get_mut(&work.id.0).unwrap();
                prop_assert_eq!(work.slot, seen.slot);
                prop_assert_eq!(work.cache_rows.len(), work.positions.len());
                let keys: Vec<u32> = work.keys.iter().cloned().flatten().map(|k| k as u32).collect();
                prop_assert_eq!(keys.len(), work.positions.end);
                prop_assert_eq!(&keys[work.positions.start..], &work.cache_rows[..]);
                seen.rows = keys.into_iter().collect();
                let known = demand.prompt_rows + seen.tokens;
                prop_assert_eq!(work.gives_token, work.positions.end == known);
            }
            let used: usize = running.values().map(|seen| seen.rows.len()).sum();
            let all: HashSet<u32> = running.values().flat_map(|seen| &seen.rows).copied().collect();
            prop_assert_eq!(used, all.len(), "two sequences share a row");
            let in_answer = |work: &Work| running[&work.id.0].tokens > 0 && work.positions.len() == 1;
            let answering = works.iter().filter(|work| in_answer(work)).count();
            if lost.is_empty() {
                let expected = running.values().filter(|seen| seen.tokens > 0).count();
                prop_assert_eq!(answering, expected, "an answer in progress was left out");
            }

            for work in works {
                scheduler.computed(&work);
                if !work.gives_token { continue; }
                let plan = &plans[work.id.0 as usize];
                let seen = running.get_mut(&work.id.0).unwrap();
                seen.tokens += 1;
                if seen.tokens == plan.length.min(plan.demand.max_tokens) {
                    prop_assert!(scheduler.end(work.id));
                    prop_assert!(ended.insert(work.id.0));
                    running.remove(&work.id.0);
                } else {
                    scheduler.token_chosen(work.id);
                }
            }
            if lost.contains(&now) {
                scheduler.cache_lost();
            }
            if scheduler.is_idle() && now > 40 { break; }
        }
        prop_assert_eq!(ended.len(), plans.len());
        prop_assert_eq!(scheduler.blocks().rows_used(), 0);
        prop_assert_eq!(scheduler.slots().in_use(), 0);
        prop_assert_eq!(scheduler.n_running(), 0);
    }
}
