//! A split for records that have none. In: drafts and shares. Out: each draft's split, by a hash of
//! what may not be torn apart, so that a group stays where it is when others are added. It must not
//! know what is asked.

use std::collections::BTreeMap;
use std::str::FromStr;

use sha2::{Digest, Sha256};

use super::intake::Draft;
use super::{DataError, Image, Split};

/// What is kept whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// All of a patient or study, as far as the set names it.
    Group,
    /// All that shows an image, and with it all other images of the same record.
    Image,
}

/// How records are dealt to splits.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Deal {
    /// Deals whatever split the set has; without it, a set that has none is dealt by group.
    pub by: Option<By>,
    pub shares: Shares,
    /// Other seeds deal otherwise.
    pub seed: u64,
}

/// Shares of train, validation and test.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Shares([f64; 3]);

impl Default for Shares {
    fn default() -> Self {
        Self([80.0, 10.0, 10.0])
    }
}

impl FromStr for Shares {
    type Err = DataError;

    fn from_str(text: &str) -> Result<Self, DataError> {
        let numbers: Option<Vec<f64>> =
            text.split(',').map(|one| one.trim().parse().ok()).collect();
        match numbers.as_deref() {
            Some(&[train, validation, test])
                if train > 0.0
                    && [train, validation, test]
                        .iter()
                        .all(|one| one.is_finite() && *one >= 0.0) =>
            {
                Ok(Self([train, validation, test]))
            }
            _ => Err(DataError::Shares { got: text.into() }),
        }
    }
}

impl Deal {
    fn split_of(&self, group: &str) -> Split {
        let mut hash = Sha256::new();
        hash.update(b"split");
        hash.update(self.seed.to_le_bytes());
        hash.update(group.as_bytes());
        let hash = hash.finalize();
        let number = u64::from_le_bytes(hash[..8].try_into().expect("a digest has 32 bytes"));
        let [train, validation, test] = self.shares.0;
        let place = number as f64 / u64::MAX as f64 * (train + validation + test);
        if place < train {
            Split::Train
        } else if place < train + validation {
            Split::Validation
        } else if test > 0.0 {
            Split::Test
        } else if validation > 0.0 {
            Split::Validation
        } else {
            Split::Train
        }
    }
}

/// Deals drafts and says so; nothing is said of no drafts.
pub(super) fn deal(drafts: Vec<&mut Draft>, deal: &Deal, groups: &str) -> Option<String> {
    if drafts.is_empty() {
        return None;
    }
    let (by, keys) = match deal.by.unwrap_or(By::Group) {
        By::Group => (groups, drafts.iter().map(|one| one.group.clone()).collect()),
        By::Image => ("images", by_image(&drafts)),
    };
    for (draft, key) in drafts.into_iter().zip(keys) {
        draft.split = Some(deal.split_of(&key));
    }
    let [train, validation, test] = deal.shares.0;
    let why = if deal.by.is_some() {
        "as asked"
    } else {
        "as the set has no split"
    };
    Some(format!(
        "split by whole {by}, {train}/{validation}/{test} with seed {}, {why}",
        deal.seed
    ))
}

/// For each draft the name of the first image that it is tied to, by its own images or over others'.
fn by_image(drafts: &[&mut Draft]) -> Vec<String> {
    let mut parent: Vec<usize> = (0..drafts.len()).collect();
    let mut first: BTreeMap<&Image, usize> = BTreeMap::new();
    for (at, draft) in drafts.iter().enumerate() {
        for image in &draft.images {
            let other = *first.entry(image).or_insert(at);
            let (one, other) = (root(&mut parent, at), root(&mut parent, other));
            parent[one.max(other)] = one.min(other);
        }
    }
    (0..drafts.len())
        .map(|at| {
            let at = root(&mut parent, at);
            drafts[at].images[0].short()
        })
        .collect()
}

fn root(parent: &mut [usize], mut at: usize) -> usize {
    while parent[at] != at {
        parent[at] = parent[parent[at]];
        at = parent[at];
    }
    at
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::AnswerType;

    fn draft(group: &str, images: &[&str]) -> Draft {
        Draft {
            id: String::new(),
            images: images.iter().map(Image::from).collect(),
            question: "?".into(),
            answer: "yes".into(),
            answer_type: AnswerType::Closed,
            split: None,
            group: group.into(),
            language: "en".into(),
            notes: Vec::new(),
        }
    }

    #[test]
    fn groups_stay_whole_and_shares_are_about_right() {
        let mut drafts: Vec<Draft> = (0..3_000)
            .map(|at| draft(&format!("patient{}", at / 3), &["a/b.png"]))
            .collect();
        let remark = deal(drafts.iter_mut().collect(), &Deal::default(), "patients");
        assert_eq!(
            remark.unwrap(),
            "split by whole patients, 80/10/10 with seed 0, as the set has no split"
        );
        let of = |at: usize| drafts[at].split.unwrap();
        let mut counts = BTreeMap::new();
        for at in 0..1_000 {
            assert!(of(3 * at) == of(3 * at + 1) && of(3 * at) == of(3 * at + 2));
            *counts.entry(of(3 * at)).or_insert(0) += 1;
        }
        assert!((760..840).contains(&counts[&Split::Train]), "{counts:?}");
        assert!((70..130).contains(&counts[&Split::Test]), "{counts:?}");
    }

    #[test]
    fn records_that_share_an_image_stay_together() {
        let asked = Deal {
            by: Some(By::Image),
            ..Deal::default()
        };
        for number in 0..40 {
            let names = [0, 1, 2, 3].map(|at| format!("{number}/{at}.png"));
            let [a, b, c, d] = names.each_ref().map(String::as_str);
            let mut drafts = [
                draft("1", &[a]),
                draft("2", &[b, c]),
                draft("3", &[c, a]),
                draft("4", &[d]),
            ];
            deal(drafts.iter_mut().collect(), &asked, "studies").unwrap();
            assert_eq!(drafts[0].split, drafts[1].split, "tied by the third");
            assert_eq!(drafts[0].split, drafts[2].split);
        }
    }

    #[test]
    fn shares_are_three_numbers() {
        let all_train: Shares = "1, 0,0".parse().unwrap();
        let deal = Deal {
            shares: all_train,
            ..Deal::default()
        };
        assert!((0..200).all(|at| deal.split_of(&at.to_string()) == Split::Train));
        for bad in ["", "80,20", "0,1,1", "1,-1,1", "a,b,c", "inf,1,1"] {
            assert!(bad.parse::<Shares>().is_err(), "{bad}");
        }
    }
}
