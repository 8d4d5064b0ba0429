//! `POST /v1/vqa` and `POST /v1/report`: the two tasks of a hospital, without a chat around them.
//!
//! In: an image and a question, or images and perhaps an indication, as JSON with data URLs or as a form
//! with files. Out: the answer, greedy, and how sure it is where the adapter knows how to tell.

use std::sync::Arc;

use actix_multipart::Multipart;
use actix_web::web::{Bytes, Data, Payload, ReqData};
use actix_web::{HttpRequest, HttpResponse};
use serde_json::{Map, Value, json};

use super::answering::name_maker;
use super::body;
use super::chat::{answer_one, body_limit};
use super::choice::ModelChoice;
use super::error::ApiError;
use super::exchange::Exchange;
use super::fields::Fields;
use super::images;
use super::openai::response::{Collected, Envelope, Usage};
use super::question::{Asked, ImageFile, Options, Question};
use super::service::{Limits, Service, blocking, unix_now};
use super::state::State;
use crate::confidence;
use crate::preprocess::{ContentPart, Message};

/// Tokens of an answer to a question, where the client names no number.
const VQA_TOKENS: usize = 64;

/// What a client sent, whichever way.
struct Input {
    fields: Fields,
    images: Vec<ImageFile>,
}

/// The handler of `/v1/vqa`.
pub async fn vqa(
    request: HttpRequest,
    state: Data<State>,
    exchange: ReqData<Arc<Exchange>>,
    payload: Payload,
) -> Result<HttpResponse, ApiError> {
    let service = state.service()?;
    let Input { mut fields, images } = Input::read(&request, payload, &service, "image").await?;
    let choice = ModelChoice::take(&mut fields)?;
    let question: String = fields.require("question")?;
    let max_tokens = fields.take("max_tokens")?.unwrap_or(VQA_TOKENS);
    fields.end()?;
    if images.len() != 1 {
        return Err(ApiError::bad("image", "`image` must be there, and once"));
    }
    let mut options = Options::greedy(Some(max_tokens));
    options.top_logits = confidence::TOP_TOKENS;
    let task = Task {
        choice,
        text: question,
        images,
        options,
    };
    let (asked, answer) = task.run(&service, &state, &exchange).await?;
    let calibration = asked
        .made_by
        .adapter
        .as_ref()
        .and_then(|adapter| adapter.calibration.clone());
    let confidence = calibration
        .as_ref()
        .map(|calibration| confidence_of(&answer, calibration.temperature));
    let abstained = calibration
        .zip(confidence)
        .map(|(calibration, confidence)| confidence < calibration.abstention_threshold);
    let mut body = envelope(&asked, "vqa");
    body["answer"] = json!(answer.text.trim());
    body["confidence"] = json!(confidence);
    body["abstained"] = json!(abstained);
    Ok(finish(&asked, &answer, body))
}

/// The handler of `/v1/report`.
pub async fn report(
    request: HttpRequest,
    state: Data<State>,
    exchange: ReqData<Arc<Exchange>>,
    payload: Payload,
) -> Result<HttpResponse, ApiError> {
    let service = state.service()?;
    let Input { mut fields, images } = Input::read(&request, payload, &service, "images").await?;
    let choice = ModelChoice::take(&mut fields)?;
    let indication = fields
        .take::<String>("indication")?
        .filter(|text| !text.trim().is_empty());
    let max_tokens = fields.take("max_tokens")?;
    fields.end()?;
    if images.is_empty() {
        return Err(ApiError::bad(
            "images",
            "`images` must hold one image or more",
        ));
    }
    let text = indication.unwrap_or_else(|| service.report_prompt().to_owned());
    let task = Task {
        choice,
        text,
        images,
        options: Options::greedy(max_tokens),
    };
    let (asked, answer) = task.run(&service, &state, &exchange).await?;
    let mut body = envelope(&asked, "report");
    body["report"] = json!(answer.text.trim());
    Ok(finish(&asked, &answer, body))
}

/// One question of a user about images, which stand before the text.
struct Task {
    choice: ModelChoice,
    text: String,
    images: Vec<ImageFile>,
    options: Options,
}

