//! A pre-trained base as a folder that transformers and Norma load: `LlavaForConditionalGeneration`,
//! tensors in layout A, tokenizer, processor and chat template beside them.
//!
//! In: a pre-trained base. Out: files. It must not know how the base was trained.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use candle_core::Tensor;
use half::{bf16, f16};
use norma::model::MedVlm;
use norma::model::config::LlavaConfig;
use safetensors::tensor::{Dtype, TensorView};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::lesson::processor_values;
use crate::phantom::PhantomError;
use crate::phantom::tokenizer::{BOS, EOS, IMAGE, PAD, files};
use crate::pretrain::Pretrained;

/// How weights are stored. Norm values are rounded like all others, so that every loader computes
/// with the same values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Storage {
    /// Four bytes a value.
    Float32,
    /// Two bytes: eight bits of precision.
    Bfloat16,
    /// Two bytes: eleven bits of precision.
    Float16,
}

impl Storage {
    fn name(self) -> &'static str {
        match self {
            Self::Float32 => "float32",
            Self::Bfloat16 => "bfloat16",
            Self::Float16 => "float16",
        }
    }

    fn dtype(self) -> Dtype {
        match self {
            Self::Float32 => Dtype::F32,
            Self::Bfloat16 => Dtype::BF16,
            Self::Float16 => Dtype::F16,
        }
    }

    fn bytes(self, values: &[f32]) -> Vec<u8> {
        match self {
            Self::Float32 => values
                .iter()
                .flat_map(|value| value.to_le_bytes())
                .collect(),
            Self::Bfloat16 => values
                .iter()
                .flat_map(|value| bf16::from_f32(*value).to_le_bytes())
                .collect(),
            Self::Float16 => values
                .iter()
                .flat_map(|value| f16::from_f32(*value).to_le_bytes())
                .collect(),
        }
    }
}

