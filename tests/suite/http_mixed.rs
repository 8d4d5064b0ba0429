//! The promise of the whole: whatever happens to aliases meanwhile, an answer is its generation's.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use norma::engine::EngineConfig;
use norma::http::Limits;
use norma_adapters::Scope;
use serde_json::{Value, json};

use crate::http_maker::{Made, make};
use crate::http_server::{BASE, Setup, TestServer, chat_body, pieces, refusal, text_of};

const QUESTIONS: [(Option<&str>, &str); 4] = [
    (Some("wide.png"), "Is the heart enlarged?"),
    (Some("square.png"), "Which side?"),
    (None, "Hi"),
    (None, "What is a lesion?"),
];
const N_REQUESTS: usize = 200;
const N_TOKENS: usize = 10;

fn question(index: usize, model: &str) -> Value {
    let (image, text) = QUESTIONS[index % QUESTIONS.len()];
    chat_body(model, image, text, N_TOKENS)
}

/// What each generation, and the base, answers to each question when nothing else runs.
async fn alone(server: &TestServer, all: &[Made]) -> HashMap<(Value, usize), String> {
    let mut answers = HashMap::new();
    let generations = all
        .iter()
        .map(|made| json!(made.generation))
        .chain([Value::Null]);
    for generation in generations {
        for index in 0..QUESTIONS.len() {
            let mut body = question(index, BASE);
            body["adapter_generation"] = generation.clone();
            let answer: Value = server.chat(&body).await.json().await.unwrap();
            assert_eq!(answer["adapter_generation"], generation);
            answers.insert((generation.clone(), index), text_of(&answer).to_owned());
        }
    }
    answers
}

/// Who made an answer, and its text; `None` where the alias was not there at that moment.
async fn ask(server: &TestServer, index: usize, model: &str) -> Option<(Value, String)> {
    let mut body = question(index, model);
    if !index.is_multiple_of(3) {
        let response = server.chat(&body).await;
        if response.status() == 404 {
            assert_eq!(refusal(response).await.1["code"], "model_not_found");
            return None;
        }
        assert_eq!(response.status(), 200);
        let answer: Value = response.json().await.unwrap();
        return Some((
            answer["adapter_generation"].clone(),
            text_of(&answer).to_owned(),
        ));
    }
    body["stream"] = json!(true);
    let response = server.chat(&body).await;
    if response.status() == 404 {
        return None;
    }
    let pieces = pieces(&response.text().await.unwrap());
    let text = pieces
        .iter()
        .filter_map(|piece| piece["choices"][0]["delta"]["content"].as_str())
        .collect();
    let makers: BTreeSet<String> = pieces
        .iter()
        .map(|piece| piece["adapter_generation"].to_string())
        .collect();
    assert_eq!(makers.len(), 1, "one answer, one maker");
    Some((pieces[0]["adapter_generation"].clone(), text))
}

/// Uploads, moves and deletes for as long as it is let.
async fn disturb(server: &TestServer, all: &[Made], stop: &AtomicBool) -> usize {
    let mut changes = 0;
    while !stop.load(Ordering::Relaxed) {
        let made = &all[changes % all.len()];
        // These aliases exist all the time, and name now this, now that.
        server
            .publish(&made.file, &format!("steady-{}", changes % 2))
            .await;
        // This one comes and goes.
        server.publish(&made.file, "passing").await;
        let moved = json!({"generation": all[(changes + 1) % all.len()].generation});
        let put = server
            .client
            .put(server.url("/v1/adapters/passing"))
            .json(&moved);
        assert_eq!(put.send().await.unwrap().status(), 200);
        let delete = server.client.delete(server.url("/v1/adapters/passing"));
        assert_eq!(delete.send().await.unwrap().status(), 200);
        changes += 1;
    }
    changes
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn two_hundred_mixed_requests_while_adapters_move_equal_their_pinned_generations() {
    // Fewer slots than adapters, so that slots are refilled all the time.
    let engine = EngineConfig {
        bank_slots: 4,
        kv_rows: 4096,
        ..EngineConfig::default()
    };
    let setup = Setup {
        limits: Limits {
            engine,
            ..Limits::default()
        },
        ..Setup::default()
    };
    let server = Arc::new(TestServer::with(&setup));
    let all = make(|maker| {
        let scopes = [Scope::All, Scope::Language, Scope::Vision];
        (0..6)
            .map(|seed| maker.adapter(seed, scopes[seed as usize % 3]))
            .collect::<Vec<_>>()
    })
    .await;
    let all = Arc::new(all);
    for (index, made) in all.iter().enumerate() {
        server.publish(&made.file, &format!("fixed-{index}")).await;
    }
    for alias in ["steady-0", "steady-1"] {
        server.publish(&all[0].file, alias).await;
    }
    let expected = Arc::new(alone(&server, &all).await);
    // The adapters must tell themselves apart, or equality would say nothing.
    for index in 0..2 {
        let texts: BTreeSet<&String> = expected
            .iter()
            .filter(|((_, i), _)| *i == index)
            .map(|(_, text)| text)
            .collect();
        assert_eq!(texts.len(), all.len() + 1, "question {index}");
    }

    let stop = Arc::new(AtomicBool::new(false));
    let disturbing = {
        let (server, all, stop) = (Arc::clone(&server), Arc::clone(&all), Arc::clone(&stop));
        tokio::spawn(async move { disturb(&server, &all, &stop).await })
    };
    let absent = Arc::new(AtomicUsize::new(0));
    let requests: Vec<_> = (0..N_REQUESTS)
        .map(|index| {
            let (server, expected, absent) = (
                Arc::clone(&server),
                Arc::clone(&expected),
                Arc::clone(&absent),
            );
            let model = match index % 5 {
                0 => BASE.to_owned(),
                1 | 2 => format!("steady-{}", index % 2),
                3 => format!("fixed-{}", index % 6),
                _ => "passing".to_owned(),
            };
            tokio::spawn(async move {
                let Some((generation, text)) = ask(&server, index, &model).await else {
                    assert_eq!(model, "passing", "only this one is ever gone");
                    absent.fetch_add(1, Ordering::Relaxed);
                    return None;
                };
                let key = (generation.clone(), index % QUESTIONS.len());
                assert_eq!(text, expected[&key], "{model} {generation}");
                assert_eq!(
                    generation.is_null(),
                    model == BASE,
                    "no fall-back to the base"
                );
                Some(generation.to_string())
            })
        })
        .collect();
    let mut makers = BTreeSet::new();
    for request in requests {
        makers.extend(request.await.unwrap());
    }
    stop.store(true, Ordering::Relaxed);
    let changes = disturbing.await.unwrap();
    assert_eq!(
        makers.len(),
        all.len() + 1,
        "every adapter and the base have answered"
    );
    assert!(changes > 0, "nothing moved meanwhile");
    let stats = server.service().engine().stats();
    assert!(stats.slots_filled > all.len() as u64, "{stats:?}");
    assert_eq!((stats.panics, stats.finished.failed), (0, 0));
    Arc::into_inner(server).unwrap().stop().await;
}
