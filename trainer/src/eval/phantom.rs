//! Phantom films as items, and the phantom world's own judgement of answers about them.
//!
//! In: examples and an asker. Out: items, answers, a [`Summary`]. It must not know how films are drawn.

use anyhow::Result;
use norma::engine::{RequestAdapter, RequestImage};

use super::{Item, Kind, ask};
use crate::asking::{Asker, Said};
use crate::phantom::Example;
use crate::phantom::language::normalise;
use crate::phantom::metrics::{Summary, summarise};
use crate::phantom::question::QuestionKind;

/// The turns of examples that have a right answer, and of which example each is.
pub fn items(examples: &[Example]) -> (Vec<Item>, Vec<usize>) {
    let turns = examples.iter().enumerate().flat_map(|(at, example)| {
        let scored = example
            .turns
            .iter()
            .enumerate()
            .filter(|(_, turn)| scored(turn.kind));
        scored.map(move |(place, turn)| {
            let kind = match turn.kind {
                QuestionKind::Report => Kind::Report,
                _ if turn.closed => Kind::Closed,
                _ => Kind::Open,
            };
            let item = Item {
                id: format!("{}-{place}", example.image),
                group: example.image.to_string(),
                kind,
                question: turn.question.clone(),
                reference: turn.answer.clone(),
            };
            (item, at)
        })
    });
    turns.unzip()
}

/// Film of an example, as the model sees it.
pub fn film(asker: &Asker, example: &Example) -> Result<RequestImage> {
    asker.image(&example.film().to_rgb())
}

/// Answers in the phantom world's normal form, in which they are compared.
pub fn text(said: &Said) -> String {
    normalise(&said.text)
}

/// Answers to all turns, `answers[example][turn]`; those without a right answer are not asked.
pub fn answers(
    asker: &Asker,
    adapter: Option<&RequestAdapter>,
    examples: &[Example],
) -> Result<Vec<Vec<String>>> {
    let (items, films) = items(examples);
    let image = |at: usize| Ok(vec![film(asker, &examples[at])?]);
    let said = ask(asker, adapter, &items, &films, image)?;
    let texts: Vec<String> = said.iter().map(text).collect();
    Ok(by_turn(examples, texts.iter().map(String::as_str)))
}

/// Asks and judges.
pub fn evaluate(
    asker: &Asker,
    adapter: Option<&RequestAdapter>,
    examples: &[Example],
) -> Result<Summary> {
    let answers = answers(asker, adapter, examples)?;
    Ok(summarise(examples, &answers))
}

/// Judges answers to the examples' [`items`].
pub fn judge<'t>(examples: &[Example], texts: impl IntoIterator<Item = &'t str>) -> Summary {
    summarise(examples, &by_turn(examples, texts))
}

/// Answers to the items, with an empty one for every turn that is no item.
fn by_turn<'t>(examples: &[Example], texts: impl IntoIterator<Item = &'t str>) -> Vec<Vec<String>> {
    let mut texts = texts.into_iter();
    let mut of_one = |example: &Example| {
        let turns = example.turns.iter();
        let answers = turns.map(|turn| {
            let text = if scored(turn.kind) {
                texts.next()
            } else {
                None
            };
            text.unwrap_or_default().to_owned()
        });
        answers.collect()
    };
    examples.iter().map(&mut of_one).collect()
}

/// Any of the codes of pre-training may be meant: there is no right answer.
fn scored(kind: QuestionKind) -> bool {
    kind != QuestionKind::AnyCode
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::phantom::{Split, Task};

    #[test]
    fn the_truth_of_every_item_scores_full_marks() {
        let examples: Vec<Example> = (0..30)
            .map(|index| Example::new(Task::Pretrain, Split::Test, 0, index).unwrap())
            .collect();
        let (items, films) = items(&examples);
        let turns = examples.iter().flat_map(|example| &example.turns);
        assert!(
            items.len() < turns.count(),
            "some turns have no right answer"
        );
        assert_eq!(films.last(), Some(&29));
        let summary = judge(&examples, items.iter().map(|item| item.reference.as_str()));
        let reports = summary.reports.unwrap();
        assert_eq!((reports.exact.value, reports.f1_full.value), (1.0, 1.0));
        assert_eq!(summary.questions.unwrap().value, 1.0);
        let asked = items
            .iter()
            .filter(|item| item.kind != Kind::Report)
            .count();
        assert_eq!(summary.questions.unwrap().n, asked);
    }
}
