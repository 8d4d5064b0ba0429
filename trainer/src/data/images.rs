//! The images of a set, decoded once to see whether they can be. In: a set. Out: each image's facts; what
//! cannot be decoded becomes a [`Problem`]. It must not know what is asked about them.

use std::collections::BTreeMap;

use norma::preprocess::{ImageLimits, decode};
use rayon::prelude::*;
use sha2::{Digest, Sha256};

use super::{DataSet, Image, Problem, ProblemKind};

/// What is known of an image that can be decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Facts {
    /// SHA-256 of the encoded bytes.
    pub digest: [u8; 32],
    pub width: u32,
    pub height: u32,
    /// Whether the file holds 8-bit grey.
    pub grey: bool,
    /// Whether all pixels are grey, whatever the file holds.
    pub looks_grey: bool,
    pub jpeg: bool,
}

/// Decodes every image of a set, as serving would.
fn facts(set: &DataSet) -> BTreeMap<Image, Result<Facts, String>> {
    let mut images: Vec<&Image> = set.records.iter().flat_map(|one| &one.images).collect();
    images.sort_unstable();
    images.dedup();
    images
        .into_par_iter()
        .map(|image| (image.clone(), one(image)))
        .collect()
}

fn one(image: &Image) -> Result<Facts, String> {
    let bytes = image.bytes().map_err(|error| error.to_string())?;
    let picture = decode(&bytes, &ImageLimits::default()).map_err(|error| error.to_string())?;
    let looks_grey = |pixel: &image::Rgb<u8>| pixel.0[0] == pixel.0[1] && pixel.0[1] == pixel.0[2];
    Ok(Facts {
        digest: Sha256::digest(&bytes).into(),
        width: picture.width(),
        height: picture.height(),
        grey: picture.is_grey(),
        looks_grey: picture.pixels().all(looks_grey),
        jpeg: bytes.starts_with(&[0xFF, 0xD8]),
    })
}

/// Decodes every image of a set and leaves out what cannot be decoded: a record whose only image it is,
/// or one of a study's images. Each is listed for every record that names it. What stands is returned.
pub fn check(set: &mut DataSet) -> BTreeMap<Image, Facts> {
    let (mut good, mut bad) = (BTreeMap::new(), BTreeMap::new());
    for (image, facts) in facts(set) {
        match facts {
            Ok(facts) => _ = good.insert(image, facts),
            Err(reason) => _ = bad.insert(image, reason),
        }
    }
    if bad.is_empty() {
        return good;
    }
    let problems = &mut set.problems;
    set.records.retain_mut(|record| {
        let faults: Vec<ProblemKind> = record
            .images
            .iter()
            .filter_map(|image| {
                Some(ProblemKind::BadImage {
                    name: image.to_string(),
                    reason: bad.get(image)?.clone(),
                })
            })
            .collect();
        record.images.retain(|image| !bad.contains_key(image));
        let stands = !record.images.is_empty();
        problems.extend(faults.into_iter().map(|kind| Problem {
            place: record.place.clone(),
            kind: match kind {
                ProblemKind::BadImage { name, reason } if stands => {
                    ProblemKind::BadView { name, reason }
                }
                other => other,
            },
        }));
        stands
    });
    set.sort_problems();
    good
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::imitation::{Folder, faults, png, record};

    #[test]
    fn what_cannot_be_decoded_is_listed_and_left_out() {
        let folder = Folder::new();
        folder
            .write("good.png", png(1))
            .write("cut.png", &png(2)[..40]);
        folder.write("film.dcm", [vec![0; 128], b"DICM".to_vec()].concat());
        let at = |name: &str| folder.path().join(name);
        let mut study = record(at("cut.png"), "Which?", "left");
        study.images.push(at("good.png").into());
        let mut set = DataSet {
            records: vec![
                record(at("good.png"), "Which?", "left"),
                record(at("film.dcm"), "Which?", "left"),
                study,
            ],
            ..DataSet::default()
        };
        let facts = check(&mut set);
        let good = &facts[&Image::from(at("good.png"))];
        assert_eq!(facts.len(), 1);
        assert_eq!(
            (good.width, good.height, good.grey, good.jpeg),
            (9, 6, false, false)
        );
        assert!(!good.looks_grey);
        assert_eq!(set.records.len(), 2);
        assert_eq!(set.records[1].images, [Image::from(at("good.png"))]);
        let found = faults(&set);
        assert!(
            matches!(&found[0].1, ProblemKind::BadImage { reason, .. } if reason.contains("DICOM"))
        );
        assert!(
            matches!(&found[1].1, ProblemKind::BadView { reason, .. } if reason.contains("ends before"))
        );
        assert_eq!(set.dropped().count(), 1);
    }
}
