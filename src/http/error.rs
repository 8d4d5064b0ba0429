//! What a client hears when a request cannot be served.
//!
//! In: a kind, a message, a field. Out: a status and `{"error": {message, type, param, code}}`. A
//! message names the field and the limit, never a path, another tenant or what the client sent. What only
//! the operator should know goes to the log.

use std::fmt;

use actix_web::http::StatusCode;
use actix_web::http::header::{ALLOW, CONNECTION, RETRY_AFTER, WWW_AUTHENTICATE};
use actix_web::{HttpResponse, ResponseError};
use norma_adapters::Generation;
use serde_json::json;

/// What kind of failure it is; decides the status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Malformed, or asks for what cannot be.
    BadRequest,
    /// No key, or an unknown one.
    Unauthorized,
    /// The key lacks a role.
    Forbidden,
    /// No such thing, for this tenant.
    NotFound,
    /// The path exists, the method does not.
    MethodNotAllowed,
    /// The alias names another generation than expected.
    Conflict,
    /// More bytes than allowed.
    TooLarge,
    /// The adapter does not fit the base.
    Unprocessable,
    /// The queue is full.
    TooMany,
    /// Our fault.
    Internal,
    /// Loading or draining.
    Unavailable,
    /// The deadline passed.
    Timeout,
}

impl Kind {
    /// The HTTP status.
    pub fn status(self) -> StatusCode {
        match self {
            Self::BadRequest => StatusCode::BAD_REQUEST,
            Self::Unauthorized => StatusCode::UNAUTHORIZED,
            Self::Forbidden => StatusCode::FORBIDDEN,
            Self::NotFound => StatusCode::NOT_FOUND,
            Self::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Self::Conflict => StatusCode::CONFLICT,
            Self::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Unprocessable => StatusCode::UNPROCESSABLE_ENTITY,
            Self::TooMany => StatusCode::TOO_MANY_REQUESTS,
            Self::Internal => StatusCode::INTERNAL_SERVER_ERROR,
            Self::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
            Self::Timeout => StatusCode::GATEWAY_TIMEOUT,
        }
    }

    fn type_name(self) -> &'static str {
        match self {
            Self::BadRequest | Self::MethodNotAllowed | Self::TooLarge => "invalid_request_error",
            Self::Unauthorized => "authentication_error",
            Self::Forbidden => "permission_error",
            Self::NotFound => "not_found_error",
            Self::Conflict => "conflict_error",
            Self::Unprocessable => "invalid_adapter_error",
            Self::TooMany => "rate_limit_error",
            Self::Internal => "server_error",
            Self::Unavailable => "unavailable_error",
            Self::Timeout => "timeout_error",
        }
    }

    fn default_code(self) -> &'static str {
        match self {
            Self::BadRequest => "invalid_request",
            Self::Unauthorized => "invalid_api_key",
            Self::Forbidden => "missing_role",
            Self::NotFound => "not_found",
            Self::MethodNotAllowed => "method_not_allowed",
            Self::Conflict => "generation_mismatch",
            Self::TooLarge => "too_large",
            Self::Unprocessable => "adapter_refused",
            Self::TooMany => "queue_full",
            Self::Internal => "internal",
            Self::Unavailable => "unavailable",
            Self::Timeout => "deadline_exceeded",
        }
    }
}

/// A refusal or failure, ready to be sent.
#[derive(Clone, Debug)]
pub struct ApiError {
    kind: Kind,
    message: String,
    param: Option<String>,
    code: &'static str,
    detail: Option<Box<Detail>>,
}

/// What few errors have.
#[derive(Clone, Debug)]
enum Detail {
    /// What the alias names, where that was not what the client expected.
    Present(Option<Generation>),
    /// What a path does answer to.
    Allow(String),
}

