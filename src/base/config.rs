//! `config.json` in either of its two kinds, as one configuration.
//!
//! Defaults are those of transformers 5.23's `LlavaConfig`, `LlamaConfig`, `MistralConfig` and
//! `CLIPVisionConfig`, because `save_pretrained` of earlier versions leaves defaults out.

use serde_json::Value;

use super::error::BaseError;
use super::fields::Fields;
use super::original;
use crate::model::config::{
    DecoderConfig, LlavaConfig, ProjectorConfig, RopeScaling, VisionConfig,
};
use crate::model::ops::activation::Activation;

/// The file that says what a folder is.
pub const CONFIG_FILE: &str = "config.json";

/// Which program wrote the folder, as far as that matters beyond tensor names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Flavour {
    /// transformers' `LlavaForConditionalGeneration`: processor and chat template lie in the folder.
    HuggingFace {
        /// The token that stands for image rows in a tokenised prompt.
        image_token: u32,
    },
    /// The original LLaVA or LLaVA-Med: processor and prompt are known, not written.
    Original {
        /// The CLIP model whose preprocessing is used.
        vision_tower: String,
        /// Whether images are padded to a square of the mean colour first.
        pad_to_square: bool,
        /// Whether the decoder is Mistral's (LLaVA-Med v1.5) and so the prompt is `[INST]`.
        mistral: bool,
    },
}

/// Reads a folder's configuration. `vision`: the parsed `config.json` of `--vision-config`, which an
/// original LLaVA with an unknown tower needs.
pub fn parse(config: &Value, vision: Option<&Value>) -> Result<(LlavaConfig, Flavour), BaseError> {
    let fields = Fields::root(CONFIG_FILE, config)?;
    let (config, flavour) = match fields.required::<String>("model_type")?.as_str() {
        "llava" if fields.has("vision_config") || fields.has("text_config") => {
            hugging_face(fields)?
        }
        "llava" | "llava_llama" | "llava_mistral" => original::parse(fields, vision)?,
        other => {
            let known = "Norma reads llava, llava_llama and llava_mistral";
            return Err(fields.error("model_type", &format!("is `{other}`; {known}")));
        }
    };
    check(fields, &config)?;
    Ok((config, flavour))
}

fn hugging_face(fields: Fields) -> Result<(LlavaConfig, Flavour), BaseError> {
    let empty = serde_json::Map::new();
    let empty = Value::Object(empty);
    let text = match fields.object("text_config")? {
        Some(text) => text,
        None => Fields::root(CONFIG_FILE, &empty)?,
    };
    let decoder = decoder(text, fields.or("tie_word_embeddings", false)?)?;
    let strategy: String = fields.or("vision_feature_select_strategy", "default".into())?;
    let keeps_class_token = match strategy.as_str() {
        "default" => false,
        "full" => true,
        other => {
            let problem = format!("is `{other}`, must be `default` or `full`");
            return Err(fields.error("vision_feature_select_strategy", &problem));
        }
    };
    let mut vision = match fields.object("vision_config")? {
        Some(vision) => vision_tower(vision)?,
        None => clip_large(336),
    };
    vision.keeps_class_token = keeps_class_token;
    vision.feature_layers = feature_layers(fields, "vision_feature_layer", &vision)?;
    let act = fields.or("projector_hidden_act", Activation::Gelu)?;
    let bias = fields.or("multimodal_projector_bias", true)?;
    let projector = ProjectorConfig {
        hidden_act: Some(act),
        bias,
    };
    let image_token = match fields.optional("image_token_index")? {
        Some(token) => token,
        None => fields.or("image_token_id", 32_000)?,
    };
    let config = LlavaConfig {
        vision,
        projector,
        decoder,
    };
    Ok((config, Flavour::HuggingFace { image_token }))
}

