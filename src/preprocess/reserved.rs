//! Keeps special tokens out of clients' texts.
//! Messages and rows of tokens enter; a refusal, or the control tokens of a row, leave. It must not
//! know how a row is made.

use super::message::{ContentPart, Message};
use super::prompt::PromptError;
use super::tokenizer::TextTokenizer;

/// What steers the model under one tokenizer and prompt: special tokens, the picture's placeholder,
/// and added tokens that the template itself writes.
pub(super) struct Reserved<'a> {
    tokenizer: &'a TextTokenizer,
    template: &'a str,
    /// A placeholder that is no token.
    placeholder: Option<&'a str>,
    /// The text of the unknown token, where it has no other meaning. It steers nothing, and any odd
    /// character may become it.
    unknown: Option<&'a str>,
}

impl<'a> Reserved<'a> {
    pub fn new(
        tokenizer: &'a TextTokenizer,
        template: &'a str,
        placeholder: Option<&'a str>,
    ) -> Self {
        let named = &tokenizer.special().named;
        let unknown = named.get("unk_token").filter(|unknown| {
            named
                .iter()
                .all(|(name, text)| name == "unk_token" || text != *unknown)
        });
        Self {
            tokenizer,
            template,
            placeholder,
            unknown: unknown.map(String::as_str),
        }
    }

    /// Refuses messages of which a text contains a control token's text.
    pub fn refuse_in(&self, messages: &[Message]) -> Result<(), PromptError> {
        for (message, texts) in messages.iter().map(Message::texts).enumerate() {
            for text in texts {
                if let Some(token) = self.first_in(text)? {
                    return Err(PromptError::Reserved { message, token });
                }
            }
        }
        Ok(())
    }

    /// The picture places and control tokens of a row, in order.
    pub fn filter(&self, tokens: &[Option<u32>]) -> Vec<Option<u32>> {
        let controls = |token: &Option<u32>| token.is_none_or(|id| self.is_control(id));
        tokens.iter().copied().filter(controls).collect()
    }

    /// The tokenizer is asked, not a list of texts: it may find a token in a text that is spelt
    /// otherwise (normalised, or with blanks around).
    fn first_in(&self, text: &str) -> Result<Option<String>, PromptError> {
        let literal = [self.placeholder, self.unknown].into_iter().flatten();
        if let Some(literal) = literal.into_iter().find(|literal| text.contains(literal)) {
            return Ok(Some(literal.to_owned()));
        }
        let ids = self.tokenizer.encode(text, false)?;
        let found = ids.into_iter().find(|&id| self.is_control(id));
        Ok(found.and_then(|id| self.tokenizer.inner().id_to_token(id)))
    }

    fn is_control(&self, id: u32) -> bool {
        let image = self.tokenizer.image_id() == Some(id);
        let added = self
            .tokenizer
            .inner()
            .get_added_vocabulary()
            .simple_id_to_token(id);
        let Some(text) = added else { return image };
        let written = || !text.trim().is_empty() && self.template.contains(&text);
        self.unknown != Some(&text) && (self.tokenizer.is_special(id) || image || written())
    }
}

/// The same messages with nothing in their texts: their row has the control tokens that the prompt
/// itself puts in, and no other.
pub(super) fn neutral(messages: &[Message]) -> Vec<Message> {
    let part = |part: &ContentPart| match part {
        ContentPart::Text(text) if !text.trim().is_empty() => ContentPart::Text("x".into()),
        same => same.clone(),
    };
    let message = |m: &Message| Message {
        role: m.role,
        content: m.content.iter().map(part).collect(),
    };
    messages.iter().map(message).collect()
}
