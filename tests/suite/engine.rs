//! The engine with a model of whole numbers: who gets which answer, and how requests end.

use std::time::{Duration, Instant};

use candle_core::{DType, Device, Tensor};
use norma::engine::{
    EngineConfig, EngineStats, FinishReason, FinishedCounts, InvalidRequest, Request, RequestError,
    Sampling, SubmitError,
};
use norma::preprocess::PromptToken;
use proptest::prelude::*;

use crate::engine_toy::{
    self as toy, BAD_PIXEL, EOS, FAILS, PANIC_PIXEL, PANICS, VOCAB, adapter, collect, config,
    expected, request, tokens,
};

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
        |(pixels, tokens, max_tokens, adapter)| Asked { pixels, tokens, max_tokens, adapter },
    )
}

/// What is left when all is done: nothing held.
fn at_rest(stats: &EngineStats) {
    assert_eq!((stats.running, stats.waiting, stats.kv_rows_used, stats.slots_used), (0, 0, 0, 0));
    assert_eq!((stats.running_adapters.len(), stats.waiting_adapters.len()), (0, 0));
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
    let answers: Vec<_> = (0..9).map(|i| engine.submit(request(&[], &[2 + i], 5)).unwrap()).collect();
    control.open();
    for (i, answer) in (0..).zip(answers) {
        assert_eq!(tokens(answer), expected(&[], &[2 + i], 5, None));
    }
    assert!(control.steps().iter().any(|step| step.sequences == 8));
}

#[test]
fn sampled_answers_depend_on_their_seed_alone() {
    let (engine, _) = toy::start(config());
    let sampling = Sampling { temperature: 3.0, top_k: Some(20), top_p: 0.9, seed: Some(5) };
    let sampled = |seed| Request {
        sampling: Sampling { seed, ..sampling },
        ..request(&[3.0], &[7, 8, 9], 20)
    };
    let alone = tokens(engine.submit(sampled(Some(5))).unwrap());
    let crowd: Vec<_> =
        (0..12).map(|seed| engine.submit(sampled(Some(seed))).unwrap()).collect();
    let crowd: Vec<_> = crowd.into_iter().map(tokens).collect();
    assert_eq!(crowd[5], alone);
    assert!(crowd.iter().enumerate().all(|(seed, answer)| seed == 5 || *answer != alone));
    let unseeded = || tokens(engine.submit(sampled(None)).unwrap());
    assert_ne!(unseeded(), unseeded());
}

#[test]
fn a_dropped_answer_cancels_whether_it_runs_or_waits() {
    let (engine, control) = toy::start(EngineConfig { max_sequences: 1, ..config() });
    control.permit(0);
    let runs = engine.submit(request(&[], &[5], 100)).unwrap();
    control.wait_arrived(1);
    let waits = engine.submit(Request { adapter: Some(adapter(1)), ..request(&[], &[5], 100) });
    drop((runs, waits));
    let stays = engine.submit(request(&[], &[6], 3)).unwrap();
    control.open();
    assert_eq!(tokens(stays), expected(&[], &[6], 3, None));
    engine.drain();
    engine.join();
    let stats = engine.stats();
    at_rest(&stats);
    let counts = FinishedCounts { cancelled: 2, length: 1, ..FinishedCounts::default() };
    assert_eq!(stats.finished, counts);
    // The step that ran when the client left, and those of the one that stayed.
    assert_eq!(stats.steps, 4);
}

#[test]
fn a_deadline_ends_the_running_and_the_waiting() {
    let (engine, control) = toy::start(EngineConfig { max_sequences: 1, ..config() });
    control.permit(1);
    let deadline = Instant::now() + Duration::from_millis(50);
    let limited = || Request { deadline: Some(deadline), ..request(&[], &[5], 100) };
    let runs = engine.submit(limited()).unwrap();
    let waits = engine.submit(limited()).unwrap();
    let stays = engine.submit(request(&[], &[6], 2)).unwrap();
    control.wait_arrived(2);
    std::thread::sleep(deadline.saturating_duration_since(Instant::now()));
    control.open();
    let (first, end) = collect(runs);
    let end = end.unwrap();
    assert_eq!((end.reason, end.completion_tokens, first.len()), (FinishReason::Deadline, 2, 2));
    assert_eq!(end.timings.inter_token.len(), 1);
    assert!(end.timings.first_token.is_some_and(|first| first <= end.timings.total));
    let (none, end) = collect(waits);
    let end = end.unwrap();
    assert_eq!((end.reason, end.completion_tokens, none.len()), (FinishReason::Deadline, 0, 0));
    assert_eq!(end.timings.queue, end.timings.total);
    assert_eq!(tokens(stays), expected(&[], &[6], 2, None));
}

