//! Decodes a PNG or JPEG file to an upright 8-bit RGB picture, as PIL does.
//! Foreign bytes and limits enter, a [`Picture`] or a clear error leaves. It must not know what the
//! picture is for.

use std::io::Cursor;
use std::ops::Deref;
use std::panic::{AssertUnwindSafe, catch_unwind};

use image::codecs::{jpeg::JpegDecoder, png::PngDecoder};
use image::{DynamicImage, ImageDecoder, Limits, RgbImage};

use super::container::{self, Header, ImageFormat};

/// Bounds on a picture, checked before any pixel is unpacked. Decoding takes at most about 12 bytes
/// a pixel for a while (progressive JPEG), and leaves 3.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImageLimits {
    /// Bytes of the file.
    pub max_bytes: usize,
    /// Width times height.
    pub max_pixels: u64,
    /// The longer side, in pixels.
    pub max_side: u32,
}

impl Default for ImageLimits {
    /// 20 MiB, 40 million pixels, 16384 a side: a full-field mammogram passes.
    fn default() -> Self {
        Self {
            max_bytes: 20 << 20,
            max_pixels: 40_000_000,
            max_side: 16_384,
        }
    }
}

/// Why bytes did not become a picture. Every case is the sender's to mend.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ImageError {
    #[error("the image is empty")]
    Empty,
    #[error("the image has {bytes} bytes, the limit is {limit}")]
    TooManyBytes { bytes: usize, limit: usize },
    #[error("the image must be PNG or JPEG, this seems to be {seems}")]
    Format { seems: &'static str },
    #[error("the image is {width}x{height}: it has no pixels")]
    NoPixels { width: u32, height: u32 },
    #[error("the image is {width}x{height}, a side may have at most {limit} pixels")]
    SideTooLong { width: u32, height: u32, limit: u32 },
    #[error("the image is {width}x{height}, at most {limit} pixels are allowed")]
    TooManyPixels { width: u32, height: u32, limit: u64 },
    #[error("the {format} ends before its end marker")]
    Truncated { format: ImageFormat },
    #[error("this {format} uses {what}, which is not supported")]
    Unsupported {
        format: ImageFormat,
        what: &'static str,
    },
    #[error("the {format} is corrupt: {reason}")]
    Corrupt { format: ImageFormat, reason: String },
}

impl ImageError {
    pub(super) fn corrupt(format: ImageFormat, reason: impl Into<String>) -> Self {
        Self::Corrupt {
            format,
            reason: reason.into(),
        }
    }
}

/// An upright RGB picture that remembers whether its file held 8-bit grey (PIL's mode `L`), since
/// padding to a square depends on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Picture {
    rgb: RgbImage,
    grey: bool,
}

impl Picture {
    /// Whether the file held 8-bit grey.
    pub fn is_grey(&self) -> bool {
        self.grey
    }

    pub fn into_rgb(self) -> RgbImage {
        self.rgb
    }
}

impl Deref for Picture {
    type Target = RgbImage;

    fn deref(&self) -> &RgbImage {
        &self.rgb
    }
}

/// A borrowed picture: of a [`Picture`], or of an RGB image that never was a file.
#[derive(Debug, Clone, Copy)]
pub struct View<'a> {
    pub rgb: &'a RgbImage,
    pub grey: bool,
}

impl<'a> From<&'a Picture> for View<'a> {
    fn from(picture: &'a Picture) -> Self {
        Self {
            rgb: &picture.rgb,
            grey: picture.grey,
        }
    }
}

impl<'a> From<&'a RgbImage> for View<'a> {
    fn from(rgb: &'a RgbImage) -> Self {
        Self { rgb, grey: false }
    }
}

