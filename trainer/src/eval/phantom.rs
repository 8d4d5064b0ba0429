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

/// Judges answers to the examples' [`items`].
pub fn judge<'t>(examples: &[Example], texts: impl IntoIterator<Item = &'t str>) -> Summary {
    let mut texts = texts.into_iter();
    let answers: Vec<Vec<String>> = examples
        .iter()
        .map(|example| {
            let turns = example.turns.iter();
            turns
                .map(|turn| {
                    if scored(turn.kind) {
                        texts.next()
                    } else {
                        None
                    }
                })
                .map(|text| text.unwrap_or_default().to_owned())
                .collect()
        })
        .collect();
    summarise(examples, &answers)
}

/// Asks and judges.
pub fn evaluate(
    asker: &Asker,
    adapter: Option<&RequestAdapter>,
    examples: &[Example],
) -> Result<Summary> {
    let (items, films) = items(examples);
    let image = |at: usize| Ok(vec![film(asker, &examples[at])?]);
    let said = ask(asker, adapter, &items, &films, image)?;
    let texts: Vec<String> = said.iter().map(text).collect();
    Ok(judge(examples, texts.iter().map(String::as_str)))
}

/// Any of the codes of pre-training may be meant: there is no right answer.
fn scored(kind: QuestionKind) -> bool {
    kind != QuestionKind::AnyCode
}
