//! The one table of routes, and who may use them: default deny.
//!
//! In: every request. Out: the same with its [`Exchange`] attached, or a refusal. A route that is not in
//! [`ROUTES`] cannot be reached, whatever a handler was registered for.

use std::sync::Arc;

use actix_web::body::{EitherBody, MessageBody};
use actix_web::dev::{ServiceRequest, ServiceResponse};
use actix_web::http::header::{AUTHORIZATION, HOST, HeaderName, HeaderValue, ORIGIN};
use actix_web::middleware::Next;
use actix_web::{Error, HttpMessage, ResponseError, web};

use super::error::{ApiError, Kind};
use super::exchange::Exchange;
use super::keys::{Caller, Role};
use super::state::State;

/// Who may use a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Anybody, without a key.
    Public,
    /// Any key.
    AnyKey,
    /// A key with this role.
    With(Role),
}

/// One route.
#[derive(Clone, Copy, Debug)]
pub struct Route {
    /// The method.
    pub method: &'static str,
    /// The path's pattern, as the router knows it.
    pub pattern: &'static str,
    /// Who may use it.
    pub access: Access,
}

const fn route(method: &'static str, pattern: &'static str, access: Access) -> Route {
    Route {
        method,
        pattern,
        access,
    }
}

const INFER: Access = Access::With(Role::Infer);
const MANAGE: Access = Access::With(Role::Manage);

/// Every route of the server.
pub const ROUTES: &[Route] = &[
    route("GET", "/health", Access::Public),
    route("GET", "/health/live", Access::Public),
    route("GET", "/health/ready", Access::Public),
    route("GET", "/version", Access::AnyKey),
    route("GET", "/metrics", Access::With(Role::Metrics)),
    route("POST", "/v1/chat/completions", INFER),
    route("POST", "/v1/vqa", INFER),
    route("POST", "/v1/report", INFER),
    route("GET", "/v1/models", Access::AnyKey),
    route("GET", "/v1/models/{id:.*}", Access::AnyKey),
    route("POST", "/v1/adapters", MANAGE),
    route("GET", "/v1/adapters", MANAGE),
    route("GET", "/v1/adapters/{alias}", MANAGE),
    route("PUT", "/v1/adapters/{alias}", MANAGE),
    route("DELETE", "/v1/adapters/{alias}", MANAGE),
    route("GET", "/v1/adapters/{alias}/generations", MANAGE),
    route("GET", "/v1/adapters/{alias}/download", MANAGE),
    route("POST", "/v1/load_lora_adapter", MANAGE),
    route("POST", "/v1/unload_lora_adapter", MANAGE),
];

/// The response header with the request's id; a client's own is kept if it is harmless.
pub const REQUEST_ID: &str = "x-request-id";

/// The middleware around every route.
pub async fn guard<B: MessageBody>(
    request: ServiceRequest,
    next: Next<B>,
) -> Result<ServiceResponse<EitherBody<B>>, Error> {
    let Some(state) = request.app_data::<web::Data<State>>().cloned() else {
        let error = ApiError::new(Kind::Internal, "the server has no state");
        return Ok(request
            .into_response(error.error_response())
            .map_into_right_body());
    };
    let state = state.into_inner();
    let pattern = request.match_pattern();
    let exchange = Exchange::begin(
        &state,
        request.method().as_str(),
        pattern.as_deref().unwrap_or("(none)"),
        request
            .headers()
            .get(REQUEST_ID)
            .and_then(|id| id.to_str().ok()),
    );
    let mut response = match admit(&request, pattern.as_deref(), &state) {
        Ok(caller) => {
            if let Some(caller) = caller {
                exchange.set_caller(caller);
            }
            request.extensions_mut().insert(Arc::clone(&exchange));
            next.call(request).await?.map_into_left_body()
        }
        Err(error) => {
            exchange.set_error(error.code());
            request
                .into_response(error.error_response())
                .map_into_right_body()
        }
    };
    if let Some(error) = response
        .response()
        .error()
        .and_then(|e| e.as_error::<ApiError>())
    {
        exchange.set_error(error.code());
    }
    exchange.set_status(response.status().as_u16());
    if let Ok(id) = HeaderValue::from_str(exchange.id()) {
        response
            .headers_mut()
            .insert(HeaderName::from_static(REQUEST_ID), id);
    }
    Ok(response)
}

