//! Images inside JSON: `data:` URLs to the bytes of a file.
//!
//! In: a client's URL. Out: bytes within the limit, not looked at further. Nothing is ever fetched.

use base64::Engine as _;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};

use super::error::{ApiError, Kind};
use super::question::ImageFile;
use crate::preprocess::ImageLimits;

const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// The file in a data URL. `param` names the field that held it.
pub fn from_data_url(url: &str, param: &str, limits: &ImageLimits) -> Result<ImageFile, ApiError> {
    let invalid = |message: String| ApiError::bad(param, message).with_code("invalid_image_url");
    let Some((head, data)) = url
        .strip_prefix("data:")
        .and_then(|rest| rest.split_once(','))
    else {
        let message = format!(
            "`{param}` must be a `data:image/png;base64,…` or `data:image/jpeg;base64,…` URL; \
             this server fetches nothing"
        );
        return Err(invalid(message));
    };
    let (media, encoding) = head.split_once(';').unwrap_or((head, ""));
    if !["image/png", "image/jpeg", "image/jpg"].contains(&media) {
        return Err(invalid(format!(
            "`{param}` must be of type image/png or image/jpeg"
        )));
    }
    if encoding != "base64" {
        return Err(invalid(format!("`{param}` must be base64-encoded")));
    }
    // Four characters hold three bytes: refused before it is unpacked.
    if data.len() / 4 * 3 > limits.max_bytes.saturating_add(3) {
        return Err(too_large(param, limits));
    }
    let bytes = BASE64
        .decode(data)
        .map_err(|_| invalid(format!("`{param}` holds no valid base64")))?;
    if bytes.len() > limits.max_bytes {
        return Err(too_large(param, limits));
    }
    Ok(ImageFile {
        param: param.to_owned(),
        bytes,
    })
}

fn too_large(param: &str, limits: &ImageLimits) -> ApiError {
    let message = format!(
        "`{param}` has more than the {} bytes allowed",
        limits.max_bytes
    );
    ApiError::new(Kind::TooLarge, message)
        .with_param(param)
        .with_code("image_too_large")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_urls_are_unpacked_and_all_else_is_refused_by_field() {
        let limits = ImageLimits {
            max_bytes: 4,
            ..ImageLimits::default()
        };
        let read = |url: &str| from_data_url(url, "image", &limits).map(|image| image.bytes);
        assert_eq!(read("data:image/png;base64,AAEC").unwrap(), [0, 1, 2]);
        assert_eq!(
            read("data:image/jpeg;base64,AAECAw==").unwrap(),
            [0, 1, 2, 3]
        );
        assert_eq!(read("data:image/jpeg;base64,AAECAw").unwrap(), [0, 1, 2, 3]);
        for (url, code) in [
            ("https://example.org/a.png", "invalid_image_url"),
            ("file:///etc/passwd", "invalid_image_url"),
            ("data:image/gif;base64,AAEC", "invalid_image_url"),
            ("data:image/png,AAEC", "invalid_image_url"),
            ("data:image/png;base64,?", "invalid_image_url"),
            ("data:image/png;base64,AAECAwQ=", "image_too_large"),
            ("data:image/png;base64,AAECAwQFBgcICQoL", "image_too_large"),
        ] {
            assert_eq!(read(url).unwrap_err().code(), code, "{url}");
        }
    }
}
