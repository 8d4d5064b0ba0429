//! The special tokens that the files beside `tokenizer.json` name.
//! A folder's configuration files enter; names, ids and tokens still to be added leave. It must not
//! know what the model does with them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde_json::{Map, Value};
use tokenizers::{AddedToken, Tokenizer};

use super::tokenizer::{TokenizerError, read};

/// The special tokens a base's files name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SpecialTokens {
    /// `bos_token`, `eos_token`, `image_token`, … as transformers gives them to a chat template.
    pub named: BTreeMap<String, String>,
    /// Beginning of text.
    pub bos: Option<u32>,
    /// Any of these ends an answer; from `generation_config.json`, else `config.json`, else the
    /// tokenizer's `eos_token`.
    pub eos: Vec<u32>,
    /// The placeholder that stands for a picture, with its text.
    pub image: Option<(u32, String)>,
}

/// The configuration files beside a tokenizer; absent ones are empty objects.
pub(super) struct Files {
    tokenizer: Map<String, Value>,
    special_map: Map<String, Value>,
    generation: Map<String, Value>,
    config: Map<String, Value>,
    processor: Map<String, Value>,
}

const NAMED: [&str; 7] = [
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
];

impl Files {
    pub fn read(folder: &Path) -> Result<Self, TokenizerError> {
        let object = |name: &str| -> Result<Map<String, Value>, TokenizerError> {
            let path = folder.join(name);
            let Some(bytes) = read(&path)? else {
                return Ok(Map::new());
            };
            serde_json::from_slice(&bytes).map_err(|source| TokenizerError::Json {
                path: path.display().to_string(),
                source,
            })
        };
        Ok(Self {
            tokenizer: object("tokenizer_config.json")?,
            special_map: object("special_tokens_map.json")?,
            generation: object("generation_config.json")?,
            config: object("config.json")?,
            processor: object("processor_config.json")?,
        })
    }

    /// A special token's text under its name, from the file that transformers asks first.
    fn named(&self, key: &str) -> Option<&str> {
        [&self.tokenizer, &self.special_map]
            .into_iter()
            .find_map(|file| text_of(file.get(key)?))
    }

    /// Every text that the files call a special token.
    fn special_texts(&self) -> BTreeSet<&str> {
        let lists = ["extra_special_tokens", "additional_special_tokens"]
            .iter()
            .flat_map(|key| {
                [&self.tokenizer, &self.special_map]
                    .into_iter()
                    .filter_map(|file| file.get(*key))
            });
        let listed = lists.flat_map(|list| -> Vec<&Value> {
            match list {
                Value::Array(items) => items.iter().collect(),
                Value::Object(items) => items.values().collect(),
                _ => Vec::new(),
            }
        });
        let own = self
            .tokenizer
            .iter()
            .filter(|(key, _)| key.ends_with("_token"));
        let own = own.filter_map(|(_, value)| text_of(value));
        let named = NAMED.iter().filter_map(|key| self.named(key));
        own.chain(named)
            .chain(listed.filter_map(text_of))
            .filter(|text| !text.is_empty())
            .collect()
    }

    /// Makes known what only the files beside `tokenizer.json` say: transformers treats a token
    /// named there as added even where `tokenizer.json` has it as an ordinary piece, or not at all.
    pub fn add_tokens(&self, inner: &mut Tokenizer) -> Result<(), TokenizerError> {
        let empty = Map::new();
        let decoder = self
            .tokenizer
            .get("added_tokens_decoder")
            .and_then(Value::as_object);
        let mut listed: Vec<(u64, &Value)> = decoder
            .unwrap_or(&empty)
            .iter()
            .filter_map(|(id, token)| Some((id.parse().ok()?, token)))
            .collect();
        listed.sort_by_key(|(id, _)| *id);
        let known = |inner: &Tokenizer, text: &str| {
            inner.get_added_vocabulary().get_vocab().contains_key(text)
        };
        for (id, value) in listed {
            let Some(text) = text_of(value) else { continue };
            if !known(inner, text) {
                let is = |key: &str| value[key].as_bool().unwrap_or(false);
                let token = AddedToken::from(text, is("special"))
                    .lstrip(is("lstrip"))
                    .rstrip(is("rstrip"))
                    .single_word(is("single_word"))
                    .normalized(value["normalized"].as_bool().unwrap_or(!is("special")));
                inner.add_tokens(&[token]);
            }
            let got = inner.token_to_id(text);
            if got.map(u64::from) != Some(id) {
                let (token, file) = (text.to_owned(), "tokenizer_config.json");
                return Err(TokenizerError::TokenId {
                    token,
                    file,
                    want: id,
                    got,
                });
            }
        }
        for text in self.special_texts() {
            // A name without an id in the vocabulary would get an id that the model has no row for.
            if !known(inner, text) && inner.token_to_id(text).is_some() {
                inner.add_special_tokens(&[AddedToken::from(text, true)]);
            }
        }
        Ok(())
    }

