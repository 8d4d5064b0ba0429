//! Chat completions, questions and reports over HTTP give what the model gives.

use std::sync::Arc;

use norma::base::{Base, OpenOptions, WeightType};
use norma::http::inputs::InputFiles;
use norma::http::{Keys, Server, ServerOptions, Service, ServiceOptions, State};
use serde_json::{Value, json};

use crate::golden::{Case, llava_folder};
use crate::http_server::{BASE, Setup, TestServer, chat_body, open_service, pieces, text_of};

#[tokio::test(flavor = "multi_thread")]
async fn an_image_and_a_question_get_the_references_greedy_answer() {
    let server = TestServer::start();
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

/// The folder of a golden base in LLaVA-Med's layout, which says that its decoder is Mistral's: with it come
/// LLaVA-Med's prompt and padding. The weights are those of `llama_d`.
fn llava_med_folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(llava_folder().join("llama_d")).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, folder.path().join(path.file_name().unwrap())).unwrap();
    }
    let config = folder.path().join("config.json");
    let text = std::fs::read_to_string(&config).unwrap();
    let text = text
        .replace("llava_llama", "llava_mistral")
        .replace("LlavaLlama", "LlavaMistral");
    let mut json: Value = serde_json::from_str(&text).unwrap();
    json["sliding_window"] = Value::Null;
    std::fs::write(config, json.to_string()).unwrap();
    folder
}

#[tokio::test(flavor = "multi_thread")]
async fn a_base_in_llava_meds_own_layout_is_served_with_its_own_prompt_and_padding() {
    let (folder, data_dir) = (llava_med_folder(), tempfile::tempdir().unwrap());
    let vision = llava_folder().join("llama_d_vision");
    let options = OpenOptions {
        vision_config: Some(vision.clone()),
        ..OpenOptions::default()
    };
    let base = Base::open(folder.path(), &options).unwrap();
    let options = ServiceOptions {
        name: "med",
        data_dir: data_dir.path(),
        files: InputFiles {
            tokenizer: None,
            vision: Some(&vision),
        },
        report_prompt: "",
        weights: WeightType::F32,
        lora_folder: None,
        limits: Setup::default().limits,
    };
    let state = Arc::new(State::new(Keys::none(), "med").unwrap());
    let server = Server::bind(&state, ServerOptions::default()).unwrap();
    state.install(Arc::new(Service::open(&base, &options).unwrap()));
    let case = Case::read("llama_d");
    let prompt = case.prompt("one_image");
    let n_tokens = prompt.greedy.len();
    let body = chat_body(
        "med",
        Some(&prompt.images[0]),
        "Is the heart enlarged?",
        n_tokens,
    );
    let url = format!("http://{}/v1/chat/completions", server.address());
    let response = reqwest::Client::new()
        .post(url)
        .json(&body)
        .send()
        .await
        .unwrap();
    let answer: Value = response.json().await.unwrap();
    let service = Arc::clone(state.loaded().unwrap());
    let want = service.inputs().tokenizer().decode(&prompt.greedy).unwrap();
    assert_eq!(text_of(&answer), want);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_put_together_is_the_whole_answer() {
    let server = TestServer::start();
    let mut body = chat_body(BASE, Some("tall.png"), "What is seen?", 20);
    body["logprobs"] = json!(true);
    body["top_logprobs"] = json!(3);
    // The first one fills the cache, so that the others find the same in it.
    server.chat(&body).await;
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
    let server = TestServer::start();
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
    let server = TestServer::start();
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
