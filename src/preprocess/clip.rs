//! CLIP's image preprocessing: square, resize, centre crop, rescale, normalise.
//! The values of a `preprocessor_config.json` and an RGB picture enter, a pixel tensor leaves. It must
//! not know the model that takes the tensor.

use candle_core::{Device, Tensor};
use image::{DynamicImage, Rgb, RgbImage, imageops};
use mistralrs_vision::{ApplyTransforms, Normalize, Rescale, ToTensorNoNorm, Transforms};
use sha2::{Digest, Sha256};

use super::decode::View;
use super::resize::{self, Window};

pub(super) const MEAN: [f64; 3] = [0.481_454_66, 0.457_827_5, 0.408_210_73];
pub(super) const STD: [f64; 3] = [0.268_629_54, 0.261_302_58, 0.275_777_11];

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
    /// The picture is taken as it is.
    None,
    /// A square of the mean's colour, `int(255 * mean)` a channel, the picture at `(side - length)
    /// // 2`; for a file of 8-bit grey the channels' mean in every channel.
    MeanColour,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Resize {
    None,
    /// The shorter edge becomes this long.
    ShortestEdge(u32),
    Exact(Size),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Size {
    pub height: u32,
    pub width: u32,
}

impl Size {
    pub const fn square(side: u32) -> Self {
        Self {
            height: side,
            width: side,
        }
    }
}

/// One base's way from a picture to pixels: `[3, S, S]`, S = [`image_size`](Self::image_size).
#[derive(Debug, Clone, PartialEq)]
pub struct ClipPreprocess {
    pub(super) pad: PadToSquare,
    pub(super) resize: Resize,
    pub(super) crop: Option<Size>,
    pub(super) rescale: Option<f64>,
    pub(super) normalize: Option<([f64; 3], [f64; 3])>,
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

    /// The same with a square made first, or not.
    #[must_use]
    pub fn with_pad(mut self, pad: PadToSquare) -> Self {
        self.pad = pad;
        self
    }

    /// Whether a square is made first.
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

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn parsed(config: &Value) -> ClipPreprocess {
        ClipPreprocess::from_json(config).unwrap()
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
