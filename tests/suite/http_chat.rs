//! Chat completions, questions and reports over HTTP give what the model gives.

use norma_adapters::Scope;
use serde_json::{Value, json};

use crate::golden::Case;
use crate::http_server::{
    BASE, Maker, Setup, TestServer, chat_body, data_url, open_service, pieces, text_of,
};

#[tokio::test(flavor = "multi_thread")]
async fn an_image_and_a_question_get_the_references_greedy_answer() {
    let server = TestServer::start().await;
    let case = Case::read(BASE);
    for (name, image, text) in [
        ("one_image", Some("wide.png"), "Is the heart enlarged?"),
        ("ragged_0", Some("square.png"), "Which side?"),
        ("ragged_1", None, "Hi"),
    ] {
        let prompt = case.prompt(name);
        let response = server
            .chat(&chat_body(BASE, image, text, prompt.greedy.len()))
            .await;
        assert_eq!(response.status(), 200);
        let headers = response.headers().clone();
        let body: Value = response.json().await.unwrap();
        let tokenizer = server.service().inputs().tokenizer().clone();
        assert_eq!(
            text_of(&body),
            tokenizer.decode(&prompt.greedy).unwrap(),
            "{name}"
        );
        assert_eq!(body["usage"]["prompt_tokens"], prompt.input_ids.len());
        assert_eq!(body["usage"]["completion_tokens"], prompt.greedy.len());
        assert_eq!(body["model"], BASE);
        assert_eq!(body["adapter_generation"], Value::Null);
        assert_eq!(body["object"], "chat.completion");
        let digest = server.service().digest().to_string();
        assert_eq!(body["base_digest"], digest);
        assert_eq!(headers["x-norma-model"], BASE);
        assert_eq!(headers["x-norma-base-digest"], digest.as_str());
        assert!(!headers.contains_key("x-norma-adapter-generation"));
    }
    server.stop().await;
}

