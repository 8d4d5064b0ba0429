//! What an answer is made of: sampling, stop strings, the end of text, the likeliest tokens; and which
//! requests get none.

use candle_core::{DType, Device, Tensor};
use norma::engine::{
    EngineConfig, EngineHandle, FinishReason, Request, RequestImage, Sampling, SubmitError,
};
use norma::preprocess::PromptToken;

use crate::engine_toy::{
    self as toy, EOS, VOCAB, adapter, collect, config, expected, request, tokens,
};

#[test]
fn sampled_answers_depend_on_their_seed_alone() {
    let (engine, _) = toy::start(config());
    let sampling = Sampling {
        temperature: 3.0,
        top_k: Some(20),
        top_p: 0.9,
        seed: Some(5),
    };
    let sampled = |seed| Request {
        sampling: Sampling { seed, ..sampling },
        ..request(&[3.0], &[7, 8, 9], 20)
    };
    let alone = tokens(engine.submit(sampled(Some(5))).unwrap());
    let crowd: Vec<_> = (0..12)
        .map(|seed| engine.submit(sampled(Some(seed))).unwrap())
        .collect();
    let crowd: Vec<_> = crowd.into_iter().map(tokens).collect();
    assert_eq!(crowd[5], alone);
    assert!(
        crowd
            .iter()
            .enumerate()
            .all(|(seed, answer)| seed == 5 || *answer != alone)
    );
    let unseeded = || tokens(engine.submit(sampled(None)).unwrap());
    assert_ne!(unseeded(), unseeded());
}

/// The text of tokens: words with blanks between them.
fn text_of(tokens: &[u32]) -> String {
    tokens
        .iter()
        .map(|token| format!("t{token}"))
        .collect::<Vec<_>>()
        .join(" ")
}

#[test]
fn a_stop_string_ends_the_answer_and_is_never_sent() {
    let (engine, _) = toy::start(config());
    let full = expected(&[], &[5], 20, None);
    // A stop string over three tokens, the last of them cut.
    let stop = &text_of(&full[6..9])[..text_of(&full[6..9]).len() - 1];
    let stopped = |min_tokens| {
        let stop = vec!["never".into(), stop.into()];
        collect(
            engine
                .submit(Request {
                    stop,
                    min_tokens,
                    ..request(&[], &[5], 20)
                })
                .unwrap(),
        )
    };
    let (events, end) = stopped(0);
    let text: String = events.iter().map(|event| event.text.as_str()).collect();
    assert_eq!(text, text_of(&full)[..text_of(&full).find(stop).unwrap()]);
    let end = end.unwrap();
    assert_eq!(
        (end.reason, end.completion_tokens),
        (FinishReason::Stop, events.len())
    );
    assert!(events.len() <= 9);
    // An answer that may not end before it has passed the stop string does not end by it.
    let (events, end) = stopped(9);
    let text: String = events.iter().map(|event| event.text.as_str()).collect();
    assert_eq!(
        (text, end.unwrap().reason),
        (text_of(&full), FinishReason::Length)
    );
}

#[test]
fn the_end_of_text_ends_an_answer_unless_it_is_ignored_or_comes_too_soon() {
    let (engine, _) = toy::start(config());
    let sampling = Sampling {
        temperature: 50.0,
        seed: Some(1),
        ..Sampling::default()
    };
    let ask = |min_tokens, ignore_eos| {
        let asked = Request {
            sampling,
            min_tokens,
            ignore_eos,
            ..request(&[], &[5], 110)
        };
        let (events, end) = collect(engine.submit(asked).unwrap());
        (events, end.unwrap().reason)
    };
    // Nearly even odds over 50 tokens: this seed draws the end of text within 110 tokens.
    let (events, reason) = ask(0, false);
    assert_eq!(reason, FinishReason::Stop);
    let (last, before) = events.split_last().unwrap();
    assert!(last.end_of_text && last.token == EOS && last.text.is_empty());
    assert!(
        before
            .iter()
            .all(|event| !event.end_of_text && event.token != EOS)
    );
    let (later, _) = ask(events.len(), false);
    assert!(later.len() > events.len());
    assert!(later[..events.len()].iter().all(|event| event.token != EOS));
    let (all, reason) = ask(0, true);
    assert_eq!((all.len(), reason), (110, FinishReason::Length));
}