/// The caller, where the route is not public.
fn admit(
    request: &ServiceRequest,
    pattern: Option<&str>,
    state: &State,
) -> Result<Option<Caller>, ApiError> {
    let method = request.method().as_str();
    let known: Vec<&Route> = ROUTES
        .iter()
        .filter(|route| Some(route.pattern) == pattern)
        .collect();
    let found = known.iter().find(|route| route.method == method);
    if found.is_some_and(|route| route.access == Access::Public) {
        return Ok(None);
    }
    if state.keys().is_open() {
        refuse_foreign_pages(request)?;
    }
    let caller = state.keys().caller(bearer(request)).ok_or_else(|| {
        ApiError::new(
            Kind::Unauthorized,
            "this needs an API key: `Authorization: Bearer …`",
        )
    })?;
    let Some(route) = found else {
        if known.is_empty() {
            return Err(ApiError::new(
                Kind::NotFound,
                "this server has no such path",
            ));
        }
        let methods: Vec<&str> = known.iter().map(|route| route.method).collect();
        return Err(ApiError::method(methods.join(", ")));
    };
    if let Access::With(role) = route.access
        && !caller.may(role)
    {
        let message = format!("the API key lacks the role `{}`", role.as_str());
        return Err(ApiError::new(Kind::Forbidden, message));
    }
    if state.is_draining() && method != "GET" {
        return Err(ApiError::new(
            Kind::Unavailable,
            "the server is shutting down",
        ));
    }
    Ok(Some(caller))
}

fn bearer(request: &ServiceRequest) -> Option<&str> {
    let value = request.headers().get(AUTHORIZATION)?.to_str().ok()?;
    let (scheme, key) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| key.trim())
}

/// Without keys the server trusts whoever is on this machine. That must not include the pages that a
/// browser on this machine has open, nor names that somebody else's name server points here.
fn refuse_foreign_pages(request: &ServiceRequest) -> Result<(), ApiError> {
    let local = |header: HeaderName| match request.headers().get(header) {
        None => true,
        Some(value) => value.to_str().is_ok_and(is_local),
    };
    if local(HOST) && local(ORIGIN) {
        return Ok(());
    }
    let message = "a server without API keys answers to local addresses and local pages only";
    Err(ApiError::new(Kind::Forbidden, message).with_code("not_local"))
}

/// Whether a `Host` or `Origin` names this machine.
fn is_local(value: &str) -> bool {
    let authority = value.split_once("://").map_or(value, |(_, rest)| rest);
    let host = match authority.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => authority.split(':').next().unwrap_or_default(),
    };
    host.eq_ignore_ascii_case("localhost")
        || host
            .parse::<std::net::IpAddr>()
            .is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn local_names_are_known_in_all_spellings() {
        for local in [
            "localhost",
            "127.0.0.1:8080",
            "[::1]:80",
            "http://localhost:3000",
            "LOCALHOST",
        ] {
            assert!(is_local(local), "{local}");
        }
        for foreign in [
            "example.org",
            "http://127.0.0.1.example.org",
            "10.0.0.1",
            "null",
            "",
        ] {
            assert!(!is_local(foreign), "{foreign}");
        }
    }

    #[test]
    fn no_route_is_listed_twice_and_only_health_is_public() {
        for (index, route) in ROUTES.iter().enumerate() {
            let same =
                |other: &Route| (other.method, other.pattern) == (route.method, route.pattern);
            assert!(!ROUTES[..index].iter().any(same), "{route:?}");
            let is_health = route.pattern.starts_with("/health");
            assert_eq!(route.access == Access::Public, is_health, "{route:?}");
        }
    }
}
