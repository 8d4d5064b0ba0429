//! Antialiased bicubic resizing, bit-equal to PIL's, of just the part that is kept.
//! A picture, a target size and a window of it enter; the window's pixels leave. It must not know
//! why that window was chosen.
//!
//! The formulas are those of Pillow 13's `src/libImaging/Resample.c`: a Catmull-Rom kernel
//! (a = -0.5) widened by the scale when shrinking, coefficients rounded to 22 bits, an 8-bit picture
//! between the two passes. The order of the passes shows in the last bit: Pillow 13 begins with the
//! vertical one where the height loses more than twice what the width does (older versions never
//! do). `fast_image_resize` keeps 15-bit coefficients and differs in a seventh of all values on
//! noise; hence our own.

use std::ops::Range;

use image::RgbImage;

const PRECISION: u32 = 32 - 8 - 2;
/// One half, so that cutting the sum rounds it.
const HALF: i32 = 1 << (PRECISION - 1);
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

impl Taps {
    fn end(&self) -> usize {
        self.first + self.weights.len()
    }
}

/// Rows of RGB pixels.
#[derive(Clone, Copy)]
struct Raster<'a> {
    pixels: &'a [u8],
    width: usize,
}

/// `resize(picture, size)` cut to `window`. Time and memory follow the input and the window, not
/// `size`: a picture of one pixel's width does not blow up.
pub(super) fn bicubic(picture: &RgbImage, size: (u32, u32), window: Window) -> RgbImage {
    let mut out = RgbImage::new(window.width, window.height);
    let (width, height) = picture.dimensions();
    let (x0, x1) = clip(window.left, window.width, size.0);
    let (y0, y1) = clip(window.top, window.height, size.1);
    if x0 >= x1 || y0 >= y1 || width == 0 || height == 0 {
        return out;
    }
    let columns = taps(width, size.0, x0, x1);
    let rows = taps(height, size.1, y0, y1);
    let whole = Raster {
        pixels: picture.as_raw(),
        width: width as usize,
    };
    let lost = |from: u32, to: u32| i64::from(from) - i64::from(to);
    let kept = if height > size.1 && lost(height, size.1) > 2 * lost(width, size.0) {
        let (left, right) = span(&columns);
        let pixels = &vertical(whole, left..right, &rows, 0);
        horizontal(
            Raster {
                pixels,
                width: right - left,
            },
            0..rows.len(),
            &columns,
            left,
        )
    } else {
        let (top, bottom) = span(&rows);
        let pixels = &horizontal(whole, top..bottom, &columns, 0);
        vertical(
            Raster {
                pixels,
                width: columns.len(),
            },
            0..columns.len(),
            &rows,
            top,
        )
    };
    // The clipped window starts inside `out` where the picture does.
    let (dx, dy) = (
        (i64::from(x0) - window.left) as usize,
        (i64::from(y0) - window.top) as usize,
    );
    let (stride, length) = (window.width as usize * 3, columns.len() * 3);
    for (row, line) in out
        .chunks_exact_mut(stride)
        .skip(dy)
        .zip(kept.chunks_exact(length))
    {
        row[dx * 3..][..length].copy_from_slice(line);
    }
    out
}

/// First and end of the input that taps reach.
fn span(taps: &[Taps]) -> (usize, usize) {
    let first = taps.iter().map(|t| t.first).min().unwrap_or(0);
    (first, taps.iter().map(Taps::end).max().unwrap_or(first))
}

fn clip(start: i64, length: u32, size: u32) -> (u32, u32) {
    let size = i64::from(size);
    let end = (start + i64::from(length)).clamp(0, size);
    (start.clamp(0, size) as u32, end as u32)
}

