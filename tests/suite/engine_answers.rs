//! What an answer is made of: sampling, stop strings, the end of text, the likeliest tokens; and which
//! requests get none.

use candle_core::{DType, Device, Tensor};
use norma::engine::{EngineConfig, FinishReason, InvalidRequest, Request, Sampling, SubmitError};
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
    let prompt = |prompt: Vec<PromptToken>| {
        field(Request {
            prompt,
            ..good.clone()
        })
    };
    let rows = good.prompt.clone();
    assert_eq!(prompt(vec![]), "prompt");
    assert_eq!(
        prompt([&rows[..], &[PromptToken::Text(VOCAB)]].concat()),
        "prompt"
    );
    assert_eq!(prompt(rows[..2].to_vec()), "prompt", "an image cut short");
    assert_eq!(
        prompt(rows[1..].to_vec()),
        "prompt",
        "an image without its first row"
    );
    assert_eq!(
        prompt(rows[3..].to_vec()),
        "prompt",
        "an image that is not asked about"
    );
    assert_eq!(
        field(Request {
            images: vec![],
            ..good.clone()
        }),
        "prompt"
    );
    for (shape, dtype) in [((3, 2, 3), DType::F32), ((3, 2, 2), DType::F64)] {
        let images = vec![Tensor::zeros(shape, dtype, &Device::Cpu).unwrap()];
        assert_eq!(
            field(Request {
                images,
                ..good.clone()
            }),
            "images"
        );
    }
    assert_eq!(
        field(Request {
            max_tokens: 0,
            ..good.clone()
        }),
        "max_tokens"
    );
    assert_eq!(
        field(Request {
            min_tokens: 5,
            ..good.clone()
        }),
        "min_tokens"
    );
    assert_eq!(
        field(Request {
            stop: vec![String::new()],
            ..good.clone()
        }),
        "stop"
    );
    let sampling = |sampling: Sampling| {
        field(Request {
            sampling,
            ..good.clone()
        })
    };
    let greedy = Sampling::default();
    assert_eq!(
        sampling(Sampling {
            temperature: -0.1,
            ..greedy
        }),
        "temperature"
    );
    assert_eq!(
        sampling(Sampling {
            temperature: f32::NAN,
            ..greedy
        }),
        "temperature"
    );
    assert_eq!(
        sampling(Sampling {
            top_p: 0.0,
            ..greedy
        }),
        "top_p"
    );
    assert_eq!(
        sampling(Sampling {
            top_p: 1.1,
            ..greedy
        }),
        "top_p"
    );
    assert_eq!(
        sampling(Sampling {
            top_k: Some(0),
            ..greedy
        }),
        "top_k"
    );

    let limit = engine.sequence_limit();
    assert_eq!(limit, 120);
    let too_long = engine.submit(request(&[], &[5; 100], 21)).err();
    assert_eq!(too_long, Some(SubmitError::TooLong { tokens: 121, limit }));
    assert_eq!(
        tokens(engine.submit(request(&[], &[5; 100], 20)).unwrap()).len(),
        20
    );
    let (base_only, _) = toy::start(EngineConfig {
        bank_slots: 1,
        ..config()
    });
    let refused = base_only
        .submit(Request {
            adapter: Some(adapter(1)),
            ..good.clone()
        })
        .err();
    assert_eq!(
        refused,
        Some(SubmitError::Invalid(InvalidRequest::NoAdapterSlots))
    );
    assert_eq!(
        tokens(base_only.submit(good).unwrap()),
        expected(&[1.0], &[5], 4, None)
    );
}
