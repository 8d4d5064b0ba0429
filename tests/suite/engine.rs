//! The engine with a model of whole numbers: who gets which answer, and how requests end.

use std::time::{Duration, Instant};

use norma::engine::{
    EngineConfig, EngineStats, FinishReason, FinishedCounts, Request, SubmitError,
};
use proptest::prelude::*;

use crate::engine_toy::{self as toy, PANICS, adapter, collect, config, expected, request, tokens};

/// One greedy request of a mix.
#[derive(Clone, Debug)]
struct Asked {
    pixels: Vec<f32>,
    tokens: Vec<u32>,
    max_tokens: usize,
    adapter: Option<u8>,
}

impl Asked {
    fn request(&self) -> Request {
        Request {
            adapter: self.adapter.map(adapter),
            ..request(&self.pixels, &self.tokens, self.max_tokens)
        }
    }

    fn expected(&self) -> Vec<u32> {
        expected(&self.pixels, &self.tokens, self.max_tokens, self.adapter)
    }
}

fn asked() -> impl Strategy<Value = Asked> {
    let pixels = prop::collection::vec((0u8..9).prop_map(f32::from), 0..4);
    let tokens = prop::collection::vec(2..PANICS, 1..40);
    (pixels, tokens, 1usize..24, prop::option::of(0u8..6)).prop_map(
        |(pixels, tokens, max_tokens, adapter)| Asked {
            pixels,
            tokens,
            max_tokens,
            adapter,
        },
    )
}

