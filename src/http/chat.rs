//! `POST /v1/chat/completions`.

use std::sync::Arc;

use actix_web::HttpResponse;
use actix_web::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use actix_web::web::{Data, Payload, ReqData};
use futures_util::future::try_join_all;

use super::answering::{Answering, name_maker};
use super::body;
use super::error::ApiError;
use super::exchange::Exchange;
use super::images;
use super::openai::request::ChatRequest;
use super::openai::response::{Envelope, completion};
use super::question::{Asked, Question};
use super::service::{Limits, Service, blocking, unix_now};
use super::sse::{ChatStream, Parts, Wants};
use super::state::State;

/// The handler.
pub async fn completions(
    state: Data<State>,
    exchange: ReqData<Arc<Exchange>>,
    payload: Payload,
) -> Result<HttpResponse, ApiError> {
    let service = state.service()?;
    let exchange = exchange.into_inner();
    let body = body::read(payload, body_limit(service.limits())).await?;
    let image_limits = service.limits().image;
    let (request, images) = blocking(move || {
        let request = ChatRequest::parse(&body)?;
        let images = request
            .images
            .iter()
            .map(|image| images::from_data_url(&image.url, &image.param, &image_limits))
            .collect::<Result<Vec<_>, _>>()?;
        Ok((request, images))
    })
    .await?;
    let ChatRequest {
        choice,
        messages,
        options,
        logprobs,
        stream,
        include_usage,
        ..
    } = request;
    let tenant = exchange.tenant();
    let asked = service
        .ask(Question {
            tenant,
            choice,
            messages,
            images,
            options,
        })
        .await?;
    let (asked, answers) = watch(asked, &state, &exchange);
    let id = format!("chatcmpl-{}", uuid::Uuid::new_v4().simple());
    let envelope = Envelope::new(id, unix_now(), &asked.made_by);
    let mut response = HttpResponse::Ok();
    name_maker(&mut response, &asked.made_by);
    if stream {
        let prompt_tokens = asked.prompt_tokens;
        let parts = Parts {
            service,
            exchange,
            envelope,
            answers,
            prompt_tokens,
        };
        let wants = Wants {
            logprobs,
            usage: include_usage,
        };
        response.insert_header((CONTENT_TYPE, "text/event-stream; charset=utf-8"));
        response.insert_header((CACHE_CONTROL, "no-cache"));
        return Ok(response.streaming(ChatStream::new(parts, wants)));
    }
    let collected = try_join_all(answers.into_iter().map(Answering::collect)).await?;
    let inputs = logprobs.then(|| service.inputs());
    Ok(response.json(completion(
        &envelope,
        &collected,
        asked.prompt_tokens,
        inputs,
    )))
}

/// Notes what answers, and counts the answers as they come.
pub fn watch(
    mut asked: Asked,
    state: &Data<State>,
    exchange: &Arc<Exchange>,
) -> (Asked, Vec<Answering>) {
    exchange.set_model(alias_label(&asked), asked.made_by.generation());
    exchange.set_prompt_tokens(asked.prompt_tokens);
    let state = Arc::clone(state);
    let answers = std::mem::take(&mut asked.answers)
        .into_iter()
        .map(|answer| Answering::new(answer, Arc::clone(&state), Arc::clone(exchange)))
        .collect();
    (asked, answers)
}

/// The alias in logs and counters; the base is no alias.
fn alias_label(asked: &Asked) -> &str {
    match asked.made_by.adapter {
        Some(_) => &asked.made_by.model,
        None => "(base)",
    }
}

/// Bytes of a JSON body: all images in base64, and room for the text.
pub fn body_limit(limits: &Limits) -> usize {
    let image = limits.image.max_bytes.saturating_mul(4) / 3 + 1024;
    limits
        .max_images
        .saturating_mul(image)
        .saturating_add(1 << 20)
}

/// Answers to one question, for handlers that give one.
pub async fn answer_one(
    service: &Arc<Service>,
    state: &Data<State>,
    exchange: &Arc<Exchange>,
    question: Question,
) -> Result<(Asked, super::openai::response::Collected), ApiError> {
    let asked = service.ask(question).await?;
    let (asked, answers) = watch(asked, state, exchange);
    let mut collected = try_join_all(answers.into_iter().map(Answering::collect)).await?;
    Ok((asked, collected.pop().unwrap_or_default()))
}
