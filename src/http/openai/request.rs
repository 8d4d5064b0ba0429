//! A chat request's body, field by field.
//!
//! In: JSON. Out: messages, the URLs of their images, and options. A field that would change the answer and
//! is not built is refused by name, because an answer that ignores it would be a wrong one.

use serde_json::Value;

use super::messages::{ImageUrl, messages};
use crate::engine::Sampling;
use crate::http::choice::ModelChoice;
use crate::http::error::{ApiError, shorten};
use crate::http::fields::Fields;
use crate::http::question::Options;
use crate::preprocess::Message;

const MAX_ANSWERS: usize = 8;
const MAX_TOP_LOGPROBS: usize = 20;
const MAX_STOPS: usize = 16;

/// Fields that change no answer.
const HARMLESS: [&str; 7] = [
    "user",
    "metadata",
    "store",
    "service_tier",
    "safety_identifier",
    "prompt_cache_key",
    "parallel_tool_calls",
];

/// What a client asks for.
#[derive(Debug)]
pub struct ChatRequest {
    /// Which adapter.
    pub choice: ModelChoice,
    /// The conversation.
    pub messages: Vec<Message>,
    /// Where its images come from, in order.
    pub images: Vec<ImageUrl>,
    /// How to answer.
    pub options: Options,
    /// Whether log probabilities are wanted.
    pub logprobs: bool,
    /// Whether the answer is wanted in pieces.
    pub stream: bool,
    /// Whether a last piece counts the tokens.
    pub include_usage: bool,
}

impl ChatRequest {
    /// Reads a body.
    pub fn parse(body: &[u8]) -> Result<Self, ApiError> {
        let mut fields = Fields::parse(body)?;
        let choice = ModelChoice::take(&mut fields)?;
        let (messages, images) = messages(fields.require("messages")?)?;
        let logprobs = fields.take::<bool>("logprobs")?.unwrap_or(false);
        let options = options(&mut fields, logprobs)?;
        let stream = fields.take::<bool>("stream")?.unwrap_or(false);
        let include_usage = stream_options(&mut fields, stream)?;
        response_format(&mut fields)?;
        refuse_unbuilt(&mut fields)?;
        for field in HARMLESS {
            fields.take::<Value>(field)?;
        }
        fields.end()?;
        Ok(Self {
            choice,
            messages,
            images,
            options,
            logprobs,
            stream,
            include_usage,
        })
    }
}

fn options(fields: &mut Fields, logprobs: bool) -> Result<Options, ApiError> {
    let max_tokens = fields.take::<usize>("max_tokens")?;
    let max_completion_tokens = fields.take::<usize>("max_completion_tokens")?;
    if let (Some(a), Some(b)) = (max_tokens, max_completion_tokens)
        && a != b
    {
        let message = "`max_tokens` and `max_completion_tokens` differ";
        return Err(ApiError::bad("max_tokens", message));
    }
    let n = bounded(fields, "n", 1, 1..=MAX_ANSWERS)?;
    let top_logits = bounded(fields, "top_logprobs", 0, 0..=MAX_TOP_LOGPROBS)?;
    if top_logits > 0 && !logprobs {
        let message = "`top_logprobs` needs `logprobs` to be true";
        return Err(ApiError::bad("top_logprobs", message));
    }
    let sampling = Sampling {
        temperature: fields.take("temperature")?.unwrap_or(1.0),
        top_p: fields.take("top_p")?.unwrap_or(1.0),
        top_k: top_k(fields.take("top_k")?)?,
        seed: fields.take::<i64>("seed")?.map(i64::cast_unsigned),
    };
    Ok(Options {
        sampling,
        n,
        stop: stops(fields.take("stop")?)?,
        max_tokens: max_tokens.or(max_completion_tokens),
        min_tokens: fields.take("min_tokens")?.unwrap_or(0),
        ignore_eos: fields.take("ignore_eos")?.unwrap_or(false),
        top_logits,
    })
}

