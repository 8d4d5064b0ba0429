//! Text to token ids and back, with the special tokens of a base's folder.
//! `tokenizer.json` and the configuration files beside it enter, ids and text leave. It must not know
//! how messages become one text.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::sync::Arc;

use serde_json::{Map, Value};
use tokenizers::{AddedToken, Tokenizer};

use super::stream::TextStream;

/// Why a tokenizer could not be loaded, or failed on a text.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    #[error("cannot read {path}")]
    Read {
        path: String,
        source: std::io::Error,
    },
    #[error("{path} is not valid JSON")]
    Json {
        path: String,
        source: serde_json::Error,
    },
    #[error(
        "{folder} has tokenizer.model but no tokenizer.json; convert it with transformers, or name a tokenizer.json with --tokenizer"
    )]
    SentencePieceOnly { folder: String },
    #[error("{folder} has no tokenizer.json")]
    Missing { folder: String },
    #[error("{path} is no tokenizer: {reason}")]
    Invalid { path: String, reason: String },
    #[error("token `{token}` has id {want} in {file}, but {got:?} in tokenizer.json")]
    TokenId {
        token: String,
        file: &'static str,
        want: u64,
        got: Option<u32>,
    },
    #[error("`{key}` in {file} is {got}, wanted a token id")]
    NotAnId {
        file: &'static str,
        key: &'static str,
        got: String,
    },
    #[error("image token id {id} is not in tokenizer.json")]
    NoImageToken { id: u32 },
    #[error("the text could not be tokenised: {reason}")]
    Encode { reason: String },
    #[error("the tokens could not be made text: {reason}")]
    Decode { reason: String },
}

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

/// A tokenizer with its special tokens; a clone shares the vocabulary.
#[derive(Debug, Clone)]
pub struct TextTokenizer {
    inner: Arc<Tokenizer>,
    special: Arc<SpecialTokens>,
    /// Every id that decoding leaves out.
    hidden: Arc<BTreeSet<u32>>,
}

impl TextTokenizer {
    /// Loads a base's folder; `override_path` names another `tokenizer.json` for it.
    pub fn from_folder(
        folder: &Path,
        override_path: Option<&Path>,
    ) -> Result<Self, TokenizerError> {
        let own = folder.join("tokenizer.json");
        let path = override_path.unwrap_or(&own);
        let Some(bytes) = read(path)? else {
            let shown = || folder.display().to_string();
            return Err(match override_path {
                Some(path) => TokenizerError::Invalid {
                    path: path.display().to_string(),
                    reason: "there is no such file".into(),
                },
                None if folder.join("tokenizer.model").exists() => {
                    TokenizerError::SentencePieceOnly { folder: shown() }
                }
                None => TokenizerError::Missing { folder: shown() },
            });
        };
        let invalid = |e: tokenizers::Error| TokenizerError::Invalid {
            path: path.display().to_string(),
            reason: e.to_string(),
        };
        let mut inner = Tokenizer::from_bytes(bytes).map_err(invalid)?;
        // A prompt is never cut or filled up here, whatever the file's maker used it for.
        inner
            .with_truncation(None)
            .map_err(invalid)?
            .with_padding(None);
        let files = Files::read(folder)?;
        files.add_tokens(&mut inner)?;
        let special = files.special(&inner)?;
        Ok(Self::new(inner, special))
    }

    /// Wraps a tokenizer that was made otherwise.
    pub fn new(inner: Tokenizer, special: SpecialTokens) -> Self {
        let added = inner.get_added_tokens_decoder();
        let hidden = added
            .iter()
            .filter(|(_, token)| token.special)
            .map(|(&id, _)| id)
            .collect();
        Self {
            inner: Arc::new(inner),
            special: Arc::new(special),
            hidden: Arc::new(hidden),
        }
    }

    /// The same with this picture placeholder, whatever the files say.
    pub fn with_image_token(mut self, id: u32) -> Result<Self, TokenizerError> {
        let text = self
            .inner
            .id_to_token(id)
            .ok_or(TokenizerError::NoImageToken { id })?;
        Arc::make_mut(&mut self.special).image = Some((id, text));
        Ok(self)
    }

    pub fn special(&self) -> &SpecialTokens {
        &self.special
    }

    /// Beginning of text.
    pub fn bos_id(&self) -> Option<u32> {
        self.special.bos
    }

    /// Any of these ends an answer.
    pub fn eos_ids(&self) -> &[u32] {
        &self.special.eos
    }

    /// The placeholder that stands for a picture.
    pub fn image_id(&self) -> Option<u32> {
        self.special.image.as_ref().map(|(id, _)| *id)
    }

    /// Ids from 0 to below this are known, added tokens included.
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// The library's own tokenizer.
    pub fn inner(&self) -> &Tokenizer {
        &self.inner
    }