#[test]
fn a_panic_fails_the_requests_of_its_step_and_no_other() {
    let (engine, control) = toy::start(EngineConfig { max_sequences: 3, ..config() });
    control.permit(0);
    let first = engine.submit(request(&[], &[5], 4)).unwrap();
    control.wait_arrived(1);
    // Nine rows of the second step, so that the third reads a part of its prompt in it.
    let panics = engine.submit(request(&[], &[2, 3, 4, 5, 6, 7, 8, 9, PANICS], 4)).unwrap();
    let third = Request { adapter: Some(adapter(2)), ..request(&[4.0], &[9, 10, 11], 9) };
    let third = engine.submit(third).unwrap();
    let waits = engine.submit(request(&[5.0], &[12], 9)).unwrap();
    control.open();
    let (seen, end) = collect(first);
    assert_eq!((seen.len(), end), (1, Err(RequestError::Panicked)));
    assert_eq!(collect(panics), (vec![], Err(RequestError::Panicked)));
    assert_eq!(collect(third), (vec![], Err(RequestError::Panicked)));
    assert_eq!(tokens(waits), expected(&[5.0], &[12], 9, None));
    engine.drain();
    engine.join();
    let stats = engine.stats();
    at_rest(&stats);
    assert_eq!((stats.panics, stats.finished.failed, stats.finished.length), (1, 3, 1));
}

#[test]
fn an_error_fails_only_the_request_that_causes_it() {
    let (engine, control) = toy::start(config());
    control.permit(0);
    let hold = engine.submit(request(&[], &[5], 6)).unwrap();
    control.wait_arrived(1);
    let bad = engine.submit(request(&[], &[6, FAILS], 6)).unwrap();
    let good = engine.submit(request(&[2.0], &[7], 6)).unwrap();
    control.open();
    let error = RequestError::Model { message: "a bad token".into() };
    assert_eq!(collect(bad), (vec![], Err(error)));
    assert_eq!(tokens(hold), expected(&[], &[5], 6, None));
    assert_eq!(tokens(good), expected(&[2.0], &[7], 6, None));
    engine.drain();
    engine.join();
    at_rest(&engine.stats());
    assert_eq!((engine.stats().panics, engine.stats().finished.failed), (0, 1));
}

#[test]
fn sequences_beside_a_lost_cache_read_again() {
    // The second step fails by one request. Tried alone, the first goes on, another panics, so that the
    // cache is lost, and the last is not reached.
    let (engine, control) = toy::start(EngineConfig { max_step_tokens: 40, ..config() });
    control.permit(0);
    let first = engine.submit(request(&[1.0, 2.0, 3.0], &[5], 6)).unwrap();
    control.wait_arrived(1);
    let fails = engine.submit(request(&[], &[6, FAILS], 6)).unwrap();
    let panics = engine.submit(request(&[], &[6, PANICS], 6)).unwrap();
    let last = Request { adapter: Some(adapter(3)), ..request(&[4.0], &[7], 6) };
    let last = engine.submit(last).unwrap();
    control.open();
    assert!(matches!(collect(fails), (_, Err(RequestError::Model { .. }))));
    assert_eq!(collect(panics), (vec![], Err(RequestError::Panicked)));
    assert_eq!(tokens(first), expected(&[1.0, 2.0, 3.0], &[5], 6, None));
    assert_eq!(tokens(last), expected(&[4.0], &[7], 6, Some(3)));
    engine.drain();
    engine.join();
    at_rest(&engine.stats());
    let alone = control.steps().iter().skip(2).take(3).all(|step| step.sequences == 1);
    assert!(alone && control.steps()[1].sequences == 4);
}

