//! Reads the headers of PNG and JPEG files: size, mode, orientation, and whether the end is there.
//! Bytes enter, a [`Header`] leaves; no pixel is decoded and nothing is allocated. It must not know
//! the limits that apply.

use std::fmt;

use image::metadata::Orientation;

use super::decode::ImageError;

/// A container that can be decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ImageFormat {
    Png,
    Jpeg,
}

impl fmt::Display for ImageFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Png => "PNG",
            Self::Jpeg => "JPEG",
        })
    }
}

/// What the headers of a complete file say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    pub format: ImageFormat,
    pub width: u32,
    pub height: u32,
    pub orientation: Orientation,
    /// PIL opens the file in mode `L` (8-bit grey, without alpha).
    pub grey8: bool,
}

const PNG_SIGNATURE: [u8; 8] = *b"\x89PNG\r\n\x1a\n";
const EXIF_PREFIX: &[u8] = b"Exif\0\0";

/// A progressive file may repeat its scans at will, each costing a pass over the whole picture;
/// real encoders write about ten.
const MAX_SCANS: usize = 100;

/// Reads the header of a PNG or JPEG file, naming what else the bytes seem to be.
pub(super) fn read(bytes: &[u8]) -> Result<Header, ImageError> {
    if bytes.is_empty() {
        return Err(ImageError::Empty);
    }
    if bytes.starts_with(&PNG_SIGNATURE) {
        read_png(bytes)
    } else if bytes.starts_with(&[0xFF, 0xD8, 0xFF]) {
        read_jpeg(bytes)
    } else {
        Err(ImageError::Format {
            seems: seems(bytes),
        })
    }
}

fn seems(bytes: &[u8]) -> &'static str {
    let at = |offset: usize, magic: &[u8]| {
        bytes
            .get(offset..)
            .is_some_and(|rest| rest.starts_with(magic))
    };
    if at(0, b"GIF87a") || at(0, b"GIF89a") {
        "a GIF"
    } else if at(0, b"RIFF") && at(8, b"WEBP") {
        "a WebP"
    } else if at(0, b"BM") {
        "a BMP"
    } else if at(128, b"DICM") {
        "a DICOM file"
    } else if at(0, b"II*\0") || at(0, b"MM\0*") {
        "a TIFF"
    } else if at(0, b"\0\0\0\x0cjP  ") || at(0, b"\xff\x4f\xff\x51") {
        "a JPEG 2000"
    } else if at(0, b"\0\0\0\x0cJXL ") || at(0, b"\xff\x0a") {
        "a JPEG XL"
    } else if at(4, b"ftyp") {
        "a HEIF, AVIF or MP4"
    } else if at(0, b"%PDF") {
        "a PDF"
    } else if at(0, b"<") {
        "a text such as SVG or HTML"
    } else if PNG_SIGNATURE.starts_with(bytes) || [0xFF, 0xD8, 0xFF].starts_with(bytes) {
        "the first bytes of a cut file"
    } else {
        "unknown data"
    }
}

fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn be32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn orientation(exif: &[u8]) -> Orientation {
    let tiff = exif.strip_prefix(EXIF_PREFIX).unwrap_or(exif);
    Orientation::from_exif_chunk(tiff).unwrap_or(Orientation::NoTransforms)
}

/// Walks the chunks to the end, because the orientation may stand behind the pixels.
fn read_png(bytes: &[u8]) -> Result<Header, ImageError> {
    let truncated = ImageError::Truncated {
        format: ImageFormat::Png,
    };
    let mut header = None;
    let mut turn = Orientation::NoTransforms;
    let mut at = PNG_SIGNATURE.len();
    loop {
        let (Some(length), Some(kind)) = (be32(bytes, at), bytes.get(at + 4..at + 8)) else {
            return Err(truncated);
        };
        // Length, kind and checksum add 12 bytes. usize has 64 bits on every target we build for,
        // and a saturated sum is past the end on others.
        let end = at.saturating_add(12).saturating_add(length as usize);
        if end > bytes.len() {
            return Err(truncated);
        }
        let data = &bytes[at + 8..end - 4];
        match (kind, header) {
            (b"IHDR", None) if data.len() == 13 => {
                let (width, height) = (be32(data, 0), be32(data, 4));
                let grey8 = data[9] == 0 && matches!(data[8], 2 | 4 | 8);
                header = width.zip(height).map(|(width, height)| Header {
                    format: ImageFormat::Png,
                    width,
                    height,
                    orientation: turn,
                    grey8,
                });
            }
            (_, None) => {
                return Err(ImageError::corrupt(
                    ImageFormat::Png,
                    "the first chunk is not IHDR",
                ));
            }
            (b"eXIf", Some(_)) => turn = orientation(data),
            (b"IEND", Some(header)) => {
                return Ok(Header {
                    orientation: turn,
                    ..header
                });
            }
            _ => {}
        }
        at = end;
    }
}

