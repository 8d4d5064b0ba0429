//! What the engine keeps of earlier requests: it saves work, shows in the numbers, and changes no bit.

use norma::engine::{EngineConfig, Event, Finished, Request, TokenEvent};
use norma::preprocess::PromptToken;
use norma_adapters::{AdapterValues, Generation, Scope};

use crate::engine_llava::{Served, collect, serve, without_caches};

/// Another question about the image of request 0.
fn question(served: &Served, i: usize) -> Request {
    let mut request = served.request(0);
    let words = (0..4 + i as u32).map(|k| PromptToken::Text(20 + 7 * i as u32 + k));
    request.prompt.extend(words);
    request
}

fn whole(served: &Served, request: Request) -> (Vec<TokenEvent>, Finished) {
    let mut answer = served.engine.submit(request).unwrap();
    let mut tokens = Vec::new();
    loop {
        match answer.blocking_recv().unwrap() {
            Event::Token(token) => tokens.push(token),
            Event::Finished(finished) => return (tokens, finished),
            Event::Failed(error) => panic!("{error}"),
        }
    }
}

/// Blocks small enough for the short prompts of a test.
fn config() -> EngineConfig {
    EngineConfig {
        block_rows: 4,
        ..EngineConfig::default()
    }
}

#[test]
fn a_second_question_about_an_image_computes_its_own_rows_alone_and_gets_the_same_bits() {
    let (plain, served) = (serve(without_caches()), serve(config()));
    let mut computed = Vec::new();
    for i in 0..4 {
        let request = question(&served, i);
        let rows = request.prompt.len();
        let (tokens, finished) = whole(&served, request);
        assert_eq!(tokens, plain.answer(question(&plain, i)), "question {i}");
        computed.push(rows - finished.cached_tokens);
    }
    // Without the image's rows; the block in which the questions part is computed anew.
    let image_rows = served.shape.image_tokens;
    assert!(computed[0] > image_rows);
    assert!(
        computed[1..].iter().all(|rows| *rows < image_rows),
        "{computed:?}"
    );
    let stats = served.engine.stats();
    assert!(stats.prefix_hits >= 3 * (image_rows as u64 / 4 * 4) && stats.kv_rows_kept > 0);
    assert_eq!(
        (stats.image_queries, stats.image_hits),
        (1, 0),
        "the image's rows lie in the cache"
    );
}

#[test]
fn an_answer_that_becomes_part_of_the_next_prompt_is_not_computed_again() {
    let (plain, served) = (serve(without_caches()), serve(config()));
    let first = question(&served, 0);
    let (tokens, _) = whole(&served, first.clone());
    let mut second = first;
    let answer = tokens.iter().map(|token| PromptToken::Text(token.token));
    second.prompt.extend(answer);
    second.prompt.extend([30, 31, 32].map(PromptToken::Text));
    let (tokens, finished) = whole(&served, second.clone());
    assert_eq!(tokens, plain.answer(second.clone()));
    // All but the last rows of the first exchange, and this question's own.
    assert!(finished.cached_tokens + 4 + 3 + 1 >= second.prompt.len());
}

#[test]
fn several_answers_to_one_prompt_compute_it_once() {
    let served = serve(config());
    let request = question(&served, 3);
    let rows = request.prompt.len();
    let answers: Vec<_> = (0..5)
        .map(|_| served.engine.submit(request.clone()).unwrap())
        .collect();
    let answers: Vec<_> = answers.into_iter().map(collect).collect();
    assert!(answers.iter().all(|answer| *answer == answers[0]));
    let stats = served.engine.stats();
    // Each computes the block in which its answer begins.
    assert_eq!(stats.prefix_hits as usize, 4 * ((rows - 1) / 4 * 4));
}

#[test]
fn tenants_and_adapters_do_not_share_prompts() {
    let served = serve(config());
    let request = question(&served, 0);
    whole(&served, request.clone());
    let of_another_tenant = Request {
        tenant: "another".into(),
        ..request.clone()
    };
    let of_another_adapter = Request {
        adapter: Some(served.adapters[3].clone()),
        ..request.clone()
    };
    for other in [of_another_tenant, of_another_adapter] {
        let (_, finished) = whole(&served, other);
        assert_eq!(finished.cached_tokens, 0);
    }
    assert_eq!(served.engine.stats().image_hits, 0);
    let (_, finished) = whole(&served, request);
    assert!(finished.cached_tokens > 0);
}

#[test]
fn adapters_with_equal_vision_norms_share_image_features() {
    let (plain, served) = (serve(without_caches()), serve(config()));
    let sites = norma::base::Base::open(
        crate::golden::open("llama_a").folder(),
        &norma::base::OpenOptions::default(),
    )
    .unwrap();
    let table = &sites.outline().sites;
    let base_row = sites.row().unwrap();
    // The base's vision part, another decoder part.
    let mut adapter = served.adapters[0].clone();
    let mut row = adapter.values.row().to_vec();
    let vision = table.vision_range();
    row[vision.clone()].copy_from_slice(&base_row[vision]);
    adapter.values = AdapterValues::new(table, row, Scope::All).unwrap();
    adapter.generation = Generation::of(b"language only");
    let asked = |adapter| Request {
        adapter,
        ..question(&served, 0)
    };
    whole(&served, asked(None));
    let (tokens, finished) = whole(&served, asked(Some(adapter.clone())));
    assert_eq!(tokens, plain.answer(asked(Some(adapter))));
    assert_eq!(finished.cached_tokens, 0);
    let stats = served.engine.stats();
    assert_eq!((stats.image_queries, stats.image_hits), (2, 1));
    assert!(stats.image_bytes > 0);
    // An adapter with vision norms of its own does not.
    whole(&served, asked(Some(served.adapters[1].clone())));
    assert_eq!(served.engine.stats().image_hits, 1);
}

#[test]
fn blocks_that_others_have_taken_are_not_read() {
    let served = serve(EngineConfig {
        kv_rows: 64,
        block_rows: 4,
        ..EngineConfig::default()
    });
    let (first, _) = whole(&served, question(&served, 0));
    // Others take every block.
    for i in 1..12 {
        served.answer(served.request(i));
    }
    let (second, finished) = whole(&served, question(&served, 0));
    assert_eq!((first, finished.cached_tokens), (second, 0));
}

#[test]
fn images_encoded_a_layer_at_a_time_beside_answers_have_the_same_bits() {
    let plain = serve(without_caches());
    let served = serve(EngineConfig {
        max_rows_beside_answers: 1,
        ..without_caches()
    });
    let long = Request {
        max_tokens: 60,
        ..served.request(1)
    };
    let hold = served.engine.submit(long.clone()).unwrap();
    let crowd: Vec<_> = (0..6)
        .map(|i| served.engine.submit(served.request(3 * i)).unwrap())
        .collect();
    for (i, answer) in crowd.into_iter().enumerate() {
        assert_eq!(
            collect(answer),
            plain.answer(plain.request(3 * i)),
            "request {i}"
        );
    }
    assert_eq!(collect(hold), plain.answer(long));
}
