//! Which adapter a request means.
//!
//! In: `model`, `adapter` and `adapter_generation` as a client gives them. Out: one generation, or the base,
//! or a refusal. Nothing falls back to the base: a name that is not there is an error.

use norma_adapters::{Expected, Generation, Registry};

use super::error::{ApiError, Kind, shorten};
use super::fields::Fields;

/// What a client asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelChoice {
    /// An alias, the base's name, or `base:alias`.
    pub model: String,
    /// An alias, beside the base's name in `model`.
    pub adapter: Option<String>,
    /// A generation: the alias must name it; without an alias it is used as it is.
    pub generation: Option<Generation>,
}

/// What it means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pinned {
    /// The name to give back: the alias, or the base's.
    pub model: String,
    /// The generation; `None` is the base itself.
    pub generation: Option<Generation>,
    /// Whether the registry has said that the tenant owns the generation: aliases do.
    pub owned: bool,
}

impl ModelChoice {
    /// Takes the fields of a request.
    pub fn take(fields: &mut Fields) -> Result<Self, ApiError> {
        let model: String = fields.require("model")?;
        let adapter = fields.take("adapter")?;
        let generation = fields.take::<String>("adapter_generation")?;
        let generation = generation
            .map(|text| parse_generation("adapter_generation", &text))
            .transpose()?;
        Ok(Self {
            model,
            adapter,
            generation,
        })
    }

    /// Looks the names up among a tenant's aliases.
    pub fn pin(&self, base: &str, tenant: &str, registry: &Registry) -> Result<Pinned, ApiError> {
        let Some(alias) = self.alias(base)? else {
            let (model, generation) = (base.to_owned(), self.generation);
            return Ok(Pinned {
                model,
                generation,
                owned: false,
            });
        };
        let present = registry
            .resolve(tenant, alias)
            .ok_or_else(|| ApiError::unknown_model(alias))?;
        if self.generation.is_some_and(|wanted| wanted != present) {
            let message = format!("`{}` names {present} now", shorten(alias));
            return Err(ApiError::new(Kind::Conflict, message)
                .with_param("adapter_generation")
                .with_present(Some(present)));
        }
        Ok(Pinned {
            model: alias.to_owned(),
            generation: Some(present),
            owned: true,
        })
    }

    /// The alias that is meant, if any.
    fn alias(&self, base: &str) -> Result<Option<&str>, ApiError> {
        let named = if self.model == base {
            None
        } else {
            let rest = self
                .model
                .strip_prefix(base)
                .and_then(|rest| rest.strip_prefix(':'));
            Some(rest.unwrap_or(&self.model))
        };
        match (named, self.adapter.as_deref()) {
            (Some(named), Some(adapter)) if named != adapter => {
                let message = "`model` and `adapter` name two adapters";
                Err(ApiError::bad("adapter", message))
            }
            (named, adapter) => Ok(named.or(adapter)),
        }
    }
}

/// A generation out of a field.
pub fn parse_generation(field: &str, text: &str) -> Result<Generation, ApiError> {
    text.parse().map_err(|_| {
        ApiError::bad(
            field,
            format!("`{field}` must be `sha256:` and 64 lower-case hex digits"),
        )
    })
}

/// What `expected_generation` asks for: absent is anything, empty is nothing.
pub fn parse_expected(text: Option<&str>) -> Result<Expected, ApiError> {
    match text {
        None => Ok(Expected::Any),
        Some("") => Ok(Expected::Absent),
        Some(text) => parse_generation("expected_generation", text).map(Expected::Is),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn choice(model: &str, adapter: Option<&str>) -> ModelChoice {
        ModelChoice {
            model: model.into(),
            adapter: adapter.map(str::to_owned),
            generation: None,
        }
    }

    #[test]
    fn three_spellings_mean_an_alias_and_one_the_base() {
        for (model, adapter, want) in [
            ("base", None, None),
            ("chest", None, Some("chest")),
            ("base:chest", None, Some("chest")),
            ("base", Some("chest"), Some("chest")),
            ("base:chest", Some("chest"), Some("chest")),
            ("base:", None, Some("")),
            ("basement", None, Some("basement")),
        ] {
            assert_eq!(
                choice(model, adapter).alias("base").unwrap(),
                want,
                "{model} {adapter:?}"
            );
        }
        assert!(choice("chest", Some("hand")).alias("base").is_err());
    }

    #[test]
    fn expectations_are_anything_nothing_or_one() {
        assert_eq!(parse_expected(None).unwrap(), Expected::Any);
        assert_eq!(parse_expected(Some("")).unwrap(), Expected::Absent);
        let generation = Generation::of(b"x");
        let text = generation.to_string();
        assert_eq!(
            parse_expected(Some(&text)).unwrap(),
            Expected::Is(generation)
        );
        assert!(parse_expected(Some("sha256:xyz")).is_err());
    }
}
