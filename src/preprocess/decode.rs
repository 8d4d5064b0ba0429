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

    /// The pixels, without the memory of the file.
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
    /// The pixels.
    pub rgb: &'a RgbImage,
    /// Whether the file held 8-bit grey.
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

#[cfg(test)]
mod tests {
    use image::{ExtendedColorType, ImageEncoder, codecs};

    use super::*;

    const LIMITS: ImageLimits = ImageLimits {
        max_bytes: 1 << 20,
        max_pixels: 1 << 20,
        max_side: 4096,
    };

    fn gradient() -> RgbImage {
        RgbImage::from_fn(23, 17, |x, y| {
            image::Rgb([(x * 11) as u8, (y * 15) as u8, 90])
        })
    }

    fn png() -> Vec<u8> {
        let mut out = Vec::new();
        let encoder = codecs::png::PngEncoder::new(&mut out);
        encoder
            .write_image(&gradient(), 23, 17, ExtendedColorType::Rgb8)
            .unwrap();
        out
    }

    fn jpeg() -> Vec<u8> {
        let mut out = Vec::new();
        let encoder = codecs::jpeg::JpegEncoder::new_with_quality(&mut out, 95);
        encoder
            .write_image(&gradient(), 23, 17, ExtendedColorType::Rgb8)
            .unwrap();
        out
    }

    /// The PNG with another width and height; its checksum is of no interest before the pixels.
    fn png_of_size(width: u32, height: u32) -> Vec<u8> {
        let mut bytes = png();
        bytes[16..20].copy_from_slice(&width.to_be_bytes());
        bytes[20..24].copy_from_slice(&height.to_be_bytes());
        bytes
    }

    fn jpeg_of_size(width: u16, height: u16) -> Vec<u8> {
        let mut bytes = jpeg();
        let frame = bytes.windows(2).position(|w| w == [0xFF, 0xC0]).unwrap();
        bytes[frame + 5..frame + 7].copy_from_slice(&height.to_be_bytes());
        bytes[frame + 7..frame + 9].copy_from_slice(&width.to_be_bytes());
        bytes
    }

    fn error(bytes: &[u8]) -> String {
        decode(bytes, &LIMITS).unwrap_err().to_string()
    }

    #[test]
    fn png_keeps_every_pixel_and_jpeg_nearly() {
        let png = decode(&png(), &LIMITS).unwrap();
        assert!(!png.is_grey());
        assert_eq!(*png, gradient());
        let jpeg = decode(&jpeg(), &LIMITS).unwrap();
        let far = jpeg
            .iter()
            .zip(gradient().iter())
            .map(|(a, b)| a.abs_diff(*b))
            .max();
        assert!(far.unwrap() < 24, "{far:?}");
    }

    #[test]
    fn a_cut_file_is_refused_at_every_length() {
        for (file, format) in [(png(), ImageFormat::Png), (jpeg(), ImageFormat::Jpeg)] {
            for length in 0..file.len() {
                let error = decode(&file[..length], &LIMITS).unwrap_err();
                if length >= 8 {
                    assert_eq!(error, ImageError::Truncated { format }, "{length}");
                }
            }
        }
    }

    #[test]
    fn a_changed_byte_never_panics_or_exceeds_the_limits() {
        for file in [png(), jpeg()] {
            for at in 0..file.len() {
                for change in [0x01, 0x80, 0xFF] {
                    let mut changed = file.clone();
                    changed[at] ^= change;
                    match decode(&changed, &LIMITS) {
                        Ok(picture) => {
                            let pixels = u64::from(picture.width()) * u64::from(picture.height());
                            assert!(pixels <= LIMITS.max_pixels);
                        }
                        Err(ImageError::Corrupt { reason, .. }) => {
                            assert_ne!(reason, "the decoder gave up", "byte {at} ^ {change}");
                        }
                        Err(_) => {}
                    }
                }
            }
        }
    }

    #[test]
    fn sizes_are_judged_by_the_header() {
        assert_eq!(
            error(&png_of_size(100_000, 100_000)),
            "the image is 100000x100000, a side may have at most 4096 pixels"
        );
        assert_eq!(
            error(&png_of_size(4096, 4096)),
            "the image is 4096x4096, at most 1048576 pixels are allowed"
        );
        assert_eq!(
            error(&png_of_size(0, 5)),
            "the image is 0x5: it has no pixels"
        );
        assert_eq!(
            error(&jpeg_of_size(65_535, 65_535)),
            "the image is 65535x65535, a side may have at most 4096 pixels"
        );
        assert_eq!(
            error(&jpeg_of_size(5, 0)),
            "the image is 5x0: it has no pixels"
        );
        let limits = ImageLimits {
            max_bytes: 10,
            ..LIMITS
        };
        assert!(matches!(
            decode(&png(), &limits),
            Err(ImageError::TooManyBytes { limit: 10, .. })
        ));
    }

    #[test]
    fn codings_that_no_decoder_here_knows_are_named() {
        let mut lossless = jpeg();
        let frame = lossless.windows(2).position(|w| w == [0xFF, 0xC0]).unwrap();
        lossless[frame + 1] = 0xC3;
        assert_eq!(
            error(&lossless),
            "this JPEG uses lossless coding, which is not supported"
        );
        let mut deep = jpeg();
        deep[frame + 4] = 12;
        assert_eq!(
            error(&deep),
            "this JPEG uses a sample precision other than 8 bits, which is not supported"
        );
    }

    #[test]
    fn a_jpeg_of_endless_scans_is_refused_before_decoding() {
        let file = jpeg();
        let scan = file.windows(2).position(|w| w == [0xFF, 0xDA]).unwrap();
        let mut many = file[..scan].to_vec();
        for _ in 0..200 {
            many.extend(&file[scan..file.len() - 2]);
        }
        many.extend([0xFF, 0xD9]);
        assert_eq!(
            error(&many),
            "the JPEG is corrupt: more scans than any encoder writes"
        );
    }
}
