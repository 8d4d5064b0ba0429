//! The errors of the parts below, as what a client hears.
//!
//! In: each part's own error. Out: an [`ApiError`] that names the field, or that hides a fault of the
//! server. No case is left to a wildcard, so that a new one is thought about.

use norma_adapters::{AdapterError, RegistryError, StoreError};

use super::error::{ApiError, Kind};
use crate::engine::{InvalidRequest, RequestError, SubmitError};
use crate::preprocess::{ImageError, PreprocessError, PromptError};

impl From<SubmitError> for ApiError {
    fn from(error: SubmitError) -> Self {
        let message = error.to_string();
        match error {
            SubmitError::QueueFull { .. } => ApiError::new(Kind::TooMany, message),
            SubmitError::TooLong { .. } => {
                ApiError::bad("messages", message).with_code("context_length_exceeded")
            }
            SubmitError::ShuttingDown => ApiError::new(Kind::Unavailable, message),
            SubmitError::Invalid(error) => error.into(),
        }
    }
}

impl From<InvalidRequest> for ApiError {
    fn from(error: InvalidRequest) -> Self {
        ApiError::bad(error.field(), error.to_string())
    }
}

impl From<RequestError> for ApiError {
    fn from(error: RequestError) -> Self {
        match error {
            RequestError::Stopped => ApiError::new(Kind::Unavailable, error.to_string()),
            RequestError::Model { .. }
            | RequestError::Logits
            | RequestError::Text { .. }
            | RequestError::Panicked => ApiError::internal(&error),
        }
    }
}

impl From<PromptError> for ApiError {
    fn from(error: PromptError) -> Self {
        if error.is_request() {
            ApiError::bad("messages", error.to_string())
        } else {
            ApiError::internal(&error)
        }
    }
}

impl From<PreprocessError> for ApiError {
    fn from(error: PreprocessError) -> Self {
        ApiError::internal(&error)
    }
}

impl From<ImageError> for ApiError {
    fn from(error: ImageError) -> Self {
        let kind = match &error {
            ImageError::TooManyBytes { .. }
            | ImageError::SideTooLong { .. }
            | ImageError::TooManyPixels { .. } => Kind::TooLarge,
            ImageError::Empty
            | ImageError::Format { .. }
            | ImageError::NoPixels { .. }
            | ImageError::Truncated { .. }
            | ImageError::Unsupported { .. }
            | ImageError::Corrupt { .. } => Kind::BadRequest,
        };
        let code = if kind == Kind::TooLarge {
            "image_too_large"
        } else {
            "invalid_image"
        };
        ApiError::new(kind, error.to_string()).with_code(code)
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        match &error {
            StoreError::TooLarge { .. } => {
                ApiError::new(Kind::TooLarge, error.to_string()).with_param("file")
            }
            StoreError::Io { .. }
            | StoreError::Gone { .. }
            | StoreError::Damaged { .. }
            | StoreError::Locked => ApiError::internal(&error),
        }
    }
}

impl From<RegistryError> for ApiError {
    fn from(error: RegistryError) -> Self {
        let message = error.to_string();
        match error {
            RegistryError::Name { field } => ApiError::bad(field, message),
            RegistryError::AliasConflict { present, .. } => ApiError::new(Kind::Conflict, message)
                .with_param("alias")
                .with_present(present),
            RegistryError::UnknownGeneration { .. } => ApiError::new(Kind::NotFound, message)
                .with_param("generation")
                .with_code("generation_not_found"),
            RegistryError::OtherBase { .. } => ApiError::new(Kind::Unprocessable, message)
                .with_param("generation")
                .with_code("base"),
            RegistryError::Store(error) => error.into(),
            RegistryError::NotTheUpload { .. }
            | RegistryError::Database(_)
            | RegistryError::Version { .. } => ApiError::internal(&error),
        }
    }
}

impl From<AdapterError> for ApiError {
    fn from(error: AdapterError) -> Self {
        let refused = ApiError::new(Kind::Unprocessable, error.to_string());
        refused.with_param("file").with_code(error.reason())
    }
}
