//! Data sets: what a trainer is fed. In: a task, a split, a seed and an index. Out: an image seed
//! and the turns spoken about the image, the same on every call. It knows no model and no batch.
//!
//! Every task and split draws its images from a range of image seeds of its own, so no image is
//! shared between pre-training, tuning and test.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::codes::Table;
use super::draw::Labels;
use super::question::Question;
use super::report::Wording;
use super::shift::Shift;
use super::style::HOUSE;
use super::turns::{Mix, Turn, ask, neutral_report, questions, styled_report};
use super::{Film, PhantomError, Scene, Stream, draw, rng};

/// What is learnt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Task {
    /// The base: all questions but the urgent one, reports in all styles but the house's.
    Pretrain,
    /// A decision rule never asked for in pre-training.
    Urgent,
    /// A hospital's code table that pre-training does not have.
    Codes,
    /// A house's report style: known factors, an unseen combination.
    House,
    /// Report sentences that pre-training does not have, of words that it has.
    Template,
    /// Questions and reports about films with black and white exchanged.
    Inverted,
    /// Questions and reports about films of a low-dose scanner.
    LowDose,
    /// Reports in a language that pre-training never speaks: a negative result is expected.
    Foreign,
}

impl Task {
    pub const ALL: [Self; 8] = [
        Self::Pretrain,
        Self::Urgent,
        Self::Codes,
        Self::House,
        Self::Template,
        Self::Inverted,
        Self::LowDose,
        Self::Foreign,
    ];

    /// How the task's films depart from those of pre-training.
    pub fn shift(self) -> Shift {
        match self {
            Self::Inverted => Shift::Inverted,
            Self::LowDose => Shift::LowDose,
            _ => Shift::None,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Split {
    Train,
    Validation,
    Test,
}

impl Split {
    pub const ALL: [Self; 3] = [Self::Train, Self::Validation, Self::Test];
}

/// One image, by its seed, and what is said about it. Turns are independent of one another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Example {
    pub image: u64,
    #[serde(default)]
    pub shift: Shift,
    pub turns: Vec<Turn>,
}

/// Seeds of a data set, and indices within one, stay below these.
pub const SEED_LIMIT: u64 = 1 << 16;
pub const INDEX_LIMIT: u64 = 1 << 32;

/// The image seed of an example. Task, split, data seed and index have bits of their own, so that
/// no two sets share an image.
pub fn image_seed(task: Task, split: Split, seed: u64, index: u64) -> Result<u64, PhantomError> {
    for (field, got, limit) in [
        ("data seed", seed, SEED_LIMIT),
        ("index", index, INDEX_LIMIT),
    ] {
        if got >= limit {
            return Err(PhantomError::OutOfRange {
                field,
                got,
                limit: limit - 1,
            });
        }
    }
    let block = task as u64 * Split::ALL.len() as u64 + split as u64;
    Ok(block << 48 | seed << 32 | index)
}

impl Example {
    /// The example at `index` of the set, mixed as by default.
    pub fn new(task: Task, split: Split, seed: u64, index: u64) -> Result<Self, PhantomError> {
        Ok(Self::of_image(
            task,
            image_seed(task, split, seed, index)?,
            &Mix::default(),
        ))
    }

    /// An example about the image of a seed. The mix counts for [`Task::Pretrain`] and the shifted
    /// scanners; the other tasks have one turn an image.
    pub fn of_image(task: Task, image: u64, mix: &Mix) -> Self {
        let scene = Scene::sample(image);
        let rng = &mut rng(image, Stream::Language, 0);
        let turns = match task {
            Task::Pretrain | Task::Inverted | Task::LowDose => {
                let mut turns = questions(&scene, mix.questions, rng);
                turns.extend((0..mix.reports).map(|_| styled_report(&scene, mix, rng)));
                turns
            }
            Task::Urgent => vec![ask(&Question::Urgent, 0, &scene)],
            Task::Codes => {
                vec![ask(&Question::UnnamedCode(Table::HeldOut), 0, &scene)]
            }
            Task::House => vec![neutral_report(&scene, Wording::Style(HOUSE))],
            Task::Template => vec![neutral_report(&scene, Wording::Template)],
            Task::Foreign => vec![neutral_report(&scene, Wording::Foreign)],
        };
        Self {
            image,
            shift: task.shift(),
            turns,
        }
    }

    pub fn scene(&self) -> Scene {
        Scene::sample(self.image)
    }

    /// The film as the task's scanner made it.
    pub fn film(&self) -> Film {
        self.shift.apply(&Film::of_seed(self.image), self.image)
    }

    /// What the warm-up of a tower learns of the film.
    pub fn labels(&self) -> Labels {
        draw::labels(&self.scene(), self.image)
    }
}

/// The first `count` examples of a set.
pub fn examples(
    task: Task,
    split: Split,
    seed: u64,
    count: u64,
) -> impl Iterator<Item = Result<Example, PhantomError>> {
    (0..count).map(move |index| Example::new(task, split, seed, index))
}

/// `sha256:` and the hexadecimal digest of the examples' JSON lines: with the generator's version
/// it fixes the data, since images follow from their seeds.
pub fn digest<'a>(examples: impl IntoIterator<Item = &'a Example>) -> Result<String, PhantomError> {
    let mut hash = Sha256::new();
    for example in examples {
        hash.update(serde_json::to_vec(example)?);
        hash.update(b"\n");
    }
    Ok(format!("sha256:{:x}", hash.finalize()))
}

#[cfg(test)]
mod tests {
    use std::collections::{HashMap, HashSet};

    use super::*;
    use crate::phantom::language::{VOCABULARY, normalise};
    use crate::phantom::question::QuestionKind;
    use crate::phantom::report::{is_well_formed, parse};