#[test]
fn bases_of_all_layouts_have_a_way_in_that_gives_the_references_prompt() {
    for case in [
        "llama_a", "llama_b", "llama_c", "gqa_tied", "sharded", "bf16", "biases",
    ] {
        let folder = tempfile::tempdir().unwrap();
        let service = open_service(case, &Setup::default(), folder.path());
        let reference = if case.starts_with("llama") {
            "llama_a"
        } else {
            case
        };
        let reference = Case::read(reference);
        let content = vec![
            norma::preprocess::ContentPart::Image,
            norma::preprocess::ContentPart::Text("Is the heart enlarged?".into()),
        ];
        let prompt = service
            .inputs()
            .prompt(&[norma::preprocess::Message::user(content)])
            .unwrap();
        let ids: Vec<u32> = prompt
            .iter()
            .map(|token| match token {
                norma::preprocess::PromptToken::Text(id) => *id,
                norma::preprocess::PromptToken::Image { .. } => reference.image_token,
            })
            .collect();
        assert_eq!(ids, reference.prompt("one_image").input_ids, "{case}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_put_together_is_the_whole_answer() {
    let server = TestServer::start().await;
    let mut body = chat_body(BASE, Some("tall.png"), "What is seen?", 20);
    body["logprobs"] = json!(true);
    body["top_logprobs"] = json!(3);
    let whole: Value = server.chat(&body).await.json().await.unwrap();
    body["stream"] = json!(true);
    body["stream_options"] = json!({"include_usage": true});
    let response = server.chat(&body).await;
    assert_eq!(
        response.headers()["content-type"],
        "text/event-stream; charset=utf-8"
    );
    let pieces = pieces(&response.text().await.unwrap());
    let (last, rest) = pieces.split_last().unwrap();
    assert_eq!(last["usage"], whole["usage"]);
    assert_eq!(last["choices"], json!([]));
    assert_eq!(rest[0]["choices"][0]["delta"]["role"], "assistant");
    let (mut text, mut logprobs) = (String::new(), Vec::new());
    for piece in rest {
        assert_eq!(piece["object"], "chat.completion.chunk");
        assert_eq!(piece["id"], last["id"]);
        assert_eq!(piece["usage"], Value::Null);
        let choice = &piece["choices"][0];
        text.push_str(choice["delta"]["content"].as_str().unwrap_or_default());
        logprobs.extend(
            choice["logprobs"]["content"]
                .as_array()
                .into_iter()
                .flatten()
                .cloned(),
        );
    }
    assert_eq!(text, text_of(&whole));
    assert_eq!(
        rest.last().unwrap()["choices"][0]["finish_reason"],
        "length"
    );
    assert_eq!(json!(logprobs), whole["choices"][0]["logprobs"]["content"]);
    assert_eq!(logprobs.len(), 20);
    for token in &logprobs {
        let top = token["top_logprobs"].as_array().unwrap();
        // Greedy: the chosen token is the likeliest.
        assert_eq!((top.len(), &top[0]["logprob"]), (3, &token["logprob"]));
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn several_answers_are_those_of_the_following_seeds() {
    let server = TestServer::start().await;
    let body = |seed: u64, n: usize| {
        let mut body = chat_body(BASE, None, "Tell me", 12);
        body["temperature"] = json!(1.2);
        body["top_k"] = json!(40);
        body["seed"] = json!(seed);
        body["n"] = json!(n);
        body
    };
    let several: Value = server.chat(&body(5, 3)).await.json().await.unwrap();
    let choices = several["choices"].as_array().unwrap();
    assert_eq!(choices.len(), 3);
    for (index, choice) in choices.iter().enumerate() {
        let alone: Value = server
            .chat(&body(5 + index as u64, 1))
            .await
            .json()
            .await
            .unwrap();
        assert_eq!(choice["message"]["content"], text_of(&alone));
        assert_eq!(choice["index"], index);
    }
    assert_ne!(choices[0]["message"], choices[1]["message"]);
    assert_eq!(several["usage"]["completion_tokens"], 36);
    let mut stream = body(5, 3);
    stream["stream"] = json!(true);
    let pieces = pieces(&server.chat(&stream).await.text().await.unwrap());
    let mut texts = vec![String::new(); 3];
    for piece in pieces {
        let choice = &piece["choices"][0];
        let index = usize::try_from(choice["index"].as_u64().unwrap()).unwrap();
        texts[index].push_str(choice["delta"]["content"].as_str().unwrap_or_default());
    }
    for (text, choice) in texts.iter().zip(choices) {
        assert_eq!(choice["message"]["content"], text.as_str());
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn stops_and_least_lengths_are_honoured() {
    let server = TestServer::start().await;
    let mut body = chat_body(BASE, None, "Hi", 24);
    let whole: Value = server.chat(&body).await.json().await.unwrap();
    let text = text_of(&whole).to_owned();
    let stop: String = text.chars().skip(4).take(2).collect();
    body["stop"] = json!([stop]);
    let cut: Value = server.chat(&body).await.json().await.unwrap();
    let until = text.find(&stop).unwrap();
    assert_eq!(text_of(&cut), &text[..until]);
    assert_eq!(cut["choices"][0]["finish_reason"], "stop");
    body["min_tokens"] = json!(24);
    let long: Value = server.chat(&body).await.json().await.unwrap();
    assert_eq!(long["usage"]["completion_tokens"], 24);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn questions_and_reports_take_json_and_forms_and_tell_how_sure_they_are() {
    let server = TestServer::start().await;
    let made = tokio::task::spawn_blocking(|| Maker::new().adapter(1, Scope::All))
        .await
        .unwrap();
    server.publish(&made.file, "chest").await;
    let question = "Is the heart enlarged?";
    let body = json!({
        "model": "chest", "image": data_url("wide.png"), "question": question, "max_tokens": 4,
    });
    let from_json: Value = server
        .post("/v1/vqa", &body)
        .send()
        .await
        .unwrap()
        .json()
        .await
        .unwrap();
    let folder = crate::golden::llava_folder()
        .parent()
        .unwrap()
        .join("images");
    let part = |file: &str| {
        let bytes = std::fs::read(folder.join(file)).unwrap();
        reqwest::multipart::Part::bytes(bytes).file_name(file.to_owned())
    };
    let form = reqwest::multipart::Form::new()
        .text("model", "chest")
        .text("question", question)
        .text("max_tokens", "4")
        .part("image", part("wide.png"));
    let response = server
        .client
        .post(server.url("/v1/vqa"))
        .multipart(form)
        .send()
        .await
        .unwrap();
    let generation = made.generation.to_string();
    assert_eq!(
        response.headers()["x-norma-adapter-generation"],
        generation.as_str()
    );
    let from_form: Value = response.json().await.unwrap();
    let chat: Value = server
        .chat(&chat_body("chest", Some("wide.png"), question, 4))
        .await
        .json()
        .await
        .unwrap();
    for answer in [&from_json, &from_form] {
        assert_eq!(answer["answer"], text_of(&chat).trim());
        assert_eq!(answer["adapter_generation"], generation);
        assert_eq!(answer["model"], "chest");
        let confidence = answer["confidence"].as_f64().unwrap();
        assert!((0.0..=1.0).contains(&confidence), "{answer}");
        assert_eq!(answer["abstained"], confidence < 0.5);
    }
    let mut base = body.clone();
    base["model"] = json!(BASE);
    let base: Value = server
        .post("/v1/vqa", &base)
        .send()
        .await
        .unwrap()
        .json()
        .await
        .unwrap();
    assert_eq!(
        (&base["confidence"], &base["abstained"]),
        (&Value::Null, &Value::Null)
    );
    assert_ne!(base["answer"], from_json["answer"]);

    let urls = [data_url("tall.png"), data_url("square.png")];
    let body = json!({"model": "chest", "images": urls, "max_tokens": 6});
    let plain: Value = server
        .post("/v1/report", &body)
        .send()
        .await
        .unwrap()
        .json()
        .await
        .unwrap();
    let form = reqwest::multipart::Form::new()
        .text("model", "chest")
        .text("max_tokens", "6")
        .text("indication", "Write a report.")
        .part("images", part("tall.png"))
        .part("images", part("square.png"));
    let response = server
        .client
        .post(server.url("/v1/report"))
        .multipart(form)
        .send()
        .await
        .unwrap();
    let asked: Value = response.json().await.unwrap();
    // The server's own prompt for reports, which this indication repeats.
    assert_eq!(plain["report"], asked["report"]);
    assert!(
        plain["report"]
            .as_str()
            .is_some_and(|text| !text.is_empty()),
        "{plain}"
    );
    server.stop().await;
}
