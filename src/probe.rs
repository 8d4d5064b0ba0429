//! The image of a self-test, `probe/1`: a seed and a size in, the same pixels on every machine out.
//!
//! It shows nothing and nobody: grey slopes with blocks on them, drawn with integers alone. It must never
//! change, because adapters in the field hold answers to it; another drawing gets another name.

use image::{Rgb, RgbImage};

/// Blocks on the slopes.
const N_BLOCKS: usize = 12;

/// The square image of a seed, `size` pixels a side (at least one).
///
/// Blocks lie on a grid of sixteenths of the side, so that images of one seed look alike in all sizes.
pub fn image(seed: u64, size: u32) -> RgbImage {
    let size = size.max(1);
    let mut random = SplitMix(seed);
    let corners: [u64; 4] = std::array::from_fn(|_| random.below(256));
    let blocks: Vec<Block> = (0..N_BLOCKS).map(|_| Block::draw(&mut random)).collect();
    RgbImage::from_fn(size, size, |x, y| {
        let last = u64::from(size.max(2) - 1);
        let (across, down) = (u64::from(x), u64::from(y));
        let top = corners[0] * (last - across) + corners[1] * across;
        let bottom = corners[2] * (last - across) + corners[3] * across;
        let slope = ((top * (last - down) + bottom * down) / (last * last)) as u8;
        let (column, row) = (across * 16 / u64::from(size), down * 16 / u64::from(size));
        let block = blocks.iter().rev().find(|block| block.covers(column, row));
        block.map_or(Rgb([slope; 3]), |block| block.colour)
    })
}

struct Block {
    left: u64,
    top: u64,
    width: u64,
    height: u64,
    colour: Rgb<u8>,
}

impl Block {
    /// Every third block is coloured, the rest are grey.
    fn draw(random: &mut SplitMix) -> Self {
        let (left, top) = (random.below(16), random.below(16));
        let (width, height) = (1 + random.below(6), 1 + random.below(6));
        let grey = random.below(256) as u8;
        let colour: [u8; 3] = std::array::from_fn(|_| random.below(256) as u8);
        let colour = Rgb(if random.below(3) == 0 {
            colour
        } else {
            [grey; 3]
        });
        Self {
            left,
            top,
            width,
            height,
            colour,
        }
    }

    fn covers(&self, column: u64, row: u64) -> bool {
        (self.left..self.left + self.width).contains(&column)
            && (self.top..self.top + self.height).contains(&row)
    }
}

/// Sebastiano Vigna's SplitMix64, <https://prng.di.unimi.it/splitmix64.c>.
struct SplitMix(u64);

impl SplitMix {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        // The upper half of the bits, so that a small bound is not served by the lowest ones alone.
        ((self.next() >> 32) * bound) >> 32
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use norma_adapters::Digest;

    /// The pixels are part of every adapter file's promise.
    #[test]
    fn probe_images_are_the_same_for_ever() {
        let digest = |seed, size| Digest::of(image(seed, size).as_raw()).hex();
        assert_eq!(
            digest(0, 64),
            "6da13460fa65b1b5e571d108813f0a30e100c081d1597bb7fae4d579f112a0ab"
        );
        assert_eq!(
            digest(7, 336),
            "5ea7ef4352d608e5b819f0206ad8b09e2ea505dcc70406c33732e88af1528839"
        );
    }

    #[test]
    fn every_size_from_one_has_an_image_and_seeds_differ() {
        for size in [0, 1, 2, 3, 15, 17] {
            assert_eq!(image(3, size).dimensions(), (size.max(1), size.max(1)));
        }
        assert_ne!(image(1, 32), image(2, 32));
    }
}
