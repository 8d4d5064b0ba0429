//! The images of a set, decoded once. In: where they are. Out: small pictures in memory, or pixels as a
//! tower takes them. It must not know what is asked about them.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use image::RgbImage;
use norma::preprocess::{ClipPreprocess, ImageLimits, Picture, decode};
use rayon::prelude::*;

use crate::data::Image;

/// Decoded pictures of one size.
#[derive(Debug, Default)]
pub struct Pictures {
    thumbnails: BTreeMap<Image, RgbImage>,
}

impl Pictures {
    /// Reads images and brings them to the square that `preprocess` makes of them. One that is no
    /// picture ends the reading, with its place.
    pub fn read<'a>(
        images: impl IntoIterator<Item = &'a Image>,
        preprocess: &ClipPreprocess,
    ) -> Result<Self> {
        let mut images: Vec<&Image> = images.into_iter().collect();
        images.sort_unstable();
        images.dedup();
        let one = |image: &&Image| {
            let picture = read(image)?;
            Ok(((*image).clone(), preprocess.resize_crop(&picture)))
        };
        let thumbnails = images.par_iter().map(one).collect::<Result<_>>()?;
        Ok(Self { thumbnails })
    }

    /// The picture of an image that was read.
    pub fn get(&self, image: &Image) -> Result<&RgbImage> {
        let picture = self.thumbnails.get(image);
        picture.with_context(|| format!("{image} was not read"))
    }
}

/// A picture as the server would take it.
pub fn read(image: &Image) -> Result<Picture> {
    let shown = || format!("cannot read the picture {image}");
    let bytes = image.bytes().with_context(shown)?;
    decode(&bytes, &ImageLimits::default()).with_context(shown)
}

#[cfg(test)]
mod tests {
    use image::Rgb;
    use serde_json::json;
    use tempfile::TempDir;

    use super::*;

    #[test]
    fn pictures_are_squared_and_kept_by_place() {
        let folder = TempDir::new().unwrap();
        let (path, other) = (folder.path().join("a.png"), folder.path().join("b.png"));
        RgbImage::from_pixel(12, 4, Rgb([200, 200, 200]))
            .save(&path)
            .unwrap();
        std::fs::write(&other, "no picture").unwrap();
        let (path, other) = (Image::from(path), Image::from(other));
        let preprocess = ClipPreprocess::from_json(&json!({
            "image_processor_type": "LlavaImageProcessor", "do_pad": true,
            "size": { "shortest_edge": 12 }, "crop_size": { "height": 12, "width": 12 },
            "image_mean": [0.2, 0.2, 0.2], "image_std": [0.5, 0.5, 0.5],
        }))
        .unwrap();
        let pictures = Pictures::read([&path, &path], &preprocess).unwrap();
        let picture = pictures.get(&path).unwrap();
        assert_eq!(picture.dimensions(), (12, 12));
        assert_eq!(
            (picture.get_pixel(6, 0)[0], picture.get_pixel(6, 6)[0]),
            (51, 200)
        );
        assert!(
            pictures
                .get(&other)
                .unwrap_err()
                .to_string()
                .contains("b.png")
        );
        let error = Pictures::read([&other], &preprocess).unwrap_err();
        assert!(
            format!("{error:#}").contains("b.png: the image must be PNG or JPEG"),
            "{error:#}"
        );
    }
}
