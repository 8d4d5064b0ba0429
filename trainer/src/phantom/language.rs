//! The words of the phantom world. Out: the word list, the names of findings and attributes in
//! each register, and their reading back. It knows no sentence, no image and no tokenizer.
//!
//! Every word is one token, so that a small model has to learn meanings, not spellings.

use serde::{Deserialize, Serialize};

use super::{Kind, Side, Size, Zone};

/// Which set of words names findings or attributes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Register {
    /// The usual words, also those of the questions.
    First,
    /// The second set of pre-training, seen in reports only.
    Second,
    /// A language that pre-training never speaks: for the negative result.
    Foreign,
}

/// What a word contributes to a finding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Meaning {
    Kind(Kind),
    Side(Side),
    Size(Size),
    Zone(Zone),
}

pub fn kind_word(kind: Kind, register: Register) -> &'static str {
    let [first, second, foreign] = match kind {
        Kind::Pneumothorax => ["pneumothorax", "air", "pneu"],
        Kind::Effusion => ["effusion", "fluid", "erguss"],
        Kind::Opacity => ["opacity", "shadow", "verschattung"],
        Kind::Nodule => ["nodule", "spot", "herd"],
        Kind::Cardiomegaly => ["cardiomegaly", "bigheart", "kardiomegalie"],
        Kind::Pacemaker => ["pacemaker", "device", "schrittmacher"],
    };
    pick(register, first, second, foreign)
}

pub fn side_word(side: Side, register: Register) -> &'static str {
    match side {
        Side::Left => pick(register, "left", "lt", "links"),
        Side::Right => pick(register, "right", "rt", "rechts"),
    }
}

pub fn size_word(size: Size, register: Register) -> &'static str {
    match size {
        Size::Small => pick(register, "small", "minor", "klein"),
        Size::Large => pick(register, "large", "major", "gross"),
    }
}

pub fn zone_word(zone: Zone, register: Register) -> &'static str {
    match zone {
        Zone::Upper => pick(register, "upper", "apical", "oben"),
        Zone::Middle => pick(register, "middle", "central", "mittig"),
        Zone::Lower => pick(register, "lower", "basal", "unten"),
    }
}

fn pick(
    register: Register,
    first: &'static str,
    second: &'static str,
    foreign: &'static str,
) -> &'static str {
    match register {
        Register::First => first,
        Register::Second => second,
        Register::Foreign => foreign,
    }
}

/// What a word means in any register; `None` for words that name no finding and no attribute.
pub fn meaning(word: &str) -> Option<Meaning> {
    [Register::First, Register::Second, Register::Foreign]
        .into_iter()
        .find_map(|register| {
            let kinds = Kind::ALL
                .into_iter()
                .map(|one| (kind_word(one, register), Meaning::Kind(one)));
            let sides = Side::ALL
                .into_iter()
                .map(|one| (side_word(one, register), Meaning::Side(one)));
            let sizes = Size::ALL
                .into_iter()
                .map(|one| (size_word(one, register), Meaning::Size(one)));
            let zones = Zone::ALL
                .into_iter()
                .map(|one| (zone_word(one, register), Meaning::Zone(one)));
            let mut all = kinds.chain(sides).chain(sizes).chain(zones);
            all.find(|(name, _)| *name == word)
                .map(|(_, meaning)| meaning)
        })
}

/// Number words; a film has at most three findings.
pub const COUNTS: [&str; 4] = ["zero", "one", "two", "three"];

/// The article before a word.
pub fn article(word: &str) -> &'static str {
    if word.starts_with(['a', 'e', 'i', 'o', 'u']) {
        "an"
    } else {
        "a"
    }
}