/// What is left when all is done: nothing held.
pub fn at_rest(stats: &EngineStats) {
    assert_eq!(
        (
            stats.running,
            stats.waiting,
            stats.kv_rows_used,
            stats.slots_used
        ),
        (0, 0, 0, 0)
    );
    assert_eq!(
        (stats.running_adapters.len(), stats.waiting_adapters.len()),
        (0, 0)
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn mixed_requests_get_what_each_gets_alone(mix in prop::collection::vec(asked(), 1..40)) {
        let (engine, control) = toy::start(config());
        let answers: Vec<_> =
            mix.iter().map(|asked| engine.submit(asked.request()).unwrap()).collect();
        for (asked, answer) in mix.iter().zip(answers) {
            prop_assert_eq!(tokens(answer), asked.expected());
        }
        engine.drain();
        engine.join();
        let stats = engine.stats();
        at_rest(&stats);
        prop_assert_eq!(stats.finished.length, mix.len() as u64);
        prop_assert_eq!(stats.finished.total(), mix.len() as u64);
        let prompt_rows: usize = mix.iter().map(|asked| asked.request().prompt.len()).sum();
        prop_assert_eq!(stats.prompt_tokens, prompt_rows as u64);
        let answered: usize = mix.iter().map(|asked| asked.max_tokens).sum();
        prop_assert_eq!(stats.generated_tokens, answered as u64);
        let steps = control.steps();
        prop_assert_eq!(stats.steps, steps.len() as u64);
        prop_assert!(steps.iter().all(|step| step.rows <= 12 && step.sequences <= 8));
    }
}

#[test]
fn a_step_holds_many_sequences() {
    let (engine, control) = toy::start(config());
    control.permit(0);
    let answers: Vec<_> = (0..9)
        .map(|i| engine.submit(request(&[], &[2 + i], 5)).unwrap())
        .collect();
    control.open();
    for (i, answer) in (0..).zip(answers) {
        assert_eq!(tokens(answer), expected(&[], &[2 + i], 5, None));
    }
    assert!(control.steps().iter().any(|step| step.sequences == 8));
}

#[test]
fn a_dropped_answer_cancels_whether_it_runs_or_waits() {
    let (engine, control) = toy::start(EngineConfig {
        max_sequences: 1,
        ..config()
    });
    control.permit(0);
    let runs = engine.submit(request(&[], &[5], 100)).unwrap();
    control.wait_arrived(1);
    let waits = engine.submit(Request {
        adapter: Some(adapter(1)),
        ..request(&[], &[5], 100)
    });
    drop((runs, waits));
    let stays = engine.submit(request(&[], &[6], 3)).unwrap();
    control.open();
    assert_eq!(tokens(stays), expected(&[], &[6], 3, None));
    engine.drain();
    engine.join();
    let stats = engine.stats();
    at_rest(&stats);
    let counts = FinishedCounts {
        cancelled: 2,
        length: 1,
        ..FinishedCounts::default()
    };
    assert_eq!(stats.finished, counts);
    // The step that ran when the client left, and those of the one that stayed.
    assert_eq!(stats.steps, 4);
}

#[test]
fn a_deadline_ends_the_running_and_the_waiting() {
    let (engine, control) = toy::start(EngineConfig {
        max_sequences: 1,
        ..config()
    });
    control.permit(1);
    let deadline = Instant::now() + Duration::from_millis(50);
    let limited = || Request {
        deadline: Some(deadline),
        ..request(&[], &[5], 100)
    };
    let runs = engine.submit(limited()).unwrap();
    let waits = engine.submit(limited()).unwrap();
    let stays = engine.submit(request(&[], &[6], 2)).unwrap();
    control.wait_arrived(2);
    std::thread::sleep(deadline.saturating_duration_since(Instant::now()));
    control.open();
    let (first, end) = collect(runs);
    let end = end.unwrap();
    assert_eq!(
        (end.reason, end.completion_tokens, first.len()),
        (FinishReason::Deadline, 2, 2)
    );
    assert_eq!(end.timings.inter_token.len(), 1);
    assert!(
        end.timings
            .first_token
            .is_some_and(|first| first <= end.timings.total)
    );
    let (none, end) = collect(waits);
    let end = end.unwrap();
    assert_eq!(
        (end.reason, end.completion_tokens, none.len()),
        (FinishReason::Deadline, 0, 0)
    );
    assert_eq!(end.timings.queue, end.timings.total);
    assert_eq!(tokens(stays), expected(&[], &[6], 2, None));
}

#[test]
fn the_queue_is_bounded() {
    let limits = EngineConfig {
        max_sequences: 1,
        queue_len: 2,
        ..config()
    };
    let (engine, control) = toy::start(limits);
    control.permit(0);
    let runs = engine.submit(request(&[], &[5], 2)).unwrap();
    control.wait_arrived(1);
    let waiting = [6, 7].map(|token| engine.submit(request(&[], &[token], 2)).unwrap());
    let refused = engine.submit(request(&[], &[8], 2));
    assert_eq!(refused.err(), Some(SubmitError::QueueFull { limit: 2 }));
    assert_eq!(engine.stats().waiting, 2);
    control.open();
    assert_eq!(tokens(runs).len(), 2);
    assert!(waiting.into_iter().all(|answer| tokens(answer).len() == 2));
    assert_eq!(
        tokens(engine.submit(request(&[], &[8], 2)).unwrap()).len(),
        2
    );
}

#[test]
fn an_adapter_without_a_slot_waits_and_the_base_does_not() {
    let (engine, control) = toy::start(EngineConfig {
        bank_slots: 2,
        ..config()
    });
    control.permit(0);
    let with = |id, max_tokens| Request {
        adapter: Some(adapter(id)),
        ..request(&[1.0], &[5, 6], max_tokens)
    };
    let holds = engine.submit(with(1, 12)).unwrap();
    control.wait_arrived(1);
    let waits = engine.submit(with(2, 4)).unwrap();
    let passes = engine.submit(request(&[1.0], &[5, 6], 4)).unwrap();
    let shares = engine.submit(with(1, 4)).unwrap();
    // The steps of the two that pass; the slot is in use for longer.
    control.permit(6);
    assert_eq!(tokens(passes), expected(&[1.0], &[5, 6], 4, None));
    assert_eq!(tokens(shares), expected(&[1.0], &[5, 6], 4, Some(1)));
    control.wait_arrived(7);
    let stats = engine.stats();
    assert_eq!(
        (
            stats.running,
            stats.waiting,
            stats.slots_used,
            stats.slots_total
        ),
        (1, 1, 1, 1)
    );
    assert_eq!(stats.running_adapters, [adapter(1).generation]);
    assert_eq!(stats.waiting_adapters, [adapter(2).generation]);
    control.open();
    assert_eq!(tokens(holds), expected(&[1.0], &[5, 6], 12, Some(1)));
    assert_eq!(tokens(waits), expected(&[1.0], &[5, 6], 4, Some(2)));
    engine.drain();
    engine.join();
    assert_eq!(engine.stats().slots_filled, 2);
}

#[test]
fn draining_answers_what_was_accepted_and_nothing_else() {
    let (engine, control) = toy::start(EngineConfig {
        max_sequences: 2,
        ..config()
    });
    control.permit(0);
    let accepted: Vec<_> = (2..8)
        .map(|token| engine.submit(request(&[], &[token], 3)).unwrap())
        .collect();
    engine.drain();
    let refused = engine.submit(request(&[], &[9], 3));
    assert_eq!(refused.err(), Some(SubmitError::ShuttingDown));
    control.open();
    engine.join();
    for (token, answer) in (2..).zip(accepted) {
        assert_eq!(tokens(answer), expected(&[], &[token], 3, None));
    }
    at_rest(&engine.stats());
}

#[test]
fn requests_outlive_the_last_handle() {
    let (engine, _) = toy::start(config());
    let answer = engine.submit(request(&[], &[5], 30)).unwrap();
    drop(engine);
    assert_eq!(tokens(answer), expected(&[], &[5], 30, None));
}

#[test]
fn adapters_that_nobody_uses_are_forgotten_when_asked_and_come_back_the_same() {
    let (engine, _control) = toy::start(config());
    let with = |id| Request {
        adapter: Some(adapter(id)),
        ..request(&[1.0], &[5, 6], 4)
    };
    let ask = |id| tokens(engine.submit(with(id)).unwrap());
    for _ in 0..2 {
        assert_eq!(ask(1), expected(&[1.0], &[5, 6], 4, Some(1)));
    }
    engine.forget_idle_adapters();
    for _ in 0..2 {
        assert_eq!(ask(1), expected(&[1.0], &[5, 6], 4, Some(1)));
    }
    engine.drain();
    engine.join();
    assert_eq!(engine.stats().slots_filled, 2);
}
