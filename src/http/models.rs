//! `GET /v1/models`: the base, and the caller's own aliases.

use std::sync::Arc;

use actix_web::HttpResponse;
use actix_web::web::{Data, Path, ReqData};
use norma_adapters::{AliasRecord, State as AdapterState};
use serde_json::{Value, json};

use super::choice::ModelChoice;
use super::error::ApiError;
use super::exchange::Exchange;
use super::service::{Service, blocking};
use super::state::State;

/// Aliases read from the registry at a time.
const PAGE: usize = 1000;

/// The handler of the list.
pub async fn list(
    state: Data<State>,
    exchange: ReqData<Arc<Exchange>>,
) -> Result<HttpResponse, ApiError> {
    let (service, tenant) = (state.service()?, exchange.tenant());
    let data = blocking(move || {
        let mut data = vec![base_card(&service)];
        let mut after: Option<String> = None;
        loop {
            let page = service.registry().list(&tenant, PAGE, after.as_deref())?;
            after = page.data.last().map(|alias| alias.alias.clone());
            data.extend(
                page.data
                    .iter()
                    .filter(|alias| alias.record.state == AdapterState::Ready)
                    .map(|alias| adapter_card(&service, &tenant, alias)),
            );
            if !page.has_more {
                return Ok(data);
            }
        }
    })
    .await?;
    Ok(HttpResponse::Ok().json(json!({"object": "list", "data": data})))
}

/// The handler of one model, by any of the names that a request may use.
pub async fn get(
    state: Data<State>,
    exchange: ReqData<Arc<Exchange>>,
    id: Path<String>,
) -> Result<HttpResponse, ApiError> {
    let (service, tenant) = (state.service()?, exchange.tenant());
    let choice = ModelChoice {
        model: id.into_inner(),
        adapter: None,
        generation: None,
    };
    let pinned = choice.pin(service.name(), &tenant, service.registry())?;
    if pinned.generation.is_none() {
        return Ok(HttpResponse::Ok().json(base_card(&service)));
    }
    let card = blocking(move || {
        let alias = service.registry().alias(&tenant, &pinned.model)?;
        let alias = alias.ok_or_else(|| ApiError::unknown_model(&pinned.model))?;
        Ok(adapter_card(&service, &tenant, &alias))
    })
    .await?;
    Ok(HttpResponse::Ok().json(card))
}

fn base_card(service: &Service) -> Value {
    json!({
        "id": service.name(),
        "object": "model",
        "created": service.started(),
        "owned_by": "norma",
        "root": service.name(),
        "parent": null,
        "max_model_len": service.engine().sequence_limit(),
        "base_digest": service.digest(),
        "adapter_generation": null,
    })
}

fn adapter_card(service: &Service, tenant: &str, alias: &AliasRecord) -> Value {
    json!({
        "id": alias.alias,
        "object": "model",
        "created": alias.record.created,
        "owned_by": tenant,
        "root": alias.alias,
        "parent": service.name(),
        "max_model_len": service.engine().sequence_limit(),
        "base_digest": alias.record.base_digest,
        "adapter_generation": alias.record.generation,
        "task": alias.record.task,
    })
}
