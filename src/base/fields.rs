//! Reading a configuration field by field, so that an error can name the file and the field.

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::error::BaseError;

/// A JSON object of a configuration file.
#[derive(Clone, Copy, Debug)]
pub struct Fields<'a> {
    file: &'a str,
    prefix: &'a str,
    object: &'a Map<String, Value>,
}

impl<'a> Fields<'a> {
    /// The top level of a file.
    pub fn root(file: &'a str, value: &'a Value) -> Result<Self, BaseError> {
        match value {
            Value::Object(object) => Ok(Self {
                file,
                prefix: "",
                object,
            }),
            _ => Err(BaseError::Field {
                file: file.into(),
                field: "(whole file)".into(),
                problem: "is not an object".into(),
            }),
        }
    }

    /// A nested object; `None` if it is absent or null.
    pub fn object(&self, field: &'a str) -> Result<Option<Fields<'a>>, BaseError> {
        match self.object.get(field) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::Object(object)) => Ok(Some(Fields {
                file: self.file,
                prefix: field,
                object,
            })),
            Some(_) => Err(self.error(field, "is not an object")),
        }
    }

    /// Whether the field stands in the file, be it null.
    pub fn has(&self, field: &str) -> bool {
        self.object.contains_key(field)
    }

    /// The field's value; `None` if it is absent or null.
    pub fn optional<T: DeserializeOwned>(&self, field: &str) -> Result<Option<T>, BaseError> {
        match self.object.get(field) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => serde_json::from_value(value.clone())
                .map(Some)
                .map_err(|error| {
                    self.error(field, &format!("has a value of another kind ({error})"))
                }),
        }
    }

    /// The field's value, or `default` if it is absent or null.
    pub fn or<T: DeserializeOwned>(&self, field: &str, default: T) -> Result<T, BaseError> {
        Ok(self.optional(field)?.unwrap_or(default))
    }

    /// The field's value, which must be there.
    pub fn required<T: DeserializeOwned>(&self, field: &str) -> Result<T, BaseError> {
        self.optional(field)?
            .ok_or_else(|| self.error(field, "is missing"))
    }

    /// A size: positive, and small enough that products of sizes cannot overflow.
    pub fn size(&self, field: &str, default: Option<usize>) -> Result<usize, BaseError> {
        const LIMIT: usize = 1 << 24;
        let size = match default {
            Some(default) => self.or(field, default)?,
            None => self.required(field)?,
        };
        if (1..=LIMIT).contains(&size) {
            Ok(size)
        } else {
            Err(self.error(field, &format!("is {size}, must be 1 to {LIMIT}")))
        }
    }

    /// An error about one of these fields.
    pub fn error(&self, field: &str, problem: &str) -> BaseError {
        let dot = if self.prefix.is_empty() { "" } else { "." };
        BaseError::Field {
            file: self.file.into(),
            field: format!("{}{dot}{field}", self.prefix),
            problem: problem.into(),
        }
    }
}
