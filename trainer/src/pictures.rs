//! The image files of a set, decoded once. In: paths. Out: small pictures in memory, or pixels as a
//! tower takes them. It must not know what is asked about them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use image::RgbImage;
use norma::preprocess::{ClipPreprocess, ImageLimits, Picture, decode};
use rayon::prelude::*;

/// Decoded pictures of one size, by path.
#[derive(Debug, Default)]
pub struct Pictures {
    thumbnails: BTreeMap<PathBuf, RgbImage>,
}

impl Pictures {
    /// Reads files and brings them to the square that `preprocess` makes of them. A file that is no
    /// picture ends the reading, with its path.
    pub fn read<'a>(
        paths: impl IntoIterator<Item = &'a Path>,
        preprocess: &ClipPreprocess,
    ) -> Result<Self> {
        let mut paths: Vec<&Path> = paths.into_iter().collect();
        paths.sort_unstable();
        paths.dedup();
        let one = |path: &&Path| {
            let picture = read(path)?;
            Ok((path.to_path_buf(), preprocess.resize_crop(&picture)))
        };
        let thumbnails = paths.par_iter().map(one).collect::<Result<_>>()?;
        Ok(Self { thumbnails })
    }

    /// The picture of a path that was read.
    pub fn get(&self, path: &Path) -> Result<&RgbImage> {
        let picture = self.thumbnails.get(path);
        picture.with_context(|| format!("{} was not read", path.display()))
    }
}

/// A picture file as the server would take it.
pub fn read(path: &Path) -> Result<Picture> {
    let shown = || format!("cannot read the picture {}", path.display());
    let bytes = std::fs::read(path).with_context(shown)?;
    decode(&bytes, &ImageLimits::default()).with_context(shown)
}

#[cfg(test)]
mod tests {
    use image::Rgb;
    use serde_json::json;
    use tempfile::TempDir;

    use super::*;

    #[test]
    fn pictures_are_squared_and_kept_by_path() {
        let folder = TempDir::new().unwrap();
        let (path, other) = (folder.path().join("a.png"), folder.path().join("b.png"));
        RgbImage::from_pixel(12, 4, Rgb([200, 200, 200]))
            .save(&path)
            .unwrap();
        std::fs::write(&other, "no picture").unwrap();
        let preprocess = ClipPreprocess::from_json(&json!({
            "image_processor_type": "LlavaImageProcessor", "do_pad": true,
            "size": { "shortest_edge": 12 }, "crop_size": { "height": 12, "width": 12 },
            "image_mean": [0.2, 0.2, 0.2], "image_std": [0.5, 0.5, 0.5],
        }))
        .unwrap();
        let pictures = Pictures::read([path.as_path(), path.as_path()], &preprocess).unwrap();
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
        let error = Pictures::read([other.as_path()], &preprocess).unwrap_err();
        assert!(
            format!("{error:#}").contains("b.png: the image must be PNG or JPEG"),
            "{error:#}"
        );
    }
}
