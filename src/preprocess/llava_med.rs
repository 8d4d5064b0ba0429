//! The prompt of LLaVA-Med v1.5, whose folder holds no chat template.
//! Messages enter, text pieces and picture places leave, in order. It must not know tokens.
//!
//! The form is `mistral_instruct` of `llava/conversation.py` in the LLaVA-Med repository:
//! `[INST] <image>\n{question} [/INST] {answer} </s>[INST] {question} [/INST]`, an instruction of
//! the system between `<<SYS>>` marks before the first question.

use super::message::{ContentPart, Message, Role};
use super::prompt::PromptError;

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

#[cfg(test)]
mod tests {
    use super::*;

    fn message(role: Role, parts: &[&str]) -> Message {
        let part = |part: &&str| match *part {
            IMAGE => ContentPart::Image,
            text => ContentPart::Text(text.into()),
        };
        Message {
            role,
            content: parts.iter().map(part).collect(),
        }
    }

    fn text(messages: &[Message]) -> Result<String, PromptError> {
        let piece = |piece: Piece| match piece {
            Piece::Text(text) => text,
            Piece::Image => IMAGE.to_owned(),
        };
        Ok(pieces(messages, "</s>")?.into_iter().map(piece).collect())
    }

    #[test]
    fn turns_follow_each_other_as_in_training() {
        let turns = [
            message(Role::System, &["Be brief."]),
            message(Role::User, &["Clear?", IMAGE]),
            message(Role::Assistant, &["No."]),
            message(Role::User, &["Why?"]),
        ];
        assert_eq!(
            text(&turns).unwrap(),
            "[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\n<image>\nClear? [/INST] No. </s>[INST] Why? [/INST]"
        );
        assert_eq!(
            text(&turns[1..2]).unwrap(),
            "[INST] <image>\nClear? [/INST]"
        );
    }

    #[test]
    fn two_pictures_have_a_line_each() {
        let turn = message(Role::User, &[IMAGE, IMAGE, "Which?"]);
        assert_eq!(
            pieces(&[turn], "</s>").unwrap(),
            [
                Piece::Text("[INST] ".into()),
                Piece::Image,
                Piece::Text("\n".into()),
                Piece::Image,
                Piece::Text("\nWhich? [/INST]".into()),
            ]
        );
    }

    #[test]
    fn turns_out_of_order_are_refused_by_their_place() {
        let (user, assistant) = (
            message(Role::User, &["q"]),
            message(Role::Assistant, &["a"]),
        );
        let system = message(Role::System, &["s"]);
        let refused = |messages: &[Message]| text(messages).unwrap_err().to_string();
        assert_eq!(
            refused(&[user.clone(), user.clone(), user.clone()]),
            "`messages[1]` must have the role `assistant`"
        );
        assert_eq!(
            refused(&[system.clone(), assistant.clone()]),
            "`messages[1]` must have the role `user`"
        );
        for messages in [&[user.clone(), assistant][..], &[system][..]] {
            assert_eq!(
                refused(messages),
                "the last of `messages` must have the role `user`"
            );
        }
        let picture = message(Role::Assistant, &[IMAGE]);
        assert_eq!(
            refused(&[user.clone(), picture, user]),
            "`messages[1]` has an image, only a user's message may"
        );
    }
}