    fn set(task: Task, split: Split, count: u64) -> Vec<Example> {
        examples(task, split, 7, count)
            .map(Result::unwrap)
            .collect()
    }

    #[test]
    fn a_seed_fixes_the_set_and_its_digest() {
        for task in Task::ALL {
            let (one, two) = (set(task, Split::Train, 20), set(task, Split::Train, 20));
            assert_eq!(one, two);
            assert_eq!(digest(&one).unwrap(), digest(&two).unwrap());
            let other: Vec<_> = examples(task, Split::Train, 8, 20)
                .map(Result::unwrap)
                .collect();
            assert_ne!(digest(&one).unwrap(), digest(&other).unwrap());
        }
    }

    #[test]
    fn sets_share_no_image() {
        let mut images = HashSet::new();
        for task in Task::ALL {
            for split in Split::ALL {
                for seed in [0, 1, SEED_LIMIT - 1] {
                    for index in [0, 1, INDEX_LIMIT - 1] {
                        assert!(images.insert(image_seed(task, split, seed, index).unwrap()));
                    }
                }
            }
        }
        assert!(image_seed(Task::Urgent, Split::Test, SEED_LIMIT, 0).is_err());
        assert!(image_seed(Task::Urgent, Split::Test, 0, INDEX_LIMIT).is_err());
    }

    #[test]
    fn every_word_is_in_the_vocabulary_and_every_word_of_it_is_used() {
        let mut used: HashSet<String> = ["user", "assistant"].map(str::to_owned).into();
        for task in Task::ALL {
            for example in set(task, Split::Train, 600) {
                for turn in &example.turns {
                    for text in [&turn.question, &turn.answer] {
                        assert_eq!(&normalise(text), text);
                        used.extend(text.split(' ').map(str::to_owned));
                    }
                }
            }
        }
        let known: HashSet<String> = VOCABULARY.iter().map(|word| (*word).to_owned()).collect();
        assert_eq!(used, known);
    }

    #[test]
    fn pretraining_never_sees_what_adapters_are_tuned_for() {
        let first_unseen = VOCABULARY
            .iter()
            .position(|word| *word == "urgent")
            .unwrap();
        let unseen: HashSet<&str> = VOCABULARY[first_unseen..].iter().copied().collect();
        for split in Split::ALL {
            for example in set(Task::Pretrain, split, 2_000) {
                assert_eq!(example.shift, Shift::None);
                for turn in &example.turns {
                    assert_ne!(turn.kind, QuestionKind::Urgent);
                    let words = turn.question.split(' ').chain(turn.answer.split(' '));
                    assert!(words.into_iter().all(|word| !unseen.contains(word)));
                    let Some(wording) = turn.wording else {
                        continue;
                    };
                    assert!(matches!(wording, Wording::Style(style) if style != HOUSE));
                    assert!(!is_well_formed(&turn.answer, Wording::Template));
                    // A text can be of the house style and another one only where the scene is too
                    // bare to tell them apart; its own wording is never the house's.
                    assert!(is_well_formed(&turn.answer, wording));
                }
            }
        }
    }

    #[test]
    fn unnamed_codes_of_pretraining_are_not_the_held_out_tables() {
        let held_out = Question::UnnamedCode(Table::HeldOut);
        let (mut same, mut all) = (0, 0);
        for example in set(Task::Pretrain, Split::Train, 4_000) {
            for turn in &example.turns {
                if turn.kind == QuestionKind::AnyCode {
                    assert_eq!(turn.question, held_out.text(0));
                    all += 1;
                    same += usize::from(turn.answer == held_out.answer(&example.scene()));
                }
            }
        }
        assert!(all > 200);
        assert!(
            f64::from(same as u32) / f64::from(all as u32) < 0.25,
            "{same} of {all}"
        );
    }

    #[test]
    fn answers_agree_with_the_scene() {
        for example in set(Task::LowDose, Split::Validation, 500) {
            let scene = example.scene();
            for turn in &example.turns {
                match turn.kind {
                    QuestionKind::Report => assert_eq!(parse(&turn.answer), scene.findings),
                    QuestionKind::Main => {
                        let main = scene.main().map(|kind| format!("{kind:?}").to_lowercase());
                        assert_eq!(turn.answer, main.unwrap_or_else(|| "none".to_owned()));
                    }
                    _ => {}
                }
                assert_eq!(turn.closed, turn.answer == "yes" || turn.answer == "no");
            }
        }
    }

    #[test]
    fn no_question_can_be_answered_by_its_prior() {
        let tasks = [Task::Pretrain, Task::Urgent, Task::Codes];
        let mut counts: HashMap<QuestionKind, HashMap<String, u32>> = HashMap::new();
        for example in tasks
            .into_iter()
            .flat_map(|task| set(task, Split::Test, 4_000))
        {
            for turn in example.turns {
                *counts
                    .entry(turn.kind)
                    .or_default()
                    .entry(turn.answer)
                    .or_default() += 1;
            }
        }
        assert_eq!(counts.len(), QuestionKind::PRETRAINED.len() + 2);
        for (kind, answers) in counts {
            let most = *answers.values().max().unwrap();
            let all: u32 = answers.values().sum();
            let share = f64::from(most) / f64::from(all);
            assert!(share < 0.66, "{kind:?}: {share:.2} of {all}");
        }
    }

    #[test]
    fn examples_survive_json() {
        for task in Task::ALL {
            for example in set(task, Split::Train, 10) {
                let text = serde_json::to_string(&example).unwrap();
                assert_eq!(serde_json::from_str::<Example>(&text).unwrap(), example);
            }
        }
    }
}
