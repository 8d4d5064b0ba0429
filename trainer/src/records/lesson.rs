//! From records to what a model is taught. In: an image's records. Out: a [`Lesson`], with the inputs
//! that the server makes of the same picture and question. It must not know losses or weights.

use anyhow::{Context, Result, ensure};
use norma::model::ModelShape;
use norma::preprocess::{ContentPart, Message, PromptToken};

use crate::adapter::Surroundings;
use crate::batch::Dialogue;
use crate::data::{Image, Record};
use crate::lesson::Lesson;
use crate::pictures;

/// What a model is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Look {
    /// The picture.
    Picture,
    /// A square of the mean's colour: what remains is what the questions alone give away.
    Blank,
}

/// Makes lessons of records.
pub struct RecordTeacher<'a> {
    around: &'a Surroundings,
    image_token: u32,
    end: u32,
    shape: ModelShape,
}

impl<'a> RecordTeacher<'a> {
    /// For a base of this shape with these surroundings.
    pub fn new(around: &'a Surroundings, shape: ModelShape) -> Result<Self> {
        let image_token = around
            .tokenizer
            .image_id()
            .context("the base has no image token")?;
        let end = around.tokenizer.eos_ids().first();
        let end = *end.context("the base has no token that ends an answer")?;
        Ok(Self {
            around,
            image_token,
            end,
            shape,
        })
    }

    /// The records that this base can be asked and taught, and for each of the others why it cannot: it is
    /// too long, or holds a token that has a meaning of its own.
    pub fn fitting<'r>(
        &self,
        records: impl IntoIterator<Item = &'r Record>,
    ) -> (Vec<&'r Record>, Vec<String>) {
        let (mut fit, mut faults) = (Vec::new(), Vec::new());
        for record in records {
            match self.sequence(record) {
                Ok(_) => fit.push(record),
                Err(fault) => faults.push(format!("{}: {fault:#}; left out", record.place)),
            }
        }
        (fit, faults)
    }

    /// The questions about one image, as branches behind its rows.
    pub fn dialogue(&self, records: &[&Record]) -> Result<Dialogue> {
        let sequence = |record: &&Record| {
            let failed = || format!("{} cannot be learnt from", record.place);
            self.sequence(record).with_context(failed)
        };
        let sequences: Vec<(Vec<u32>, usize)> =
            records.iter().map(sequence).collect::<Result<_>>()?;
        Dialogue::from_sequences(&sequences, self.image_token)
    }

    /// The lesson of one image's records.
    pub fn lesson(&self, image: &Image, records: &[&Record], look: Look) -> Result<Lesson> {
        let pixels = match look {
            Look::Picture => {
                let picture = pictures::read(image)?;
                self.around
                    .preprocess
                    .pixels(&picture)?
                    .flatten_all()?
                    .to_vec1::<f32>()?
            }
            Look::Blank => vec![0.0; 3 * self.shape.image_size * self.shape.image_size],
        };
        Ok(Lesson {
            pixels,
            dialogue: self.dialogue(records)?,
        })
    }

    /// Prompt, answer and end, and where the answer starts.
    fn sequence(&self, record: &Record) -> Result<(Vec<u32>, usize)> {
        let Surroundings {
            chat, tokenizer, ..
        } = self.around;
        let question = ContentPart::Text(record.question.clone());
        let message = Message::user(vec![ContentPart::Image, question]);
        let prompt = chat.prepare(tokenizer, &[message], self.shape.image_tokens)?;
        let mut ids: Vec<u32> = prompt
            .tokens
            .iter()
            .map(|token| match token {
                PromptToken::Text(id) => *id,
                PromptToken::Image { .. } => self.image_token,
            })
            .collect();
        let answer = ids.len();
        ids.extend(tokenizer.encode(&record.answer, false)?);
        ids.push(self.end);
        let limit = self.shape.max_positions;
        ensure!(
            ids.len() <= limit,
            "{} tokens are more than the {limit} positions",
            ids.len()
        );
        Ok((ids, answer))
    }
}