    /// Ids of a text. `add_special_tokens` puts in what the tokenizer itself adds around a text
    /// (usually the beginning-of-text token); special tokens in the text are found either way.
    pub fn encode(&self, text: &str, add_special_tokens: bool) -> Result<Vec<u32>, TokenizerError> {
        let encoding = self
            .inner
            .encode_fast(text, add_special_tokens)
            .map_err(|e| TokenizerError::Encode {
                reason: e.to_string(),
            })?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The text of ids, special tokens left out.
    pub fn decode(&self, ids: &[u32]) -> Result<String, TokenizerError> {
        self.inner
            .decode(ids, true)
            .map_err(|e| TokenizerError::Decode {
                reason: e.to_string(),
            })
    }

    /// Whether decoding leaves this id out.
    pub fn is_special(&self, id: u32) -> bool {
        self.hidden.contains(&id)
    }

    /// Turns tokens into text one at a time.
    pub fn stream(&self) -> TextStream {
        TextStream::new(self.clone())
    }
}

fn read(path: &Path) -> Result<Option<Vec<u8>>, TokenizerError> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(TokenizerError::Read {
            path: path.display().to_string(),
            source,
        }),
    }
}

/// The configuration files beside a tokenizer; absent ones are empty objects.
struct Files {
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
    fn read(folder: &Path) -> Result<Self, TokenizerError> {
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
    fn add_tokens(&self, inner: &mut Tokenizer) -> Result<(), TokenizerError> {
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

    fn special(&self, inner: &Tokenizer) -> Result<SpecialTokens, TokenizerError> {
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

    use super::super::fixtures::pieces;
    use super::*;

    /// A folder of the named files, removed at the end.
    struct Folder(std::path::PathBuf);

    impl Folder {
        fn new(name: &str, files: &[(&str, String)]) -> Self {
            let path = std::env::temp_dir().join(format!("norma-{name}-{}", std::process::id()));
            fs::create_dir_all(&path).unwrap();
            for (file, content) in files {
                fs::write(path.join(file), content).unwrap();
            }
            Self(path)
        }

        fn load(&self) -> Result<TextTokenizer, TokenizerError> {
            TextTokenizer::from_folder(&self.0, None)
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn own() -> (&'static str, String) {
        ("tokenizer.json", pieces().inner().to_string(false).unwrap())
    }

    #[test]
    fn sentencepiece_alone_is_refused_with_both_names() {
        let folder = Folder::new("sentencepiece", &[("tokenizer.model", String::new())]);
        let error = folder.load().unwrap_err().to_string();
        assert!(
            error.contains("tokenizer.model") && error.contains("tokenizer.json"),
            "{error}"
        );
        let (_, json) = own();
        let other = Folder::new("override", &[("other.json", json)]);
        let path = other.0.join("other.json");
        assert!(TextTokenizer::from_folder(&folder.0, Some(&path)).is_ok());
        let none = Folder::new("none", &[]);
        assert!(matches!(none.load(), Err(TokenizerError::Missing { .. })));
        let broken = Folder::new("broken", &[("tokenizer.json", "{}".into())]);
        assert!(matches!(broken.load(), Err(TokenizerError::Invalid { .. })));
    }

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
        let eos = |name: &str, files: &[(&str, String)]| {
            Folder::new(name, files).load().unwrap().eos_ids().to_vec()
        };
        assert_eq!(
            eos("eos-1", &[own(), config(), generation(), named()]),
            [2, 9]
        );
        assert_eq!(eos("eos-2", &[own(), config(), named()]), [7]);
        assert_eq!(eos("eos-3", &[own(), named()]), [2]);
        assert!(eos("eos-4", &[own()]).is_empty());
        let wrong = ("config.json", json!({"eos_token_id": "two"}).to_string());
        let error = Folder::new("eos-5", &[own(), wrong]).load().unwrap_err();
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
        let plain = Folder::new("plain", &[own()]).load().unwrap();
        let id = plain.inner().token_to_id(piece).unwrap();
        assert!(!plain.is_special(id));
        let named = json!({"image_token": piece}).to_string();
        let folder = Folder::new("named", &[own(), ("tokenizer_config.json", named)]);
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
        let folder = Folder::new("added-1", &[own(), listed(next), config]);
        assert_eq!(folder.load().unwrap().image_id(), Some(next as u32));
        let folder = Folder::new("added-2", &[own(), listed(next + 5)]);
        assert!(matches!(folder.load(), Err(TokenizerError::TokenId { .. })));
        let config = (
            "config.json",
            json!({"image_token_index": next}).to_string(),
        );
        let folder = Folder::new("added-3", &[own(), config]);
        assert!(matches!(
            folder.load(),
            Err(TokenizerError::NoImageToken { .. })
        ));
    }
}
