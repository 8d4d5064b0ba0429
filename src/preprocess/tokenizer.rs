//! Text to token ids and back, with the special tokens of a base's folder.
//! `tokenizer.json` and the configuration files beside it enter, ids and text leave. It must not know
//! how messages become one text.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use tokenizers::Tokenizer;

use super::special::{Files, SpecialTokens};
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

    /// The special tokens that the base's files name.
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

pub(super) fn read(path: &Path) -> Result<Option<Vec<u8>>, TokenizerError> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(TokenizerError::Read {
            path: path.display().to_string(),
            source,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixtures::{Folder, tokenizer_json};
    use super::*;

    #[test]
    fn sentencepiece_alone_is_refused_with_both_names() {
        let folder = Folder::new(&[("tokenizer.model", String::new())]);
        let error = folder.load().unwrap_err().to_string();
        assert!(
            error.contains("tokenizer.model") && error.contains("tokenizer.json"),
            "{error}"
        );
        let (_, json) = tokenizer_json();
        let other = Folder::new(&[("other.json", json)]);
        let path = other.path().join("other.json");
        assert!(TextTokenizer::from_folder(folder.path(), Some(&path)).is_ok());
        let none = Folder::new(&[]);
        assert!(matches!(none.load(), Err(TokenizerError::Missing { .. })));
        let broken = Folder::new(&[("tokenizer.json", "{}".into())]);
        assert!(matches!(broken.load(), Err(TokenizerError::Invalid { .. })));
    }
}