/// `rows` of the raster, resized along x; its column 0 is column `left` to the taps.
fn horizontal(raster: Raster, rows: Range<usize>, columns: &[Taps], left: usize) -> Vec<u8> {
    let stride = raster.width * 3;
    let mut out = Vec::with_capacity(rows.len() * columns.len() * 3);
    for row in raster.pixels[rows.start * stride..rows.end * stride].chunks_exact(stride) {
        for column in columns {
            let mut sum = [HALF; 3];
            let pixels = row[(column.first - left) * 3..].chunks_exact(3);
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

/// `columns` of the raster, resized along y; its row 0 is row `top` to the taps.
fn vertical(raster: Raster, columns: Range<usize>, rows: &[Taps], top: usize) -> Vec<u8> {
    let mut sums = vec![0_i32; columns.len() * 3];
    let mut out = Vec::with_capacity(rows.len() * sums.len());
    for row in rows {
        sums.fill(HALF);
        for (k, &weight) in row.weights.iter().enumerate() {
            let start = ((row.first - top + k) * raster.width + columns.start) * 3;
            let line = &raster.pixels[start..][..sums.len()];
            for (sum, &value) in sums.iter_mut().zip(line) {
                *sum += weight * i32::from(value);
            }
        }
        out.extend(sums.iter().map(|&sum| to_u8(sum)));
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

#[cfg(test)]
mod tests {
    use image::Rgb;

    use super::*;

    fn gradient(width: u32, height: u32) -> RgbImage {
        RgbImage::from_fn(width, height, |x, y| {
            Rgb([
                (x * 37 % 256) as u8,
                (y * 91 % 256) as u8,
                ((x * y) % 256) as u8,
            ])
        })
    }

    fn whole(picture: &RgbImage, size: (u32, u32)) -> RgbImage {
        bicubic(
            picture,
            size,
            Window {
                left: 0,
                top: 0,
                width: size.0,
                height: size.1,
            },
        )
    }

    /// `PIL.Image.fromarray(numpy.array([[0, 255, 0, 255, 128]], numpy.uint8)).resize((n, 1),
    /// PIL.Image.BICUBIC)`, Pillow 13.0.0.
    #[test]
    fn a_row_equals_pils() {
        let row = RgbImage::from_fn(5, 1, |x, _| Rgb([[0, 255, 0, 255, 128][x as usize]; 3]));
        let red = |n| {
            whole(&row, (n, 1))
                .pixels()
                .map(|p| p.0[0])
                .collect::<Vec<_>>()
        };
        assert_eq!(red(3), PIL_3);
        assert_eq!(red(8), PIL_8);
        assert_eq!(red(5), [0, 255, 0, 255, 128]);
    }

    /// Noise from a fixed generator, 3 by 12 pixels made 2 by 4 (vertical pass first) and 12 by 3 made
    /// 4 by 2 (horizontal first), by Pillow 13.0.0.
    #[test]
    fn the_passes_come_in_pils_order() {
        let noise = |width, height| {
            let mut state = 1_u32;
            RgbImage::from_fn(width, height, |_, _| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                Rgb([if state >> 31 == 1 { 255 } else { 0 }; 3])
            })
        };
        let red = |p: RgbImage| p.pixels().map(|p| p.0[0]).collect::<Vec<_>>();
        assert_eq!(red(whole(&noise(3, 12), (2, 4))), PIL_TALL);
        assert_eq!(red(whole(&noise(12, 3), (4, 2))), PIL_WIDE);
    }

    const PIL_TALL: [u8; 8] = [141, 63, 243, 67, 108, 114, 100, 114];
    const PIL_WIDE: [u8; 8] = [132, 139, 160, 37, 170, 139, 122, 84];
    const PIL_3: [u8; 3] = [106, 121, 181];
    const PIL_8: [u8; 8] = [0, 114, 252, 59, 55, 249, 191, 119];

    #[test]
    fn a_window_is_a_part_of_the_whole() {
        let picture = gradient(31, 45);
        // Both orders of the passes, an axis left alone, an axis made longer.
        for size in [(17, 29), (28, 29), (62, 45), (31, 60), (31, 29)] {
            let all = whole(&picture, size);
            let window = Window {
                left: 3,
                top: 5,
                width: 9,
                height: 11,
            };
            let part = bicubic(&picture, size, window);
            for (x, y, pixel) in part.enumerate_pixels() {
                assert_eq!(pixel, all.get_pixel(x + 3, y + 5));
            }
        }
    }

    #[test]
    fn a_window_beyond_the_picture_is_black_there() {
        let picture = RgbImage::from_pixel(4, 4, Rgb([200; 3]));
        let out = bicubic(
            &picture,
            (4, 4),
            Window {
                left: -2,
                top: 1,
                width: 7,
                height: 5,
            },
        );
        for (x, y, pixel) in out.enumerate_pixels() {
            let inside = (2..6).contains(&x) && y < 3;
            assert_eq!(pixel.0, [if inside { 200 } else { 0 }; 3], "{x} {y}");
        }
        let out = bicubic(
            &picture,
            (4, 4),
            Window {
                left: 9,
                top: 0,
                width: 2,
                height: 2,
            },
        );
        assert!(out.iter().all(|&v| v == 0));
    }

    #[test]
    fn a_line_of_pixels_costs_as_little_as_its_window() {
        let line = gradient(1, 16_000);
        let size = (336, 336 * 16_000);
        let top = i64::from(size.1 / 2);
        let out = bicubic(
            &line,
            size,
            Window {
                left: 0,
                top,
                width: 336,
                height: 336,
            },
        );
        assert_eq!(out.dimensions(), (336, 336));
    }
}