#[test]
fn the_likeliest_tokens_are_those_of_the_model() {
    let (engine, _) = toy::start(config());
    let asked = |top_logits| Request {
        top_logits,
        ..request(&[], &[5], 3)
    };
    let (events, _) = collect(engine.submit(asked(VOCAB as usize + 9)).unwrap());
    for event in events {
        assert_eq!(event.top.len(), VOCAB as usize);
        assert!(event.top.is_sorted_by(|a, b| a.logit >= b.logit));
        assert_eq!(
            (event.top[0].token, event.top[0].logprob),
            (event.token, event.logprob)
        );
        let sum: f32 = event.top.iter().map(|top| top.logprob.exp()).sum();
        assert!((sum - 1.0).abs() < 1e-5);
    }
    let (events, _) = collect(engine.submit(asked(0)).unwrap());
    assert!(events.iter().all(|event| event.top.is_empty()));
}

/// A good request that this change makes impossible is refused, naming the field.
fn refused(engine: &EngineHandle, field: &str, change: impl FnOnce(&mut Request)) {
    let mut asked = request(&[1.0], &[5], 4);
    change(&mut asked);
    match engine.submit(asked) {
        Err(SubmitError::Invalid(invalid)) => {
            assert_eq!(invalid.field(), field, "{invalid}");
            assert!(invalid.to_string().contains(field), "{invalid}");
        }
        other => panic!("{field}: {other:?}"),
    }
}

#[test]
fn numbers_out_of_range_are_refused() {
    let (engine, _) = toy::start(config());
    let check = |field, change: fn(&mut Request)| refused(&engine, field, change);
    check("max_tokens", |r| r.max_tokens = 0);
    check("min_tokens", |r| r.min_tokens = 5);
    check("stop", |r| r.stop = vec!["a".into(), String::new()]);
    check("temperature", |r| r.sampling.temperature = -0.1);
    check("temperature", |r| r.sampling.temperature = f32::NAN);
    check("top_p", |r| r.sampling.top_p = 0.0);
    check("top_p", |r| r.sampling.top_p = 1.1);
    check("top_k", |r| r.sampling.top_k = Some(0));
}

#[test]
fn prompts_and_images_that_do_not_fit_are_refused() {
    let (engine, _) = toy::start(config());
    let check = |field, change: fn(&mut Request)| refused(&engine, field, change);
    check("prompt", |r| r.prompt.clear());
    check("prompt", |r| r.prompt.push(PromptToken::Text(VOCAB)));
    // An image cut short, one without its first row, one that is not asked about, one not given.
    check("prompt", |r| r.prompt.truncate(2));
    check("prompt", |r| r.prompt = r.prompt.split_off(1));
    check("prompt", |r| r.prompt = r.prompt.split_off(3));
    check("prompt", |r| r.images.clear());
    let zeros = |shape, dtype| Tensor::zeros(shape, dtype, &Device::Cpu).unwrap();
    for image in [zeros((3, 2, 3), DType::F32), zeros((3, 2, 2), DType::F64)] {
        refused(&engine, "images", |r| {
            r.images = vec![RequestImage::new(image).unwrap()];
        });
    }
    refused(&engine, "adapter", |r| {
        r.adapter = Some(toy::adapter_of_another_base());
    });
}

#[test]
fn requests_longer_than_a_sequence_may_be_are_refused() {
    let (engine, _) = toy::start(config());
    let limit = engine.sequence_limit();
    assert_eq!(limit, 120);
    let refused = engine.submit(request(&[], &[5; 100], 21)).err();
    assert_eq!(refused, Some(SubmitError::TooLong { tokens: 121, limit }));
    let longest = engine.submit(request(&[], &[5; 100], 20)).unwrap();
    assert_eq!(tokens(longest).len(), 20);
    // The KV cache may be the shorter limit: 10 rows are two whole blocks.
    let small = EngineConfig {
        kv_rows: 10,
        ..config()
    };
    assert_eq!(toy::start(small).0.sequence_limit(), 8);
}

#[test]
fn a_bank_of_the_base_alone_refuses_adapters_and_answers_for_the_base() {
    let (engine, _) = toy::start(EngineConfig {
        bank_slots: 1,
        ..config()
    });
    refused(&engine, "adapter", |r| r.adapter = Some(adapter(1)));
    let answer = engine.submit(request(&[1.0], &[5], 4)).unwrap();
    assert_eq!(tokens(answer), expected(&[1.0], &[5], 4, None));
}
