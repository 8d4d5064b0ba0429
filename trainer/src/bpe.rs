//! A byte-level BPE tokenizer learnt from a set's own texts. In: texts and a vocabulary's size. Out:
//! the tokenizer and the files that a Hugging Face loader expects beside a checkpoint. It must not know
//! where the texts are from.
//!
//! Every text can be said, since all 256 bytes are tokens. Case is dropped: small sets do not show
//! every word in both cases, and exact match does not ask for it.

use std::collections::BTreeSet;

use norma::preprocess::{SpecialTokens, TextTokenizer};
use serde_json::json;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::normalizers::utils::Lowercase;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{AddedToken, Tokenizer, TokenizerBuilder};

use crate::phantom::tokenizer::{BOS, EOS, IMAGE, PAD, SPECIAL, UNK};

/// The prompt around image and question: `<s><image>question` and a line break, which says that the
/// answer follows. The image comes first, so that what precedes a question is the same for all.
pub const CHAT_TEMPLATE: &str = "<s>\
{%- for message in messages -%}\
{%- if message['content'] is string -%}{{ message['content'] }}\
{%- else -%}\
{%- for part in message['content'] if part['type'] == 'image' -%}<image>{%- endfor -%}\
{%- for part in message['content'] if part['type'] == 'text' -%}{{ part['text'] }}{%- endfor -%}\
{%- endif -%}\
{%- if message['role'] == 'assistant' -%}</s>{%- else -%}{{ '\\n' }}{%- endif -%}\
{%- endfor -%}";

/// The special tokens by the names that transformers has for them.
const NAMED: [(&str, u32); 5] = [
    ("bos_token", BOS),
    ("eos_token", EOS),
    ("unk_token", UNK),
    ("pad_token", PAD),
    ("image_token", IMAGE),
];

/// Positions that a sequence may have.
pub const MAX_POSITIONS: usize = 256;

/// Why no tokenizer came out.
#[derive(Debug, thiserror::Error)]
pub enum BpeError {
    /// The vocabulary has no room for the bytes and the special tokens.
    #[error("a vocabulary of {got} has no room for {least} bytes and special tokens")]
    TooSmall { got: usize, least: usize },
    /// The library failed.
    #[error("the tokenizer could not be learnt")]
    Learn(#[source] tokenizers::Error),
}

/// Learns a tokenizer of at most `vocab_size` tokens; the special tokens come first, with the ids of
/// their places in [`SPECIAL`]. Equal texts give an equal tokenizer.
pub fn learn<'a>(
    texts: impl IntoIterator<Item = &'a str>,
    vocab_size: usize,
) -> Result<Tokenizer, BpeError> {
    let alphabet: BTreeSet<char> = ByteLevel::alphabet().into_iter().collect();
    let least = alphabet.len() + SPECIAL.len();
    if vocab_size < least {
        return Err(BpeError::TooSmall {
            got: vocab_size,
            least,
        });
    }
    let bytes = ByteLevel::new(false, true, true);
    let mut tokenizer = TokenizerBuilder::<_, _, _, ByteLevel, _>::new()
        .with_model(BPE::default())
        .with_normalizer(Some(Lowercase))
        .with_pre_tokenizer(Some(bytes))
        .with_decoder(Some(bytes))
        .build()
        .map_err(BpeError::Learn)?;
    let special = SPECIAL
        .iter()
        .map(|token| AddedToken::from(*token, true))
        .collect();
    let mut trainer = BpeTrainer::builder()
        .show_progress(false)
        .vocab_size(vocab_size)
        .min_frequency(2)
        .special_tokens(special)
        .initial_alphabet(alphabet.into_iter().collect())
        .build();
    let texts: Vec<&str> = texts.into_iter().collect();
    tokenizer
        .train(&mut trainer, texts.into_iter())
        .map_err(BpeError::Learn)?;
    let text = tokenizer.to_string(false).map_err(BpeError::Learn)?;
    Tokenizer::from_bytes(text).map_err(BpeError::Learn)
}

/// The tokenizer with its special tokens, as it is read from [`files`].
pub fn text_tokenizer(tokenizer: Tokenizer) -> TextTokenizer {
    let named = NAMED.map(|(name, id)| (name.to_owned(), SPECIAL[id as usize].to_owned()));
    let special = SpecialTokens {
        named: named.into(),
        bos: Some(BOS),
        eos: vec![EOS],
        image: Some((IMAGE, SPECIAL[IMAGE as usize].to_owned())),
    };
    TextTokenizer::new(tokenizer, special)
}

