//! Scores. In: texts that a model said beside the truth. Out: proportions and F1 with 95 %
//! intervals, and the priors to hold them against. It knows no model and runs none.

use std::collections::{BTreeMap, HashSet};

use rand::Rng;
use serde::{Deserialize, Serialize};

use super::language::normalise;
use super::question::QuestionKind;
use super::report::{Wording, is_well_formed, parse};
use super::score::{Score, proportion, share};
use super::style::HOUSE;
use super::{Example, Finding, Scene, Stream, Style, Turn, rng};

/// Whether an answer equals the truth, case, blanks and attached punctuation aside.
pub fn is_exact(answer: &str, truth: &str) -> bool {
    normalise(answer) == normalise(truth)
}

/// How much of a finding has to be right.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Depth {
    /// Its kind.
    Kind,
    /// Kind, side, zone and size. The one to trust: kinds alone hide a base that mixes up sides.
    Full,
}

/// True positives, false positives and false negatives of one report.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Tally {
    both: usize,
    said: usize,
    missed: usize,
}

fn tally(said: &[Finding], truth: &[Finding], depth: Depth) -> Tally {
    let key = |finding: &Finding| match depth {
        Depth::Kind => Finding::bare(finding.kind),
        Depth::Full => *finding,
    };
    let said: HashSet<Finding> = said.iter().map(key).collect();
    let truth: HashSet<Finding> = truth.iter().map(key).collect();
    let both = said.intersection(&truth).count();
    Tally {
        both,
        said: said.len() - both,
        missed: truth.len() - both,
    }
}

fn sum(tallies: impl IntoIterator<Item = Tally>) -> Tally {
    tallies
        .into_iter()
        .fold(Tally::default(), |sum, one| Tally {
            both: sum.both + one.both,
            said: sum.said + one.said,
            missed: sum.missed + one.missed,
        })
}

/// Twice what a report found, and that with what it said wrongly or missed: F1 over reports is the ratio of
/// their sums.
pub fn report_counts(text: &str, scene: &Scene, depth: Depth) -> (u32, u32) {
    let sum = tally(&parse(text), &scene.findings, depth);
    let twice = 2 * sum.both as u32;
    (twice, twice + (sum.said + sum.missed) as u32)
}

/// Micro-averaged F1; 1 where nothing was said and nothing was true.
fn f1(sum: Tally) -> f64 {
    let whole = 2 * sum.both + sum.said + sum.missed;
    if whole == 0 {
        1.0
    } else {
        2.0 * sum.both as f64 / whole as f64
    }
}

/// The reports of one film beside its truth.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FilmReports {
    pub scene: Scene,
    pub texts: Vec<String>,
}

/// Finding F1 over films, with a percentile interval of 1,000 bootstrap samples, reproducible from
/// `seed`. Whole films are drawn, since reports of one film err together.
pub fn finding_f1(films: &[FilmReports], depth: Depth, seed: u64) -> Score {
    let of_film = |film: &FilmReports| {
        let texts = film.texts.iter();
        sum(texts.map(|text| tally(&parse(text), &film.scene.findings, depth)))
    };
    let tallies: Vec<Tally> = films.iter().map(of_film).collect();
    let n = tallies.len();
    if n == 0 {
        return Score {
            value: 0.0,
            low: 0.0,
            high: 1.0,
            n,
        };
    }
    let rng = &mut rng(seed, Stream::Bootstrap, 0);
    let mut samples: Vec<f64> = (0..BOOTSTRAP_SAMPLES)
        .map(|_| f1(sum((0..n).map(|_| tallies[rng.random_range(0..n)]))))
        .collect();
    samples.sort_by(f64::total_cmp);
    let at = |quantile: f64| samples[(quantile * (BOOTSTRAP_SAMPLES - 1) as f64).round() as usize];
    Score {
        value: f1(sum(tallies)),
        low: at(0.025),
        high: at(0.975),
        n,
    }
}

const BOOTSTRAP_SAMPLES: usize = 1_000;

/// Whether a report has the form that was asked for, whatever it says: exactly the asked wording,
/// or, where the wording is one of pre-training's styles, any that obeys the prompt.
pub fn has_asked_form(text: &str, turn: &Turn) -> bool {
    match turn.wording {
        None => false,
        Some(Wording::Style(style)) if style != HOUSE => Style::all()
            .into_iter()
            .filter(|style| style.obeys(&turn.question))
            .any(|style| is_well_formed(text, Wording::Style(style))),
        Some(wording) => is_well_formed(text, wording),
    }
}

