//! Held-out measures: a model answers, the phantom world's metrics judge.
//!
//! In: a model with its norm values, and examples it has not seen. Out: scores with 95 % intervals. It
//! must not know how the values were found.

use anyhow::Result;
use norma::model::MedVlm;
use norma::model::bank::NormBank;

use crate::decode::{Answer, Limits, greedy};
use crate::lesson::{Lesson, Teacher, pixels};
use crate::phantom::Example;
use crate::phantom::language::VOCABULARY;
use crate::phantom::metrics::{Summary, summarise};
use crate::phantom::tokenizer::{EOS, SPECIAL};

/// Films that are answered together.
const TOGETHER: usize = 24;
/// Longer than any report.
const MAX_TOKENS: usize = 64;

/// The model's answers to lessons: `answers[lesson][branch]`.
pub fn answer(
    model: &dyn MedVlm,
    bank: &NormBank,
    lessons: &[Lesson],
    limits: Limits,
) -> Result<Vec<Vec<Answer>>> {
    let pixels = pixels(lessons.iter(), model.shape().image_size, model.device())?;
    let features = model.encode_images(&pixels, &vec![0; lessons.len()], bank)?;
    let dialogues: Vec<_> = lessons.iter().map(|lesson| &lesson.dialogue).collect();
    greedy(model, bank, &dialogues, Some(&features), limits)
}

/// The model's answers to all turns: `answers[example][turn]`.
pub fn answers(
    model: &dyn MedVlm,
    bank: &NormBank,
    teacher: &Teacher,
    examples: &[Example],
) -> Result<Vec<Vec<String>>> {
    let limits = Limits {
        max_tokens: MAX_TOKENS,
        end: &[EOS],
    };
    let mut texts = Vec::with_capacity(examples.len());
    for chunk in examples.chunks(TOGETHER) {
        let lessons = chunk
            .iter()
            .map(|one| teacher.lesson(one))
            .collect::<Result<Vec<Lesson>>>()?;
        for answers in answer(model, bank, &lessons, limits)? {
            texts.push(answers.iter().map(|answer| text(&answer.tokens)).collect());
        }
    }
    Ok(texts)
}

/// Answers and judges.
pub fn evaluate(
    model: &dyn MedVlm,
    bank: &NormBank,
    teacher: &Teacher,
    examples: &[Example],
) -> Result<Summary> {
    let answers = answers(model, bank, teacher, examples)?;
    Ok(summarise(examples, &answers))
}

/// The words of phantom tokens, special ones left out.
fn text(tokens: &[u32]) -> String {
    let words = tokens.iter().filter_map(|token| {
        let word = (*token as usize).checked_sub(SPECIAL.len())?;
        VOCABULARY.get(word).copied()
    });
    words.collect::<Vec<_>>().join(" ")
}