/// Walks the segments and the entropy-coded data to the end-of-image marker.
fn read_jpeg(bytes: &[u8]) -> Result<Header, ImageError> {
    let corrupt = |reason: &str| ImageError::corrupt(ImageFormat::Jpeg, reason);
    let truncated = || ImageError::Truncated {
        format: ImageFormat::Jpeg,
    };
    let mut header: Option<Header> = None;
    let mut turn = None;
    let mut scans = 0;
    let mut at = 2;
    loop {
        at += bytes[at..]
            .iter()
            .position(|&b| b == 0xFF)
            .ok_or_else(truncated)?;
        let marker = *bytes.get(at + 1).ok_or_else(truncated)?;
        match marker {
            // A fill byte before a marker.
            0xFF => {
                at += 1;
                continue;
            }
            // A stuffed byte of the entropy-coded data, or a marker without a segment.
            0x00 | 0x01 | 0xD0..=0xD8 => {
                at += 2;
                continue;
            }
            0xD9 => break,
            _ => {}
        }
        let length = usize::from(be16(bytes, at + 2).ok_or_else(truncated)?);
        if length < 2 {
            return Err(corrupt("a segment is shorter than its own length field"));
        }
        let segment = bytes.get(at + 4..at + 2 + length).ok_or_else(truncated)?;
        match marker {
            0xC4 | 0xC8 | 0xCC => {}
            0xC0..=0xCF if header.is_some() => return Err(corrupt("two frame headers")),
            0xC0..=0xCF => header = Some(jpeg_frame(marker, segment)?),
            0xDA => scans += 1,
            0xE1 if turn.is_none() && segment.starts_with(EXIF_PREFIX) => {
                turn = Some(orientation(segment));
            }
            _ => {}
        }
        if scans > MAX_SCANS {
            return Err(corrupt("more scans than any encoder writes"));
        }
        at += 2 + length;
    }
    let header = header.ok_or_else(|| corrupt("no frame header"))?;
    if scans == 0 {
        return Err(corrupt("no scan"));
    }
    Ok(Header {
        orientation: turn.unwrap_or(Orientation::NoTransforms),
        ..header
    })
}

fn jpeg_frame(marker: u8, segment: &[u8]) -> Result<Header, ImageError> {
    let unsupported = |what: &'static str| ImageError::Unsupported {
        format: ImageFormat::Jpeg,
        what,
    };
    match marker {
        0xC0..=0xC2 => {}
        0xC3 | 0xC7 | 0xCB | 0xCF => return Err(unsupported("lossless coding")),
        0xC5 | 0xC6 => return Err(unsupported("hierarchical coding")),
        _ => return Err(unsupported("arithmetic coding")),
    }
    let (Some(&precision), Some(height), Some(width), Some(&components)) = (
        segment.first(),
        be16(segment, 1),
        be16(segment, 3),
        segment.get(5),
    ) else {
        return Err(ImageError::corrupt(
            ImageFormat::Jpeg,
            "the frame header is too short",
        ));
    };
    if precision != 8 {
        return Err(unsupported("a sample precision other than 8 bits"));
    }
    Ok(Header {
        format: ImageFormat::Jpeg,
        width: u32::from(width),
        height: u32::from(height),
        orientation: Orientation::NoTransforms,
        grey8: components == 1,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(bytes: &[u8]) -> String {
        read(bytes).unwrap_err().to_string()
    }

    #[test]
    fn other_formats_are_named() {
        let mut dicom = vec![0; 128];
        dicom.extend(b"DICM");
        let cases: [(&[u8], &str); 8] = [
            (b"GIF89a..", "a GIF"),
            (b"RIFF\0\0\0\0WEBPVP8 ", "a WebP"),
            (b"BM\0\0", "a BMP"),
            (b"II*\0....", "a TIFF"),
            (&dicom, "a DICOM file"),
            (b"\0\0\0\x1cftypavif", "a HEIF, AVIF or MP4"),
            (b"\x89PN", "the first bytes of a cut file"),
            (b"hello", "unknown data"),
        ];
        for (bytes, seems) in cases {
            assert_eq!(
                error(bytes),
                format!("the image must be PNG or JPEG, this seems to be {seems}")
            );
        }
        assert_eq!(error(b""), "the image is empty");
    }
}
