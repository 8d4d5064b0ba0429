//! Reads `preprocessor_config.json` and `processor_config.json`.
//! JSON enters, a [`ClipPreprocess`] or the field that cannot be followed leaves. It must not know
//! pixels.

use std::fs;
use std::path::Path;

use serde_json::Value;

use super::clip::{ClipPreprocess, MEAN, PadToSquare, PreprocessError, Resize, STD, Size};

const BICUBIC: u64 = 3;
/// No tower takes pictures larger than this; a larger number in a file is a mistake.
const MAX_SIDE: u64 = 4096;

impl ClipPreprocess {
    /// Reads a base's folder: `image_processor` of `processor_config.json`, else
    /// `preprocessor_config.json`, as transformers does.
    pub fn from_folder(folder: &Path) -> Result<Self, PreprocessError> {
        if let Some(nested) = read_json(&folder.join("processor_config.json"))?
            .and_then(|config| config.get("image_processor").cloned())
        {
            return Self::from_json(&nested);
        }
        match read_json(&folder.join("preprocessor_config.json"))? {
            Some(config) => Self::from_json(&config),
            None => Err(PreprocessError::NoConfig {
                folder: folder.display().to_string(),
            }),
        }
    }

    /// Reads the values of an image processor's configuration, nested under `image_processor` or
    /// not. A value left out has CLIP's default. `do_convert_rgb` is taken as true, since every
    /// picture is RGB here.
    pub fn from_json(config: &Value) -> Result<Self, PreprocessError> {
        let config = config.get("image_processor").unwrap_or(config);
        let resample = &config["resample"];
        if !resample.is_null() && resample.as_u64() != Some(BICUBIC) {
            return Err(field("resample", resample, "3 (bicubic)"));
        }
        let crop = flag(config, "do_center_crop", true)?
            .then(|| size_of(config, "crop_size"))
            .transpose()?;
        let resize = if flag(config, "do_resize", true)? {
            resize_of(config)?
        } else {
            Resize::None
        };
        // LLaVA's own processor pads to a square before resizing. CLIP's pads a batch to its
        // largest picture after cropping, which does nothing to pictures of one size.
        let llava = ["image_processor_type", "feature_extractor_type"]
            .iter()
            .any(|key| {
                config[*key]
                    .as_str()
                    .is_some_and(|name| name.starts_with("Llava"))
            });
        let pad = if llava && flag(config, "do_pad", false)? {
            PadToSquare::MeanColour
        } else {
            PadToSquare::None
        };
        let rescale = flag(config, "do_rescale", true)?
            .then(|| number(config, "rescale_factor", 1.0 / 255.0))
            .transpose()?;
        let normalize = if flag(config, "do_normalize", true)? {
            Some((
                triple(config, "image_mean", MEAN)?,
                triple(config, "image_std", STD)?,
            ))
        } else {
            None
        };
        let this = Self {
            pad,
            resize,
            crop,
            rescale,
            normalize,
        };
        this.check_output()?;
        Ok(this)
    }

    fn check_output(&self) -> Result<(), PreprocessError> {
        let square = self.crop.is_some()
            || matches!(self.resize, Resize::Exact(_))
            || (self.pad == PadToSquare::MeanColour && self.resize != Resize::None);
        if square {
            return Ok(());
        }
        Err(PreprocessError::Field {
            field: "do_center_crop",
            got: "false".into(),
            want: "true, unless `size` has `height` and `width`",
        })
    }
}

fn read_json(path: &Path) -> Result<Option<Value>, PreprocessError> {
    let shown = || path.display().to_string();
    match fs::read(path) {
        Ok(bytes) => {
            serde_json::from_slice(&bytes)
                .map(Some)
                .map_err(|source| PreprocessError::Json {
                    path: shown(),
                    source,
                })
        }
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(PreprocessError::Read {
            path: shown(),
            source,
        }),
    }
}

fn field(field: &'static str, got: &Value, want: &'static str) -> PreprocessError {
    PreprocessError::Field {
        field,
        got: got.to_string(),
        want,
    }
}

fn flag(config: &Value, key: &'static str, default: bool) -> Result<bool, PreprocessError> {
    match &config[key] {
        Value::Null => Ok(default),
        Value::Bool(value) => Ok(*value),
        other => Err(field(key, other, "true or false")),
    }
}

fn number(config: &Value, key: &'static str, default: f64) -> Result<f64, PreprocessError> {
    match &config[key] {
        Value::Null => Ok(default),
        value => value.as_f64().ok_or_else(|| field(key, value, "a number")),
    }
}