/// Reads the decoder's fields, which stand in `text_config` or, originally, at the top level.
pub fn decoder(fields: Fields, tied: bool) -> Result<DecoderConfig, BaseError> {
    let model_type: String = fields.or("model_type", "llama".into())?;
    let mistral = match model_type.as_str() {
        "llama" | "llava" | "llava_llama" => false,
        "mistral" | "llava_mistral" => true,
        other => {
            let problem = format!("is `{other}`; decoders are `llama` or `mistral`");
            return Err(fields.error("model_type", &problem));
        }
    };
    let hidden_size = fields.size("hidden_size", Some(4096))?;
    let n_heads = fields.size("num_attention_heads", Some(32))?;
    let kv_heads = if mistral && !fields.has("num_key_value_heads") {
        8
    } else {
        n_heads
    };
    let sliding_window = match (mistral, fields.has("sliding_window")) {
        (false, _) => None,
        (true, false) => Some(4096),
        (true, true) => fields.optional("sliding_window")?,
    };
    let (rope_theta, rope_scaling) = rope(fields)?;
    Ok(DecoderConfig {
        vocab_size: fields.size("vocab_size", Some(32_000))?,
        hidden_size,
        intermediate_size: fields.size(
            "intermediate_size",
            Some(if mistral { 14_336 } else { 11_008 }),
        )?,
        num_hidden_layers: fields.size("num_hidden_layers", Some(32))?,
        num_attention_heads: n_heads,
        num_key_value_heads: fields.size("num_key_value_heads", Some(kv_heads))?,
        head_dim: fields.size("head_dim", Some(hidden_size / n_heads))?,
        hidden_act: fields.or("hidden_act", Activation::Silu)?,
        max_position_embeddings: fields.size(
            "max_position_embeddings",
            Some(if mistral { 131_072 } else { 2048 }),
        )?,
        rms_norm_eps: fields.or("rms_norm_eps", 1e-6)?,
        rope_theta,
        rope_scaling,
        attention_bias: !mistral && fields.or("attention_bias", false)?,
        mlp_bias: !mistral && fields.or("mlp_bias", false)?,
        sliding_window,
        tie_word_embeddings: tied || fields.or("tie_word_embeddings", false)?,
    })
}

/// `rope_parameters` of transformers 5, or `rope_theta` and `rope_scaling` of earlier versions.
fn rope(fields: Fields) -> Result<(f32, RopeScaling), BaseError> {
    let (name, rules) = match fields.object("rope_parameters")? {
        Some(rules) => ("rope_parameters", Some(rules)),
        None => ("rope_scaling", fields.object("rope_scaling")?),
    };
    let Some(rules) = rules else {
        return Ok((fields.or("rope_theta", 10_000.0)?, RopeScaling::Default));
    };
    let theta = match rules.optional("rope_theta")? {
        Some(theta) => theta,
        None => fields.or("rope_theta", 10_000.0)?,
    };
    let kind: String = match rules.optional("rope_type")? {
        Some(kind) => kind,
        None => rules.or("type", "default".into())?,
    };
    let scaling = match kind.as_str() {
        "default" => RopeScaling::Default,
        "linear" => RopeScaling::Linear {
            factor: rules.required("factor")?,
        },
        "llama3" => RopeScaling::Llama3 {
            factor: rules.required("factor")?,
            low_freq_factor: rules.required("low_freq_factor")?,
            high_freq_factor: rules.required("high_freq_factor")?,
            original_max_position_embeddings: rules
                .size("original_max_position_embeddings", None)?,
        },
        other => {
            let problem = format!("is `{other}`; Norma knows default, linear and llama3");
            return Err(fields.error(&format!("{name}.rope_type"), &problem));
        }
    };
    Ok((theta, scaling))
}