#[test]
fn an_image_that_cannot_be_encoded_fails_alone() {
    let (engine, control) = toy::start(EngineConfig { max_step_tokens: 40, ..config() });
    control.permit(0);
    let hold = engine.submit(request(&[], &[5], 6)).unwrap();
    control.wait_arrived(1);
    let bad = engine.submit(request(&[BAD_PIXEL], &[6], 6)).unwrap();
    let good = engine.submit(request(&[2.0], &[7], 6)).unwrap();
    let panics = engine.submit(request(&[PANIC_PIXEL], &[6], 6)).unwrap();
    let last = engine.submit(request(&[3.0, 4.0, 5.0], &[8], 6)).unwrap();
    control.open();
    let error = RequestError::Model { message: "a bad picture".into() };
    assert_eq!(collect(bad), (vec![], Err(error)));
    assert_eq!(collect(panics), (vec![], Err(RequestError::Panicked)));
    assert_eq!(tokens(hold), expected(&[], &[5], 6, None));
    assert_eq!(tokens(good), expected(&[2.0], &[7], 6, None));
    assert_eq!(tokens(last), expected(&[3.0, 4.0, 5.0], &[8], 6, None));
    assert_eq!(engine.stats().panics, 1);
}

#[test]
fn the_queue_is_bounded() {
    let limits = EngineConfig { max_sequences: 1, queue_len: 2, ..config() };
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
    assert_eq!(tokens(engine.submit(request(&[], &[8], 2)).unwrap()).len(), 2);
}

