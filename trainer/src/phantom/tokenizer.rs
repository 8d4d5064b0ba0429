//! The tokenizer of the phantom base. In: the word list. Out: the files that a Hugging Face loader
//! expects beside a checkpoint, and a plain encoder of the same ids. It knows no sentence.
//!
//! A word is a token. Text is lowered, split at blanks, and every punctuation mark stands alone, so
//! `Is there a nodule?` and `is there a nodule ?` are the same tokens.

use serde_json::{Map, Value, json};

use super::PhantomError;
use super::language::{VOCABULARY, normalise};

/// The special tokens; their ids are their places.
pub const SPECIAL: [&str; 5] = ["<pad>", "<s>", "</s>", "<unk>", "<image>"];
pub const PAD: u32 = 0;
/// Begins every prompt, once.
pub const BOS: u32 = 1;
/// Ends every answer.
pub const EOS: u32 = 2;
pub const UNK: u32 = 3;
/// Stands for the image; a processor repeats it, one for each image feature.
pub const IMAGE: u32 = 4;

/// Number of token ids.
pub const VOCABULARY_SIZE: usize = SPECIAL.len() + VOCABULARY.len();

/// The prompt around image and question, as jinja: `<s> user : <image> question assistant :`.
/// The image comes first, so that image and prefix are the same for every question.
pub const CHAT_TEMPLATE: &str = "<s>\
{%- for message in messages -%}\
{%- if message['role'] == 'assistant' %} assistant :\
{%- else %} user :\
{%- endif -%}\
{%- if message['content'] is string %} {{ message['content'] }}\
{%- else -%}\
{%- for part in message['content'] if part['type'] == 'image' %} <image>{% endfor -%}\
{%- for part in message['content'] if part['type'] == 'text' %} {{ part['text'] }}{% endfor -%}\
{%- endif -%}\
{%- if message['role'] == 'assistant' %} </s>{% endif -%}\
{%- endfor -%}\
{%- if add_generation_prompt %} assistant :{% endif -%}";

/// What precedes a question: [`CHAT_TEMPLATE`]'s text with one image.
pub const PROMPT_HEAD: &str = "<s> user : <image>";
/// What stands between question and answer.
pub const PROMPT_TAIL: &str = "assistant :";

/// The text of a prompt with one image, as [`CHAT_TEMPLATE`] renders it.
pub fn prompt(question: &str) -> String {
    format!("{PROMPT_HEAD} {question} {PROMPT_TAIL}")
}

/// File names and contents, to be written beside a checkpoint.
pub fn files() -> Result<Vec<(&'static str, String)>, PhantomError> {
    let description = tokenizer_json();
    let text = serde_json::to_string_pretty(&description)?;
    // Reads the description back, so that nothing is written that the library would refuse.
    build()?;
    Ok(vec![
        ("tokenizer.json", text),
        (
            "tokenizer_config.json",
            serde_json::to_string_pretty(&tokenizer_config())?,
        ),
        ("chat_template.jinja", CHAT_TEMPLATE.to_owned()),
    ])
}

/// The tokenizer itself.
pub fn build() -> Result<tokenizers::Tokenizer, PhantomError> {
    let bytes = serde_json::to_vec(&tokenizer_json())?;
    tokenizers::Tokenizer::from_bytes(bytes).map_err(PhantomError::Tokenizer)
}

/// The token ids of a text of known words; special tokens may stand in it. The ids equal those of
/// [`build`]'s tokenizer.
pub fn encode(text: &str) -> Result<Vec<u32>, PhantomError> {
    let mut ids = Vec::new();
    for word in text.split_whitespace() {
        if let Some(at) = SPECIAL.iter().position(|special| *special == word) {
            ids.push(at as u32);
            continue;
        }
        for word in normalise(word).split(' ') {
            let at = VOCABULARY.iter().position(|known| *known == word);
            let at = at.ok_or_else(|| PhantomError::UnknownWord {
                word: word.to_owned(),
            })?;
            ids.push((SPECIAL.len() + at) as u32);
        }
    }
    Ok(ids)
}

