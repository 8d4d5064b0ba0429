//! Two small tokenizers for tests, made in memory: byte-level, as GPT-2's family has it, and pieces
//! with byte fallback, as Llama's family has it.

use std::fs;
use std::path::Path;

use serde_json::{Map, Value, json};
use tempfile::TempDir;
use tokenizers::Tokenizer;

use super::special::SpecialTokens;
use super::tokenizer::{TextTokenizer, TokenizerError};

fn special_token(id: usize, text: &str) -> Value {
    json!({"id": id, "content": text, "special": true, "single_word": false,
        "lstrip": false, "rstrip": false, "normalized": false})
}

fn tokenizer(value: &Value, image: Option<&str>) -> TextTokenizer {
    let inner = Tokenizer::from_bytes(value.to_string()).unwrap();
    let named = [
        ("bos_token", "<s>"),
        ("eos_token", "</s>"),
        ("unk_token", "<unk>"),
    ];
    let special = SpecialTokens {
        named: named
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect(),
        bos: Some(1),
        eos: vec![2],
        image: image.map(|text| (inner.token_to_id(text).unwrap(), text.to_owned())),
    };
    TextTokenizer::new(inner, special)
}

/// GPT-2's printable stand-in of a byte.
fn stand_in(byte: u8) -> char {
    let printable = |b: u8| matches!(b, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    if printable(byte) {
        return char::from(byte);
    }
    let before = (0..byte).filter(|&b| !printable(b)).count();
    char::from_u32(256 + before as u32).unwrap()
}

/// `<unk> <s> </s> <image>`, then the 256 bytes as 4 to 259: byte b is token 4 + b.
pub(super) fn byte_level() -> TextTokenizer {
    let special = ["<unk>", "<s>", "</s>", "<image>"];
    let added: Vec<Value> = special
        .iter()
        .enumerate()
        .map(|(i, t)| special_token(i, t))
        .collect();
    let mut vocab: Map<String, Value> = special
        .iter()
        .enumerate()
        .map(|(i, t)| ((*t).to_owned(), i.into()))
        .collect();
    for byte in 0..=255_u8 {
        vocab.insert(stand_in(byte).to_string(), (4 + u32::from(byte)).into());
    }
    let value = json!({
        "version": "1.0", "added_tokens": added,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "post_processor": {"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}},
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "vocab": vocab, "merges": []},
    });
    tokenizer(&value, Some("<image>"))
}

/// The pieces that [`pieces`] knows behind the bytes; their ids follow 258.
pub(super) const PIECES: [&str; 12] = ["▁", "[", "]", "/", "I", "N", "S", "T", "a", "b", "?", "▁a"];

/// `<unk> <s> </s>`, the 256 byte pieces as 3 to 258, then [`PIECES`] from 259 on. A blank is put
/// before each text, and decoding takes one off the front.
pub(super) fn pieces() -> TextTokenizer {
    let special = ["<unk>", "<s>", "</s>"];
    let added: Vec<Value> = special
        .iter()
        .enumerate()
        .map(|(i, t)| special_token(i, t))
        .collect();
    let bytes = (0..=255_u8).map(|byte| format!("<0x{byte:02X}>"));
    let all = special.iter().map(|t| (*t).to_owned()).chain(bytes);
    let all = all.chain(PIECES.iter().map(|t| (*t).to_owned()));
    let vocab: Map<String, Value> = all.enumerate().map(|(i, t)| (t, i.into())).collect();
    let value = json!({
        "version": "1.0", "added_tokens": added,
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"}, {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        "model": {"type": "BPE", "vocab": vocab, "merges": ["▁ a"], "unk_token": "<unk>",
            "fuse_unk": true, "byte_fallback": true},
    });
    tokenizer(&value, None)
}

/// A folder of the named files, removed at the end.
pub(super) struct Folder(TempDir);

impl Folder {
    pub fn new(files: &[(&str, String)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        for (file, content) in files {
            fs::write(folder.path().join(file), content).unwrap();
        }
        Self(folder)
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    pub fn load(&self) -> Result<TextTokenizer, TokenizerError> {
        TextTokenizer::from_folder(self.path(), None)
    }
}

/// A folder's `tokenizer.json`, with the pieces of [`pieces`].
pub(super) fn tokenizer_json() -> (&'static str, String) {
    ("tokenizer.json", pieces().inner().to_string(false).unwrap())
}
