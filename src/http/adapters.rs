//! `/v1/adapters`: what a tenant's aliases name, and moving them.
//!
//! In: names, generations and expectations. Out: records. Uploads are in [`super::upload`].

use std::sync::Arc;

use actix_web::http::header::{CONTENT_DISPOSITION, CONTENT_TYPE, ETAG, IF_NONE_MATCH};
use actix_web::web::{Data, Path, Payload, Query, ReqData};
use actix_web::{HttpRequest, HttpResponse};
use norma_adapters::{AliasRecord, Generation, Record};
use serde::Deserialize;
use serde_json::{Value, json};

use super::body;
use super::choice::{parse_expected, parse_generation};
use super::error::{ApiError, Kind, shorten};
use super::exchange::Exchange;
use super::fields::Fields;
use super::publish::check_alias;
use super::service::{Service, blocking};
use super::state::State;

const DEFAULT_PAGE: usize = 100;
const MAX_PAGE: usize = 1000;
/// Bytes of a body that moves an alias.
const MAX_BODY: usize = 64 << 10;

/// Where a page begins and how long it is.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct PageQuery {
    limit: Option<usize>,
    after: Option<String>,
}

/// An adapter as clients see it.
pub fn adapter_json(alias: Option<&str>, record: &Record) -> Value {
    json!({
        "object": "adapter",
        "generation": record.generation,
        "alias": alias,
        "base_digest": record.base_digest,
        "task": record.task,
        "scope": record.scope,
        "sites": record.n_sites,
        "values": record.n_values,
        "bytes": record.bytes,
        "state": record.state,
        "created": record.created,
    })
}

fn alias_json(alias: &AliasRecord) -> Value {
    let mut value = adapter_json(Some(&alias.alias), &alias.record);
    value["moved"] = json!(alias.moved);
    value
}

fn no_alias(alias: &str) -> ApiError {
    let message = format!("there is no alias `{}`", shorten(alias));
    ApiError::new(Kind::NotFound, message)
        .with_param("alias")
        .with_code("alias_not_found")
}

fn page_query(request: &HttpRequest) -> Result<(usize, Option<String>), ApiError> {
    let query = Query::<PageQuery>::from_query(request.query_string())
        .map_err(|_| ApiError::bad("limit", "the query may hold `limit`, a number, and `after`"))?;
    let limit = query.limit.unwrap_or(DEFAULT_PAGE);
    if !(1..=MAX_PAGE).contains(&limit) {
        let message = format!("`limit` is {limit}, it must be 1 to {MAX_PAGE}");
        return Err(ApiError::bad("limit", message));
    }
    Ok((limit, query.into_inner().after))
}

/// `GET /v1/adapters`.
pub async fn list(
    request: HttpRequest,
    state: Data<State>,
    exchange: ReqData<Arc<Exchange>>,
) -> Result<HttpResponse, ApiError> {
    let (service, tenant) = (state.service()?, exchange.tenant());
    let (limit, after) = page_query(&request)?;
    let page =
        blocking(move || Ok(service.registry().list(&tenant, limit, after.as_deref())?)).await?;
    let data: Vec<Value> = page.data.iter().map(alias_json).collect();
    let body = json!({"object": "list", "data": data, "has_more": page.has_more});
    Ok(HttpResponse::Ok().json(body))
}

/// `GET /v1/adapters/{alias}`.
pub async fn get(
    state: Data<State>,
    exchange: ReqData<Arc<Exchange>>,
    alias: Path<String>,
) -> Result<HttpResponse, ApiError> {
    let (service, tenant) = (state.service()?, exchange.tenant());
    let alias = blocking(move || find(&service, &tenant, &alias)).await?;
    Ok(HttpResponse::Ok().json(alias_json(&alias)))
}