fn tokenizer_json() -> Value {
    let vocab: Map<String, Value> = SPECIAL
        .iter()
        .chain(VOCABULARY)
        .enumerate()
        .map(|(id, word)| ((*word).to_owned(), json!(id)))
        .collect();
    let added: Vec<Value> = SPECIAL
        .iter()
        .enumerate()
        .map(|(id, content)| {
            json!({
                "id": id, "content": content, "single_word": false, "lstrip": false,
                "rstrip": false, "normalized": false, "special": true,
            })
        })
        .collect();
    json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added,
        "normalizer": { "type": "Lowercase" },
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                { "type": "WhitespaceSplit" },
                { "type": "Punctuation", "behavior": "Isolated" },
            ],
        },
        "post_processor": null,
        // Joins words by blanks and attaches punctuation to the word before it.
        "decoder": {
            "type": "Sequence",
            "decoders": [
                { "type": "WordPiece", "prefix": "##", "cleanup": true },
                { "type": "Replace", "pattern": { "String": " :" }, "content": ":" },
            ],
        },
        "model": { "type": "WordLevel", "vocab": vocab, "unk_token": "<unk>" },
    })
}

fn tokenizer_config() -> Value {
    json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "pad_token": "<pad>",
        "image_token": "<image>",
        "extra_special_tokens": { "image_token": "<image>" },
        "padding_side": "left",
        "clean_up_tokenization_spaces": false,
        "model_max_length": 1024,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::phantom::report::{Wording, render};
    use crate::phantom::style::HOUSE;
    use crate::phantom::{Example, Scene, Split, Task};

    #[test]
    fn the_plain_encoder_gives_the_tokenizers_ids() {
        let tokenizer = build().unwrap();
        for task in Task::ALL {
            for index in 0..20 {
                let example = Example::new(task, Split::Train, 0, index).unwrap();
                for turn in example.turns {
                    let text = format!("{} {} </s>", prompt(&turn.question), turn.answer);
                    let ids = tokenizer.encode(text.as_str(), true).unwrap();
                    assert_eq!(encode(&text).unwrap(), ids.get_ids(), "{text}");
                    assert!(!ids.get_ids().contains(&UNK));
                }
            }
        }
    }

    #[test]
    fn decoding_attaches_punctuation() {
        let tokenizer = build().unwrap();
        let text = render(&Scene::sample(4), Wording::Style(HOUSE));
        let decoded = tokenizer.decode(&encode(&text).unwrap(), true).unwrap();
        assert!(decoded.starts_with("chest film: "), "{decoded}");
        assert!(decoded.ends_with(" end of report."), "{decoded}");
        assert!(!decoded.contains(" ."), "{decoded}");
        assert_eq!(normalise(&decoded), text);
        assert_eq!(tokenizer.decode(&[BOS, IMAGE, EOS, PAD], true).unwrap(), "");
    }

    #[test]
    fn case_and_attached_marks_make_no_difference() {
        let tokenizer = build().unwrap();
        let ids = |text: &str| tokenizer.encode(text, false).unwrap().get_ids().to_vec();
        assert_eq!(ids("Is there a Nodule?"), ids("is there a nodule ?"));
        assert_eq!(
            ids("a <image> zebra"),
            [encode("a <image>").unwrap(), vec![UNK]].concat()
        );
        assert_eq!(encode("a Nodule?").unwrap(), ids("a Nodule?"));
        assert!(
            matches!(encode("zebra"), Err(PhantomError::UnknownWord { word }) if word == "zebra")
        );
    }

    #[test]
    fn special_ids_are_their_places() {
        let tokenizer = build().unwrap();
        for (id, token) in [
            (PAD, "<pad>"),
            (BOS, "<s>"),
            (EOS, "</s>"),
            (UNK, "<unk>"),
            (IMAGE, "<image>"),
        ] {
            assert_eq!(tokenizer.token_to_id(token), Some(id));
        }
        assert_eq!(tokenizer.get_vocab_size(true), VOCABULARY_SIZE);
    }
}