/// Decodes a PNG or JPEG file: EXIF orientation applied, then PIL's `convert("RGB")` (alpha dropped
/// without compositing, palette expanded, grey repeated); 16-bit samples keep their upper 8 bits.
/// Colour profiles are ignored, as PIL ignores them; so is an orientation that stands in XMP only.
pub fn decode(bytes: &[u8], limits: &ImageLimits) -> Result<Picture, ImageError> {
    if bytes.len() > limits.max_bytes {
        return Err(ImageError::TooManyBytes {
            bytes: bytes.len(),
            limit: limits.max_bytes,
        });
    }
    let header = container::read(bytes)?;
    check_size(&header, limits)?;
    // The decoders are safe Rust, but a panic in one must cost its request only.
    let decoded = catch_unwind(AssertUnwindSafe(|| unpack(bytes, &header)));
    let mut picture = decoded
        .unwrap_or_else(|_| Err(ImageError::corrupt(header.format, "the decoder gave up")))?;
    if (picture.width(), picture.height()) != (header.width, header.height) {
        return Err(ImageError::corrupt(
            header.format,
            "two headers name different sizes",
        ));
    }
    picture.apply_orientation(header.orientation);
    Ok(Picture {
        rgb: into_rgb(picture, header.format)?,
        grey: header.grey8,
    })
}

fn check_size(header: &Header, limits: &ImageLimits) -> Result<(), ImageError> {
    let Header { width, height, .. } = *header;
    if width == 0 || height == 0 {
        return Err(ImageError::NoPixels { width, height });
    }
    if width.max(height) > limits.max_side {
        return Err(ImageError::SideTooLong {
            width,
            height,
            limit: limits.max_side,
        });
    }
    if u64::from(width) * u64::from(height) > limits.max_pixels {
        return Err(ImageError::TooManyPixels {
            width,
            height,
            limit: limits.max_pixels,
        });
    }
    Ok(())
}

fn unpack(bytes: &[u8], header: &Header) -> Result<DynamicImage, ImageError> {
    let corrupt = |e: image::ImageError| ImageError::corrupt(header.format, e.to_string());
    let mut limits = Limits::no_limits();
    limits.max_image_width = Some(header.width);
    limits.max_image_height = Some(header.height);
    // At most 8 bytes a pixel leave the decoder; the rest is room for its own chunks and rows.
    limits.max_alloc = Some(u64::from(header.width) * u64::from(header.height) * 8 + (16 << 20));
    match header.format {
        ImageFormat::Png => {
            let decoder = PngDecoder::with_limits(Cursor::new(bytes), limits).map_err(corrupt)?;
            DynamicImage::from_decoder(decoder).map_err(corrupt)
        }
        ImageFormat::Jpeg => {
            let mut decoder = JpegDecoder::new(Cursor::new(bytes)).map_err(corrupt)?;
            decoder.set_limits(limits).map_err(corrupt)?;
            DynamicImage::from_decoder(decoder).map_err(corrupt)
        }
    }
}

fn into_rgb(picture: DynamicImage, format: ImageFormat) -> Result<RgbImage, ImageError> {
    let (width, height) = (picture.width(), picture.height());
    let raw = match picture {
        DynamicImage::ImageRgb8(rgb) => return Ok(rgb),
        DynamicImage::ImageLuma8(p) => p.iter().flat_map(|&v| [v; 3]).collect(),
        DynamicImage::ImageLumaA8(p) => p.pixels().flat_map(|p| [p.0[0]; 3]).collect(),
        DynamicImage::ImageRgba8(p) => p.pixels().flat_map(|p| [p.0[0], p.0[1], p.0[2]]).collect(),
        DynamicImage::ImageLuma16(p) => p.iter().flat_map(|&v| [high(v); 3]).collect(),
        DynamicImage::ImageLumaA16(p) => p.pixels().flat_map(|p| [high(p.0[0]); 3]).collect(),
        DynamicImage::ImageRgb16(p) => p.iter().map(|&v| high(v)).collect(),
        DynamicImage::ImageRgba16(p) => p
            .pixels()
            .flat_map(|p| [p.0[0], p.0[1], p.0[2]].map(high))
            .collect(),
        _ => {
            return Err(ImageError::Unsupported {
                format,
                what: "a rare sample type",
            });
        }
    };
    RgbImage::from_raw(width, height, raw)
        .ok_or_else(|| ImageError::corrupt(format, "fewer pixels than its size says"))
}

fn high(sample: u16) -> u8 {
    (sample >> 8) as u8
}