/// `GET /v1/adapters/{alias}/generations`: what it has named, the latest first.
pub async fn generations(
    request: HttpRequest,
    state: Data<State>,
    exchange: ReqData<Arc<Exchange>>,
    alias: Path<String>,
) -> Result<HttpResponse, ApiError> {
    let (service, tenant) = (state.service()?, exchange.tenant());
    let (limit, after) = page_query(&request)?;
    let after = after.map(|after| after.parse::<u64>()).transpose();
    let after =
        after.map_err(|_| ApiError::bad("after", "`after` must be an `id` of this list"))?;
    let page = blocking(move || {
        let page = service
            .registry()
            .generations(&tenant, &alias, limit, after)?;
        if page.data.is_empty() && after.is_none() {
            return Err(no_alias(&alias));
        }
        Ok(page)
    })
    .await?;
    let data: Vec<Value> = page
        .data
        .iter()
        .map(|step| json!({"id": step.id, "generation": step.generation, "moved": step.moved}))
        .collect();
    let body = json!({"object": "list", "data": data, "has_more": page.has_more});
    Ok(HttpResponse::Ok().json(body))
}

/// `GET /v1/adapters/{alias}/download`: the stored bytes.
pub async fn download(
    request: HttpRequest,
    state: Data<State>,
    exchange: ReqData<Arc<Exchange>>,
    alias: Path<String>,
) -> Result<HttpResponse, ApiError> {
    let (service, tenant) = (state.service()?, exchange.tenant());
    let name = alias.clone();
    let (held, bytes) = blocking(move || {
        let generation = find(&service, &tenant, &alias)?.record.generation;
        Ok((
            generation,
            service.registry().open_blob(&tenant, &generation)?,
        ))
    })
    .await?;
    let tag = format!("\"{held}\"");
    let mut response = HttpResponse::Ok();
    let asked = request
        .headers()
        .get(IF_NONE_MATCH)
        .and_then(|value| value.to_str().ok());
    if asked.is_some_and(|tags| tags.split(',').any(|other| other.trim() == tag)) {
        return Ok(HttpResponse::NotModified()
            .insert_header((ETAG, tag))
            .finish());
    }
    response.insert_header((ETAG, tag));
    response.insert_header((CONTENT_TYPE, "application/octet-stream"));
    let disposition = format!("attachment; filename=\"{name}.safetensors\"");
    response.insert_header((CONTENT_DISPOSITION, disposition));
    Ok(response.body(bytes))
}

/// `PUT /v1/adapters/{alias}`: publishes a generation under it, or rolls back.
pub async fn put(
    state: Data<State>,
    exchange: ReqData<Arc<Exchange>>,
    alias: Path<String>,
    payload: Payload,
) -> Result<HttpResponse, ApiError> {
    let (service, tenant) = (state.service()?, exchange.tenant());
    let mut fields = Fields::parse(&body::read(payload, MAX_BODY).await?)?;
    let generation = parse_generation("generation", &fields.require::<String>("generation")?)?;
    let expected = fields.take::<String>("expected_generation")?;
    let expected = parse_expected(expected.as_deref())?;
    fields.end()?;
    let moved = blocking(move || {
        check_alias(&service, &alias)?;
        let registry = service.registry();
        let previous: Option<Generation> =
            registry.put_alias(&tenant, &alias, &generation, expected)?;
        let mut body = registry
            .record(&tenant, &generation)?
            .map_or(Value::Null, |record| adapter_json(Some(&alias), &record));
        body["previous_generation"] = json!(previous);
        Ok(body)
    })
    .await?;
    Ok(HttpResponse::Ok().json(moved))
}

/// `DELETE /v1/adapters/{alias}`. Requests that run keep their generation.
pub async fn delete(
    state: Data<State>,
    exchange: ReqData<Arc<Exchange>>,
    alias: Path<String>,
) -> Result<HttpResponse, ApiError> {
    let (service, tenant) = (state.service()?, exchange.tenant());
    let name = alias.clone();
    let deleted = blocking(move || {
        service
            .registry()
            .delete_alias(&tenant, &alias)?
            .ok_or_else(|| no_alias(&alias))
    })
    .await?;
    let body = json!({
        "id": name, "object": "adapter", "deleted": true, "generation": deleted,
    });
    Ok(HttpResponse::Ok().json(body))
}

/// An alias of a tenant with its record. Blocks.
fn find(service: &Service, tenant: &str, alias: &str) -> Result<AliasRecord, ApiError> {
    service
        .registry()
        .alias(tenant, alias)?
        .ok_or_else(|| no_alias(alias))
}
