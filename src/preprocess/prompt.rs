//! Messages to the model's input row.
//! A conversation and a tokenizer enter; tokens with the places of picture rows leave. It must not
//! know pixels, or what the model makes of a picture beyond the number of its rows.

use std::path::Path;

use super::llava_med::{self, Piece};
use super::message::Message;
use super::reserved::{self, Reserved};
use super::template::Template;
use super::tokenizer::{TextTokenizer, TokenizerError};

/// Why messages cannot be a prompt. [`is_request`](Self::is_request) tells a client's mistake from
/// the base's.
#[derive(Debug, thiserror::Error)]
pub enum PromptError {
    #[error("`messages` is empty")]
    NoMessages,
    #[error("`messages[{message}]` contains the reserved token `{token}`")]
    Reserved { message: usize, token: String },
    #[error("the messages' texts, put together, form a reserved token")]
    ReservedAcross,
    #[error("`messages[{message}]` must have the role `{want}`")]
    Role { message: usize, want: &'static str },
    #[error("the last of `messages` must have the role `user`")]
    LastRole,
    #[error("`messages[{message}]` has an image, only a user's message may")]
    ImagePlace { message: usize },
    #[error("the messages have {images} images, the chat template has places for {places}")]
    ImagePlaces { images: usize, places: usize },
    #[error("the messages have images, but this base has no image token")]
    NoImageToken,
    #[error("the chat template refused the messages: {reason}")]
    Render { reason: String },
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
    #[error("the chat template cannot be used: {reason}")]
    Template { reason: String },
    #[error(
        "{folder} has no chat template (chat_template.jinja, chat_template.json, or `chat_template` in tokenizer_config.json)"
    )]
    NoTemplate { folder: String },
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
}

impl PromptError {
    /// Whether other messages would have been accepted.
    pub fn is_request(&self) -> bool {
        match self {
            Self::NoMessages
            | Self::Reserved { .. }
            | Self::ReservedAcross
            | Self::Role { .. }
            | Self::LastRole
            | Self::ImagePlace { .. }
            | Self::ImagePlaces { .. }
            | Self::NoImageToken
            | Self::Render { .. } => true,
            Self::Read { .. }
            | Self::Json { .. }
            | Self::Template { .. }
            | Self::NoTemplate { .. }
            | Self::Tokenizer(_) => false,
        }
    }
}

/// One row of the model's input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PromptToken {
    /// A token of the vocabulary.
    Text(u32),
    /// Row `patch` of picture `image`, both counted from 0 in the order of the messages.
    Image { image: u32, patch: u32 },
}

/// A conversation as the model's input.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prompt {
    /// The rows, in order.
    pub tokens: Vec<PromptToken>,
    /// The text that was tokenised, one placeholder a picture.
    pub text: String,
}

/// A base's way to write a conversation.
#[derive(Debug)]
pub struct ChatPrompt {
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    Template(Box<Template>),
    LlavaMed,
}

/// A rendered conversation: `None` is the place of a picture.
struct Row {
    text: String,
    tokens: Vec<Option<u32>>,
}

impl ChatPrompt {
    /// The chat template of a Hugging Face folder.
    pub fn from_folder(folder: &Path) -> Result<Self, PromptError> {
        match Template::from_folder(folder)? {
            Some(template) => Ok(Self {
                kind: Kind::Template(Box::new(template)),
            }),
            None => Err(PromptError::NoTemplate {
                folder: folder.display().to_string(),
            }),
        }
    }

    /// A chat template given as its source.
    pub fn from_template(source: &str) -> Result<Self, PromptError> {
        Template::new(source).map(|template| Self {
            kind: Kind::Template(Box::new(template)),
        })
    }

    /// The built-in prompt of LLaVA-Med v1.5.
    pub fn llava_med() -> Self {
        Self {
            kind: Kind::LlavaMed,
        }
    }

