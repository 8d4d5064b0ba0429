//! From truth to picture. In: a scene and an image seed. Out: a 64 x 64 film of 8-bit grey and the
//! labels of its patches. It knows no words.

use image::{GrayImage, RgbImage};
use rand::Rng;

use super::anatomy::{Anatomy, paint};
use super::{Finding, Kind, PhantomError, Scene, Side, Size, Stream, Zone, lesion, rng};

/// Width and height of a film in pixels.
pub const SIDE: usize = 64;
/// Width and height of a patch in pixels: the tower sees 8 x 8 of them.
pub const PATCH: usize = 8;
/// Patches a row.
pub const GRID: usize = SIDE / PATCH;

/// Share of a patch that a finding must cover to label it.
const PATCH_COVERAGE: f64 = 0.08;
/// Standard deviation of the film's grain in grey levels.
const GRAIN: f64 = 4.0;

/// A drawn film: 8-bit grey, row by row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Film {
    pixels: Vec<u8>,
}

impl Film {
    /// Draws a scene. The same scene and seed give the same bytes; the seed alone decides anatomy,
    /// exposure and grain, so films of two scenes with one seed differ just by their findings.
    pub fn draw(scene: &Scene, seed: u64) -> Self {
        let anatomy = Anatomy::sample(seed);
        let mut film = anatomy.healthy_film();
        // The heart grows behind everything else; the pacemaker lies above everything.
        let depth = |finding: &Finding| match finding.kind {
            Kind::Cardiomegaly => 0,
            Kind::Opacity => 1,
            Kind::Nodule => 2,
            Kind::Pneumothorax => 3,
            Kind::Effusion => 4,
            Kind::Pacemaker => 5,
        };
        let mut findings = scene.findings.clone();
        findings.sort_by_key(depth);
        for layer in findings
            .into_iter()
            .flat_map(|one| lesion::layers(one, &anatomy, seed))
        {
            paint(&mut film, &layer.alpha, layer.level);
        }
        let mut rng = rng(seed, Stream::Noise, 0);
        let gain = rng.random_range(0.9..1.1);
        let offset = rng.random_range(-8.0..8.0);
        let pixels = film
            .into_iter()
            .map(|value| to_grey(value * gain + offset + GRAIN * gaussian(&mut rng)))
            .collect();
        Self { pixels }
    }

    /// The film of an image seed, with the scene of that seed.
    pub fn of_seed(seed: u64) -> Self {
        Self::draw(&Scene::sample(seed), seed)
    }

    /// Takes `SIDE * SIDE` grey values, row by row.
    pub fn from_pixels(pixels: Vec<u8>) -> Result<Self, PhantomError> {
        let (want, got) = (SIDE * SIDE, pixels.len());
        if want == got {
            Ok(Self { pixels })
        } else {
            Err(PhantomError::PixelCount { want, got })
        }
    }

    /// Grey values, row by row.
    pub fn pixels(&self) -> &[u8] {
        &self.pixels
    }

    pub fn to_grey(&self) -> GrayImage {
        GrayImage::from_raw(SIDE as u32, SIDE as u32, self.pixels.clone())
            .expect("a film holds SIDE * SIDE pixels")
    }

    /// Three equal channels, as the model sees it.
    pub fn to_rgb(&self) -> RgbImage {
        let rgb = self.pixels.iter().flat_map(|grey| [*grey; 3]).collect();
        RgbImage::from_raw(SIDE as u32, SIDE as u32, rgb).expect("a film holds SIDE * SIDE pixels")
    }
}

/// What the warm-up of a tower learns: a set of [`PATCH_CLASSES`] a patch, a set of
/// [`IMAGE_CLASSES`] for the film; bit `n` is class `n`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Labels {
    /// `GRID * GRID` sets, row by row.
    pub patches: Vec<u32>,
    pub image: u32,
}

/// Patch classes: the eleven pairs of kind and side, then "a large one" of the three sized kinds.
pub const PATCH_CLASSES: usize = 14;
/// Image classes: the patch classes, then opacity's and nodule's three zones.
pub const IMAGE_CLASSES: usize = 20;

/// The labels of the film that [`Film::draw`] draws of the same scene and seed.
pub fn labels(scene: &Scene, seed: u64) -> Labels {
    let anatomy = Anatomy::sample(seed);
    let mut labels = Labels {
        patches: vec![0; GRID * GRID],
        image: 0,
    };
    for finding in scene.findings.iter().copied() {
        let classes = patch_classes(finding);
        labels.image |= classes | zone_class(finding);
        for patch in patches_of(finding, &anatomy, seed) {
            labels.patches[patch] |= classes;
        }
    }
    labels
}

/// The patches that a finding covers: all above the threshold, and always the most covered one.
fn patches_of(finding: Finding, anatomy: &Anatomy, seed: u64) -> Vec<usize> {
    let mut cover = vec![0.0; GRID * GRID];
    let layers = lesion::layers(finding, anatomy, seed);
    for layer in layers.iter().filter(|layer| layer.marks) {
        for (at, alpha) in layer.alpha.iter().enumerate() {
            let (x, y) = (at % SIDE, at / SIDE);
            cover[y / PATCH * GRID + x / PATCH] += alpha / (PATCH * PATCH) as f64;
        }
    }
    let most = cover.iter().copied().fold(0.0, f64::max);
    let threshold = PATCH_COVERAGE.min(most);
    (0..cover.len())
        .filter(|at| cover[*at] >= threshold)
        .collect()
}

