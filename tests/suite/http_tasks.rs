//! Questions and reports: the same answers as a chat's, from JSON and from forms.

use norma_adapters::Scope;
use reqwest::multipart::{Form, Part};
use serde_json::{Value, json};

use crate::golden::llava_folder;
use crate::http_maker::{Made, make};
use crate::http_server::{BASE, TestServer, chat_body, data_url, text_of};

fn file(name: &str) -> Part {
    let folder = llava_folder().parent().unwrap().join("images");
    Part::bytes(std::fs::read(folder.join(name)).unwrap()).file_name(name.to_owned())
}

async fn with_adapter() -> (TestServer, Made) {
    let made = make(|maker| maker.adapter(1, Scope::All)).await;
    let server = TestServer::start();
    server.publish(&made.file, "chest").await;
    (server, made)
}

async fn json(server: &TestServer, path: &str, body: &Value) -> Value {
    server
        .post(path, body)
        .send()
        .await
        .unwrap()
        .json()
        .await
        .unwrap()
}

/// The likeliest token's probability at a temperature, all tokens beyond the twenty taken as one.
fn chosen_at(temperature: f64, top: &Value) -> f64 {
    let mut shares: Vec<f64> = top
        .as_array()
        .unwrap()
        .iter()
        .map(|token| token["logprob"].as_f64().unwrap().exp())
        .collect();
    shares.push((1.0 - shares.iter().sum::<f64>()).max(0.0));
    let heated: Vec<f64> = shares
        .iter()
        .map(|share| share.powf(1.0 / temperature))
        .collect();
    heated[0] / heated.iter().sum::<f64>()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_question_is_answered_as_in_a_chat_and_says_how_sure_the_adapter_is() {
    let (server, made) = with_adapter().await;
    let question = "Is the heart enlarged?";
    let image = data_url("wide.png");
    let body = json!({"model": "chest", "image": image, "question": question, "max_tokens": 4});
    let from_json = json(&server, "/v1/vqa", &body).await;
    let form = Form::new()
        .text("model", "chest")
        .text("question", question)
        .text("max_tokens", "4")
        .part("image", file("wide.png"));
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
    let mut chat = chat_body("chest", Some("wide.png"), question, 4);
    chat["logprobs"] = json!(true);
    chat["top_logprobs"] = json!(20);
    let chat: Value = server.chat(&chat).await.json().await.unwrap();
    let tokens = chat["choices"][0]["logprobs"]["content"]
        .as_array()
        .unwrap();
    // The test's adapters say 1.5.
    let want: f64 = tokens
        .iter()
        .map(|token| chosen_at(1.5, &token["top_logprobs"]))
        .product();
    for answer in [&from_json, &from_form] {
        assert_eq!(answer["answer"], text_of(&chat).trim());
        assert_eq!(answer["adapter_generation"], generation);
        assert_eq!(answer["model"], "chest");
        let confidence = answer["confidence"].as_f64().unwrap();
        assert!(
            (confidence / want - 1.0).abs() < 1e-4,
            "{confidence} {want}"
        );
        assert_eq!(answer["abstained"], confidence < 0.5);
    }
    let mut base = body.clone();
    base["model"] = json!(BASE);
    let base = json(&server, "/v1/vqa", &base).await;
    assert_eq!(
        (&base["confidence"], &base["abstained"]),
        (&Value::Null, &Value::Null)
    );
    assert_ne!(base["answer"], from_json["answer"]);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_report_is_asked_for_with_the_indication_or_the_servers_own_prompt() {
    let (server, _) = with_adapter().await;
    let urls = [data_url("tall.png"), data_url("square.png")];
    let mut body = json!({"model": "chest", "images": urls, "max_tokens": 6});
    let plain = json(&server, "/v1/report", &body).await;
    assert!(
        plain["report"]
            .as_str()
            .is_some_and(|text| !text.is_empty()),
        "{plain}"
    );
    let form = Form::new()
        .text("model", "chest")
        .text("max_tokens", "6")
        .text("indication", server.service().report_prompt().to_owned())
        .part("images", file("tall.png"))
        .part("images", file("square.png"));
    let request = server.client.post(server.url("/v1/report")).multipart(form);
    let repeated: Value = request.send().await.unwrap().json().await.unwrap();
    assert_eq!(plain["report"], repeated["report"]);
    body["indication"] = json!("Cough for three weeks.");
    let other = json(&server, "/v1/report", &body).await;
    assert_ne!(
        plain["usage"]["prompt_tokens"],
        other["usage"]["prompt_tokens"]
    );
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_question_about_an_image_says_what_was_kept_of_the_first() {
    let (server, _) = with_adapter().await;
    let ask = async |question: &str| {
        let image = data_url("wide.png");
        let body = json!({"model": "chest", "image": image, "question": question, "max_tokens": 2});
        let usage = json(&server, "/v1/vqa", &body).await["usage"].take();
        let number = |value: &Value| value.as_u64().unwrap();
        let cached = number(&usage["prompt_tokens_details"]["cached_tokens"]);
        (number(&usage["prompt_tokens"]), cached)
    };
    let (_, cached) = ask("Is the heart enlarged?").await;
    // The self-test was another prompt, or shares its beginning only.
    let (prompt, again) = ask("Is the heart enlarged?").await;
    assert!(again > cached && again < prompt, "{again} of {prompt}");
    let metrics = server.metrics().await;
    let value = |name: &str| -> f64 {
        let line = metrics
            .lines()
            .find(|line| line.starts_with(&format!("{name}{{")));
        let line = line.unwrap_or_else(|| panic!("{name} is missing"));
        line.rsplit(' ').next().unwrap().parse().unwrap()
    };
    assert!(value("vllm:prefix_cache_hits_total") >= again as f64);
    assert!(value("vllm:prefix_cache_queries_total") >= 2.0 * prompt as f64);
}