/// The most frequent answer of a question kind: what always saying it scores.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Prior {
    pub answer: String,
    pub score: Score,
}

/// Majority priors by question kind, reports left out.
pub fn priors<'a>(turns: impl IntoIterator<Item = &'a Turn>) -> BTreeMap<QuestionKind, Prior> {
    let mut counts: BTreeMap<QuestionKind, BTreeMap<&str, usize>> = BTreeMap::new();
    for turn in turns
        .into_iter()
        .filter(|turn| turn.kind != QuestionKind::Report)
    {
        *counts
            .entry(turn.kind)
            .or_default()
            .entry(&turn.answer)
            .or_default() += 1;
    }
    counts
        .into_iter()
        .filter_map(|(kind, answers)| {
            let n = answers.values().sum();
            let (answer, most) = answers.into_iter().max_by_key(|(_, count)| *count)?;
            Some((
                kind,
                Prior {
                    answer: answer.to_owned(),
                    score: proportion(most, n),
                },
            ))
        })
        .collect()
}

/// The scores of one set: what a model card or a table states.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// Exact match of yes/no questions; absent where the set has none, like all that follow.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub closed: Option<Score>,
    /// Exact match of all other questions.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub open: Option<Score>,
    /// Exact match of all questions.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub questions: Option<Score>,
    pub by_kind: BTreeMap<QuestionKind, Score>,
    /// Majority priors of this very set.
    pub priors: BTreeMap<QuestionKind, Prior>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reports: Option<ReportSummary>,
}

/// The scores of a set's reports.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ReportSummary {
    /// Word for word equal to the truth; meaningful where the prompt or the house fixes the style.
    pub exact: Score,
    pub form: Score,
    pub f1_kind: Score,
    pub f1_full: Score,
}

/// Scores a model's answers, one for every turn of every example, in order: `answers[i][j]` answers
/// `examples[i].turns[j]`. A missing answer counts as an empty one.
///
/// Wilson's intervals take turns for independent; turns about one film err together, so with
/// several turns a film the true interval is somewhat wider.
///
/// [`QuestionKind::AnyCode`] has no right answer and is left out.
pub fn summarise(examples: &[Example], answers: &[Vec<String>]) -> Summary {
    let said = |at: usize, turn: usize| {
        answers
            .get(at)
            .and_then(|texts| texts.get(turn))
            .map_or("", String::as_str)
    };
    let all = || {
        examples.iter().enumerate().flat_map(|(at, example)| {
            example
                .turns
                .iter()
                .enumerate()
                .filter(|(_, turn)| turn.kind != QuestionKind::AnyCode)
                .map(move |(place, turn)| (at, place, turn))
        })
    };
    let questions = || all().filter(|(_, _, turn)| turn.kind != QuestionKind::Report);
    let reports: Vec<_> = all()
        .filter(|(_, _, turn)| turn.kind == QuestionKind::Report)
        .collect();
    let exact = |(at, place, turn): (usize, usize, &Turn)| is_exact(said(at, place), &turn.answer);
    let some = |score: Score| (score.n > 0).then_some(score);
    let of = |closed: bool| share(questions().filter(|one| one.2.closed == closed).map(exact));
    let mut by_kind: BTreeMap<QuestionKind, Vec<bool>> = BTreeMap::new();
    for one in questions() {
        by_kind.entry(one.2.kind).or_default().push(exact(one));
    }
    let mut films: BTreeMap<usize, FilmReports> = BTreeMap::new();
    for (at, place, _) in &reports {
        let scene = || FilmReports {
            scene: examples[*at].scene(),
            texts: Vec::new(),
        };
        films
            .entry(*at)
            .or_insert_with(scene)
            .texts
            .push(said(*at, *place).to_owned());
    }
    let films: Vec<FilmReports> = films.into_values().collect();
    Summary {
        closed: some(of(true)),
        open: some(of(false)),
        questions: some(share(questions().map(exact))),
        by_kind: by_kind
            .into_iter()
            .map(|(kind, hits)| (kind, share(hits)))
            .collect(),
        priors: priors(questions().map(|(_, _, turn)| turn)),
        reports: (!reports.is_empty()).then(|| ReportSummary {
            exact: share(reports.iter().copied().map(exact)),
            form: share(
                reports
                    .iter()
                    .map(|(at, place, turn)| has_asked_form(said(*at, *place), turn)),
            ),
            f1_kind: finding_f1(&films, Depth::Kind, BOOTSTRAP_SEED),
            f1_full: finding_f1(&films, Depth::Full, BOOTSTRAP_SEED),
        }),
    }
}

