//! Report styles: seven independent factors, each named by a control word. In: a factor choice or
//! a random source. Out: a style, and the prompt that asks for it. It writes no report.
//!
//! A base that has seen the factors recombined can be steered to a combination that it has not
//! seen; a base that knows a few fixed styles cannot. Hence few options a factor, all combinations.

use rand::Rng;
use rand::seq::IndexedRandom;
use serde::{Deserialize, Serialize};

/// Where the attributes stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Order {
    /// `small left upper nodule`
    Before,
    /// `nodule upper left small`
    After,
}

/// In which order the findings come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Sequence {
    /// The most pressing first.
    Ranked,
    /// The most pressing last.
    Reversed,
}

/// Which words name the findings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Nouns {
    /// `effusion`
    Formal,
    /// `fluid`
    Plain,
}

/// Which words name side, size and zone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Attributes {
    /// `small left upper`
    Full,
    /// `minor lt apical`
    Brief,
}

/// How findings are strung together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Form {
    /// `we see x . we see y .`
    Sentences,
    /// `x . y .`
    Notes,
    /// `x , y .`
    List,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Opening {
    Bare,
    /// `findings :`
    Titled,
    /// `chest film :`
    Headed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Closing {
    Open,
    /// `no other finding .`
    Ended,
    /// `end of report .`
    Signed,
}

/// One choice for every factor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Style {
    pub order: Order,
    pub sequence: Sequence,
    pub nouns: Nouns,
    pub attributes: Attributes,
    pub form: Form,
    pub opening: Opening,
    pub closing: Closing,
}

/// The style of the house that pre-training never sees: known factors, an unseen combination.
pub const HOUSE: Style = Style {
    order: Order::After,
    sequence: Sequence::Reversed,
    nouns: Nouns::Plain,
    attributes: Attributes::Brief,
    form: Form::List,
    opening: Opening::Headed,
    closing: Closing::Signed,
};

/// The prompt for a report, without controls.
pub const REPORT_PROMPT: &str = "write a report";

/// How many controls a style has.
pub const CONTROLS: usize = 7;

impl Style {
    /// All combinations, [`HOUSE`] among them.
    pub fn all() -> Vec<Self> {
        let mut all = Vec::new();
        for order in [Order::Before, Order::After] {
            for sequence in [Sequence::Ranked, Sequence::Reversed] {
                for nouns in [Nouns::Formal, Nouns::Plain] {
                    for attributes in [Attributes::Full, Attributes::Brief] {
                        for form in [Form::Sentences, Form::Notes, Form::List] {
                            for opening in [Opening::Bare, Opening::Titled, Opening::Headed] {
                                for closing in [Closing::Open, Closing::Ended, Closing::Signed] {
                                    all.push(Self {
                                        order,
                                        sequence,
                                        nouns,
                                        attributes,
                                        form,
                                        opening,
                                        closing,
                                    });
                                }
                            }
                        }
                    }
                }
            }
        }
        all
    }

    /// A style of pre-training: any but [`HOUSE`], each as likely as the other.
    pub fn sample(rng: &mut impl Rng) -> Self {
        let all = Self::all();
        loop {
            let style = *all.choose(rng).expect("there are styles");
            if style != HOUSE {
                return style;
            }
        }
    }

    /// The control words, one a factor, in a fixed order.
    pub fn controls(&self) -> [&'static str; CONTROLS] {
        [
            match self.order {
                Order::Before => "before",
                Order::After => "after",
            },
            match self.sequence {
                Sequence::Ranked => "ranked",
                Sequence::Reversed => "reversed",
            },
            match self.nouns {
                Nouns::Formal => "formal",
                Nouns::Plain => "plain",
            },
            match self.attributes {
                Attributes::Full => "full",
                Attributes::Brief => "brief",
            },
            match self.form {
                Form::Sentences => "sentences",
                Form::Notes => "notes",
                Form::List => "list",
            },
            match self.opening {
                Opening::Bare => "bare",
                Opening::Titled => "titled",
                Opening::Headed => "headed",
            },
            match self.closing {
                Closing::Open => "open",
                Closing::Ended => "ended",
                Closing::Signed => "signed",
            },
        ]
    }

    /// The prompt that names the factors for which `named` is true; without any it is neutral.
    pub fn prompt(&self, named: [bool; CONTROLS]) -> String {
        let words: Vec<&str> = self
            .controls()
            .into_iter()
            .zip(named)
            .filter(|(_, on)| *on)
            .map(|(w, _)| w)
            .collect();
        if words.is_empty() {
            format!("{REPORT_PROMPT} .")
        } else {
            format!("{REPORT_PROMPT} : {} .", words.join(" "))
        }
    }

    /// Whether the style obeys every control word of a prompt.
    pub fn obeys(&self, prompt: &str) -> bool {
        let own = self.controls();
        let Some((_, asked)) = prompt.split_once(':') else {
            return true;
        };
        asked
            .split_whitespace()
            .filter(|word| *word != ".")
            .all(|word| own.contains(&word))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::phantom::{Stream, rng};

    #[test]
    fn every_combination_has_its_own_controls() {
        let controls: HashSet<_> = Style::all().iter().map(Style::controls).collect();
        assert_eq!(controls.len(), 432);
    }

    #[test]
    fn sampling_reaches_every_style_but_the_house_style() {
        let mut rng = rng(1, Stream::Language, 0);
        let seen: HashSet<_> = (0..8_000).map(|_| Style::sample(&mut rng)).collect();
        assert_eq!(seen.len(), 431);
        assert!(!seen.contains(&HOUSE));
    }

    #[test]
    fn a_prompt_names_what_it_is_told_to() {
        assert_eq!(HOUSE.prompt([false; 7]), "write a report .");
        let named = [true, false, false, false, true, false, false];
        assert_eq!(HOUSE.prompt(named), "write a report : after list .");
        let obeying = Style::all()
            .iter()
            .filter(|style| style.obeys(&HOUSE.prompt(named)))
            .count();
        assert_eq!(obeying, 432 / 6);
        assert!(
            Style::all()
                .iter()
                .all(|style| style.obeys(&style.prompt([true; 7])))
        );
    }
}
