//! Questions about a film. In: a scene and a random source, or a chosen question. Out: the
//! question's words and its true answer. It knows no image and no model.
//!
//! Sampling balances the answers, so that no question can be answered by its prior.

use rand::Rng;
use rand::seq::{IndexedRandom, IteratorRandom};
use serde::{Deserialize, Serialize};

use super::codes::{TABLES, Table};
use super::language::{COUNTS, Register, article, kind_word, side_word, size_word, zone_word};
use super::{Finding, Kind, Scene, Side, Size};

/// What a turn asks for: the unit of which accuracies are reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum QuestionKind {
    Present,
    OnSide,
    IsLarge,
    BothPresent,
    EitherPresent,
    SideOf,
    SizeOf,
    ZoneOf,
    WhereIs,
    Count,
    Laterality,
    Main,
    /// A code of the table that the prompt names, or of the one table of a tuned adapter.
    Code,
    /// A code where no table is named and any of pre-training's may be meant: trained, so that a
    /// prompt without a name is open to being steered, but without a right answer, so not scored.
    AnyCode,
    /// The new decision rule; never in pre-training.
    Urgent,
    Report,
}

impl QuestionKind {
    /// The questions of pre-training, each as often as its weight says.
    pub const PRETRAINED: [(Self, u32); 14] = [
        (Self::Present, 4),
        (Self::OnSide, 5),
        (Self::IsLarge, 3),
        (Self::BothPresent, 2),
        (Self::EitherPresent, 2),
        (Self::SideOf, 4),
        (Self::SizeOf, 3),
        (Self::ZoneOf, 3),
        (Self::WhereIs, 3),
        (Self::Count, 2),
        (Self::Laterality, 2),
        (Self::Main, 2),
        (Self::Code, 4),
        (Self::AnyCode, 1),
    ];

    /// Whether the answer is yes or no.
    pub fn is_closed(self) -> bool {
        matches!(
            self,
            Self::Present
                | Self::OnSide
                | Self::IsLarge
                | Self::BothPresent
                | Self::EitherPresent
                | Self::Urgent
        )
    }
}

/// One question, free of its phrasing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Question {
    Present(Kind),
    OnSide(Kind, Side),
    IsLarge(Kind),
    BothPresent(Kind, Kind),
    EitherPresent(Kind, Kind),
    SideOf(Kind),
    SizeOf(Kind),
    ZoneOf(Kind),
    WhereIs(Kind),
    Count,
    Laterality,
    Main,
    /// The code of the main finding, the table named in the prompt.
    NamedCode(usize),
    /// The code of the main finding in a table that the prompt does not name.
    UnnamedCode(Table),
    Urgent,
}

/// How many phrasings every question has; a second one may equal the first.
pub const PHRASINGS: usize = 2;

/// Share of attribute questions that ask about a finding that is there.
const PRESENT_SHARE: f64 = 0.92;
impl Question {
    /// A question of the kind about the scene, `None` where the scene allows none (an attribute of
    /// an absent finding is asked for at a fixed share only).
    pub fn sample(kind: QuestionKind, scene: &Scene, rng: &mut impl Rng) -> Option<Self> {
        let question = match kind {
            QuestionKind::Present => Self::Present(subject(scene, 0.5, |_| true, rng)?),
            QuestionKind::OnSide => {
                let kind = subject(scene, PRESENT_SHARE, Kind::has_side, rng)?;
                Self::OnSide(kind, *Side::ALL.choose(rng)?)
            }
            QuestionKind::IsLarge => {
                Self::IsLarge(subject(scene, PRESENT_SHARE, Kind::has_size, rng)?)
            }
            QuestionKind::BothPresent => {
                let first = subject(scene, 0.85, |_| true, rng)?;
                let second = subject(scene, 0.7, |kind| kind != first, rng)?;
                Self::BothPresent(first, second)
            }
            QuestionKind::EitherPresent => {
                let first = subject(scene, 0.35, |_| true, rng)?;
                let second = subject(scene, 0.3, |kind| kind != first, rng)?;
                Self::EitherPresent(first, second)
            }
            QuestionKind::SideOf => {
                Self::SideOf(subject(scene, PRESENT_SHARE, Kind::has_side, rng)?)
            }
            QuestionKind::SizeOf => {
                Self::SizeOf(subject(scene, PRESENT_SHARE, Kind::has_size, rng)?)
            }
            QuestionKind::ZoneOf => {
                Self::ZoneOf(subject(scene, PRESENT_SHARE, Kind::has_zone, rng)?)
            }
            QuestionKind::WhereIs => {
                Self::WhereIs(subject(scene, PRESENT_SHARE, Kind::has_zone, rng)?)
            }
            QuestionKind::Count => Self::Count,
            QuestionKind::Laterality => Self::Laterality,
            QuestionKind::Main => Self::Main,
            QuestionKind::Code => Self::NamedCode(rng.random_range(0..TABLES.len())),
            QuestionKind::AnyCode => {
                Self::UnnamedCode(Table::Known(rng.random_range(0..TABLES.len())))
            }
            QuestionKind::Urgent => Self::Urgent,
            QuestionKind::Report => return None,
        };
        Some(question)
    }

