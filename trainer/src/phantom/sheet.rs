//! A contact sheet, for people to look at the films. In: films. Out: one PNG-ready picture.

use image::GrayImage;
use image::imageops::{FilterType, replace, resize};

use super::Film;
use super::draw::SIDE;

/// Lays films out row by row, `columns` a row, each enlarged `zoom` times, with a thin border.
/// Zero columns or zoom count as one.
pub fn contact_sheet(films: &[Film], columns: usize, zoom: u32) -> GrayImage {
    let (columns, zoom) = (columns.max(1), zoom.max(1));
    let cell = SIDE as u32 * zoom + BORDER;
    let rows = films.len().div_ceil(columns);
    let mut sheet = GrayImage::from_pixel(
        columns as u32 * cell + BORDER,
        rows as u32 * cell + BORDER,
        WHITE,
    );
    for (at, film) in films.iter().enumerate() {
        let side = SIDE as u32 * zoom;
        let picture = resize(&film.to_grey(), side, side, FilterType::CatmullRom);
        let (x, y) = ((at % columns) as u32 * cell, (at / columns) as u32 * cell);
        replace(
            &mut sheet,
            &picture,
            i64::from(x + BORDER),
            i64::from(y + BORDER),
        );
    }
    sheet
}

const BORDER: u32 = 4;
const WHITE: image::Luma<u8> = image::Luma([255]);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_film_has_its_place() {
        let films: Vec<Film> = (0..3).map(Film::of_seed).collect();
        let sheet = contact_sheet(&films, 2, 1);
        assert_eq!(sheet.dimensions(), (2 * 68 + 4, 2 * 68 + 4));
        for (at, film) in films.iter().enumerate() {
            let (left, top) = ((at % 2) as u32 * 68 + 4, (at / 2) as u32 * 68 + 4);
            for y in 0..64_u32 {
                for x in 0..64_u32 {
                    let grey = film.pixels()[(y * 64 + x) as usize];
                    assert_eq!(sheet.get_pixel(left + x, top + y).0[0], grey);
                }
            }
        }
    }
}
