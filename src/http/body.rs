//! Bodies of requests, read within limits of size and time.
//!
//! In: a payload. Out: its bytes, or the fields and files of a form, or 4xx. What a form's file goes to is
//! its reader's business.

use std::time::Duration;

use actix_multipart::{Field, Multipart, MultipartError};
use actix_web::HttpRequest;
use actix_web::http::header::CONTENT_TYPE;
use actix_web::web::{Bytes, BytesMut, Payload};
use futures_util::StreamExt;

use super::error::{ApiError, Kind, shorten};

/// A client that sends nothing for so long is gone.
const IDLE: Duration = Duration::from_secs(30);
/// The text of one form field.
const MAX_TEXT: usize = 64 << 10;
/// Fields of a form.
pub const MAX_FIELDS: usize = 64;

/// Reads a whole body.
pub async fn read(mut payload: Payload, limit: usize) -> Result<Bytes, ApiError> {
    let mut body = BytesMut::new();
    while let Some(chunk) = next(&mut payload).await? {
        let chunk = chunk.map_err(|_| incomplete())?;
        if body.len() + chunk.len() > limit {
            discard(payload, limit).await;
            let message = format!("the body has more than the {limit} bytes allowed");
            return Err(ApiError::new(Kind::TooLarge, message));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body.freeze())
}

/// Reads on for a while, so that a client that is still sending gets to see the answer.
pub async fn discard<S, E>(mut payload: S, limit: usize)
where
    S: StreamExt<Item = Result<Bytes, E>> + Unpin,
{
    let mut seen = 0;
    while seen < limit {
        match next(&mut payload).await {
            Ok(Some(Ok(chunk))) => seen += chunk.len(),
            _ => return,
        }
    }
}

/// The next piece of a stream, unless the client has fallen silent.
pub async fn next<S: StreamExt + Unpin>(stream: &mut S) -> Result<Option<S::Item>, ApiError> {
    tokio::time::timeout(IDLE, stream.next())
        .await
        .map_err(|_| {
            let message = format!("no data came for {} seconds", IDLE.as_secs());
            ApiError::new(Kind::BadRequest, message).with_code("incomplete_body")
        })
}

/// Whether a body says that it is a form.
pub fn is_form(request: &HttpRequest) -> bool {
    let media = request
        .headers()
        .get(CONTENT_TYPE)
        .and_then(|value| value.to_str().ok());
    media.is_some_and(|media| {
        media
            .get(..19)
            .is_some_and(|start| start.eq_ignore_ascii_case("multipart/form-data"))
    })
}

/// The next field of a form, with its name.
pub async fn next_field(form: &mut Multipart) -> Result<Option<(String, Field)>, ApiError> {
    let Some(field) = next(form).await? else {
        return Ok(None);
    };
    let field = field.map_err(|error| form_error(&error))?;
    let name = field.name().unwrap_or_default().to_owned();
    Ok(Some((name, field)))
}

/// A field's text.
pub async fn text(name: &str, field: &mut Field) -> Result<String, ApiError> {
    let bytes = bytes(name, field, MAX_TEXT).await?;
    String::from_utf8(bytes).map_err(|_| ApiError::bad(name, format!("`{name}` is not UTF-8 text")))
}

/// A field's bytes.
pub async fn bytes(name: &str, field: &mut Field, limit: usize) -> Result<Vec<u8>, ApiError> {
    let mut bytes = Vec::new();
    while let Some(chunk) = next(field).await? {
        let chunk = chunk.map_err(|error| form_error(&error))?;
        if bytes.len() + chunk.len() > limit {
            let message = format!("`{name}` has more than the {limit} bytes allowed");
            return Err(ApiError::new(Kind::TooLarge, message).with_param(name));
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes)
}

/// A field that a form must not have.
pub fn unknown_field(name: &str) -> ApiError {
    let name = shorten(name);
    let message = format!("the form's field `{name}` is not known here");
    ApiError::bad(name, message).with_code("unknown_field")
}

/// A field that stands in a form twice.
pub fn repeated_field(name: &str) -> ApiError {
    ApiError::bad(name, format!("the form has the field `{name}` twice"))
}

/// What is wrong with a form, in our words: the library's hold no more.
pub fn form_error(error: &MultipartError) -> ApiError {
    let message = match error {
        MultipartError::ContentTypeMissing
        | MultipartError::ContentTypeParse
        | MultipartError::ContentTypeIncompatible => "the body must be `multipart/form-data`",
        MultipartError::BoundaryMissing => "the form's content type names no boundary",
        MultipartError::ContentDispositionMissing
        | MultipartError::ContentDispositionNameMissing => "a field of the form has no name",
        MultipartError::Nested => "a form inside a form is not read",
        MultipartError::Incomplete | MultipartError::Payload(_) => {
            "the form ends before its last boundary"
        }
        _ => "the form is malformed",
    };
    ApiError::new(Kind::BadRequest, message).with_code("invalid_form")
}

fn incomplete() -> ApiError {
    let message = "the body ends before its announced length";
    ApiError::new(Kind::BadRequest, message).with_code("incomplete_body")
}
