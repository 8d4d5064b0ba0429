//! Image-wise folds. In: records and a seed. Out: which of them are held out. It must not know what
//! is asked about the images.

use sha2::{Digest, Sha256};

use super::{DataError, Record};

/// One of several parts of a set, to be held out. All records of a group are in the same part, and a
/// group's part does not depend on which others there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fold {
    folds: usize,
    held_out: usize,
    seed: u64,
}

impl Fold {
    /// Part `held_out` of `folds`, numbered from 0; other seeds part the groups otherwise.
    pub fn new(folds: usize, held_out: usize, seed: u64) -> Result<Self, DataError> {
        if folds < 2 || held_out >= folds {
            return Err(DataError::Fold { held_out, folds });
        }
        Ok(Self {
            folds,
            held_out,
            seed,
        })
    }

    /// Whether a group is held out.
    pub fn holds_out(&self, group: &str) -> bool {
        let mut hash = Sha256::new();
        hash.update(self.seed.to_le_bytes());
        hash.update(group.as_bytes());
        let hash = hash.finalize();
        let number = u64::from_le_bytes(hash[..8].try_into().expect("a digest has 32 bytes"));
        number % self.folds as u64 == self.held_out as u64
    }

    /// The records to train on and those held out, both in order.
    pub fn part<'a>(
        &self,
        records: impl IntoIterator<Item = &'a Record>,
    ) -> (Vec<&'a Record>, Vec<&'a Record>) {
        records
            .into_iter()
            .partition(|record| !self.holds_out(&record.group))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_group_is_held_out_once_and_parts_are_of_like_size() {
        let mut sizes = [0; 5];
        for group in 0..1_000 {
            let group = format!("image{group}.jpg");
            let held: Vec<usize> = (0..5)
                .filter(|at| Fold::new(5, *at, 7).unwrap().holds_out(&group))
                .collect();
            assert_eq!(held.len(), 1);
            sizes[held[0]] += 1;
        }
        assert!(
            sizes.iter().all(|size| (150..250).contains(size)),
            "{sizes:?}"
        );
    }

    #[test]
    fn a_seed_fixes_the_parts() {
        let held = |seed| {
            let fold = Fold::new(3, 1, seed).unwrap();
            (0..60)
                .filter(|group| fold.holds_out(&group.to_string()))
                .collect::<Vec<i32>>()
        };
        assert_eq!(held(1), held(1));
        assert_ne!(held(1), held(2));
    }

    #[test]
    fn folds_that_do_not_exist_are_refused() {
        assert!(Fold::new(1, 0, 0).is_err());
        assert!(Fold::new(5, 5, 0).is_err());
    }
}
