//! CLIP's image preprocessing: square, resize, centre crop, rescale, normalise.
//! The values of a `preprocessor_config.json` and an RGB picture enter, a pixel tensor leaves. It must
//! not know the model that takes the tensor.

use std::fs;
use std::path::Path;

use candle_core::{Device, Tensor};
use image::{DynamicImage, Rgb, RgbImage, imageops};
use mistralrs_vision::{ApplyTransforms, Normalize, Rescale, ToTensorNoNorm, Transforms};
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::decode::View;
use super::resize::{self, Window};

const MEAN: [f64; 3] = [0.481_454_66, 0.457_827_5, 0.408_210_73];
const STD: [f64; 3] = [0.268_629_54, 0.261_302_58, 0.275_777_11];
const BICUBIC: u64 = 3;
/// No tower takes pictures larger than this; a larger number in a file is a mistake.
const MAX_SIDE: u64 = 4096;

/// Why a preprocessing configuration cannot be used, or a picture not be processed.
#[derive(Debug, thiserror::Error)]
pub enum PreprocessError {
    #[error("cannot read {path}")]
    Read {
        path: String,
        source: std::io::Error,
    },
    #[error("{path} is not valid JSON")]
    Json {
        path: String,
        source: serde_json::Error,
    },
    #[error(
        "{folder} has neither processor_config.json with `image_processor` nor preprocessor_config.json"
    )]
    NoConfig { folder: String },
    #[error(
        "no built-in preprocessing is called `{name}`; give the folder that has its preprocessor_config.json"
    )]
    UnknownName { name: String },
    #[error("image preprocessing: `{field}` is {got}, supported is {want}")]
    Field {
        field: &'static str,
        got: String,
        want: &'static str,
    },
    #[error("the image tensor could not be made")]
    Tensor(#[from] candle_core::Error),
}

