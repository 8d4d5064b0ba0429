//! The scheduler's rules by example.

use std::ops::Range;

use norma_adapters::Digest;

use super::*;

pub(super) const BLOCK_ROWS: usize = 4;

pub(super) fn limits() -> Limits {
    Limits {
        max_sequences: 4,
        max_step_rows: 10,
        max_rows_beside_answers: 10,
        max_step_images: 2,
        overtakes: 3,
    }
}

pub(super) fn scheduler(limits: Limits, n_blocks: usize, n_slots: usize) -> Scheduler {
    Scheduler::new(
        limits,
        BlockPool::new(n_blocks, BLOCK_ROWS),
        SlotTable::new(n_slots),
    )
}

pub(super) fn generation(id: u8) -> Generation {
    Generation::of(&[id])
}

pub(super) fn demand(prompt_rows: usize, adapter: Option<u8>) -> Demand {
    Demand {
        tenant: "tenant".into(),
        prompt_rows,
        known_rows: prompt_rows,
        images: 0,
        images_end: 0,
        priority: Priority::Live,
        generation: adapter.map(generation),
        keys: Vec::new(),
    }
}

/// The names of the whole blocks of these rows.
pub(super) fn keys(rows: &[u32]) -> Vec<BlockKey> {
    (BLOCK_ROWS..=rows.len())
        .step_by(BLOCK_ROWS)
        .map(|end| BlockKey(content(&rows[..end])))
        .collect()
}

/// What lies in the cache for the last of these rows.
pub(super) fn content(rows: &[u32]) -> Digest {
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

pub(super) fn of(tenant: &str, demand: Demand) -> Demand {
    Demand {
        tenant: tenant.into(),
        ..demand
    }
}

pub(super) fn admitted(scheduler: &mut Scheduler) -> Vec<u64> {
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
fn prompts_in_the_background_take_half_of_that_and_leave_the_rest_to_others() {
    let limits = Limits {
        max_rows_beside_answers: 8,
        ..limits()
    };
    let mut scheduler = scheduler(limits, 40, 1);
    let background = |rows| Demand {
        priority: Priority::Background,
        ..demand(rows, None)
    };
    scheduler.enqueue(SequenceId(0), demand(3, None));
    admitted(&mut scheduler);
    step(&mut scheduler);
    scheduler.enqueue(SequenceId(1), background(13));
    scheduler.enqueue(SequenceId(2), of("other", background(13)));
    scheduler.enqueue(SequenceId(3), of("other", demand(20, None)));
    assert_eq!(admitted(&mut scheduler).len(), 3);
    // Four rows a tenant; the background's four go to the tenant that has nothing else to read.
    assert_eq!(
        step(&mut scheduler),
        [(0, 3..4, true), (3, 0..4, false), (1, 0..4, false)]
    );
    // Nobody answers any more: who is in the background need not stand back.
    scheduler.end(SequenceId(0));
    scheduler.end(SequenceId(3));
    let rows = |done: Vec<(u64, Range<usize>, bool)>| -> usize {
        done.into_iter()
            .map(|(_, positions, _)| positions.len())
            .sum()
    };
    assert_eq!(rows(step(&mut scheduler)), 10);
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
