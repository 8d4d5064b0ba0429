//! Pictures varied on their way into training. In: a square thumbnail and a seed. Out: pixels as a
//! tower takes them, a little cropped, of other contrast, with noise. The same seed gives the same pixels.
//! It must not know what the picture shows; so it never mirrors one, since sides have a meaning.

use image::RgbImage;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

/// How far pictures are varied. All zero leaves them as they are.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Variation {
    /// The largest share of a side that is cropped away.
    pub crop: f32,
    /// The largest change of contrast, as a share.
    pub contrast: f32,
    /// The largest change of brightness, as a share of the range of pixels.
    pub brightness: f32,
    /// The largest deviation of the noise, as a share of the range of pixels.
    pub noise: f32,
}

/// Mean and deviation of pixels, as the processor of the base has them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scale {
    /// Taken away from pixels between 0 and 1.
    pub mean: f32,
    /// Divides them then.
    pub deviation: f32,
}

/// `[3, side, side]`, normalised. `thumbnail` is square and best a little larger than `side`, so that
/// crops stay sharp.
pub fn vary(
    thumbnail: &RgbImage,
    side: usize,
    scale: Scale,
    variation: Variation,
    seed: u64,
) -> Vec<f32> {
    let rng = &mut ChaCha8Rng::seed_from_u64(seed);
    let full = thumbnail.width() as f32;
    let window = full * (1.0 - variation.crop * rng.random::<f32>());
    let (left, top) = (
        (full - window) * rng.random::<f32>(),
        (full - window) * rng.random::<f32>(),
    );
    let either = |rng: &mut ChaCha8Rng| rng.random::<f32>() * 2.0 - 1.0;
    let contrast = 1.0 + variation.contrast * either(rng);
    let brightness = variation.brightness * either(rng);
    let noise = variation.noise * rng.random::<f32>();

    let columns = taps(left, window, side, thumbnail.width());
    let rows = taps(top, window, side, thumbnail.height());
    let raw = thumbnail.as_raw();
    let stride = thumbnail.width() as usize * 3;
    let mut out = vec![0f32; 3 * side * side];
    for (y, row) in rows.iter().enumerate() {
        for (x, column) in columns.iter().enumerate() {
            // Scanners are grey: the noise is that of all channels.
            let grain = if noise > 0.0 {
                noise * gaussian(rng)
            } else {
                0.0
            };
            for channel in 0..3 {
                let at = |y: usize, x: usize| f32::from(raw[y * stride + x * 3 + channel]);
                let line = |y: usize| mix(at(y, column.first), at(y, column.second), column.share);
                let value = mix(line(row.first), line(row.second), row.share) / 255.0;
                let value = (value - scale.mean) * contrast + scale.mean + brightness + grain;
                let value = (value.clamp(0.0, 1.0) - scale.mean) / scale.deviation;
                out[(channel * side + y) * side + x] = value;
            }
        }
    }
    out
}

/// Two neighbouring pixels and the share of the second.
struct Tap {
    first: usize,
    second: usize,
    share: f32,
}

/// The pixels that `side` samples of a window lie between.
fn taps(start: f32, window: f32, side: usize, length: u32) -> Vec<Tap> {
    let last = length as usize - 1;
    let one = |at: usize| {
        let place = start + (at as f32 + 0.5) * window / side as f32 - 0.5;
        let place = place.clamp(0.0, last as f32);
        let first = place as usize;
        Tap {
            first,
            second: (first + 1).min(last),
            share: place - first as f32,
        }
    };
    (0..side).map(one).collect()
}

fn mix(first: f32, second: f32, share: f32) -> f32 {
    first + (second - first) * share
}

/// About a sample of the standard normal distribution: the sum of four uniform ones, which is cheap.
fn gaussian(rng: &mut ChaCha8Rng) -> f32 {
    let bits: u64 = rng.random();
    let sum: f32 = (0..4)
        .map(|part| (bits >> (16 * part) & 0xFFFF) as f32 / 65_536.0)
        .sum();
    (sum - 2.0) * 3f32.sqrt()
}

#[cfg(test)]
mod tests {
    use image::Rgb;

    use super::*;

    const SCALE: Scale = Scale {
        mean: 0.25,
        deviation: 0.5,
    };
    const NONE: Variation = Variation {
        crop: 0.0,
        contrast: 0.0,
        brightness: 0.0,
        noise: 0.0,
    };
    const SOME: Variation = Variation {
        crop: 0.2,
        contrast: 0.3,
        brightness: 0.1,
        noise: 0.05,
    };

    fn picture() -> RgbImage {
        RgbImage::from_fn(8, 8, |x, y| Rgb([(x * 30) as u8, (y * 30) as u8, 100]))
    }

    #[test]
    fn no_variation_gives_the_pixels_themselves() {
        let pixels = vary(&picture(), 8, SCALE, NONE, 1);
        let want = |value: f32| (value / 255.0 - 0.25) / 0.5;
        assert!((pixels[3 * 8 + 5] - want(150.0)).abs() < 1e-5, "red is x");
        assert!(
            (pixels[64 + 3 * 8 + 5] - want(90.0)).abs() < 1e-5,
            "green is y"
        );
        assert!((pixels[128] - want(100.0)).abs() < 1e-5);
    }

    #[test]
    fn shrinking_keeps_places() {
        let pixels = vary(&picture(), 4, SCALE, NONE, 1);
        // The sample between columns 2 and 3.
        assert!((pixels[1] - (75.0 / 255.0 - 0.25) / 0.5).abs() < 1e-5);
    }

    #[test]
    fn a_seed_fixes_the_variation() {
        let one = vary(&picture(), 8, SCALE, SOME, 3);
        assert_eq!(one, vary(&picture(), 8, SCALE, SOME, 3));
        assert_ne!(one, vary(&picture(), 8, SCALE, SOME, 4));
        let range = (0.0 - 0.25) / 0.5..=(1.0 - 0.25) / 0.5;
        assert!(one.iter().all(|value| range.contains(value)));
    }

    #[test]
    fn noise_has_about_unit_deviation() {
        let rng = &mut ChaCha8Rng::seed_from_u64(1);
        let samples: Vec<f32> = (0..20_000).map(|_| gaussian(rng)).collect();
        let mean = samples.iter().sum::<f32>() / 2e4;
        let square = samples.iter().map(|sample| sample * sample).sum::<f32>() / 2e4;
        assert!(
            mean.abs() < 0.03 && (square - 1.0).abs() < 0.05,
            "{mean} {square}"
        );
    }
}