impl Task {
    async fn run(
        self,
        service: &Arc<Service>,
        state: &Data<State>,
        exchange: &Arc<Exchange>,
    ) -> Result<(Asked, Collected), ApiError> {
        let Self {
            choice,
            text,
            images,
            options,
        } = self;
        let mut content = vec![ContentPart::Image; images.len()];
        content.push(ContentPart::Text(text));
        let (tenant, messages) = (exchange.tenant(), vec![Message::user(content)]);
        let question = Question {
            tenant,
            choice,
            messages,
            images,
            options,
        };
        answer_one(service, state, exchange, question).await
    }
}

fn confidence_of(answer: &Collected, temperature: f32) -> f32 {
    let steps: Vec<Vec<f32>> = answer
        .tokens
        .iter()
        .map(|token| token.top.iter().map(|top| top.logprob).collect())
        .collect();
    confidence::of_greedy(steps.iter().map(Vec::as_slice), temperature)
}

fn envelope(asked: &Asked, object: &str) -> Value {
    let id = format!("{object}-{}", uuid::Uuid::new_v4().simple());
    Envelope::new(id, unix_now(), &asked.made_by).object(object)
}

fn finish(asked: &Asked, answer: &Collected, mut body: Value) -> HttpResponse {
    body["finish_reason"] = json!(answer.finish_reason);
    let mut usage = Usage::new(asked.prompt_tokens);
    usage.add(answer.cached_tokens, answer.completion_tokens);
    body["usage"] = usage.to_json();
    let mut response = HttpResponse::Ok();
    name_maker(&mut response, &asked.made_by);
    response.json(body)
}

impl Input {
    /// `images_field`: where the images are; in JSON a data URL or a list of them, in a form files.
    async fn read(
        request: &HttpRequest,
        payload: Payload,
        service: &Service,
        images_field: &'static str,
    ) -> Result<Self, ApiError> {
        let limits = *service.limits();
        if body::is_form(request) {
            return Self::from_form(request, payload, &limits, images_field).await;
        }
        let body = body::read(payload, body_limit(&limits)).await?;
        blocking(move || Self::from_json(&body, &limits, images_field)).await
    }

    fn from_json(
        body: &Bytes,
        limits: &Limits,
        images_field: &'static str,
    ) -> Result<Self, ApiError> {
        let mut fields = Fields::parse(body)?;
        let urls = match fields.take::<Value>(images_field)? {
            None => Vec::new(),
            Some(Value::Array(urls)) if images_field == "images" => urls,
            Some(url) if images_field == "image" => vec![url],
            Some(_) => {
                let message = format!("`{images_field}` must be a list of data URLs");
                return Err(ApiError::bad(images_field, message));
            }
        };
        check_count(urls.len(), limits, images_field)?;
        let images = urls
            .iter()
            .map(|url| {
                let url = url.as_str().unwrap_or_default();
                images::from_data_url(url, images_field, &limits.image)
            })
            .collect::<Result<_, _>>()?;
        Ok(Self { fields, images })
    }

    async fn from_form(
        request: &HttpRequest,
        payload: Payload,
        limits: &Limits,
        images_field: &'static str,
    ) -> Result<Self, ApiError> {
        let mut form = Multipart::new(request.headers(), payload);
        let mut images = Vec::new();
        let mut texts = Map::new();
        while let Some((name, mut field)) = body::next_field(&mut form).await? {
            if name == images_field {
                check_count(images.len() + 1, limits, images_field)?;
                let bytes = body::bytes(&name, &mut field, limits.image.max_bytes).await?;
                images.push(ImageFile { param: name, bytes });
                continue;
            }
            let text = body::text(&name, &mut field).await?;
            // A form knows no numbers.
            let value = match name.as_str() {
                "max_tokens" => text.trim().parse::<u64>().map_or(json!(text), |n| json!(n)),
                _ => Value::String(text),
            };
            if texts.len() >= body::MAX_FIELDS {
                return Err(body::unknown_field(&name));
            }
            if texts.insert(name.clone(), value).is_some() {
                return Err(body::repeated_field(&name));
            }
        }
        Ok(Self {
            fields: Fields::new(texts, ""),
            images,
        })
    }
}

fn check_count(count: usize, limits: &Limits, field: &str) -> Result<(), ApiError> {
    if count <= limits.max_images {
        return Ok(());
    }
    let message = format!(
        "`{field}` holds more than the {} images allowed",
        limits.max_images
    );
    Err(ApiError::bad(field, message).with_code("too_many_images"))
}
