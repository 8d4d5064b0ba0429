//! Antialiased bicubic resizing, bit-equal to PIL's, of just the part that is kept.
//! A picture, a target size and a window of it enter; the window's pixels leave. It must not know
//! why that window was chosen.
//!
//! The formulas are those of Pillow's `src/libImaging/Resample.c` (version 13): a Catmull-Rom kernel
//! (a = -0.5) widened by the scale when shrinking, coefficients rounded to 22 bits, an 8-bit picture
//! between the horizontal and the vertical pass. `fast_image_resize` keeps 15-bit coefficients and
//! so differs by one level in places; hence our own.

use image::RgbImage;

const PRECISION: u32 = 32 - 8 - 2;
const SUPPORT: f64 = 2.0;

/// A rectangle of the resized picture; parts outside of the picture are black.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Window {
    pub left: i64,
    pub top: i64,
    pub width: u32,
    pub height: u32,
}

/// What one output pixel takes from the input along one axis.
struct Taps {
    first: usize,
    weights: Vec<i32>,
}

/// `resize(picture, size)` cut to `window`. Time and memory follow the input and the window, not
/// `size`: a picture of one pixel's width does not blow up.
pub(super) fn bicubic(picture: &RgbImage, size: (u32, u32), window: Window) -> RgbImage {
    let mut out = RgbImage::new(window.width, window.height);
    let (x0, x1) = clip(window.left, window.width, size.0);
    let (y0, y1) = clip(window.top, window.height, size.1);
    if x0 >= x1 || y0 >= y1 || picture.width() == 0 || picture.height() == 0 {
        return out;
    }
    let columns = taps(picture.width(), size.0, x0, x1);
    let rows = taps(picture.height(), size.1, y0, y1);
    let top = rows.iter().map(|t| t.first).min().unwrap_or(0);
    let bottom = rows
        .iter()
        .map(|t| t.first + t.weights.len())
        .max()
        .unwrap_or(0);
    let narrow = horizontal(picture, &columns, top..bottom);

    // The clipped window starts inside `out` where the picture does.
    let (dx, dy) = (
        (i64::from(x0) - window.left) as usize,
        (i64::from(y0) - window.top) as usize,
    );
    let (stride, width) = (window.width as usize * 3, columns.len() * 3);
    let mut sums = vec![0_i32; width];
    let pixels: &mut [u8] = &mut out;
    for (y, row) in rows.iter().enumerate() {
        sums.fill(1 << (PRECISION - 1));
        for (k, &weight) in row.weights.iter().enumerate() {
            let line = &narrow[(row.first - top + k) * width..][..width];
            for (sum, &value) in sums.iter_mut().zip(line) {
                *sum += weight * i32::from(value);
            }
        }
        let target = &mut pixels[(dy + y) * stride + dx * 3..][..width];
        for (pixel, &sum) in target.iter_mut().zip(&sums) {
            *pixel = to_u8(sum);
        }
    }
    out
}

fn clip(start: i64, length: u32, size: u32) -> (u32, u32) {
    let size = i64::from(size);
    let end = (start + i64::from(length)).clamp(0, size);
    (start.clamp(0, size) as u32, end as u32)
}

/// The rows `rows` of the picture, resized along x: `[rows, columns, 3]`.
fn horizontal(picture: &RgbImage, columns: &[Taps], rows: std::ops::Range<usize>) -> Vec<u8> {
    let stride = picture.width() as usize * 3;
    let mut out = Vec::with_capacity(rows.len() * columns.len() * 3);
    for row in picture.as_raw()[rows.start * stride..rows.end * stride].chunks_exact(stride) {
        for column in columns {
            let mut sum = [1_i32 << (PRECISION - 1); 3];
            let pixels = row[column.first * 3..].chunks_exact(3);
            for (pixel, &weight) in pixels.zip(&column.weights) {
                for c in 0..3 {
                    sum[c] += weight * i32::from(pixel[c]);
                }
            }
            out.extend(sum.map(to_u8));
        }
    }
    out
}

fn to_u8(sum: i32) -> u8 {
    (sum >> PRECISION).clamp(0, 255) as u8
}

/// The taps of the output pixels `from..to` when `input` pixels become `output`.
fn taps(input: u32, output: u32, from: u32, to: u32) -> Vec<Taps> {
    if input == output {
        // PIL leaves an axis alone whose size does not change.
        let identity = |x| Taps {
            first: x as usize,
            weights: vec![1 << PRECISION],
        };
        return (from..to).map(identity).collect();
    }
    let scale = f64::from(input) / f64::from(output);
    let filter_scale = scale.max(1.0);
    let support = SUPPORT * filter_scale;
    let step = 1.0 / filter_scale;
    let taps_of = |x: u32| {
        let center = (f64::from(x) + 0.5) * scale;
        let first = ((center - support + 0.5) as i64).max(0);
        let end = ((center + support + 0.5) as i64).min(i64::from(input));
        let raw: Vec<f64> = (0..end - first)
            .map(|k| kernel(((k + first) as f64 - center + 0.5) * step))
            .collect();
        let sum: f64 = raw.iter().sum();
        let weights = raw
            .iter()
            .map(|&w| fixed(if sum == 0.0 { w } else { w / sum }))
            .collect();
        Taps {
            first: first as usize,
            weights,
        }
    };
    (from..to).map(taps_of).collect()
}

fn fixed(weight: f64) -> i32 {
    let scaled = weight * f64::from(1 << PRECISION);
    (if weight < 0.0 {
        scaled - 0.5
    } else {
        scaled + 0.5
    }) as i32
}

fn kernel(x: f64) -> f64 {
    const A: f64 = -0.5;
    let x = x.abs();
    if x < 1.0 {
        ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0
    } else if x < 2.0 {
        (((x - 5.0) * x + 8.0) * x - 4.0) * A
    } else {
        0.0
    }
}