    pub fn kind(&self) -> QuestionKind {
        match self {
            Self::Present(_) => QuestionKind::Present,
            Self::OnSide(..) => QuestionKind::OnSide,
            Self::IsLarge(_) => QuestionKind::IsLarge,
            Self::BothPresent(..) => QuestionKind::BothPresent,
            Self::EitherPresent(..) => QuestionKind::EitherPresent,
            Self::SideOf(_) => QuestionKind::SideOf,
            Self::SizeOf(_) => QuestionKind::SizeOf,
            Self::ZoneOf(_) => QuestionKind::ZoneOf,
            Self::WhereIs(_) => QuestionKind::WhereIs,
            Self::Count => QuestionKind::Count,
            Self::Laterality => QuestionKind::Laterality,
            Self::Main => QuestionKind::Main,
            Self::NamedCode(_) | Self::UnnamedCode(Table::HeldOut) => QuestionKind::Code,
            Self::UnnamedCode(Table::Known(_)) => QuestionKind::AnyCode,
            Self::Urgent => QuestionKind::Urgent,
        }
    }

    /// The question's words; `phrasing` counts modulo [`PHRASINGS`].
    pub fn text(&self, phrasing: usize) -> String {
        let second = phrasing % PHRASINGS == 1;
        match *self {
            Self::Present(kind) if second => format!("does the film show {} ?", a(kind)),
            Self::Present(kind) => format!("is there {} ?", a(kind)),
            Self::OnSide(kind, side) => {
                format!(
                    "is the {} on the {} ?",
                    name(kind),
                    side_word(side, Register::First)
                )
            }
            Self::IsLarge(kind) => format!("is the {} large ?", name(kind)),
            Self::BothPresent(one, other) => format!("is there {} and {} ?", a(one), a(other)),
            Self::EitherPresent(one, other) => format!("is there {} or {} ?", a(one), a(other)),
            Self::SideOf(kind) if second => format!("on which side is the {} ?", name(kind)),
            Self::SideOf(kind) => format!("which side is the {} ?", name(kind)),
            Self::SizeOf(kind) if second => format!("what is the size of the {} ?", name(kind)),
            Self::SizeOf(kind) => format!("what size is the {} ?", name(kind)),
            Self::ZoneOf(kind) if second => format!("in which zone is the {} ?", name(kind)),
            Self::ZoneOf(kind) => format!("which zone is the {} ?", name(kind)),
            Self::WhereIs(kind) => format!("where is the {} ?", name(kind)),
            Self::Count if second => "count the findings .".to_owned(),
            Self::Count => "how many findings are there ?".to_owned(),
            Self::Laterality => "which side are the findings on ?".to_owned(),
            Self::Main if second => "name the main finding .".to_owned(),
            Self::Main => "what is the main finding ?".to_owned(),
            Self::NamedCode(table) => {
                format!("code the main finding : {} .", TABLES[table % TABLES.len()])
            }
            Self::UnnamedCode(_) => "code the main finding .".to_owned(),
            Self::Urgent => "is the film urgent ?".to_owned(),
        }
    }

    /// The true answer.
    pub fn answer(&self, scene: &Scene) -> String {
        let of = |kind, word: fn(Finding) -> Option<String>| {
            scene
                .find(kind)
                .copied()
                .and_then(word)
                .unwrap_or_else(|| "none".to_owned())
        };
        match *self {
            Self::Present(kind) => yes_no(scene.has(kind)),
            Self::OnSide(kind, side) => yes_no(
                scene
                    .find(kind)
                    .is_some_and(|finding| finding.side == Some(side)),
            ),
            Self::IsLarge(kind) => yes_no(
                scene
                    .find(kind)
                    .is_some_and(|finding| finding.size == Some(Size::Large)),
            ),
            Self::BothPresent(one, other) => yes_no(scene.has(one) && scene.has(other)),
            Self::EitherPresent(one, other) => yes_no(scene.has(one) || scene.has(other)),
            Self::SideOf(kind) => of(kind, side),
            Self::SizeOf(kind) => of(kind, size),
            Self::ZoneOf(kind) => of(kind, zone),
            Self::WhereIs(kind) => of(kind, |finding| {
                Some(format!("{} {}", side(finding)?, zone(finding)?))
            }),
            Self::Count => COUNTS[scene.findings.len().min(COUNTS.len() - 1)].to_owned(),
            Self::Laterality => {
                let on = |side| {
                    scene
                        .findings
                        .iter()
                        .any(|finding| finding.side == Some(side))
                };
                match (on(Side::Left), on(Side::Right)) {
                    (true, true) => "both",
                    (true, false) => "left",
                    (false, true) => "right",
                    (false, false) => "none",
                }
                .to_owned()
            }
            Self::Main => scene.main().map_or("none", name).to_owned(),
            Self::NamedCode(table) => Table::Known(table % TABLES.len())
                .code(scene.main())
                .to_owned(),
            Self::UnnamedCode(table) => table.code(scene.main()).to_owned(),
            Self::Urgent => yes_no(scene.is_urgent()),
        }
    }
}

