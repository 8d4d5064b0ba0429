//! An upload becomes an adapter that may be served.
//!
//! In: the bytes of an upload, on disk. Out: a record, and an alias that names it, or a refusal that names
//! the site, field or self-test step at fault. The order is the promise: read and check, replay the
//! self-test through the engine, store and record, and move the alias last. All of it blocks; the engine
//! answers the self-test as one request among the others.

use std::sync::Arc;
use std::time::{Duration, Instant};

use norma_adapters::{Adapter, Added, Expected, IncomingFile, Record, format};

use super::error::{ApiError, Kind};
use super::keys::is_name;
use super::self_test::{self, Step};
use super::service::Service;
use crate::engine::{Event, FinishReason, Priority, Request, RequestAdapter, RequestError};
use crate::preprocess::{ContentPart, Message, PromptToken};
use crate::probe;

/// How long a self-test may take, queue included.
const SELF_TEST_TIMEOUT: Duration = Duration::from_secs(300);

/// What an upload asks for beside being stored.
#[derive(Clone, Debug)]
pub struct Publication {
    /// The alias to move.
    pub alias: Option<String>,
    /// What it must name at that moment.
    pub expected: Expected,
}

/// A finished upload.
#[derive(Debug)]
pub struct Published {
    /// The tenant's record of it.
    pub record: Record,
    /// Whether this tenant had it before.
    pub added: Added,
}

/// Checks a new alias of a tenant: it must not hide behind the base's name.
pub fn check_alias(service: &Service, alias: &str) -> Result<(), ApiError> {
    if !is_name(alias) {
        let message =
            "`alias` must be 1 to 64 characters of A-Z a-z 0-9 `.` `_` `-` and not begin with `.`";
        return Err(ApiError::bad("alias", message));
    }
    if alias == service.name() {
        let message = "`alias` must not be the base's own name";
        return Err(ApiError::bad("alias", message));
    }
    Ok(())
}

/// See the module. Refusals are counted by the caller, by [`ApiError::code`].
pub fn publish(
    service: &Service,
    tenant: &Arc<str>,
    mut incoming: IncomingFile,
    publication: &Publication,
) -> Result<Published, ApiError> {
    let bytes = incoming.read()?;
    let adapter = format::read(
        &bytes,
        service.table(),
        service.base_row(),
        &service.digest(),
    )?;
    drop(bytes);
    if let Some(alias) = &publication.alias {
        check_alias(service, alias)?;
        check_expected(service, tenant, alias, publication.expected)?;
    }
    replay(service, tenant, &adapter)?;
    let registry = service.registry();
    let added = registry.add(tenant, incoming, &adapter)?;
    service.remember(&adapter, publication.alias.as_deref());
    if let Some(alias) = &publication.alias {
        registry.put_alias(tenant, alias, &adapter.generation, publication.expected)?;
    }
    let record = registry
        .record(tenant, &adapter.generation)?
        .ok_or_else(|| {
            ApiError::new(
                Kind::Internal,
                "the adapter was recorded and its record is gone",
            )
        })?;
    Ok(Published { record, added })
}

/// Finds out early what would be refused late; the registry decides when the alias is moved.
fn check_expected(
    service: &Service,
    tenant: &str,
    alias: &str,
    expected: Expected,
) -> Result<(), ApiError> {
    let present = service
        .registry()
        .alias(tenant, alias)?
        .map(|alias| alias.record.generation);
    let fits = match expected {
        Expected::Any => true,
        Expected::Absent => present.is_none(),
        Expected::Is(generation) => present == Some(generation),
    };
    if fits {
        return Ok(());
    }
    let message = format!(
        "alias `{alias}` is not at the expected generation: it names {}",
        present.map_or_else(|| "nothing".to_owned(), |present| present.to_string())
    );
    Err(ApiError::new(Kind::Conflict, message)
        .with_param("alias")
        .with_present(present))
}

/// Asks the adapter its own self-test. Blocks.
pub fn replay(service: &Service, tenant: &Arc<str>, adapter: &Adapter) -> Result<(), ApiError> {
    let test = &adapter.manifest.self_test;
    let inputs = service.inputs();
    let content = vec![ContentPart::Image, ContentPart::Text(test.prompt.clone())];
    let prompt = inputs
        .prompt(&[Message::user(content)])
        .map_err(|error| match error.kind() {
            Kind::BadRequest => refuse(format!(
                "manifest field `self_test.prompt`: {}",
                error.message()
            )),
            _ => error,
        })?;
    let mut request = Request {
        adapter: Some(RequestAdapter {
            generation: adapter.generation,
            values: adapter.values.clone(),
        }),
        images: vec![inputs.image_of(&probe::image(test.seed, test.size))?],
        top_logits: self_test::top_logits(test),
        deadline: Some(Instant::now() + SELF_TEST_TIMEOUT),
        priority: Priority::Background,
        ..Request::new(Arc::clone(tenant), prompt, test.tokens.len())
    };
    // Where the answers part for no fault, the rest is asked again behind the expected tokens.
    let mut settled = 0;
    while settled < test.tokens.len() {
        let steps = answer(service, request.clone(), settled)?;
        let now = self_test::compare(test, settled, &steps, service.weights())
            .map_err(|mismatch| refuse(mismatch.to_string()))?;
        let expected = test.tokens[settled..now].iter();
        request
            .prompt
            .extend(expected.map(|token| PromptToken::Text(*token)));
        settled = now;
        request.max_tokens = test.tokens.len() - settled;
    }
    Ok(())
}

fn refuse(message: String) -> ApiError {
    ApiError::new(Kind::Unprocessable, message)
        .with_param("file")
        .with_code("self_test")
}

/// Asks the engine, and waits. `first`: the self-test's step that the answer begins with.
fn answer(service: &Service, request: Request, first: usize) -> Result<Vec<Step>, ApiError> {
    let n_steps = request.max_tokens;
    let mut answer = service.engine().submit(request).map_err(|error| {
        let error = ApiError::from(error);
        if error.kind() == Kind::BadRequest {
            refuse(error.message().to_owned())
        } else {
            error
        }
    })?;
    let mut steps = Vec::with_capacity(n_steps);
    while let Some(event) = answer.blocking_recv() {
        match event {
            Event::Token(token) => {
                let top = token.top.iter().map(|top| (top.token, top.logit)).collect();
                steps.push(Step {
                    token: token.token,
                    top,
                });
            }
            Event::Finished(finished) if finished.reason == FinishReason::Deadline => {
                return Err(ApiError::new(Kind::Timeout, "the self-test took too long"));
            }
            Event::Finished(_) => {}
            Event::Failed(error @ RequestError::Logits) => {
                let step = first + steps.len();
                return Err(refuse(format!("self-test step {step}: {error}")));
            }
            Event::Failed(error) => return Err(error.into()),
        }
    }
    Ok(steps)
}
