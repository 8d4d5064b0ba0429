//! The configuration of the original LLaVA and of LLaVA-Med v1.5 (`LlavaLlamaForCausalLM`,
//! `LlavaMistralForCausalLM`): flat, without the tower's own fields, which the named CLIP model implies.

use serde_json::Value;

use super::config::{Flavour, clip_large, decoder, feature_layers, vision_tower};
use super::error::BaseError;
use super::fields::Fields;
use crate::model::config::{LlavaConfig, ProjectorConfig, VisionConfig};
use crate::model::ops::activation::Activation;

/// Reads a flat configuration; `vision`: the parsed `config.json` of `--vision-config`.
pub fn parse(fields: Fields, vision: Option<&Value>) -> Result<(LlavaConfig, Flavour), BaseError> {
    let decoder = decoder(fields, false)?;
    let tower: String = fields.required("mm_vision_tower")?;
    let mut vision = match vision {
        Some(value) => given_tower(value)?,
        None => known_tower(&tower).ok_or_else(|| {
            let problem = format!(
                "is `{tower}`, whose configuration is not built in; give it with `--vision-config FOLDER`"
            );
            fields.error("mm_vision_tower", &problem)
        })?,
    };
    vision.keeps_class_token = match fields
        .or("mm_vision_select_feature", "patch".to_owned())?
        .as_str()
    {
        "patch" => false,
        "cls_patch" => true,
        other => {
            let problem = format!("is `{other}`, must be `patch` or `cls_patch`");
            return Err(fields.error("mm_vision_select_feature", &problem));
        }
    };
    vision.feature_layers = feature_layers(fields, "mm_vision_select_layer", &vision)?;
    let width: usize = fields.or("mm_hidden_size", vision.hidden_size)?;
    if width != vision.hidden_size {
        let problem = format!("is {width}, the tower's width is {}", vision.hidden_size);
        return Err(fields.error("mm_hidden_size", &problem));
    }
    let hidden_act = match fields
        .or("mm_projector_type", "linear".to_owned())?
        .as_str()
    {
        "mlp2x_gelu" => Some(Activation::Gelu),
        "linear" => None,
        other => {
            let problem = format!("is `{other}`, must be `mlp2x_gelu` or `linear`");
            return Err(fields.error("mm_projector_type", &problem));
        }
    };
    let pad_to_square = match fields.optional::<String>("image_aspect_ratio")?.as_deref() {
        None | Some("square") => false,
        Some("pad") => true,
        Some(other) => {
            let problem = format!("is `{other}`, must be `pad` or `square`");
            return Err(fields.error("image_aspect_ratio", &problem));
        }
    };
    let mistral = fields.required::<String>("model_type")? == "llava_mistral";
    let flavour = Flavour::Original {
        vision_tower: tower,
        pad_to_square,
        mistral,
    };
    let projector = ProjectorConfig {
        hidden_act,
        bias: true,
    };
    Ok((
        LlavaConfig {
            vision,
            projector,
            decoder,
        },
        flavour,
    ))
}

/// The tower of a CLIP folder, or of a folder with a bare vision configuration.
fn given_tower(value: &Value) -> Result<VisionConfig, BaseError> {
    let fields = Fields::root("config.json of --vision-config", value)?;
    match fields.object("vision_config")? {
        Some(nested) => vision_tower(nested),
        None => vision_tower(fields),
    }
}

fn known_tower(name: &str) -> Option<VisionConfig> {
    match name.rsplit('/').next()? {
        "clip-vit-large-patch14" => Some(clip_large(224)),
        "clip-vit-large-patch14-336" => Some(clip_large(336)),
        _ => None,
    }
}