const BOOTSTRAP_SEED: u64 = 1;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::phantom::report::render;
    use crate::phantom::{Kind, Side, Split, Task};

    fn set(task: Task, count: u64) -> Vec<Example> {
        super::super::dataset::examples(task, Split::Test, 0, count)
            .map(Result::unwrap)
            .collect()
    }

    fn truths(examples: &[Example]) -> Vec<Vec<String>> {
        let answers = |one: &Example| one.turns.iter().map(|turn| turn.answer.clone()).collect();
        examples.iter().map(answers).collect()
    }

    #[test]
    fn f1_counts_attributes_only_when_asked() {
        let left = Finding {
            side: Some(Side::Left),
            ..Finding::bare(Kind::Pacemaker)
        };
        let scene = Scene::from_findings([left, Finding::bare(Kind::Cardiomegaly)]);
        let texts = vec!["right pacemaker . cardiomegaly .".to_owned()];
        let reports = [FilmReports { scene, texts }];
        assert!((finding_f1(&reports, Depth::Kind, 0).value - 1.0).abs() < 1e-12);
        assert!((finding_f1(&reports, Depth::Full, 0).value - 0.5).abs() < 1e-12);
    }

    #[test]
    fn bootstrap_interval_holds_the_value_and_repeats() {
        let reports: Vec<_> = (0..200)
            .map(|seed| {
                // Every third report is another film's.
                let said = Scene::sample(if seed % 3 == 0 { seed + 1 } else { seed });
                let texts = vec![render(&said, Wording::Template)];
                FilmReports {
                    scene: Scene::sample(seed),
                    texts,
                }
            })
            .collect();
        let score = finding_f1(&reports, Depth::Full, 5);
        assert!(
            score.low < score.value && score.value < score.high,
            "{score:?}"
        );
        assert!(score.high - score.low < 0.2);
        assert_eq!(score, finding_f1(&reports, Depth::Full, 5));
        let texts = vec!["no finding .".to_owned()];
        let empty = [FilmReports {
            scene: Scene::default(),
            texts,
        }];
        assert!((finding_f1(&empty, Depth::Full, 0).value - 1.0).abs() < 1e-12);
    }

    #[test]
    fn the_truth_scores_full_marks_everywhere() {
        for task in Task::ALL {
            let examples = set(task, 40);
            let summary = summarise(&examples, &truths(&examples));
            let scores = [summary.closed, summary.open, summary.questions];
            assert!(scores.into_iter().flatten().all(|score| score.value >= 1.0));
            if let Some(reports) = summary.reports {
                for score in [
                    reports.exact,
                    reports.form,
                    reports.f1_kind,
                    reports.f1_full,
                ] {
                    assert!(score.value >= 1.0, "{task:?}: {score:?}");
                }
            }
        }
    }

    #[test]
    fn always_saying_the_majority_answer_scores_the_prior() {
        let examples = set(Task::Urgent, 300);
        let turns = examples.iter().flat_map(|example| &example.turns);
        let prior = priors(turns)[&QuestionKind::Urgent].clone();
        let answers = vec![vec![prior.answer]; examples.len()];
        let summary = summarise(&examples, &answers);
        assert_eq!(summary.closed, Some(prior.score));
        assert_eq!(summary.open, None);
        assert!(prior.score.value < 0.65);
    }

    #[test]
    fn form_is_judged_apart_from_truth() {
        let examples = set(Task::House, 30);
        let wording = Wording::Style(HOUSE);
        let other = Scene::sample(1);
        let turn = &examples[0].turns[0];
        assert!(has_asked_form(&render(&other, wording), turn));
        assert!(!has_asked_form(&render(&other, Wording::Template), turn));
        assert!(!has_asked_form("", turn));
        // A style of pre-training may be any that obeys the prompt.
        let free = set(Task::Pretrain, 30);
        let neutral = free
            .iter()
            .flat_map(|one| &one.turns)
            .find(|turn| turn.question == "write a report .");
        let neutral = neutral.expect("a third of the reports have a neutral prompt");
        for style in Style::all().into_iter().step_by(37) {
            assert!(has_asked_form(
                &render(&other, Wording::Style(style)),
                neutral
            ));
        }
    }
}