fn triple(
    config: &Value,
    key: &'static str,
    default: [f64; 3],
) -> Result<[f64; 3], PreprocessError> {
    let value = &config[key];
    let parsed = match value {
        Value::Null => return Ok(default),
        Value::Number(one) => one.as_f64().map(|one| [one; 3]),
        Value::Array(all) => {
            let all: Option<Vec<f64>> = all.iter().map(Value::as_f64).collect();
            all.and_then(|all| all.try_into().ok())
        }
        _ => None,
    };
    let usable = parsed.filter(|all| key != "image_std" || all.iter().all(|&v| v != 0.0));
    usable.ok_or_else(|| field(key, value, "three numbers, for `image_std` none of them 0"))
}

/// Height and width, given as an object or as one number for both.
fn size_of(config: &Value, key: &'static str) -> Result<Size, PreprocessError> {
    let value = &config[key];
    match value {
        Value::Null => Ok(Size::square(224)),
        Value::Object(map) => Ok(Size {
            height: side(key, value, map.get("height"))?,
            width: side(key, value, map.get("width"))?,
        }),
        one => side(key, value, Some(one)).map(Size::square),
    }
}

fn side(key: &'static str, whole: &Value, one: Option<&Value>) -> Result<u32, PreprocessError> {
    match one.and_then(Value::as_u64) {
        Some(side @ 1..=MAX_SIDE) => Ok(side as u32),
        _ => Err(field(key, whole, "side lengths from 1 to 4096")),
    }
}

fn resize_of(config: &Value) -> Result<Resize, PreprocessError> {
    let size = &config["size"];
    let given = |key: &str| size.get(key).filter(|value| !value.is_null());
    match size {
        Value::Null => Ok(Resize::ShortestEdge(224)),
        Value::Object(_) if given("longest_edge").is_some() => Err(field(
            "size",
            size,
            "`shortest_edge` alone, or `height` and `width`",
        )),
        Value::Object(_) if given("shortest_edge").is_some() => {
            side("size", size, given("shortest_edge")).map(Resize::ShortestEdge)
        }
        Value::Object(_) => size_of(config, "size").map(Resize::Exact),
        one => side("size", size, Some(one)).map(Resize::ShortestEdge),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn parsed(config: &Value) -> ClipPreprocess {
        ClipPreprocess::from_json(config).unwrap()
    }

    fn refused(config: &Value) -> String {
        ClipPreprocess::from_json(config).unwrap_err().to_string()
    }

    #[test]
    fn numbers_and_objects_say_the_same() {
        let clip = ClipPreprocess::clip(336);
        assert_eq!(parsed(&json!({"size": 336, "crop_size": 336})), clip);
        let objects =
            json!({"size": {"shortest_edge": 336}, "crop_size": {"height": 336, "width": 336}});
        assert_eq!(parsed(&objects), clip);
        assert_eq!(parsed(&json!({"image_processor": objects})), clip);
        assert_eq!(parsed(&json!({})), ClipPreprocess::clip(224));
        let large = "openai/clip-vit-large-patch14";
        assert_eq!(
            ClipPreprocess::builtin(large).unwrap(),
            ClipPreprocess::clip(224)
        );
        let larger = ClipPreprocess::builtin(&format!("{large}-336")).unwrap();
        assert_eq!((larger.image_size(), larger), (336, clip));
        assert!(ClipPreprocess::builtin("openai/other").is_err());
    }

    #[test]
    fn what_cannot_be_followed_is_refused_with_its_field() {
        assert_eq!(
            refused(&json!({"resample": 2})),
            "image preprocessing: `resample` is 2, supported is 3 (bicubic)"
        );
        for (config, field) in [
            (json!({"size": {"shortest_edge": 0}}), "`size`"),
            (
                json!({"size": {"shortest_edge": 8, "longest_edge": 9}}),
                "`size`",
            ),
            (json!({"crop_size": 1_000_000}), "`crop_size`"),
            (json!({"crop_size": {"height": 3}}), "`crop_size`"),
            (json!({"do_center_crop": false}), "`do_center_crop`"),
            (json!({"do_resize": "yes"}), "`do_resize`"),
            (json!({"image_mean": [0.5, 0.5]}), "`image_mean`"),
            (json!({"image_std": [0.5, 0.0, 0.5]}), "`image_std`"),
            (json!({"rescale_factor": "1/255"}), "`rescale_factor`"),
        ] {
            assert!(refused(&config).contains(field), "{config}");
        }
    }

    #[test]
    fn only_llavas_own_processor_pads_to_a_square() {
        let pad = |kind: &str| parsed(&json!({"image_processor_type": kind, "do_pad": true})).pad();
        assert_eq!(pad("LlavaImageProcessor"), PadToSquare::MeanColour);
        assert_eq!(pad("CLIPImageProcessor"), PadToSquare::None);
    }
}