impl ApiError {
    /// A failure of a kind, with the kind's own code.
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        let (message, code) = (message.into(), kind.default_code());
        Self {
            kind,
            message,
            param: None,
            code,
            detail: None,
        }
    }

    /// A malformed request; `param` is the field at fault.
    pub fn bad(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self::new(Kind::BadRequest, message).with_param(param)
    }

    /// A fault of the server: the client learns that there was one, the log what it was.
    pub fn internal(error: &dyn std::error::Error) -> Self {
        tracing::error!(error = %Causes(error), "internal error");
        Self::new(
            Kind::Internal,
            "the server failed; the operator's log says how",
        )
    }

    /// An unknown model name.
    pub fn unknown_model(name: &str) -> Self {
        let message = format!("the model `{}` does not exist", shorten(name));
        Self::new(Kind::NotFound, message)
            .with_param("model")
            .with_code("model_not_found")
    }

    /// A method that a path does not have.
    pub fn method(allow: String) -> Self {
        let message = format!("this path answers to {allow}");
        let detail = Some(Box::new(Detail::Allow(allow)));
        Self {
            detail,
            ..Self::new(Kind::MethodNotAllowed, message)
        }
    }

    /// Names the field at fault.
    #[must_use]
    pub fn with_param(mut self, param: impl Into<String>) -> Self {
        self.param = Some(param.into());
        self
    }

    /// Replaces the kind's own code.
    #[must_use]
    pub fn with_code(mut self, code: &'static str) -> Self {
        self.code = code;
        self
    }

    /// Adds what the alias names at present.
    #[must_use]
    pub fn with_present(mut self, present: Option<Generation>) -> Self {
        self.detail = Some(Box::new(Detail::Present(present)));
        self
    }

    /// What kind of failure it is.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// A word for programs and counters.
    pub fn code(&self) -> &'static str {
        self.code
    }

    /// The text for people.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// The body.
    pub fn to_json(&self) -> serde_json::Value {
        let mut error = json!({
            "message": self.message,
            "type": self.kind.type_name(),
            "param": self.param,
            "code": self.code,
        });
        if let Some(Detail::Present(present)) = self.detail.as_deref() {
            error["present_generation"] = json!(present);
        }
        json!({ "error": error })
    }
}

impl fmt::Display for ApiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for ApiError {}

impl ResponseError for ApiError {
    fn status_code(&self) -> StatusCode {
        self.kind.status()
    }

    fn error_response(&self) -> HttpResponse {
        let mut response = HttpResponse::build(self.kind.status());
        match self.kind {
            Kind::Unauthorized => {
                response.insert_header((WWW_AUTHENTICATE, "Bearer"));
            }
            Kind::TooMany => {
                response.insert_header((RETRY_AFTER, "1"));
            }
            Kind::Unavailable => {
                response
                    .insert_header((RETRY_AFTER, "5"))
                    .insert_header((CONNECTION, "close"));
            }
            _ => {}
        }
        if let Some(Detail::Allow(allow)) = self.detail.as_deref() {
            response.insert_header((ALLOW, allow.as_str()));
        }
        response.json(self.to_json())
    }
}

/// An error with all its causes on one line.
pub struct Causes<'a>(pub &'a dyn std::error::Error);

impl fmt::Display for Causes<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let mut source = self.0.source();
        while let Some(error) = source {
            write!(f, ": {error}")?;
            source = error.source();
        }
        Ok(())
    }
}

/// Foreign text in a message: enough to recognise it.
pub fn shorten(text: &str) -> String {
    const LONGEST: usize = 128;
    if text.chars().count() <= LONGEST {
        return text.to_owned();
    }
    text.chars().take(LONGEST).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::SubmitError;
    use norma_adapters::StoreError;

    #[test]
    fn bodies_have_the_four_fields_and_the_status_of_their_kind() {
        let error = ApiError::bad("temperature", "too hot");
        assert_eq!(error.status_code(), 400);
        let want = json!({"error": {
            "message": "too hot", "type": "invalid_request_error",
            "param": "temperature", "code": "invalid_request",
        }});
        assert_eq!(error.to_json(), want);
        let full: ApiError = SubmitError::QueueFull { limit: 3 }.into();
        let response = full.error_response();
        assert_eq!(response.status(), 429);
        assert!(response.headers().contains_key(RETRY_AFTER));
    }

    #[test]
    fn server_faults_do_not_tell_their_cause() {
        let source = std::io::Error::other("/secret/path");
        let error: ApiError = StoreError::Io {
            action: "write",
            source,
        }
        .into();
        assert_eq!(error.status_code(), 500);
        assert!(!error.to_json().to_string().contains("secret"));
    }
}
