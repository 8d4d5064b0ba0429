//! Pictures against PIL and transformers' PIL-based processor; expectations made by
//! `tests/golden/make_pixels.py` and `make_llava.py`.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use candle_core::Tensor;
use image::RgbImage;
use norma::preprocess::{
    ClipPreprocess, ImageLimits, PadToSquare, Picture, PreprocessError, decode,
};
use safetensors::SafeTensors;
use serde_json::{Value, json};

/// Most and mean difference to PIL (libjpeg-turbo) in levels of 255, for decoders are free in their
/// inverse cosine transform. Measured: 3 and 0.036.
const JPEG: (u8, f64) = (3, 0.05);
/// With halved colour planes, which decoders also enlarge in their own ways. Measured: 11 and 0.443.
const JPEG_HALVED: (u8, f64) = (11, 0.5);

fn golden(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden")
        .join(path)
}

fn json(path: &str) -> Value {
    serde_json::from_slice(&fs::read(golden(path)).unwrap()).unwrap()
}

/// The result of a golden case, by this project.
fn ours(case: &Value) -> RgbImage {
    let file = fs::read(golden("pixels").join(case["file"].as_str().unwrap())).unwrap();
    let picture = decode(&file, &ImageLimits::default()).unwrap();
    let clip = || {
        let crop = &case["crop"];
        ClipPreprocess::from_json(&json!({
            "size": {"shortest_edge": case["shortest_edge"]},
            "crop_size": {"height": crop[0], "width": crop[1]},
        }))
        .unwrap()
    };
    match case["variant"].as_str().unwrap() {
        "upright" => picture.into_rgb(),
        "crop" => clip().resize_crop(&picture),
        "pad" => clip()
            .with_pad(PadToSquare::MeanColour)
            .resize_crop(&picture),
        other => panic!("unknown variant {other}"),
    }
}

struct Difference {
    most: u8,
    mean: f64,
}

/// Every case whose file ends in `extension`, with its difference to the expectation.
fn differences(extension: &str) -> BTreeMap<String, Difference> {
    let listing = json("pixels/expected.json");
    let bytes = fs::read(golden("pixels/expected.safetensors")).unwrap();
    let expected = SafeTensors::deserialize(&bytes).unwrap();
    let mut all = BTreeMap::new();
    for case in listing["cases"].as_array().unwrap() {
        if !case["file"].as_str().unwrap().ends_with(extension) {
            continue;
        }
        let name = case["name"].as_str().unwrap();
        let want = expected.tensor(name).unwrap();
        let got = ours(case);
        let shape = [got.height() as usize, got.width() as usize, 3];
        assert_eq!(want.shape(), shape, "{name}");
        let levels: Vec<u8> = got
            .as_raw()
            .iter()
            .zip(want.data())
            .map(|(a, b)| a.abs_diff(*b))
            .collect();
        let most = levels.iter().copied().max().unwrap();
        let sum: f64 = levels.iter().map(|&d| f64::from(d)).sum();
        all.insert(
            name.to_owned(),
            Difference {
                most,
                mean: sum / levels.len() as f64,
            },
        );
    }
    assert!(all.len() >= 20, "only {} cases of {extension}", all.len());
    all
}

#[test]
fn png_pixels_equal_pil_bit_for_bit() {
    for (name, difference) in differences(".png") {
        assert_eq!(difference.most, 0, "{name}, mean {}", difference.mean);
    }
}

#[test]
fn jpeg_pixels_are_within_the_measured_tolerance_of_pil() {
    for (name, Difference { most, mean }) in differences(".jpg") {
        let limit = if name.starts_with("jpeg_420") {
            JPEG_HALVED
        } else {
            JPEG
        };
        assert!(
            most <= limit.0 && mean <= limit.1,
            "{name}: most {most}, mean {mean}"
        );
    }
}

#[test]
fn pixel_tensors_equal_those_of_the_processor() {
    for case in ["llama_a", "gqa_tied"] {
        let clip = ClipPreprocess::from_folder(&golden(&format!("llava/{case}"))).unwrap();
        assert_eq!(clip.image_size(), 32);
        check_tensors(case, |picture| clip.pixels(picture));
    }
}

#[test]
fn original_layout_pads_to_the_mean_colour() {
    let clip = ClipPreprocess::from_folder(&golden("llava/llama_d_vision")).unwrap();
    let clip = clip.with_pad(PadToSquare::MeanColour);
    // The script made its grey picture RGB before padding, so it has the colour picture's margin.
    check_tensors("llama_d", |picture| clip.pixels(&**picture));
}

/// Normalisation has one rounding more or less than numpy's, hence 1e-6; a level is 0.015.
fn check_tensors(case: &str, pixels: impl Fn(&Picture) -> Result<Tensor, PreprocessError>) {
    let bytes = fs::read(golden(&format!("llava/{case}.safetensors"))).unwrap();
    let expected = SafeTensors::deserialize(&bytes).unwrap();
    let mut compared = 0;
    for name in expected.names() {
        let Some(stem) = name.strip_suffix(".pixel_values") else {
            continue;
        };
        let file = fs::read(golden(&format!("images/{stem}.png"))).unwrap();
        let picture = decode(&file, &ImageLimits::default()).unwrap();
        let got = pixels(&picture).unwrap();
        let want = expected.tensor(name).unwrap();
        assert_eq!(got.dims(), want.shape());
        let got: Vec<f32> = got.flatten_all().unwrap().to_vec1().unwrap();
        let want = want
            .data()
            .as_chunks::<4>()
            .0
            .iter()
            .map(|b| f32::from_le_bytes(*b));
        let most = got
            .iter()
            .zip(want)
            .map(|(a, b)| (a - b).abs())
            .fold(0.0, f32::max);
        assert!(most <= 1e-6, "{case} {name}: {most}");
        compared += 1;
    }
    assert!(compared > 0, "{case} has no pixel values");
}
