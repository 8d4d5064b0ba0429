//! Code tables: hospitals' own codes for the main finding. Out: twelve tables of pre-training, each
//! named by a control word, and the one that a tuned adapter has to learn. It knows no sentence.

use rand::seq::SliceRandom;
use serde::{Deserialize, Serialize};

use super::{Kind, Stream, rng};

/// The codes of all tables.
pub const CODES: [&str; 8] = ["k1", "k2", "k3", "k4", "k5", "k6", "k7", "k8"];

/// The control words of the tables of pre-training.
pub const TABLES: [&str; 12] = [
    "alpha", "bravo", "charlie", "delta", "echo", "foxtrot", "golf", "hotel", "india", "juliet",
    "kilo", "lima",
];

/// Main findings a table tells apart: the six kinds and none.
const CLASSES: usize = Kind::ALL.len() + 1;

/// A permutation of the codes; the last of the eight stays unused in each table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Table {
    /// One of [`TABLES`], counted from 0.
    Known(usize),
    /// The hospital's own, never seen in pre-training.
    HeldOut,
}

impl Table {
    /// The code of a main finding, `None` for a film without findings.
    pub fn code(self, main: Option<Kind>) -> &'static str {
        let class = main.map_or(CLASSES - 1, |kind| kind as usize);
        CODES[self.permutation()[class]]
    }

    fn permutation(self) -> [usize; CODES.len()] {
        match self {
            Self::Known(table) => permutation(table as u64),
            Self::HeldOut => (TABLES.len() as u64..1_000)
                .map(permutation)
                .find(|candidate| {
                    (0..TABLES.len())
                        .all(|known| agreement(candidate, &permutation(known as u64)) <= 1)
                })
                .expect("some permutation agrees with none of twelve in two places"),
        }
    }
}

fn permutation(lane: u64) -> [usize; CODES.len()] {
    let mut codes = std::array::from_fn(|at| at);
    codes.shuffle(&mut rng(TABLE_SEED, Stream::Codes, lane << 8));
    codes
}

/// In how many classes two tables use the same code.
fn agreement(one: &[usize; CODES.len()], other: &[usize; CODES.len()]) -> usize {
    one.iter()
        .zip(other)
        .take(CLASSES)
        .filter(|(a, b)| a == b)
        .count()
}

/// The tables belong to the world, not to a data set, so their seed is fixed.
const TABLE_SEED: u64 = 12;

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn tables_differ_and_each_is_one_to_one() {
        let mains: Vec<_> = Kind::ALL.into_iter().map(Some).chain([None]).collect();
        let all = (0..TABLES.len()).map(Table::Known).chain([Table::HeldOut]);
        let tables: HashSet<Vec<_>> = all
            .map(|table| mains.iter().map(|main| table.code(*main)).collect())
            .collect();
        assert_eq!(tables.len(), TABLES.len() + 1);
        for table in &tables {
            assert_eq!(table.iter().collect::<HashSet<_>>().len(), CLASSES);
        }
    }

    #[test]
    fn the_held_out_table_is_no_near_copy_of_a_known_one() {
        for known in 0..TABLES.len() {
            let known = Table::Known(known).permutation();
            assert!(agreement(&Table::HeldOut.permutation(), &known) <= 1);
        }
    }
}
