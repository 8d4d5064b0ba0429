//! A contact sheet of a set's images, for people to look at. In: a set. Out: one picture. It must not
//! be committed where the set may not be.

use std::collections::BTreeSet;

use image::imageops::{FilterType, replace, thumbnail};
use image::{Rgb, RgbImage};
use norma::preprocess::{ImageLimits, decode};

use crate::data::{DataSet, Image, Split};

/// Side of a cell, its frame not counted.
const CELL: u32 = 128;
const FRAME: u32 = 4;
const BLANK: Rgb<u8> = Rgb([24, 24, 24]);

/// About `count` images, taken evenly from each split's first to its last, one of each at least. Frames tell splits apart: white for train, blue for validation, orange for test. Only
/// images that can be decoded are shown.
pub fn contact_sheet(set: &DataSet, count: usize) -> RgbImage {
    let chosen = choose(set, count.max(1));
    let columns = (chosen.len() as f64).sqrt().ceil().max(1.0) as u32;
    let rows = (chosen.len() as u32).div_ceil(columns).max(1);
    let cell = CELL + 2 * FRAME;
    let mut sheet = RgbImage::from_pixel(columns * cell, rows * cell, BLANK);
    for (at, (split, picture)) in chosen.iter().enumerate() {
        let (x, y) = (at as u32 % columns * cell, at as u32 / columns * cell);
        let frame = RgbImage::from_pixel(cell, cell, colour(*split));
        replace(&mut sheet, &frame, i64::from(x), i64::from(y));
        let back = RgbImage::from_pixel(CELL, CELL, BLANK);
        replace(
            &mut sheet,
            &back,
            i64::from(x + FRAME),
            i64::from(y + FRAME),
        );
        let small = fitted(picture);
        let left = x + FRAME + (CELL - small.width()) / 2;
        let top = y + FRAME + (CELL - small.height()) / 2;
        replace(&mut sheet, &small, i64::from(left), i64::from(top));
    }
    sheet
}

fn colour(split: Split) -> Rgb<u8> {
    match split {
        Split::Train => Rgb([235, 235, 235]),
        Split::Validation => Rgb([70, 130, 230]),
        Split::Test => Rgb([240, 150, 40]),
    }
}

/// The picture at the size of a cell, its shape kept.
fn fitted(picture: &RgbImage) -> RgbImage {
    let (width, height) = picture.dimensions();
    let scale = f64::from(CELL) / f64::from(width.max(height));
    let side = |length: u32| ((f64::from(length) * scale).round() as u32).clamp(1, CELL);
    let (wide, high) = (side(width), side(height));
    if scale < 1.0 {
        thumbnail(picture, wide, high)
    } else {
        image::imageops::resize(picture, wide, high, FilterType::CatmullRom)
    }
}

fn choose(set: &DataSet, count: usize) -> Vec<(Split, RgbImage)> {
    let images: Vec<(Split, Vec<&Image>)> = Split::ALL
        .into_iter()
        .map(|split| {
            let mut seen = BTreeSet::new();
            let shown = set.split(split).map(super::Record::shown);
            (split, shown.filter(|image| seen.insert(*image)).collect())
        })
        .collect();
    let all: usize = images.iter().map(|(_, images)| images.len()).sum();
    let mut chosen = Vec::new();
    for (split, images) in images {
        // Each split gets its share, and one at least.
        let share = (images.len() * count / all.max(1)).max(1).min(images.len());
        for at in 0..share {
            let image = images[at * images.len() / share];
            let picture = image.bytes().ok();
            let picture = picture.and_then(|bytes| decode(&bytes, &ImageLimits::default()).ok());
            chosen.extend(picture.map(|picture| (split, picture.into_rgb())));
        }
    }
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::imitation::{Folder, png, record};

    #[test]
    fn every_split_is_on_the_sheet_in_its_frame() {
        let folder = Folder::new();
        let mut set = DataSet::default();
        for at in 0..12 {
            let name = format!("{at}.png");
            folder.write(&name, png(at));
            let mut one = record(folder.path().join(&name), "Which?", "left");
            one.split = if at < 10 { Split::Train } else { Split::Test };
            set.records.push(one);
        }
        folder.write("3.png", "no picture");
        let sheet = contact_sheet(&set, 100);
        // Eleven of twelve can be decoded: four columns, three rows.
        let cell = CELL + 2 * FRAME;
        assert_eq!(sheet.dimensions(), (4 * cell, 3 * cell));
        assert_eq!(*sheet.get_pixel(0, 0), colour(Split::Train));
        assert_eq!(
            *sheet.get_pixel(2 * cell + 1, 2 * cell + 1),
            colour(Split::Test)
        );
        assert_eq!(
            *sheet.get_pixel(3 * cell + 1, 2 * cell + 1),
            BLANK,
            "an empty cell"
        );
        // The first picture is 9 wide and 6 high, so that it fills the cell from side to side.
        assert_eq!(*sheet.get_pixel(cell / 2, FRAME + 2), BLANK);
        let left = sheet.get_pixel(FRAME + 1, cell / 2).0;
        assert_eq!((left[0], left[1] < 20), (0, true));
        assert_eq!(contact_sheet(&set, 4).dimensions(), (2 * cell, 2 * cell));
    }
}