/// Brings a text into the form in which answers are compared and read: lower case, every
/// punctuation mark a word of its own, words joined by single blanks.
pub fn normalise(text: &str) -> String {
    let mut spaced = String::with_capacity(text.len() + 8);
    for letter in text.chars() {
        if letter.is_ascii_punctuation() {
            spaced.extend([' ', letter, ' ']);
        } else {
            spaced.extend(letter.to_lowercase());
        }
    }
    spaced.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Every word that anything in the phantom world says, special tokens left out. The order is the
/// order of token ids: append only, or a trained base no longer fits.
pub const VOCABULARY: &[&str] = &[
    // Punctuation.
    ".",
    ",",
    ":",
    "?",
    // Turns.
    "user",
    "assistant",
    // Findings and attributes: first and second register.
    "pneumothorax",
    "effusion",
    "opacity",
    "nodule",
    "cardiomegaly",
    "pacemaker",
    "air",
    "fluid",
    "shadow",
    "spot",
    "bigheart",
    "device",
    "left",
    "right",
    "small",
    "large",
    "upper",
    "middle",
    "lower",
    "lt",
    "rt",
    "minor",
    "major",
    "apical",
    "central",
    "basal",
    // Answers.
    "yes",
    "no",
    "none",
    "both",
    "zero",
    "one",
    "two",
    "three",
    "k1",
    "k2",
    "k3",
    "k4",
    "k5",
    "k6",
    "k7",
    "k8",
    // Questions.
    "is",
    "there",
    "a",
    "an",
    "and",
    "or",
    "does",
    "the",
    "film",
    "show",
    "which",
    "side",
    "on",
    "what",
    "size",
    "of",
    "zone",
    "in",
    "where",
    "how",
    "many",
    "findings",
    "are",
    "count",
    "main",
    "finding",
    "name",
    "code",
    "write",
    "report",
    // Code tables.
    "alpha",
    "bravo",
    "charlie",
    "delta",
    "echo",
    "foxtrot",
    "golf",
    "hotel",
    "india",
    "juliet",
    "kilo",
    "lima",
    // Style controls.
    "before",
    "after",
    "ranked",
    "reversed",
    "formal",
    "plain",
    "full",
    "brief",
    "sentences",
    "notes",
    "list",
    "bare",
    "titled",
    "headed",
    "open",
    "ended",
    "signed",
    // Reports.
    "we",
    "see",
    "all",
    "clear",
    "chest",
    "other",
    "end",
    // Never in pre-training: the new rule and the foreign wording.
    "urgent",
    "befund",
    "kein",
    "ende",
    "pneu",
    "erguss",
    "verschattung",
    "herd",
    "kardiomegalie",
    "schrittmacher",
    "links",
    "rechts",
    "klein",
    "gross",
    "oben",
    "mittig",
    "unten",
];

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn the_word_list_is_small_and_has_no_word_twice() {
        let words: HashSet<_> = VOCABULARY.iter().collect();
        assert_eq!(words.len(), VOCABULARY.len());
        assert!(VOCABULARY.len() <= 200);
        assert!(VOCABULARY.iter().all(|word| normalise(word) == **word));
    }

    #[test]
    fn a_word_means_one_thing() {
        let mut names = HashSet::new();
        for register in [Register::First, Register::Second, Register::Foreign] {
            for kind in Kind::ALL {
                assert_eq!(
                    meaning(kind_word(kind, register)),
                    Some(Meaning::Kind(kind))
                );
                assert!(names.insert(kind_word(kind, register)));
            }
            for side in Side::ALL {
                assert_eq!(
                    meaning(side_word(side, register)),
                    Some(Meaning::Side(side))
                );
                assert!(names.insert(side_word(side, register)));
            }
            for size in Size::ALL {
                assert_eq!(
                    meaning(size_word(size, register)),
                    Some(Meaning::Size(size))
                );
                assert!(names.insert(size_word(size, register)));
            }
            for zone in Zone::ALL {
                assert_eq!(
                    meaning(zone_word(zone, register)),
                    Some(Meaning::Zone(zone))
                );
                assert!(names.insert(zone_word(zone, register)));
            }
        }
        assert!(names.iter().all(|name| VOCABULARY.contains(name)));
        assert_eq!(meaning("film"), None);
    }

    #[test]
    fn normalising_ignores_case_blanks_and_attached_punctuation() {
        assert_eq!(
            normalise("  Small left\tEffusion. No,other "),
            "small left effusion . no , other"
        );
        assert_eq!(normalise(""), "");
    }
}
