//! `POST /v1/adapters`: a form whose file goes to disk as it comes, then is checked and published.

use std::sync::Arc;
use std::time::Instant;

use actix_multipart::{Field, Multipart};
use actix_web::web::{Data, Payload, ReqData};
use actix_web::{HttpRequest, HttpResponse};
use norma_adapters::{Added, IncomingFile, StoreError};

use super::adapters::adapter_json;
use super::body;
use super::choice::parse_expected;
use super::error::{ApiError, Kind};
use super::exchange::Exchange;
use super::publish::{Publication, Published, publish};
use super::service::{Service, blocking};
use super::state::State;

/// Bytes gathered before they are written: few enough to hold, enough to be worth a thread.
const PIECE: usize = 256 << 10;

/// What a form held.
#[derive(Default)]
struct Form {
    file: Option<IncomingFile>,
    alias: Option<String>,
    expected: Option<String>,
}

/// The handler.
pub async fn upload(
    request: HttpRequest,
    state: Data<State>,
    exchange: ReqData<Arc<Exchange>>,
    payload: Payload,
) -> Result<HttpResponse, ApiError> {
    let (service, tenant) = (state.service()?, exchange.tenant());
    let mut multipart = Multipart::new(request.headers(), payload);
    let form = match read_form(&service, &mut multipart).await {
        Ok(form) => form,
        Err(error) => {
            if error.kind() == Kind::TooLarge {
                state.metrics().count_refusal("too_large");
            }
            return Err(error);
        }
    };
    let incoming = form
        .file
        .ok_or_else(|| ApiError::bad("file", "`file` is missing"))?;
    let publication = Publication {
        alias: form.alias,
        expected: parse_expected(form.expected.as_deref())?,
    };
    if publication.alias.is_none() && form.expected.is_some() {
        let message = "`expected_generation` needs an `alias`";
        return Err(ApiError::bad("expected_generation", message));
    }
    let alias = publication.alias.clone();
    let published = run_publish(&state, &service, &tenant, incoming, publication).await?;
    let body = adapter_json(alias.as_deref(), &published.record);
    Ok(match published.added {
        Added::New => HttpResponse::Created().json(body),
        Added::Existing => HttpResponse::Ok().json(body),
    })
}

/// Publishes on a thread of its own, where a client that leaves no longer stops it halfway, and counts.
pub async fn run_publish(
    state: &Data<State>,
    service: &Arc<Service>,
    tenant: &Arc<str>,
    incoming: IncomingFile,
    publication: Publication,
) -> Result<Published, ApiError> {
    let _place = service.place_to_publish().await?;
    let (state, service, tenant) = (Arc::clone(state), Arc::clone(service), Arc::clone(tenant));
    blocking(move || {
        let started = Instant::now();
        let result = publish(&service, &tenant, incoming, &publication);
        match &result {
            Ok(_) => state.metrics().observe_publish(started.elapsed()),
            Err(error) if error.kind() == Kind::Unprocessable => {
                state.metrics().count_refusal(error.code());
            }
            Err(_) => {}
        }
        result
    })
    .await
}

async fn read_form(service: &Arc<Service>, form: &mut Multipart) -> Result<Form, ApiError> {
    let mut read = Form::default();
    while let Some((name, mut field)) = body::next_field(form).await? {
        match name.as_str() {
            "file" => {
                if read.file.is_some() {
                    return Err(body::repeated_field(&name));
                }
                read.file = Some(read_file(service, field).await?);
            }
            "alias" => set(&mut read.alias, &name, &mut field).await?,
            "expected_generation" => set(&mut read.expected, &name, &mut field).await?,
            // To take a signature and not look at it would be worse than to refuse it.
            "signature" => {
                let message = "`signature` is not supported by this server";
                return Err(ApiError::bad("signature", message).with_code("unsupported"));
            }
            _ => return Err(body::unknown_field(&name)),
        }
    }
    Ok(read)
}

async fn set(slot: &mut Option<String>, name: &str, field: &mut Field) -> Result<(), ApiError> {
    if slot.replace(body::text(name, field).await?).is_some() {
        return Err(body::repeated_field(name));
    }
    Ok(())
}

/// Writes a file to disk as it comes. Too large a file is read on for a while and thrown away, so that
/// the client, which is still sending, gets to see why.
async fn read_file(service: &Arc<Service>, mut field: Field) -> Result<IncomingFile, ApiError> {
    let opener = Arc::clone(service);
    let mut incoming = blocking(move || Ok(opener.registry().incoming()?)).await?;
    let limit = service.limits().max_upload_bytes;
    let mut piece = Vec::new();
    while let Some(chunk) = body::next(&mut field).await? {
        let chunk = chunk.map_err(|error| body::form_error(&error))?;
        if incoming.len() + (piece.len() + chunk.len()) as u64 > limit {
            body::discard(field, usize::try_from(limit).unwrap_or(usize::MAX)).await;
            return Err(StoreError::TooLarge { limit }.into());
        }
        piece.extend_from_slice(&chunk);
        if piece.len() >= PIECE {
            incoming = append(incoming, std::mem::take(&mut piece)).await?;
        }
    }
    if piece.is_empty() {
        Ok(incoming)
    } else {
        append(incoming, piece).await
    }
}

async fn append(mut incoming: IncomingFile, piece: Vec<u8>) -> Result<IncomingFile, ApiError> {
    blocking(move || {
        incoming.append(&piece)?;
        Ok(incoming)
    })
    .await
}