/// File names and contents, to be written beside a checkpoint.
pub fn files(tokenizer: &Tokenizer) -> Result<Vec<(&'static str, String)>, BpeError> {
    let mut config = json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "extra_special_tokens": { "image_token": SPECIAL[IMAGE as usize] },
        "padding_side": "left",
        "clean_up_tokenization_spaces": false,
        "model_max_length": MAX_POSITIONS,
    });
    for (name, id) in NAMED {
        config[name] = SPECIAL[id as usize].into();
    }
    Ok(vec![
        (
            "tokenizer.json",
            tokenizer.to_string(true).map_err(BpeError::Learn)?,
        ),
        ("tokenizer_config.json", format!("{config:#}\n")),
        ("chat_template.jinja", CHAT_TEMPLATE.to_owned()),
    ])
}

#[cfg(test)]
mod tests {
    use norma::preprocess::{ChatPrompt, ContentPart, Message, PromptToken};
    use tempfile::TempDir;

    use super::*;

    const TEXTS: [&str; 4] = [
        "Is there a pleural effusion?",
        "Is there a lung mass in this image?",
        "pleural effusion in the left lung",
        "the left lung, the right lung",
    ];

    fn encode(tokenizer: &Tokenizer, text: &str) -> Vec<u32> {
        tokenizer.encode(text, false).unwrap().get_ids().to_vec()
    }

    #[test]
    fn learnt_words_are_short_and_every_text_survives_but_for_case() {
        let tokenizer = learn(TEXTS, 320).unwrap();
        assert!(tokenizer.get_vocab_size(true) <= 320);
        assert_eq!(encode(&tokenizer, " left lung").len(), 2);
        for text in [
            "is there a lung mass?",
            "naïve 3 µm, 肺\n~ok",
            " leading",
            "a  b\t",
        ] {
            let ids = encode(&tokenizer, &text.to_uppercase());
            assert_eq!(
                tokenizer.decode(&ids, true).unwrap(),
                text.to_uppercase().to_lowercase()
            );
            assert!(!ids.contains(&UNK));
        }
    }

    #[test]
    fn special_tokens_have_their_ids_and_are_found_in_texts() {
        let tokenizer = learn(TEXTS, 300).unwrap();
        let text = "<pad><s></s><unk><image>";
        assert_eq!(encode(&tokenizer, text), [PAD, BOS, EOS, UNK, IMAGE]);
        assert_eq!(tokenizer.decode(&[BOS, IMAGE, EOS], true).unwrap(), "");
    }

    #[test]
    fn equal_texts_give_an_equal_tokenizer() {
        let text = |tokenizer: Tokenizer| tokenizer.to_string(false).unwrap();
        assert_eq!(
            text(learn(TEXTS, 310).unwrap()),
            text(learn(TEXTS, 310).unwrap())
        );
    }

    #[test]
    fn a_vocabulary_needs_room_for_every_byte() {
        let error = learn(TEXTS, 200).unwrap_err();
        assert!(
            matches!(
                error,
                BpeError::TooSmall {
                    got: 200,
                    least: 261
                }
            ),
            "{error}"
        );
    }

    #[test]
    fn the_files_give_norma_the_prompt() {
        let folder = TempDir::new().unwrap();
        let tokenizer = learn(TEXTS, 320).unwrap();
        for (name, text) in files(&tokenizer).unwrap() {
            std::fs::write(folder.path().join(name), text).unwrap();
        }
        let loaded = TextTokenizer::from_folder(folder.path(), None).unwrap();
        assert_eq!(
            loaded.special(),
            text_tokenizer(tokenizer.clone()).special()
        );
        let chat = ChatPrompt::from_folder(folder.path()).unwrap();
        let question = "Is there a mass?";
        let message = Message::user(vec![
            ContentPart::Image,
            ContentPart::Text(question.to_owned()),
        ]);
        let prompt = chat.prepare(&loaded, &[message], 2).unwrap();
        assert_eq!(prompt.text, "<s><image>Is there a mass?\n");
        let image = |patch| PromptToken::Image { image: 0, patch };
        assert_eq!(
            prompt.tokens[..3],
            [PromptToken::Text(BOS), image(0), image(1)]
        );
        let rest: Vec<u32> = prompt.tokens[3..]
            .iter()
            .map(|token| match token {
                PromptToken::Text(id) => *id,
                PromptToken::Image { .. } => panic!("one image has two rows"),
            })
            .collect();
        assert_eq!(rest, encode(&tokenizer, "is there a mass?\n"));
        assert_eq!(loaded.eos_ids(), [EOS]);
    }
}