/// What stands beside the weights: how pictures and texts become inputs. The special tokens have the
/// ids of [`crate::phantom::tokenizer`].
pub struct Beside {
    /// The image processor's values.
    pub processor: Value,
    /// Names and contents of the tokenizer's files.
    pub tokenizer: Vec<(&'static str, String)>,
}

impl Beside {
    /// Those of the phantom base.
    pub fn phantom() -> Result<Self, PhantomError> {
        let mut processor = processor_values();
        processor["image_processor_type"] = "CLIPImageProcessor".into();
        Ok(Self {
            processor,
            tokenizer: files()?,
        })
    }
}

/// Writes the folder.
pub fn write(base: &Pretrained, beside: Beside, storage: Storage, folder: &Path) -> Result<()> {
    std::fs::create_dir_all(folder)
        .with_context(|| format!("cannot make the folder {}", folder.display()))?;
    let put = |name: &str, bytes: &[u8]| {
        let path = folder.join(name);
        std::fs::write(&path, bytes).with_context(|| format!("cannot write {}", path.display()))
    };
    put("model.safetensors", &weights(base, storage)?)?;
    for (name, value) in [
        ("config.json", config(&base.config, storage)),
        ("generation_config.json", generation_config()),
        (
            "preprocessor_config.json",
            preprocessor_config(beside.processor),
        ),
        ("processor_config.json", processor_config(&base.config)),
    ] {
        put(
            name,
            format!("{}\n", serde_json::to_string_pretty(&value)?).as_bytes(),
        )?;
    }
    for (name, text) in beside.tokenizer {
        put(name, text.as_bytes())?;
    }
    Ok(())
}

/// All tensors in the checkpoint's shapes, the norm sites that the base never uses at neutral values.
fn weights(base: &Pretrained, storage: Storage) -> Result<Vec<u8>> {
    let mut tensors: BTreeMap<String, (Vec<usize>, Vec<f32>)> = BTreeMap::new();
    let mut put = |name: &str, tensor: &Tensor, shape: &[usize]| -> Result<()> {
        let values = tensor.flatten_all()?.to_vec1::<f32>()?;
        ensure!(
            values.iter().all(|value| value.is_finite()),
            "`{name}` is not finite"
        );
        tensors.insert(name.into(), (shape.into(), values));
        Ok(())
    };
    for variable in &base.weights {
        let tensor = variable.var.as_tensor();
        put(&variable.name, tensor, tensor.dims())?;
    }
    for (idx, site) in base.model.sites().sites().iter().enumerate() {
        let (gain, bias) = if site.used {
            let values = base.norms.bank().site(idx)?.to_values()?;
            (values.gain, values.bias)
        } else {
            let device = base.model.device();
            let gain = Tensor::ones(site.width, candle_core::DType::F32, device)?;
            let bias = site.bias_name().map(|_| gain.zeros_like()).transpose()?;
            (gain, bias)
        };
        put(&site.weight_name(), &gain, &[site.width])?;
        if let (Some(name), Some(bias)) = (site.bias_name(), bias) {
            put(&name, &bias, &[site.width])?;
        }
    }
    let bytes: Vec<(String, Vec<usize>, Vec<u8>)> = tensors
        .into_iter()
        .map(|(name, (shape, values))| (name, shape, storage.bytes(&values)))
        .collect();
    let views = bytes
        .iter()
        .map(|(name, shape, data)| {
            Ok((name, TensorView::new(storage.dtype(), shape.clone(), data)?))
        })
        .collect::<Result<Vec<_>, safetensors::SafeTensorError>>()?;
    let metadata = [("format".to_owned(), "pt".to_owned())].into();
    Ok(safetensors::serialize(views, Some(metadata))?)
}

fn config(config: &LlavaConfig, storage: Storage) -> Value {
    let (vision, decoder) = (&config.vision, &config.decoder);
    json!({
        "architectures": ["LlavaForConditionalGeneration"],
        "model_type": "llava",
        "dtype": storage.name(),
        "image_token_index": IMAGE,
        "image_seq_length": vision.image_tokens(),
        "multimodal_projector_bias": config.projector.bias,
        "projector_hidden_act": config.projector.hidden_act,
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "default",
        "tie_word_embeddings": decoder.tie_word_embeddings,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
        "pad_token_id": PAD,
        "vision_config": {
            "model_type": "clip_vision_model",
            "hidden_size": vision.hidden_size,
            "intermediate_size": vision.intermediate_size,
            "num_hidden_layers": vision.num_hidden_layers,
            "num_attention_heads": vision.num_attention_heads,
            "num_channels": 3,
            "image_size": vision.image_size,
            "patch_size": vision.patch_size,
            "projection_dim": vision.hidden_size,
            "hidden_act": vision.hidden_act,
            "layer_norm_eps": number(vision.layer_norm_eps),
        },
        "text_config": {
            "model_type": "llama",
            "vocab_size": decoder.vocab_size,
            "hidden_size": decoder.hidden_size,
            "intermediate_size": decoder.intermediate_size,
            "num_hidden_layers": decoder.num_hidden_layers,
            "num_attention_heads": decoder.num_attention_heads,
            "num_key_value_heads": decoder.num_key_value_heads,
            "head_dim": decoder.head_dim,
            "hidden_act": decoder.hidden_act,
            "max_position_embeddings": decoder.max_position_embeddings,
            "rms_norm_eps": number(decoder.rms_norm_eps),
            "rope_theta": number(decoder.rope_theta),
            "attention_bias": decoder.attention_bias,
            "mlp_bias": decoder.mlp_bias,
            "tie_word_embeddings": decoder.tie_word_embeddings,
            "bos_token_id": BOS,
            "eos_token_id": EOS,
            "pad_token_id": PAD,
        },
    })
}

/// The shortest decimal of an f32, as a number.
fn number(value: f32) -> f64 {
    value
        .to_string()
        .parse()
        .expect("a number's own text is a number")
}

fn generation_config() -> Value {
    json!({
        "bos_token_id": BOS,
        "eos_token_id": EOS,
        "pad_token_id": PAD,
        "do_sample": false,
    })
}

fn preprocessor_config(mut values: Value) -> Value {
    values["processor_class"] = "LlavaProcessor".into();
    values
}

fn processor_config(config: &LlavaConfig) -> Value {
    json!({
        "processor_class": "LlavaProcessor",
        "image_token": "<image>",
        "num_additional_image_tokens": 1,
        "patch_size": config.vision.patch_size,
        "vision_feature_select_strategy": "default",
    })
}