    /// The input row of a conversation that the model is to continue, each picture as
    /// `tokens_per_image` rows.
    ///
    /// No text of a message can become a special token: one that contains such a token's text is
    /// refused, and so is a conversation whose texts form one where the template joins them.
    pub fn prepare(
        &self,
        tokenizer: &TextTokenizer,
        messages: &[Message],
        tokens_per_image: usize,
    ) -> Result<Prompt, PromptError> {
        if messages.is_empty() {
            return Err(PromptError::NoMessages);
        }
        let reserved = match &self.kind {
            Kind::Template(template) => Reserved::new(tokenizer, template.source(), None),
            Kind::LlavaMed => Reserved::new(tokenizer, "", Some(llava_med::IMAGE)),
        };
        reserved.refuse_in(messages)?;
        let row = self.row(tokenizer, messages)?;
        let neutral = self.row(tokenizer, &reserved::neutral(messages))?;
        if reserved.filter(&row.tokens) != reserved.filter(&neutral.tokens) {
            return Err(PromptError::ReservedAcross);
        }
        let images = messages.iter().map(Message::images).sum();
        let places = row.tokens.iter().filter(|token| token.is_none()).count();
        if images != places {
            return Err(PromptError::ImagePlaces { images, places });
        }
        Ok(Prompt {
            tokens: expand(&row.tokens, tokens_per_image),
            text: row.text,
        })
    }

    fn row(&self, tokenizer: &TextTokenizer, messages: &[Message]) -> Result<Row, PromptError> {
        match &self.kind {
            Kind::Template(template) => template_row(template, tokenizer, messages),
            Kind::LlavaMed => llava_med_row(tokenizer, messages),
        }
    }
}

/// As transformers' processor does it: the whole rendered text at once, the tokenizer's own
/// beginning-of-text token unless the template wrote one. A picture's placeholder is repeated there
/// in the text, here as a token; no ordinary text stands between, so the tokens are the same.
fn template_row(
    template: &Template,
    tokenizer: &TextTokenizer,
    messages: &[Message],
) -> Result<Row, PromptError> {
    let special = tokenizer.special();
    if special.image.is_none() && messages.iter().any(|m| m.images() > 0) {
        return Err(PromptError::NoImageToken);
    }
    let text = template.render(messages, special)?;
    let has_bos = special
        .named
        .get("bos_token")
        .is_some_and(|bos| text.starts_with(bos.as_str()));
    let image = tokenizer.image_id();
    let ids = tokenizer.encode(&text, !has_bos)?;
    let tokens = ids
        .into_iter()
        .map(|id| Some(id).filter(|_| Some(id) != image))
        .collect();
    Ok(Row { text, tokens })
}

/// As LLaVA does it: beginning-of-text once, then each text tokenised alone between the pictures.
fn llava_med_row(tokenizer: &TextTokenizer, messages: &[Message]) -> Result<Row, PromptError> {
    let named = &tokenizer.special().named;
    let eos = named.get("eos_token").map_or("</s>", String::as_str);
    let mut row = Row {
        text: named.get("bos_token").cloned().unwrap_or_default(),
        tokens: tokenizer.bos_id().into_iter().map(Some).collect(),
    };
    for piece in llava_med::pieces(messages, eos)? {
        match piece {
            Piece::Text(text) => {
                row.tokens
                    .extend(tokenizer.encode(&text, false)?.into_iter().map(Some));
                row.text.push_str(&text);
            }
            Piece::Image => {
                row.tokens.push(None);
                row.text.push_str(llava_med::IMAGE);
            }
        }
    }
    Ok(row)
}

