//! Which lessons of a set a step gets, and how their pictures are varied. In: records and a recipe.
//! Out: a [`Curriculum`] that is the same for the same recipe. It must not know the model's weights.

use anyhow::{Result, ensure};
use image::RgbImage;
use norma::preprocess::ClipPreprocess;
use rand::seq::index::sample;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::base::{RecordRecipe, SCALE, processor_values};
use super::by_image;
use super::lesson::RecordTeacher;
use crate::augment::vary;
use crate::batch::Dialogue;
use crate::data::Record;
use crate::lesson::Lesson;
use crate::order::Order;
use crate::pictures::Pictures;
use crate::pretrain::{Curriculum, Taught};

/// Pictures are kept larger than they are shown, so that cropped ones are not blurred.
const MARGIN: f32 = 1.25;

/// Images in shuffled rounds, each time with some of its questions and varied anew.
pub struct Rounds {
    recipe: RecordRecipe,
    images: Vec<(RgbImage, Dialogue)>,
    order: Order,
    rng: ChaCha8Rng,
}

impl Rounds {
    /// Reads the records' pictures.
    pub fn new(
        recipe: &RecordRecipe,
        teacher: &RecordTeacher,
        records: &[&Record],
    ) -> Result<Self> {
        ensure!(
            !records.is_empty(),
            "there is nothing to learn from: no records"
        );
        ensure!(
            recipe.images > 0 && recipe.questions > 0,
            "a step needs images and questions"
        );
        let kept = (recipe.sizes.image as f32 * MARGIN).round() as usize;
        let preprocess = ClipPreprocess::from_json(&processor_values(kept))?;
        let gathered = by_image(records.iter().copied());
        let pictures = Pictures::read(gathered.iter().map(|(image, _)| *image), &preprocess)?;
        let images = gathered
            .into_iter()
            .map(|(image, records)| Ok((pictures.get(image)?.clone(), teacher.dialogue(&records)?)))
            .collect::<Result<Vec<_>>>()?;
        Ok(Self {
            recipe: recipe.clone(),
            order: Order::new(images.len(), recipe.seed),
            rng: ChaCha8Rng::seed_from_u64(recipe.seed),
            images,
        })
    }

    fn next_lesson(&mut self) -> Lesson {
        let (picture, dialogue) = &self.images[self.order.draw()];
        let all = dialogue.branches.len();
        let chosen = sample(&mut self.rng, all, self.recipe.questions.min(all));
        let branches = chosen
            .into_iter()
            .map(|at| dialogue.branches[at].clone())
            .collect();
        let (side, variation) = (self.recipe.sizes.image, self.recipe.variation);
        Lesson {
            pixels: vary(picture, side, SCALE, variation, self.rng.random()),
            dialogue: Dialogue {
                prefix: dialogue.prefix.clone(),
                branches,
            },
        }
    }
}

impl Curriculum for Rounds {
    fn next_step(&mut self) -> Result<Vec<Taught>> {
        let lessons = (0..self.recipe.images).map(|_| self.next_lesson());
        Ok(lessons
            .map(|lesson| Taught {
                lesson,
                labels: None,
            })
            .collect())
    }
}
