//! What decides the values that a run comes to, as digests. In: base, lessons, recipe. Out: an
//! [`Identity`] that a checkpoint is compared by.

use anyhow::Result;
use norma::model::step::RowInput;
use norma_adapters::{Digest, Hasher};

use super::Lessons;
use crate::checkpoint::Identity;
use crate::frozen::FrozenBase;
use crate::lesson::Lesson;
use crate::tune::TuneRecipe;

pub(super) fn identity(
    base: &FrozenBase,
    lessons: &Lessons,
    recipe: &TuneRecipe,
) -> Result<Identity> {
    Ok(Identity {
        base: base.digest,
        recipe: serde_json::to_string(recipe)?,
        lessons: digest(lessons.train),
        validation: digest(lessons.validation),
    })
}

/// A digest of pixels and tokens.
fn digest(lessons: &[Lesson]) -> Digest {
    let mut hasher = Hasher::new();
    for lesson in lessons {
        hasher.update(&Digest::of_f32(&lesson.pixels).0);
        let dialogue = &lesson.dialogue;
        let mut tokens = |ids: &mut dyn Iterator<Item = [u32; 2]>| {
            for id in ids {
                hasher.update(&id[0].to_le_bytes());
                hasher.update(&id[1].to_le_bytes());
            }
            hasher.update(&[u8::MAX; 8]);
        };
        tokens(&mut dialogue.prefix.iter().map(|row| match row {
            RowInput::Token(id) => [0, *id],
            RowInput::Feature(at) => [1, *at],
        }));
        for branch in &dialogue.branches {
            tokens(&mut branch.prompt.iter().map(|id| [2, *id]));
            tokens(&mut branch.answer.iter().map(|id| [3, *id]));
        }
    }
    hasher.finish()
}