/// A finding to ask about: with probability `present` one that the scene has, else one that it has
/// not. `None` where the chosen group is empty.
fn subject(
    scene: &Scene,
    present: f64,
    fits: impl Fn(Kind) -> bool,
    rng: &mut impl Rng,
) -> Option<Kind> {
    let wanted = rng.random_bool(present);
    Kind::ALL
        .into_iter()
        .filter(|kind| fits(*kind) && scene.has(*kind) == wanted)
        .choose(rng)
}

fn name(kind: Kind) -> &'static str {
    kind_word(kind, Register::First)
}

fn a(kind: Kind) -> String {
    format!("{} {}", article(name(kind)), name(kind))
}

fn side(finding: Finding) -> Option<String> {
    finding
        .side
        .map(|side| side_word(side, Register::First).to_owned())
}

fn size(finding: Finding) -> Option<String> {
    finding
        .size
        .map(|size| size_word(size, Register::First).to_owned())
}

fn zone(finding: Finding) -> Option<String> {
    finding
        .zone
        .map(|zone| zone_word(zone, Register::First).to_owned())
}

fn yes_no(truth: bool) -> String {
    if truth { "yes" } else { "no" }.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::phantom::{Stream, Zone, rng};

    fn scene() -> Scene {
        Scene::from_findings([
            Finding {
                kind: Kind::Nodule,
                side: Some(Side::Left),
                size: Some(Size::Large),
                zone: Some(Zone::Upper),
            },
            Finding {
                side: Some(Side::Right),
                ..Finding::bare(Kind::Pacemaker)
            },
        ])
    }

    #[test]
    fn answers_follow_the_scene() {
        for (question, answer) in [
            (Question::Present(Kind::Nodule), "yes"),
            (Question::Present(Kind::Effusion), "no"),
            (Question::OnSide(Kind::Nodule, Side::Left), "yes"),
            (Question::OnSide(Kind::Nodule, Side::Right), "no"),
            (Question::OnSide(Kind::Effusion, Side::Right), "no"),
            (Question::IsLarge(Kind::Nodule), "yes"),
            (Question::IsLarge(Kind::Effusion), "no"),
            (Question::BothPresent(Kind::Nodule, Kind::Pacemaker), "yes"),
            (Question::BothPresent(Kind::Nodule, Kind::Effusion), "no"),
            (Question::EitherPresent(Kind::Nodule, Kind::Effusion), "yes"),
            (Question::EitherPresent(Kind::Opacity, Kind::Effusion), "no"),
            (Question::SideOf(Kind::Pacemaker), "right"),
            (Question::SideOf(Kind::Effusion), "none"),
            (Question::SizeOf(Kind::Nodule), "large"),
            (Question::ZoneOf(Kind::Nodule), "upper"),
            (Question::WhereIs(Kind::Nodule), "left upper"),
            (Question::WhereIs(Kind::Opacity), "none"),
            (Question::Count, "two"),
            (Question::Laterality, "both"),
            (Question::Main, "nodule"),
            (Question::Urgent, "yes"),
        ] {
            assert_eq!(question.answer(&scene()), answer, "{question:?}");
        }
        let code = Question::NamedCode(3);
        assert_eq!(
            code.answer(&scene()),
            Table::Known(3).code(Some(Kind::Nodule))
        );
        assert_eq!(code.text(0), "code the main finding : delta .");
        assert_eq!(Question::Main.answer(&Scene::default()), "none");
        assert_eq!(Question::Laterality.answer(&Scene::default()), "none");
    }

    #[test]
    fn a_sampled_question_is_of_the_kind_asked_for() {
        let mut rng = rng(9, Stream::Language, 0);
        for (kind, _) in QuestionKind::PRETRAINED {
            let asked: Vec<_> = (0..40)
                .filter_map(|_| Question::sample(kind, &scene(), &mut rng))
                .collect();
            assert!(!asked.is_empty());
            assert!(asked.iter().all(|question| question.kind() == kind));
        }
        assert_eq!(
            Question::sample(QuestionKind::Report, &scene(), &mut rng),
            None
        );
    }

    #[test]
    fn questions_read_as_shown_here() {
        assert_eq!(
            Question::Present(Kind::Opacity).text(0),
            "is there an opacity ?"
        );
        assert_eq!(
            Question::Present(Kind::Nodule).text(1),
            "does the film show a nodule ?"
        );
        assert_eq!(
            Question::EitherPresent(Kind::Effusion, Kind::Nodule).text(0),
            "is there an effusion or a nodule ?"
        );
    }
}