fn patch_classes(finding: Finding) -> u32 {
    let right = u32::from(finding.side == Some(Side::Right));
    let (kind_side, large) = match finding.kind {
        Kind::Pneumothorax => (right, Some(11)),
        Kind::Effusion => (2 + right, Some(12)),
        Kind::Opacity => (4 + right, None),
        Kind::Nodule => (6 + right, Some(13)),
        Kind::Cardiomegaly => (8, None),
        Kind::Pacemaker => (9 + right, None),
    };
    let large = large.filter(|_| finding.size == Some(Size::Large));
    1 << kind_side | large.map_or(0, |class: u32| 1 << class)
}

fn zone_class(finding: Finding) -> u32 {
    let first = match finding.kind {
        Kind::Opacity => 14,
        Kind::Nodule => 17,
        _ => return 0,
    };
    finding.zone.map_or(0, |zone| {
        1 << (first + Zone::ALL.iter().position(|one| *one == zone).unwrap_or(0))
    })
}

/// Rounds to the nearest grey value.
pub(super) fn to_grey(value: f64) -> u8 {
    value.round().clamp(0.0, 255.0) as u8
}

/// A sample of the standard normal distribution (Box and Muller).
pub(super) fn gaussian(rng: &mut impl Rng) -> f64 {
    let radius = (-2.0 * rng.random_range(f64::EPSILON..1.0).ln()).sqrt();
    radius * (std::f64::consts::TAU * rng.random_range(0.0..1.0)).cos()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Mean absolute difference of two films, patch by patch.
    fn patch_difference(one: &Film, other: &Film) -> Vec<f64> {
        let mut difference = vec![0.0; GRID * GRID];
        for (at, (a, b)) in one.pixels().iter().zip(other.pixels()).enumerate() {
            let patch = at / SIDE / PATCH * GRID + at % SIDE / PATCH;
            difference[patch] += f64::from(a.abs_diff(*b)) / (PATCH * PATCH) as f64;
        }
        difference
    }

    #[test]
    fn a_seed_fixes_the_bytes() {
        for seed in [0, 1, 77, u64::MAX] {
            assert_eq!(Film::of_seed(seed), Film::of_seed(seed));
        }
        assert_ne!(Film::of_seed(1), Film::of_seed(2));
    }

    #[test]
    fn labelled_patches_are_where_the_finding_was_drawn() {
        for seed in 0..300 {
            let scene = Scene::sample(seed);
            for finding in &scene.findings {
                let alone = Scene::from_findings([*finding]);
                let with = Film::draw(&alone, seed);
                let without = Film::draw(&Scene::default(), seed);
                let difference = patch_difference(&with, &without);
                let labels = labels(&alone, seed);
                let strongest = (0..difference.len())
                    .max_by(|a, b| difference[*a].total_cmp(&difference[*b]))
                    .unwrap();
                assert_ne!(labels.patches[strongest], 0, "seed {seed}, {finding:?}");
                assert!(
                    difference[strongest] > 8.0,
                    "seed {seed}, {finding:?} can hardly be seen"
                );
                for (patch, classes) in labels.patches.iter().enumerate() {
                    // A pacemaker's lead and a pleural line are drawn outside the labelled area.
                    let limit = if finding.kind == Kind::Pacemaker {
                        40.0
                    } else {
                        22.0
                    };
                    if *classes == 0 {
                        assert!(
                            difference[patch] < limit,
                            "seed {seed}, {finding:?}, {patch}"
                        );
                    } else {
                        assert!(difference[patch] > 0.5, "seed {seed}, {finding:?}, {patch}");
                    }
                }
            }
        }
    }

    #[test]
    fn the_patients_right_is_at_the_images_left() {
        for kind in Kind::ALL.into_iter().filter(|kind| kind.has_side()) {
            for side in Side::ALL {
                let finding = Finding {
                    side: Some(side),
                    size: kind.has_size().then_some(Size::Large),
                    zone: kind.has_zone().then_some(Zone::Middle),
                    ..Finding::bare(kind)
                };
                let labels = labels(&Scene::from_findings([finding]), 5);
                for (patch, classes) in labels.patches.iter().enumerate() {
                    let at_image_left = patch % GRID < GRID / 2;
                    assert!(
                        *classes == 0 || at_image_left == (side == Side::Right),
                        "{finding:?}"
                    );
                }
            }
        }
    }

    #[test]
    fn classes_stay_within_their_counts_and_all_occur() {
        let (mut patches, mut image) = (0, 0);
        for seed in 0..600 {
            let labels = labels(&Scene::sample(seed), seed);
            patches |= labels.patches.iter().fold(0, |all, one| all | one);
            image |= labels.image;
        }
        assert_eq!(patches, (1 << PATCH_CLASSES) - 1);
        assert_eq!(image, (1 << IMAGE_CLASSES) - 1);
    }

    #[test]
    fn a_wrong_pixel_count_is_no_film() {
        assert!(matches!(
            Film::from_pixels(vec![0; 10]),
            Err(PhantomError::PixelCount {
                want: 4096,
                got: 10
            })
        ));
    }
}
