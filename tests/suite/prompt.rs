//! Prompts against transformers' processor; expectations made by `tests/golden/make_llava.py`.

use std::fs;
use std::path::{Path, PathBuf};

use norma::preprocess::{
    ChatPrompt, ContentPart, Message, PromptError, PromptToken, Role, TextTokenizer,
};
use serde_json::Value;

fn golden(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden/llava")
        .join(path)
}

fn record(case: &str) -> Value {
    serde_json::from_slice(&fs::read(golden(&format!("{case}.json"))).unwrap()).unwrap()
}

fn tokenizer(case: &str) -> TextTokenizer {
    TextTokenizer::from_folder(&golden(case), None).unwrap()
}

fn messages(prompt: &Value) -> Vec<Message> {
    let part = |part: &Value| match part["type"].as_str().unwrap() {
        "image" => ContentPart::Image,
        _ => ContentPart::Text(part["text"].as_str().unwrap().into()),
    };
    let message = |message: &Value| Message {
        role: match message["role"].as_str().unwrap() {
            "system" => Role::System,
            "user" => Role::User,
            _ => Role::Assistant,
        },
        content: message["content"]
            .as_array()
            .unwrap()
            .iter()
            .map(part)
            .collect(),
    };
    prompt["messages"]
        .as_array()
        .unwrap()
        .iter()
        .map(message)
        .collect()
}

/// The expected row: each run of `per_image` image ids is one picture.
fn row(prompt: &Value, image_id: u64, per_image: u32) -> Vec<PromptToken> {
    let mut seen = 0;
    let ids = prompt["input_ids"]
        .as_array()
        .unwrap()
        .iter()
        .map(|id| id.as_u64().unwrap());
    let token = |id| {
        if id != image_id {
            return PromptToken::Text(id as u32);
        }
        let (image, patch) = (seen / per_image, seen % per_image);
        seen += 1;
        PromptToken::Image { image, patch }
    };
    ids.map(token).collect()
}

/// Compares every prompt of a record with what `chat` makes of it by `case`'s tokenizer.
fn check(case: &str, expected: &Value, chat: &ChatPrompt) {
    let tokenizer = tokenizer(case);
    let (image, per_image) = (&expected["image_token_id"], &expected["image_tokens"]);
    let (image, per_image) = (image.as_u64().unwrap(), per_image.as_u64().unwrap());
    let prompts = expected["prompts"].as_array().unwrap();
    assert!(!prompts.is_empty());
    for prompt in prompts {
        let name = format!("{case} {}", prompt["name"]);
        let got = chat
            .prepare(&tokenizer, &messages(prompt), per_image as usize)
            .unwrap();
        assert_eq!(got.text, prompt["prompt"].as_str().unwrap(), "{name}");
        assert_eq!(got.tokens, row(prompt, image, per_image as u32), "{name}");
    }
}

#[test]
fn prompts_equal_those_of_the_processor() {
    let cases = [
        "llama_a",
        "gqa_tied",
        "sharded",
        "bf16",
        "rope_linear",
        "rope_llama3",
        "biases",
    ];
    for case in cases {
        check(
            case,
            &record(case),
            &ChatPrompt::from_folder(&golden(case)).unwrap(),
        );
    }
}

#[test]
fn templates_of_layouts_b_and_c_give_the_prompts_of_a() {
    for case in ["llama_b", "llama_c"] {
        check(
            case,
            &record("llama_a"),
            &ChatPrompt::from_folder(&golden(case)).unwrap(),
        );
    }
}

#[test]
fn original_layout_has_no_template_and_speaks_llava_med() {
    let error = ChatPrompt::from_folder(&golden("llama_d")).unwrap_err();
    assert!(matches!(error, PromptError::NoTemplate { .. }), "{error}");
    check("llama_d", &record("llama_d"), &ChatPrompt::llava_med());
}

#[test]
fn special_tokens_come_from_the_folder() {
    let a = tokenizer("llama_a");
    assert_eq!(
        (a.bos_id(), a.eos_ids(), a.image_id()),
        (Some(1), &[2][..], Some(299))
    );
    let d = tokenizer("llama_d");
    assert_eq!(
        (d.bos_id(), d.eos_ids(), d.image_id()),
        (Some(1), &[2][..], None)
    );
}

#[test]
fn streamed_text_equals_the_text_decoded_at_once() {
    let mut compared = 0;
    for case in ["llama_a", "gqa_tied", "llama_d"] {
        let tokenizer = tokenizer(case);
        for prompt in record(case)["prompts"].as_array().unwrap() {
            let ids = prompt["greedy"]
                .as_array()
                .unwrap()
                .iter()
                .map(|id| id.as_u64().unwrap());
            let mut stream = tokenizer.stream();
            let mut text = String::new();
            for id in ids {
                text.extend(stream.push(id as u32).unwrap());
            }
            text.extend(stream.finish().unwrap());
            assert_eq!(text, prompt["greedy_text"].as_str().unwrap(), "{case}");
            compared += 1;
        }
    }
    assert!(compared >= 10);
}

#[test]
fn a_text_cannot_smuggle_in_a_special_token() {
    let chat = ChatPrompt::from_folder(&golden("llama_a")).unwrap();
    let user = |texts: &[&str]| {
        let texts = texts.iter().map(|text| ContentPart::Text((*text).into()));
        vec![Message::user(
            [ContentPart::Image].into_iter().chain(texts).collect(),
        )]
    };
    let refused = |chat: &ChatPrompt, case: &str, texts: &[&str]| {
        chat.prepare(&tokenizer(case), &user(texts), 16)
            .unwrap_err()
    };
    for token in ["<image>", "</s>", "<s>", "<pad>", "<unk>"] {
        let error = refused(&chat, "llama_a", &["fine", &format!("a {token} b")]);
        assert!(error.is_request());
        assert_eq!(
            error.to_string(),
            format!("`messages[0]` contains the reserved token `{token}`")
        );
    }
    for token in ["<image>", "</s>"] {
        let error = refused(&ChatPrompt::llava_med(), "llama_d", &[token]);
        assert!(
            matches!(error, PromptError::Reserved { message: 0, .. }),
            "{error}"
        );
    }
    // gqa_tied's template writes text parts without anything between them.
    let joining = ChatPrompt::from_folder(&golden("gqa_tied")).unwrap();
    let error = refused(&joining, "gqa_tied", &["<ima", "ge>"]);
    assert!(matches!(error, PromptError::ReservedAcross), "{error}");
}
