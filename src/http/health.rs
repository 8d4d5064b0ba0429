//! `/health*`, `/version` and `/metrics`.

use actix_web::HttpResponse;
use actix_web::http::header::RETRY_AFTER;
use actix_web::web::Data;
use serde_json::json;

use super::error::ApiError;
use super::metrics::Scrape;
use super::state::State;

/// The process answers.
pub async fn live() -> HttpResponse {
    HttpResponse::Ok().json(json!({"status": "ok"}))
}

/// The server wants requests.
pub async fn ready(state: Data<State>) -> HttpResponse {
    match state.unready() {
        None => HttpResponse::Ok().json(json!({"status": "ready"})),
        Some(why) => HttpResponse::ServiceUnavailable()
            .insert_header((RETRY_AFTER, "5"))
            .json(json!({"status": why})),
    }
}

/// What runs here.
pub async fn version(state: Data<State>) -> HttpResponse {
    let base = state
        .loaded()
        .map(|service| json!({"name": service.name(), "digest": service.digest()}));
    HttpResponse::Ok().json(json!({"version": env!("CARGO_PKG_VERSION"), "base": base}))
}

/// Everything, tenants included.
pub async fn metrics(state: Data<State>) -> Result<HttpResponse, ApiError> {
    scrape(&state, Scrape::WithTenants)
}

/// What may be seen without a key.
pub async fn open_metrics(state: Data<State>) -> Result<HttpResponse, ApiError> {
    scrape(&state, Scrape::Open)
}

fn scrape(state: &State, scope: Scrape) -> Result<HttpResponse, ApiError> {
    let service = state.loaded().map(AsRef::as_ref);
    let text = state
        .metrics()
        .text(service, scope)
        .map_err(|error| ApiError::internal(&error))?;
    Ok(HttpResponse::Ok()
        .content_type("text/plain; version=0.0.4; charset=utf-8")
        .body(text))
}