fn bounded(
    fields: &mut Fields,
    field: &str,
    default: usize,
    range: std::ops::RangeInclusive<usize>,
) -> Result<usize, ApiError> {
    let value = fields.take(field)?.unwrap_or(default);
    if range.contains(&value) {
        return Ok(value);
    }
    let (least, most) = (range.start(), range.end());
    Err(ApiError::bad(
        field,
        format!("`{field}` is {value}, it must be {least} to {most}"),
    ))
}

/// vLLM's clients write 0 or -1 for all tokens.
fn top_k(value: Option<i64>) -> Result<Option<usize>, ApiError> {
    match value {
        None | Some(0 | -1) => Ok(None),
        Some(value) => usize::try_from(value).map(Some).map_err(|_| {
            let message = format!("`top_k` is {value}, it must be -1 or more");
            ApiError::bad("top_k", message)
        }),
    }
}

fn stops(value: Option<Value>) -> Result<Vec<String>, ApiError> {
    let refuse = || {
        let message = format!("`stop` must be a text or up to {MAX_STOPS} texts");
        ApiError::bad("stop", message)
    };
    match value {
        None => Ok(Vec::new()),
        Some(Value::String(stop)) => Ok(vec![stop]),
        Some(Value::Array(stops)) if stops.len() <= MAX_STOPS => stops
            .into_iter()
            .map(|stop| stop.as_str().map(str::to_owned).ok_or_else(refuse))
            .collect(),
        Some(_) => Err(refuse()),
    }
}

fn stream_options(fields: &mut Fields, stream: bool) -> Result<bool, ApiError> {
    let Some(mut options) = fields.object("stream_options")? else {
        return Ok(false);
    };
    if !stream {
        let message = "`stream_options` needs `stream` to be true";
        return Err(ApiError::bad("stream_options", message));
    }
    let include_usage = options.take("include_usage")?.unwrap_or(false);
    // It pads pieces against those who watch their lengths; pieces here are not padded.
    options.take::<bool>("include_obfuscation")?;
    options.end()?;
    Ok(include_usage)
}

fn response_format(fields: &mut Fields) -> Result<(), ApiError> {
    let Some(mut format) = fields.object("response_format")? else {
        return Ok(());
    };
    let kind: String = format.require("type")?;
    if kind == "text" {
        return Ok(());
    }
    let message = format!(
        "`response_format` of type `{}` is not supported, only `text`",
        shorten(&kind)
    );
    Err(ApiError::bad("response_format", message).with_code("unsupported"))
}

/// Whether a value asks for nothing.
type Neutral<'a> = &'a dyn Fn(&Value) -> bool;

