//! The order of lessons. In: a count and a seed. Out: places, in rounds that are shuffled anew every
//! time all have been seen. It must not know what lies at the places.

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

/// An endless sequence of the places below a count.
pub struct Order {
    rng: ChaCha8Rng,
    places: Vec<usize>,
    next: usize,
}

impl Order {
    /// Places below `count`, which is at least 1.
    pub fn new(count: usize, seed: u64) -> Self {
        Self {
            rng: ChaCha8Rng::seed_from_u64(seed),
            places: (0..count).collect(),
            next: count,
        }
    }

    /// The next place.
    pub fn draw(&mut self) -> usize {
        if self.next == self.places.len() {
            self.places.shuffle(&mut self.rng);
            self.next = 0;
        }
        self.next += 1;
        self.places[self.next - 1]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_round_sees_all_in_another_order() {
        let mut order = Order::new(50, 3);
        let mut round = || (0..50).map(|_| order.draw()).collect::<Vec<_>>();
        let (first, second) = (round(), round());
        assert_ne!(first, second);
        for mut round in [first, second] {
            round.sort_unstable();
            assert_eq!(round, (0..50).collect::<Vec<_>>());
        }
    }
}
