//! The prompt of LLaVA-Med v1.5, whose folder holds no chat template.
//! Messages enter, text pieces and picture places leave, in order. It must not know tokens.
//!
//! The form is `mistral_instruct` of `llava/conversation.py` in the LLaVA-Med repository:
//! `[INST] <image>\n{question} [/INST] {answer} </s>[INST] {question} [/INST]`, an instruction of
//! the system between `<<SYS>>` marks before the first question.

use super::prompt::{ContentPart, Message, PromptError, Role};

/// The placeholder in the text; no token of the vocabulary.
pub(super) const IMAGE: &str = "<image>";

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Piece {
    Text(String),
    Image,
}

/// The pieces of a conversation, no two texts side by side: each text is tokenised alone.
pub(super) fn pieces(messages: &[Message], eos: &str) -> Result<Vec<Piece>, PromptError> {
    let mut pieces = Pieces(Vec::new());
    let (system, turns) = match messages {
        [first, rest @ ..] if first.role == Role::System => (Some(first), rest),
        all => (None, all),
    };
    let offset = messages.len() - turns.len();
    if turns.len() % 2 == 0 {
        return Err(PromptError::LastRole);
    }
    for (index, turn) in turns.iter().enumerate() {
        let want = if index % 2 == 0 {
            Role::User
        } else {
            Role::Assistant
        };
        if turn.role != want {
            return Err(PromptError::Role {
                message: offset + index,
                want: want.name(),
            });
        }
        if turn.role == Role::Assistant {
            pieces.text(&format!(" {} {eos}", text_only(turn, offset + index)?));
            continue;
        }
        pieces.text("[INST] ");
        if let (0, Some(system)) = (index, system) {
            pieces.text(&format!("<<SYS>>\n{}\n<</SYS>>\n\n", text_only(system, 0)?));
        }
        // As in its training, the pictures of a turn stand before its words.
        for _ in 0..turn.images() {
            pieces.0.push(Piece::Image);
            pieces.text("\n");
        }
        pieces.text(&turn.texts().collect::<Vec<_>>().join("\n"));
        pieces.text(" [/INST]");
    }
    Ok(pieces.0)
}

fn text_only(message: &Message, index: usize) -> Result<String, PromptError> {
    if message.content.contains(&ContentPart::Image) {
        return Err(PromptError::ImagePlace { message: index });
    }
    Ok(message.texts().collect::<Vec<_>>().join("\n"))
}

struct Pieces(Vec<Piece>);

impl Pieces {
    fn text(&mut self, text: &str) {
        match self.0.last_mut() {
            Some(Piece::Text(last)) => last.push_str(text),
            _ => self.0.push(Piece::Text(text.to_owned())),
        }
    }
}