    pub fn special(&self, inner: &Tokenizer) -> Result<SpecialTokens, TokenizerError> {
        let mut named = BTreeMap::new();
        for key in NAMED {
            if let Some(text) = self.named(key) {
                named.insert(key.to_owned(), text.to_owned());
            }
        }
        for (key, value) in self
            .tokenizer
            .iter()
            .filter(|(key, _)| key.ends_with("_token"))
        {
            if let Some(text) = text_of(value) {
                named.entry(key.clone()).or_insert_with(|| text.to_owned());
            }
        }
        let id_of = |key: &str| named.get(key).and_then(|text| inner.token_to_id(text));
        let text_config = self.config.get("text_config").and_then(Value::as_object);
        let places = [
            ("generation_config.json", Some(&self.generation)),
            ("config.json", Some(&self.config)),
            ("config.json", text_config),
        ];
        let from_files = |key| {
            let mut found = places
                .iter()
                .filter_map(|(file, map)| Some((*file, map.as_ref()?.get(key)?)));
            let found = found.find(|(_, value)| !value.is_null());
            found
                .map(|(file, value)| ids_of(file, key, value))
                .transpose()
        };
        let bos = match id_of("bos_token") {
            Some(id) => Some(id),
            None => from_files("bos_token_id")?.and_then(|ids| ids.first().copied()),
        };
        let eos = match from_files("eos_token_id")? {
            Some(ids) => ids,
            None => id_of("eos_token").into_iter().collect(),
        };
        let image = self.image(inner, &named)?;
        Ok(SpecialTokens {
            named,
            bos,
            eos,
            image,
        })
    }

    /// `image_token_id` or `image_token_index` of the configuration, else the token that the
    /// processor or the tokenizer calls the image token.
    fn image(
        &self,
        inner: &Tokenizer,
        named: &BTreeMap<String, String>,
    ) -> Result<Option<(u32, String)>, TokenizerError> {
        for key in ["image_token_id", "image_token_index"] {
            let Some(value) = self.config.get(key) else {
                continue;
            };
            let Some(&id) = ids_of("config.json", key, value)?.first() else {
                continue;
            };
            let text = inner
                .id_to_token(id)
                .ok_or(TokenizerError::NoImageToken { id })?;
            return Ok(Some((id, text)));
        }
        let text = self.processor.get("image_token").and_then(text_of);
        let text = text.or_else(|| named.get("image_token").map(String::as_str));
        Ok(text.and_then(|text| Some((inner.token_to_id(text)?, text.to_owned()))))
    }
}

fn text_of(value: &Value) -> Option<&str> {
    value.as_str().or_else(|| value.get("content")?.as_str())
}

fn ids_of(
    file: &'static str,
    key: &'static str,
    value: &Value,
) -> Result<Vec<u32>, TokenizerError> {
    let one = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    let ids = match value {
        Value::Array(all) => all.iter().map(one).collect(),
        single => one(single).map(|id| vec![id]),
    };
    ids.ok_or_else(|| TokenizerError::NotAnId {
        file,
        key,
        got: value.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::fixtures::{Folder, pieces, tokenizer_json};
    use super::*;

    #[test]
    fn ends_of_an_answer_come_from_the_first_file_that_names_them() {
        let config = || {
            (
                "config.json",
                json!({"text_config": {"eos_token_id": 7}}).to_string(),
            )
        };
        let generation = || {
            (
                "generation_config.json",
                json!({"eos_token_id": [2, 9]}).to_string(),
            )
        };
        let named = || {
            (
                "tokenizer_config.json",
                json!({"eos_token": {"content": "</s>"}}).to_string(),
            )
        };
        let eos = |files: &[(&str, String)]| Folder::new(files).load().unwrap().eos_ids().to_vec();
        assert_eq!(
            eos(&[tokenizer_json(), config(), generation(), named()]),
            [2, 9]
        );
        assert_eq!(eos(&[tokenizer_json(), config(), named()]), [7]);
        assert_eq!(eos(&[tokenizer_json(), named()]), [2]);
        assert!(eos(&[tokenizer_json()]).is_empty());
        let wrong = ("config.json", json!({"eos_token_id": "two"}).to_string());
        let error = Folder::new(&[tokenizer_json(), wrong]).load().unwrap_err();
        assert!(
            matches!(
                error,
                TokenizerError::NotAnId {
                    key: "eos_token_id",
                    ..
                }
            ),
            "{error}"
        );
    }

    #[test]
    fn a_piece_that_a_file_calls_special_is_found_in_texts() {
        let piece = "▁a";
        let plain = Folder::new(&[tokenizer_json()]).load().unwrap();
        let id = plain.inner().token_to_id(piece).unwrap();
        assert!(!plain.is_special(id));
        let named = json!({"image_token": piece}).to_string();
        let folder = Folder::new(&[tokenizer_json(), ("tokenizer_config.json", named)]);
        let tokenizer = folder.load().unwrap();
        assert!(tokenizer.is_special(id));
        assert_eq!(tokenizer.image_id(), Some(id));
        assert_eq!(tokenizer.decode(&[id]).unwrap(), "");
    }

    #[test]
    fn added_tokens_must_have_the_ids_that_the_files_say() {
        let next = pieces().vocab_size();
        let listed = |id: usize| {
            let token = json!({id.to_string(): {"content": "<image>", "special": true}});
            (
                "tokenizer_config.json",
                json!({"added_tokens_decoder": token}).to_string(),
            )
        };
        let config = (
            "config.json",
            json!({"image_token_index": next}).to_string(),
        );
        let folder = Folder::new(&[tokenizer_json(), listed(next), config]);
        assert_eq!(folder.load().unwrap().image_id(), Some(next as u32));
        let folder = Folder::new(&[tokenizer_json(), listed(next + 5)]);
        assert!(matches!(folder.load(), Err(TokenizerError::TokenId { .. })));
        let config = (
            "config.json",
            json!({"image_token_index": next}).to_string(),
        );
        let folder = Folder::new(&[tokenizer_json(), config]);
        assert!(matches!(
            folder.load(),
            Err(TokenizerError::NoImageToken { .. })
        ));
    }
}
