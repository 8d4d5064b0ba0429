//! The messages of a chat request.
//!
//! In: JSON. Out: a conversation, and where its images come from, in order.

use serde_json::{Map, Value};

use crate::http::error::{ApiError, shorten};
use crate::http::fields::Fields;
use crate::preprocess::{ContentPart, Message, Role};

/// The place of an image in a request.
#[derive(Debug)]
pub struct ImageUrl {
    /// The field that holds it.
    pub param: String,
    /// The URL.
    pub url: String,
}

/// Reads the list.
pub fn messages(values: Vec<Value>) -> Result<(Vec<Message>, Vec<ImageUrl>), ApiError> {
    let mut images = Vec::new();
    let messages = values
        .into_iter()
        .enumerate()
        .map(|(index, value)| message(index, value, &mut images))
        .collect::<Result<_, _>>()?;
    Ok((messages, images))
}

fn message(index: usize, value: Value, images: &mut Vec<ImageUrl>) -> Result<Message, ApiError> {
    let path = format!("messages[{index}]");
    let Value::Object(map) = value else {
        let message = format!("`{path}` must be an object");
        return Err(ApiError::bad(path, message));
    };
    let mut fields = Fields::new(map, format!("{path}."));
    let role = match fields.require::<String>("role")?.as_str() {
        "system" | "developer" => Role::System,
        "user" => Role::User,
        "assistant" => Role::Assistant,
        _ => {
            let field = format!("{path}.role");
            let message = format!("`{field}` must be system, developer, user or assistant");
            return Err(ApiError::bad(field, message));
        }
    };
    let content = match fields.require::<Value>("content")? {
        Value::String(text) => vec![ContentPart::Text(text)],
        Value::Array(parts) => parts
            .into_iter()
            .enumerate()
            .map(|(part, value)| content_part(format!("{path}.content[{part}]"), value, images))
            .collect::<Result<_, _>>()?,
        _ => {
            let field = format!("{path}.content");
            let message = format!("`{field}` must be a text or a list of parts");
            return Err(ApiError::bad(field, message));
        }
    };
    // Names of speakers and what an assistant's answer came with are not shown to the model by chat
    // completions of this kind; a client sends an answer back as it got it.
    for echoed in ["name", "refusal", "annotations", "audio"] {
        fields.take::<Value>(echoed)?;
    }
    let calls: Map<String, Value> = fields.rest();
    if let Some(field) = calls
        .iter()
        .find(|(_, value)| !value.is_null())
        .map(|(field, _)| field)
    {
        let field = format!("{path}.{}", shorten(field));
        let message = format!("`{field}` is not supported");
        return Err(ApiError::bad(field, message).with_code("unsupported"));
    }
    Ok(Message { role, content })
}

fn content_part(
    path: String,
    value: Value,
    images: &mut Vec<ImageUrl>,
) -> Result<ContentPart, ApiError> {
    let Value::Object(map) = value else {
        let message = format!("`{path}` must be an object");
        return Err(ApiError::bad(path, message));
    };
    let mut fields = Fields::new(map, format!("{path}."));
    let part = match fields.require::<String>("type")?.as_str() {
        "text" => ContentPart::Text(fields.require("text")?),
        "image_url" => {
            let param = format!("{path}.image_url");
            let url = match fields.require::<Value>("image_url")? {
                Value::String(url) => url,
                Value::Object(map) => {
                    let mut inner = Fields::new(map, format!("{param}."));
                    let url = inner.require("url")?;
                    // The base has one resolution.
                    inner.take::<Value>("detail")?;
                    inner.end()?;
                    url
                }
                _ => {
                    let message = format!("`{param}` must be an object with `url`");
                    return Err(ApiError::bad(param, message));
                }
            };
            images.push(ImageUrl { param, url });
            ContentPart::Image
        }
        other => {
            let message = format!(
                "`{path}` is of type `{}`; text and image_url are read",
                shorten(other)
            );
            return Err(ApiError::bad(path, message).with_code("unsupported"));
        }
    };
    fields.end()?;
    Ok(part)
}