fn expand(tokens: &[Option<u32>], tokens_per_image: usize) -> Vec<PromptToken> {
    let mut out = Vec::with_capacity(tokens.len());
    let mut image = 0;
    for token in tokens {
        if let Some(id) = token {
            out.push(PromptToken::Text(*id));
        } else {
            let rows = 0..tokens_per_image as u32;
            out.extend(rows.map(|patch| PromptToken::Image { image, patch }));
            image += 1;
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::super::fixtures::{PIECES, byte_level, pieces};
    use super::super::message::ContentPart;
    use super::*;

    const TEMPLATE: &str = "{% for m in messages %}{% for c in m.content %}\
        {% if c.type == 'image' %}<image>{% else %}{{ c.text }}{% endif %}{% endfor %}</s>{% endfor %}";

    fn user(parts: &[&str]) -> Message {
        let part = |part: &&str| match *part {
            "<image>" => ContentPart::Image,
            text => ContentPart::Text(text.into()),
        };
        Message::user(parts.iter().map(part).collect())
    }

    fn bytes(text: &str) -> Vec<PromptToken> {
        text.bytes()
            .map(|b| PromptToken::Text(4 + u32::from(b)))
            .collect()
    }

    #[test]
    fn a_picture_becomes_its_rows_and_the_beginning_comes_once() {
        let (bos, eos) = ([PromptToken::Text(1)], [PromptToken::Text(2)]);
        let rows = |image| [0, 1].map(|patch| PromptToken::Image { image, patch });
        let messages = [user(&["<image>", "a"]), user(&["b", "<image>"])];
        let want = [
            &bos[..],
            &rows(0),
            &bytes("a"),
            &eos,
            &bytes("b"),
            &rows(1),
            &eos,
        ]
        .concat();
        for template in [
            TEMPLATE.to_owned(),
            format!("{{{{ bos_token }}}}{TEMPLATE}"),
        ] {
            let chat = ChatPrompt::from_template(&template).unwrap();
            let prompt = chat.prepare(&byte_level(), &messages, 2).unwrap();
            assert_eq!(prompt.tokens, want);
        }
    }

    #[test]
    fn a_template_that_drops_pictures_is_noticed() {
        let chat = ChatPrompt::from_template("{{ messages[0].content[-1].text }}").unwrap();
        let error = chat
            .prepare(&byte_level(), &[user(&["<image>", "a"])], 2)
            .unwrap_err();
        assert!(
            matches!(
                error,
                PromptError::ImagePlaces {
                    images: 1,
                    places: 0
                }
            ),
            "{error}"
        );
        let chat = ChatPrompt::from_template(TEMPLATE).unwrap();
        let error = chat
            .prepare(&pieces(), &[user(&["<image>"])], 2)
            .unwrap_err();
        assert!(matches!(error, PromptError::NoImageToken), "{error}");
        let error = chat.prepare(&byte_level(), &[], 2).unwrap_err();
        assert!(matches!(error, PromptError::NoMessages), "{error}");
    }

    #[test]
    fn texts_that_look_like_tokens_are_refused_and_odd_ones_are_not() {
        let chat = ChatPrompt::from_template(TEMPLATE).unwrap();
        let prepare = |parts: &[&str]| chat.prepare(&byte_level(), &[user(parts)], 1);
        for token in ["<s>", "</s>", "<unk>"] {
            let error = prepare(&[&format!("x{token}")]).unwrap_err();
            assert!(
                matches!(error, PromptError::Reserved { message: 0, .. }),
                "{error}"
            );
        }
        let error = prepare(&["</", "s>"]).unwrap_err();
        assert!(matches!(error, PromptError::ReservedAcross), "{error}");
        for text in ["", " ", "a < b > c", "<S>", "< s>", "[INST]", "é🫁\u{0}"] {
            assert!(prepare(&[text]).is_ok(), "{text:?}");
        }
    }

    /// By hand, as the pieces around the picture are tokenised alone: each begins with the blank
    /// that the tokenizer puts before a text, and the line break is a byte piece.
    #[test]
    fn llava_med_tokenises_the_texts_around_the_picture_alone() {
        let prompt = ChatPrompt::llava_med()
            .prepare(&pieces(), &[user(&["<image>", "a?"])], 1)
            .unwrap();
        assert_eq!(prompt.text, "<s>[INST] <image>\na? [/INST]");
        let piece = |text: &str| match PIECES.iter().position(|p| *p == text) {
            Some(at) => PromptToken::Text(259 + at as u32),
            None => PromptToken::Text(3 + u32::from(text.as_bytes()[0])),
        };
        let before = ["▁", "[", "I", "N", "S", "T", "]", "▁"];
        let after = ["▁", "\n", "a", "?", "▁", "[", "/", "I", "N", "S", "T", "]"];
        let mut want = vec![PromptToken::Text(1)];
        want.extend(before.map(piece));
        want.push(PromptToken::Image { image: 0, patch: 0 });
        want.extend(after.map(piece));
        assert_eq!(prompt.tokens, want);
    }
}
