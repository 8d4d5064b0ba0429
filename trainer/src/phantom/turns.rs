//! What is said about one image. In: a scene, a random source and a mix. Out: questions with their
//! answers, and reports. It knows no image seed, no split and no task.

use rand::Rng;
use rand::distr::Distribution;
use rand::distr::weighted::WeightedIndex;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use super::question::{PHRASINGS, Question, QuestionKind};
use super::report::{Wording, render};
use super::style::{CONTROLS, HOUSE};
use super::{Scene, Style};

/// One question and its true answer, both in normal form.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Turn {
    pub question: String,
    pub answer: String,
    pub kind: QuestionKind,
    /// Whether the answer is yes or no.
    pub closed: bool,
    /// The wording of the answer, for reports.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wording: Option<Wording>,
}

/// How many turns of which sort an image of the mixed tasks has.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Mix {
    /// Questions an image.
    pub questions: usize,
    /// Reports an image.
    pub reports: usize,
    /// Share of report prompts that name no style.
    pub neutral: f64,
    /// Share of report prompts that name every factor; the rest name some.
    pub explicit: f64,
}

impl Default for Mix {
    fn default() -> Self {
        Self {
            questions: 6,
            reports: 2,
            neutral: 0.35,
            explicit: 0.4,
        }
    }
}

/// The turn of a question in one of its phrasings.
pub(super) fn ask(question: &Question, phrasing: usize, scene: &Scene) -> Turn {
    let kind = question.kind();
    Turn {
        question: question.text(phrasing),
        answer: question.answer(scene),
        kind,
        closed: kind.is_closed(),
        wording: None,
    }
}

/// Different questions of weighted kinds.
pub(super) fn questions(scene: &Scene, count: usize, rng: &mut ChaCha8Rng) -> Vec<Turn> {
    let kinds = QuestionKind::PRETRAINED;
    let weights = WeightedIndex::new(kinds.iter().map(|(_, weight)| *weight))
        .expect("the weights are positive");
    let mut turns: Vec<Turn> = Vec::with_capacity(count);
    // Some scenes allow few questions of a kind; the bound keeps a large count from looping.
    for _ in 0..count * 20 {
        if turns.len() == count {
            break;
        }
        let kind = kinds[weights.sample(rng)].0;
        let Some(question) = Question::sample(kind, scene, rng) else {
            continue;
        };
        let turn = ask(&question, rng.random_range(0..PHRASINGS), scene);
        if turns.iter().all(|other| other.question != turn.question) {
            turns.push(turn);
        }
    }
    turns
}

/// A report in a random style, its prompt naming as much of it as the mix says.
pub(super) fn styled_report(scene: &Scene, mix: &Mix, rng: &mut ChaCha8Rng) -> Turn {
    let style = Style::sample(rng);
    let how: f64 = rng.random();
    let named = if how < mix.neutral {
        [false; CONTROLS]
    } else if how < mix.neutral + mix.explicit {
        [true; CONTROLS]
    } else {
        std::array::from_fn(|_| rng.random_bool(0.5))
    };
    report(style.prompt(named), scene, Wording::Style(style))
}

/// A report in a given wording, its prompt naming nothing of it.
pub(super) fn neutral_report(scene: &Scene, wording: Wording) -> Turn {
    report(HOUSE.prompt([false; CONTROLS]), scene, wording)
}

fn report(question: String, scene: &Scene, wording: Wording) -> Turn {
    Turn {
        question,
        answer: render(scene, wording),
        kind: QuestionKind::Report,
        closed: false,
        wording: Some(wording),
    }
}