#[test]
fn an_adapter_without_a_slot_waits_and_the_base_does_not() {
    let (engine, control) = toy::start(EngineConfig { bank_slots: 2, ..config() });
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
    assert_eq!((stats.running, stats.waiting, stats.slots_used, stats.slots_total), (1, 1, 1, 1));
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
    let (engine, control) = toy::start(EngineConfig { max_sequences: 2, ..config() });
    control.permit(0);
    let accepted: Vec<_> =
        (2..8).map(|token| engine.submit(request(&[], &[token], 3)).unwrap()).collect();
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

/// The text of tokens: words with blanks between them.
fn text_of(tokens: &[u32]) -> String {
    tokens.iter().map(|token| format!("t{token}")).collect::<Vec<_>>().join(" ")
}

#[test]
fn a_stop_string_ends_the_answer_and_is_never_sent() {
    let (engine, _) = toy::start(config());
    let full = expected(&[], &[5], 20, None);
    // A stop string over three tokens, the last of them cut.
    let stop = &text_of(&full[6..9])[..text_of(&full[6..9]).len() - 1];
    let stopped = |min_tokens| {
        let stop = vec!["never".into(), stop.into()];
        collect(engine.submit(Request { stop, min_tokens, ..request(&[], &[5], 20) }).unwrap())
    };
    let (events, end) = stopped(0);
    let text: String = events.iter().map(|event| event.text.as_str()).collect();
    assert_eq!(text, text_of(&full)[..text_of(&full).find(stop).unwrap()]);
    let end = end.unwrap();
    assert_eq!((end.reason, end.completion_tokens), (FinishReason::Stop, events.len()));
    assert!(events.len() <= 9);
    // An answer that may not end before it has passed the stop string does not end by it.
    let (events, end) = stopped(9);
    let text: String = events.iter().map(|event| event.text.as_str()).collect();
    assert_eq!((text, end.unwrap().reason), (text_of(&full), FinishReason::Length));
}

#[test]
fn the_end_of_text_ends_an_answer_unless_it_is_ignored_or_comes_too_soon() {
    let (engine, _) = toy::start(config());
    let sampling = Sampling { temperature: 50.0, seed: Some(1), ..Sampling::default() };
    let ask = |min_tokens, ignore_eos| {
        let asked = Request { sampling, min_tokens, ignore_eos, ..request(&[], &[5], 110) };
        let (events, end) = collect(engine.submit(asked).unwrap());
        (events, end.unwrap().reason)
    };
    // Nearly even odds over 50 tokens: this seed draws the end of text within 110 tokens.
    let (events, reason) = ask(0, false);
    assert_eq!(reason, FinishReason::Stop);
    let (last, before) = events.split_last().unwrap();
    assert!(last.end_of_text && last.token == EOS && last.text.is_empty());
    assert!(before.iter().all(|event| !event.end_of_text && event.token != EOS));
    let (later, _) = ask(events.len(), false);
    assert!(later.len() > events.len());
    assert!(later[..events.len()].iter().all(|event| event.token != EOS));
    let (all, reason) = ask(0, true);
    assert_eq!((all.len(), reason), (110, FinishReason::Length));
}

#[test]
fn the_likeliest_tokens_are_those_of_the_model() {
    let (engine, _) = toy::start(config());
    let asked = |top_logits| Request { top_logits, ..request(&[], &[5], 3) };
    let (events, _) = collect(engine.submit(asked(VOCAB as usize + 9)).unwrap());
    for event in events {
        assert_eq!(event.top.len(), VOCAB as usize);
        assert!(event.top.is_sorted_by(|a, b| a.logit >= b.logit));
        assert_eq!((event.top[0].token, event.top[0].logprob), (event.token, event.logprob));
        let sum: f32 = event.top.iter().map(|top| top.logprob.exp()).sum();
        assert!((sum - 1.0).abs() < 1e-5);
    }
    let (events, _) = collect(engine.submit(asked(0)).unwrap());
    assert!(events.iter().all(|event| event.top.is_empty()));
}

#[test]
fn what_cannot_run_is_refused_by_its_field() {
    let (engine, _) = toy::start(config());
    let good = request(&[1.0], &[5], 4);
    let field = |request: Request| match engine.submit(request) {
        Err(SubmitError::Invalid(invalid)) => {
            assert!(invalid.to_string().contains(invalid.field()), "{invalid}");
            invalid.field()
        }
        other => panic!("{other:?}"),
    };
    let prompt = |prompt: Vec<PromptToken>| field(Request { prompt, ..good.clone() });
    let rows = good.prompt.clone();
    assert_eq!(prompt(vec![]), "prompt");
    assert_eq!(prompt([&rows[..], &[PromptToken::Text(VOCAB)]].concat()), "prompt");
    assert_eq!(prompt(rows[..2].to_vec()), "prompt", "an image cut short");
    assert_eq!(prompt(rows[1..].to_vec()), "prompt", "an image without its first row");
    assert_eq!(prompt(rows[3..].to_vec()), "prompt", "an image that is not asked about");
    assert_eq!(field(Request { images: vec![], ..good.clone() }), "prompt");
    for (shape, dtype) in [((3, 2, 3), DType::F32), ((3, 2, 2), DType::F64)] {
        let images = vec![Tensor::zeros(shape, dtype, &Device::Cpu).unwrap()];
        assert_eq!(field(Request { images, ..good.clone() }), "images");
    }
    assert_eq!(field(Request { max_tokens: 0, ..good.clone() }), "max_tokens");
    assert_eq!(field(Request { min_tokens: 5, ..good.clone() }), "min_tokens");
    assert_eq!(field(Request { stop: vec![String::new()], ..good.clone() }), "stop");
    let sampling = |sampling: Sampling| field(Request { sampling, ..good.clone() });
    let greedy = Sampling::default();
    assert_eq!(sampling(Sampling { temperature: -0.1, ..greedy }), "temperature");
    assert_eq!(sampling(Sampling { temperature: f32::NAN, ..greedy }), "temperature");
    assert_eq!(sampling(Sampling { top_p: 0.0, ..greedy }), "top_p");
    assert_eq!(sampling(Sampling { top_p: 1.1, ..greedy }), "top_p");
    assert_eq!(sampling(Sampling { top_k: Some(0), ..greedy }), "top_k");

    let limit = engine.sequence_limit();
    assert_eq!(limit, 120);
    let too_long = engine.submit(request(&[], &[5; 100], 21)).err();
    assert_eq!(too_long, Some(SubmitError::TooLong { tokens: 121, limit }));
    assert_eq!(tokens(engine.submit(request(&[], &[5; 100], 20)).unwrap()).len(), 20);
    let (base_only, _) = toy::start(EngineConfig { bank_slots: 1, ..config() });
    let refused = base_only.submit(Request { adapter: Some(adapter(1)), ..good.clone() }).err();
    assert_eq!(refused, Some(SubmitError::Invalid(InvalidRequest::NoAdapterSlots)));
    assert_eq!(tokens(base_only.submit(good).unwrap()), expected(&[1.0], &[5], 4, None));
}