/// Reads a CLIP vision configuration. The feature selection is left for the caller to set.
pub fn vision_tower(fields: Fields) -> Result<VisionConfig, BaseError> {
    let model_type: String = fields.or("model_type", "clip_vision_model".into())?;
    if model_type != "clip_vision_model" {
        let problem = format!("is `{model_type}`; Norma reads clip_vision_model");
        return Err(fields.error("model_type", &problem));
    }
    let channels = fields.or("num_channels", 3)?;
    if channels != 3 {
        return Err(fields.error("num_channels", &format!("is {channels}, must be 3")));
    }
    Ok(VisionConfig {
        hidden_size: fields.size("hidden_size", Some(768))?,
        intermediate_size: fields.size("intermediate_size", Some(3072))?,
        num_hidden_layers: fields.size("num_hidden_layers", Some(12))?,
        num_attention_heads: fields.size("num_attention_heads", Some(12))?,
        image_size: fields.size("image_size", Some(224))?,
        patch_size: fields.size("patch_size", Some(32))?,
        hidden_act: fields.or("hidden_act", Activation::QuickGelu)?,
        layer_norm_eps: fields.or("layer_norm_eps", 1e-5)?,
        feature_layers: Vec::new(),
        keeps_class_token: false,
    })
}

/// OpenAI's CLIP ViT-L/14 at 224 or 336 pixels.
pub fn clip_large(image_size: usize) -> VisionConfig {
    VisionConfig {
        hidden_size: 1024,
        intermediate_size: 4096,
        num_hidden_layers: 24,
        num_attention_heads: 16,
        image_size,
        patch_size: 14,
        hidden_act: Activation::QuickGelu,
        layer_norm_eps: 1e-5,
        feature_layers: Vec::new(),
        keeps_class_token: false,
    }
}

/// The selected hidden states, counted from the tower's input; negative numbers count from the end.
pub fn feature_layers(
    fields: Fields,
    field: &str,
    vision: &VisionConfig,
) -> Result<Vec<usize>, BaseError> {
    let value: Value = fields.or(field, Value::from(-2))?;
    let layers: Vec<i64> = match &value {
        Value::Number(layer) => layer.as_i64().into_iter().collect(),
        Value::Array(layers) => layers.iter().filter_map(Value::as_i64).collect(),
        _ => Vec::new(),
    };
    let n_states = vision.num_hidden_layers as i64 + 1;
    let resolve = |layer: i64| if layer < 0 { layer + n_states } else { layer };
    let resolved: Vec<usize> = layers
        .into_iter()
        .map(resolve)
        .filter_map(|layer| usize::try_from(layer).ok())
        .collect();
    let expected = value.as_array().map_or(1, Vec::len);
    if resolved.is_empty()
        || resolved.len() != expected
        || resolved.iter().any(|layer| *layer as i64 >= n_states)
    {
        let problem = format!("is {value}, must name hidden states of a tower that has {n_states}");
        return Err(fields.error(field, &problem));
    }
    Ok(resolved)
}

/// What no single field can show: that the sizes fit each other.
fn check(fields: Fields, config: &LlavaConfig) -> Result<(), BaseError> {
    let (vision, decoder) = (&config.vision, &config.decoder);
    let fail = |field: &str, problem: String| Err(fields.error(field, &problem));
    if vision.hidden_size % vision.num_attention_heads != 0 {
        let heads = vision.num_attention_heads;
        return fail(
            "vision_config.num_attention_heads",
            format!("is {heads}, which does not divide the width"),
        );
    }
    if vision.image_size % vision.patch_size != 0 {
        let (size, patch) = (vision.image_size, vision.patch_size);
        return fail(
            "vision_config.patch_size",
            format!("is {patch}, which does not divide {size}"),
        );
    }
    if decoder.num_attention_heads % decoder.num_key_value_heads != 0 {
        let (kv, q) = (decoder.num_key_value_heads, decoder.num_attention_heads);
        return fail(
            "num_key_value_heads",
            format!("is {kv}, which does not divide {q} heads"),
        );
    }
    if decoder.head_dim % 2 != 0 {
        return fail("head_dim", format!("is {}, must be even", decoder.head_dim));
    }
    if decoder.sliding_window == Some(0) {
        return fail("sliding_window", "is 0; use null for none".into());
    }
    Ok(())
}
