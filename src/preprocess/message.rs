//! A conversation as clients and chat templates see it.
//! It must not know tokens, templates or pixels.

/// A speaker of a conversation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    System,
    User,
    Assistant,
}

impl Role {
    /// The name that chat templates and clients use.
    pub fn name(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::User => "user",
            Self::Assistant => "assistant",
        }
    }
}

/// A part of a message. The pictures themselves travel apart, in the order of these parts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ContentPart {
    Text(String),
    Image,
}

/// One turn of a conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Who speaks.
    pub role: Role,
    /// What is said and shown, in order.
    pub content: Vec<ContentPart>,
}

impl Message {
    /// A user's turn.
    pub fn user(content: Vec<ContentPart>) -> Self {
        Self {
            role: Role::User,
            content,
        }
    }

    /// Texts of the message, in order.
    pub fn texts(&self) -> impl Iterator<Item = &str> {
        self.content.iter().filter_map(|part| match part {
            ContentPart::Text(text) => Some(text.as_str()),
            ContentPart::Image => None,
        })
    }

    /// How many pictures the message has.
    pub fn images(&self) -> usize {
        self.content
            .iter()
            .filter(|part| **part == ContentPart::Image)
            .count()
    }
}