/// Whether a picture is first pasted on a square.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PadToSquare {
    None,
    /// A square of the mean's colour, `int(255 * mean)` a channel, the picture at `(side - length)
    /// // 2`; for a file of 8-bit grey the channels' mean in every channel.
    MeanColour,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Resize {
    None,
    /// The shorter edge becomes this long.
    ShortestEdge(u32),
    Exact(Size),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Size {
    height: u32,
    width: u32,
}

impl Size {
    const fn square(side: u32) -> Self {
        Self {
            height: side,
            width: side,
        }
    }
}

/// One base's way from a picture to pixels: `[3, S, S]`, S = [`image_size`](Self::image_size).
#[derive(Debug, Clone, PartialEq)]
pub struct ClipPreprocess {
    pad: PadToSquare,
    resize: Resize,
    crop: Option<Size>,
    rescale: Option<f64>,
    normalize: Option<([f64; 3], [f64; 3])>,
}

impl ClipPreprocess {
    /// What an OpenAI CLIP tower with pictures of `size` pixels a side takes.
    pub fn clip(size: u32) -> Self {
        Self {
            pad: PadToSquare::None,
            resize: Resize::ShortestEdge(size),
            crop: Some(Size::square(size)),
            rescale: Some(1.0 / 255.0),
            normalize: Some((MEAN, STD)),
        }
    }

    /// The built-in configuration of a tower known by its hub name.
    pub fn builtin(name: &str) -> Result<Self, PreprocessError> {
        match name {
            "openai/clip-vit-large-patch14" => Ok(Self::clip(224)),
            "openai/clip-vit-large-patch14-336" => Ok(Self::clip(336)),
            _ => Err(PreprocessError::UnknownName { name: name.into() }),
        }
    }

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

    /// The same with a square made first, or not.
    #[must_use]
    pub fn with_pad(mut self, pad: PadToSquare) -> Self {
        self.pad = pad;
        self
    }

    pub fn pad(&self) -> PadToSquare {
        self.pad
    }

    /// The side of the square that leaves; of a rectangle (CLIP's towers take none), its height.
    pub fn image_size(&self) -> u32 {
        self.output().height
    }

    /// The picture squared, resized and cropped, before its values change type.
    pub fn resize_crop<'a>(&self, image: impl Into<View<'a>>) -> RgbImage {
        let view = image.into();
        match self.padded(view) {
            Some(square) => self.resize_window(&square),
            None => self.resize_window(view.rgb),
        }
    }

    fn output(&self) -> Size {
        match (self.crop, self.resize) {
            (Some(size), _) | (None, Resize::Exact(size)) => size,
            (None, Resize::ShortestEdge(side)) => Size::square(side),
            (None, Resize::None) => Size::square(0),
        }
    }

    /// The tensor that the tower takes: `[3, S, S]`, f32, on the CPU.
    pub fn pixels<'a>(&self, image: impl Into<View<'a>>) -> Result<Tensor, PreprocessError> {
        let image = DynamicImage::ImageRgb8(self.resize_crop(image));
        let rescale = Rescale {
            factor: self.rescale,
        };
        let normalize = self.normalize.map(|(mean, std)| Normalize {
            mean: mean.to_vec(),
            std: std.to_vec(),
        });
        let transforms = Transforms {
            input: &ToTensorNoNorm,
            inner_transforms: &[&rescale, &normalize],
        };
        Ok(image.apply(transforms, &Device::Cpu)?.contiguous()?)
    }

    /// SHA-256 over every value that changes the result.
    pub fn digest(&self) -> [u8; 32] {
        let mut hash = Sha256::new();
        hash.update(b"norma clip preprocess 1");
        let (kind, size) = match self.resize {
            Resize::None => (0, Size::square(0)),
            Resize::ShortestEdge(edge) => (1, Size::square(edge)),
            Resize::Exact(size) => (2, size),
        };
        let pad = u32::from(self.pad == PadToSquare::MeanColour);
        // Zero is no crop: no configuration crops to nothing.
        let crop = self.crop.unwrap_or(Size::square(0));
        for value in [pad, kind, size.height, size.width, crop.height, crop.width] {
            hash.update(value.to_le_bytes());
        }
        let (mean, std) = self.normalize.unwrap_or(([0.0; 3], [1.0; 3]));
        for value in [self.rescale.unwrap_or(1.0)]
            .iter()
            .chain(&mean)
            .chain(&std)
        {
            hash.update(value.to_le_bytes());
        }
        hash.finalize().into()
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

    fn padded(&self, view: View) -> Option<RgbImage> {
        let (width, height) = view.rgb.dimensions();
        if self.pad == PadToSquare::None || width == height {
            return None;
        }
        let (mean, _) = self.normalize.unwrap_or((MEAN, STD));
        let mut colour = mean.map(|m| (m * 255.0) as u8);
        if view.grey {
            let sum: u32 = colour.iter().map(|&c| u32::from(c)).sum();
            colour = [(sum / 3) as u8; 3];
        }
        let side = width.max(height);
        let mut square = RgbImage::from_pixel(side, side, Rgb(colour));
        let (left, top) = ((side - width) / 2, (side - height) / 2);
        imageops::replace(&mut square, view.rgb, i64::from(left), i64::from(top));
        Some(square)
    }

    fn resize_window(&self, rgb: &RgbImage) -> RgbImage {
        let size = self.resized(rgb.dimensions());
        let Size { height, width } = self.output();
        let start = |length: u32, kept: u32| (i64::from(length) - i64::from(kept)).div_euclid(2);
        let (left, top) = (start(size.0, width), start(size.1, height));
        resize::bicubic(
            rgb,
            size,
            Window {
                left,
                top,
                width,
                height,
            },
        )
    }

    /// Width and height after resizing, before the crop.
    fn resized(&self, (width, height): (u32, u32)) -> (u32, u32) {
        // Python's `int(edge * long / short)`: an exact product, one rounded division, cut.
        let longer = |edge: u32, long: u32, short: u32| {
            ((u64::from(edge) * u64::from(long)) as f64 / f64::from(short)) as u32
        };
        match self.resize {
            Resize::None => (width, height),
            Resize::Exact(size) => (size.width, size.height),
            Resize::ShortestEdge(edge) if width <= height => (edge, longer(edge, height, width)),
            Resize::ShortestEdge(edge) => (longer(edge, width, height), edge),
        }
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
    fn every_value_that_changes_pixels_changes_the_digest() {
        let configs = [
            json!({}),
            json!({"size": 225}),
            json!({"size": {"height": 224, "width": 224}}),
            json!({"crop_size": 225}),
            json!({"do_resize": false}),
            json!({"do_center_crop": false, "size": {"height": 224, "width": 224}}),
            json!({"do_rescale": false}),
            json!({"rescale_factor": 0.5}),
            json!({"do_normalize": false}),
            json!({"image_mean": [0.5, 0.5, 0.5]}),
            json!({"image_std": [0.5, 0.5, 0.5]}),
            json!({"image_processor_type": "LlavaImageProcessor", "do_pad": true}),
        ];
        let digests: Vec<_> = configs.iter().map(|c| parsed(c).digest()).collect();
        for (i, digest) in digests.iter().enumerate() {
            assert_eq!(
                digests.iter().position(|d| d == digest),
                Some(i),
                "{}",
                configs[i]
            );
        }
        assert_eq!(
            parsed(&json!({"do_convert_rgb": false})).digest(),
            digests[0]
        );
    }

    #[test]
    fn only_llavas_own_processor_pads_to_a_square() {
        let pad = |kind: &str| parsed(&json!({"image_processor_type": kind, "do_pad": true})).pad();
        assert_eq!(pad("LlavaImageProcessor"), PadToSquare::MeanColour);
        assert_eq!(pad("CLIPImageProcessor"), PadToSquare::None);
    }

    #[test]
    fn the_margin_of_a_square_has_the_mean_colour() {
        let clip = ClipPreprocess::clip(6).with_pad(PadToSquare::MeanColour);
        let wide = RgbImage::from_pixel(6, 3, Rgb([200; 3]));
        let square = clip.resize_crop(&wide);
        let rows: Vec<_> = (0..6).map(|y| square.get_pixel(0, y).0).collect();
        let margin = [122, 116, 104];
        assert_eq!(rows, [margin, [200; 3], [200; 3], [200; 3], margin, margin]);
        let grey = clip.resize_crop(View {
            rgb: &wide,
            grey: true,
        });
        assert_eq!(grey.get_pixel(0, 0).0, [114; 3]);
    }

    /// `CLIPImageProcessorPil(size={"shortest_edge": 8}, crop_size={"height": 11, "width": 14})` of
    /// transformers 5.23.0 on 7 by 5 pixels: the picture stands in rows 2 to 9, columns 2 to 12.
    #[test]
    fn a_crop_larger_than_the_picture_is_black_around_it() {
        let clip = parsed(&json!({"size": 8, "crop_size": {"height": 11, "width": 14}}));
        let out = clip.resize_crop(&RgbImage::from_pixel(7, 5, Rgb([200; 3])));
        for (x, y, pixel) in out.enumerate_pixels() {
            let inside = (2..13).contains(&x) && (2..10).contains(&y);
            assert_eq!(pixel.0, [if inside { 200 } else { 0 }; 3], "{x} {y}");
        }
    }

    #[test]
    fn steps_switched_off_are_left_out() {
        let raw = parsed(
            &json!({"do_resize": false, "crop_size": 2, "do_rescale": false, "do_normalize": false}),
        );
        let picture = RgbImage::from_fn(2, 2, |x, y| Rgb([x as u8, y as u8, 7]));
        let tensor = raw.pixels(&picture).unwrap();
        assert_eq!(tensor.dims(), [3, 2, 2]);
        let values: Vec<f32> = tensor.flatten_all().unwrap().to_vec1().unwrap();
        assert_eq!(values, [0., 1., 0., 1., 0., 0., 1., 1., 7., 7., 7., 7.]);
    }
}
