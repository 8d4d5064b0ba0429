//! A JSON object from a client, taken apart field by field.
//!
//! In: bytes. Out: typed values, or a refusal that names the field. It exists because serde's own errors do
//! not say in which field they arose, and because a field that nobody took must be looked at.

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::error::{ApiError, Kind, shorten};

/// The fields that nobody has taken yet.
#[derive(Debug)]
pub struct Fields {
    map: Map<String, Value>,
    /// What the fields' names are prefixed with in messages: empty, or `stream_options.`.
    path: String,
}

impl Fields {
    /// A request's body.
    pub fn parse(body: &[u8]) -> Result<Self, ApiError> {
        let value: Value = serde_json::from_slice(body).map_err(|error| {
            let (line, column) = (error.line(), error.column());
            let message = format!("the body is not valid JSON, at line {line}, column {column}");
            ApiError::new(Kind::BadRequest, message).with_code("invalid_json")
        })?;
        match value {
            Value::Object(map) => Ok(Self::new(map, "")),
            _ => Err(ApiError::new(
                Kind::BadRequest,
                "the body must be a JSON object",
            )),
        }
    }

    /// The fields of an object that lies at `path`.
    pub fn new(map: Map<String, Value>, path: impl Into<String>) -> Self {
        Self {
            map,
            path: path.into(),
        }
    }

    /// A field's full name.
    pub fn name_of(&self, field: &str) -> String {
        format!("{}{field}", self.path)
    }

    /// Takes a field; absent and null are the same.
    pub fn take<T: DeserializeOwned>(&mut self, field: &str) -> Result<Option<T>, ApiError> {
        match self.map.shift_remove(field) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => match T::deserialize(&value) {
                Ok(value) => Ok(Some(value)),
                Err(error) => {
                    let name = self.name_of(field);
                    let message =
                        format!("`{name}` cannot be read: {}", shorten(&error.to_string()));
                    Err(ApiError::bad(name, message))
                }
            },
        }
    }

    /// Takes a field that must be there.
    pub fn require<T: DeserializeOwned>(&mut self, field: &str) -> Result<T, ApiError> {
        self.take(field)?.ok_or_else(|| {
            let name = self.name_of(field);
            let message = format!("`{name}` is missing");
            ApiError::bad(name, message)
        })
    }

    /// Takes an object.
    pub fn object(&mut self, field: &str) -> Result<Option<Fields>, ApiError> {
        let path = format!("{}{field}.", self.path);
        Ok(self
            .take::<Map<String, Value>>(field)?
            .map(|map| Fields::new(map, path)))
    }

    /// Takes what is left, whatever it is.
    pub fn rest(&mut self) -> Map<String, Value> {
        std::mem::take(&mut self.map)
    }

    /// Refuses what nobody took.
    pub fn end(self) -> Result<(), ApiError> {
        match self.map.keys().next() {
            None => Ok(()),
            Some(field) => {
                let name = self.name_of(&shorten(field));
                let message = format!("`{name}` is not known here");
                Err(ApiError::bad(name, message).with_code("unknown_field"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_name_their_field() {
        let mut fields = Fields::parse(br#"{"a": 1, "b": "x", "c": null, "d": {"e": 2}}"#).unwrap();
        assert_eq!(fields.take::<u32>("a").unwrap(), Some(1));
        let error = fields.take::<u32>("b").unwrap_err().to_json();
        assert_eq!(error["error"]["param"], "b");
        assert_eq!(fields.take::<u32>("c").unwrap(), None);
        assert_eq!(
            fields.require::<u32>("c").unwrap_err().message(),
            "`c` is missing"
        );
        let inner = fields.object("d").unwrap().unwrap();
        assert_eq!(inner.end().unwrap_err().to_json()["error"]["param"], "d.e");
        fields.end().unwrap();
    }

    #[test]
    fn bodies_that_are_no_object_are_refused_by_place_not_by_content() {
        let error = Fields::parse(b"{\"secret\": ").unwrap_err();
        assert_eq!(error.code(), "invalid_json");
        assert!(!error.message().contains("secret"));
        assert!(Fields::parse(b"[]").is_err());
        assert!(Fields::parse(b"").is_err());
    }
}