/// Fields with a meaning that is not built; their neutral values are let pass.
fn refuse_unbuilt(fields: &mut Fields) -> Result<(), ApiError> {
    let empty = |value: &Value| match value {
        Value::Array(items) => items.is_empty(),
        Value::Object(items) => items.is_empty(),
        _ => false,
    };
    let number = |value: &Value, neutral: f64| value.as_f64().is_some_and(|got| got == neutral);
    let word =
        |value: &Value, words: &[&str]| value.as_str().is_some_and(|got| words.contains(&got));
    let rules: [(&str, Neutral); 18] = [
        ("tools", &empty),
        ("tool_choice", &|value| word(value, &["none", "auto"])),
        ("functions", &empty),
        ("function_call", &|value| word(value, &["none", "auto"])),
        ("logit_bias", &empty),
        ("presence_penalty", &|value| number(value, 0.0)),
        ("frequency_penalty", &|value| number(value, 0.0)),
        ("repetition_penalty", &|value| number(value, 1.0)),
        ("length_penalty", &|value| number(value, 1.0)),
        ("min_p", &|value| number(value, 0.0)),
        ("modalities", &|value| *value == serde_json::json!(["text"])),
        ("audio", &|_| false),
        ("prediction", &|_| false),
        ("reasoning_effort", &|_| false),
        ("verbosity", &|_| false),
        ("web_search_options", &|_| false),
        ("use_beam_search", &|value| *value == Value::Bool(false)),
        ("best_of", &|value| number(value, 1.0)),
    ];
    for (field, is_neutral) in rules {
        if let Some(value) = fields.take::<Value>(field)?
            && !is_neutral(&value)
        {
            let message = format!("`{field}` is not supported");
            return Err(ApiError::bad(field, message).with_code("unsupported"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::preprocess::Role;
    use serde_json::json;

    fn parse(change: &Value) -> Result<ChatRequest, ApiError> {
        let mut body = json!({"model": "m", "messages": [{"role": "user", "content": "hi"}]});
        for (field, value) in change.as_object().unwrap() {
            body[field] = value.clone();
        }
        ChatRequest::parse(body.to_string().as_bytes())
    }

    #[test]
    fn a_full_request_is_read_whole() {
        let request = parse(&json!({
            "messages": [
                {"role": "developer", "content": "be brief"},
                {"role": "user", "content": [
                    {"type": "image_url", "image_url": {"url": "data:,", "detail": "high"}},
                    {"type": "text", "text": "what"},
                ]},
            ],
            "max_completion_tokens": 7, "temperature": 0, "top_p": 0.5, "top_k": 3, "seed": -1,
            "stop": "x", "n": 2, "logprobs": true, "top_logprobs": 4, "stream": true,
            "stream_options": {"include_usage": true}, "response_format": {"type": "text"},
            "tools": [], "presence_penalty": 0, "user": "u", "ignore_eos": true, "min_tokens": 1,
            "adapter": "chest",
        }))
        .unwrap();
        assert_eq!(request.messages[0].role, Role::System);
        assert_eq!(request.messages[1].images(), 1);
        assert_eq!(request.images[0].param, "messages[1].content[0].image_url");
        assert_eq!(request.options.max_tokens, Some(7));
        assert_eq!(request.options.sampling.seed, Some(u64::MAX));
        assert_eq!((request.options.n, request.options.top_logits), (2, 4));
        assert!(request.stream && request.include_usage && request.logprobs);
        assert_eq!(request.choice.adapter.as_deref(), Some("chest"));
    }

    #[test]
    fn what_would_change_the_answer_is_refused_by_name() {
        for (change, param) in [
            (json!({"tools": [{"type": "function"}]}), "tools"),
            (json!({"functions": [{}]}), "functions"),
            (json!({"logit_bias": {"5": 1}}), "logit_bias"),
            (json!({"presence_penalty": 0.5}), "presence_penalty"),
            (json!({"frequency_penalty": -1}), "frequency_penalty"),
            (
                json!({"response_format": {"type": "json_object"}}),
                "response_format",
            ),
            (json!({"n": 0}), "n"),
            (json!({"n": 100}), "n"),
            (json!({"top_logprobs": 2}), "top_logprobs"),
            (json!({"top_k": -5}), "top_k"),
            (json!({"temperature": "hot"}), "temperature"),
            (json!({"stop": 5}), "stop"),
            (json!({"stream_options": {}}), "stream_options"),
            (
                json!({"max_tokens": 1, "max_completion_tokens": 2}),
                "max_tokens",
            ),
            (json!({"max_tokens": -1}), "max_tokens"),
            (json!({"surprise": 1}), "surprise"),
            (json!({"model": null}), "model"),
            (json!({"messages": "hi"}), "messages"),
            (
                json!({"messages": [{"role": "tool", "content": "x"}]}),
                "messages[0].role",
            ),
            (
                json!({"messages": [{"role": "user"}]}),
                "messages[0].content",
            ),
            (
                json!({"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}),
                "messages[0].content[0]",
            ),
            (
                json!({"messages": [{"role": "assistant", "content": "x", "tool_calls": [{}]}]}),
                "messages[0].tool_calls",
            ),
            (
                json!({"adapter_generation": "latest"}),
                "adapter_generation",
            ),
        ] {
            let error = parse(&change).unwrap_err().to_json();
            assert_eq!(error["error"]["param"], param, "{change}: {error}");
        }
    }
}
