//! Makes the model's step of the scheduler's work.
//!
//! In: work and the sequences that it is for. Out: one ragged batch, and which row of its logits is
//! whose. It runs nothing.

use candle_core::{Result, Tensor, bail};

use super::scheduler::Work;
use super::sequence::Sequence;
use crate::model::ops::attention::Segment;
use crate::model::step::{RowInput, Step};
use crate::preprocess::PromptToken;

/// A step and whose its logits are.
#[derive(Debug, Default)]
pub(super) struct Batch {
    /// What the model runs.
    pub step: Step,
    /// By work: the row of its logits, if it gives a token.
    pub logits_of: Vec<Option<usize>>,
}

/// One step of all this work.
pub(super) fn build(works: &[(&Work, &Sequence)]) -> Result<Batch> {
    let mut batch = Batch::default();
    let step = &mut batch.step;
    let mut cache_rows = Vec::new();
    let mut features = Features::default();
    for (work, sequence) in works {
        let first_row = step.inputs.len();
        for input in sequence.inputs(work.positions.clone()) {
            step.inputs.push(match input {
                PromptToken::Text(token) => RowInput::Token(token),
                PromptToken::Image { image, patch } => {
                    RowInput::Feature(features.row(sequence, image as usize, patch as usize)?)
                }
            });
        }
        features.close()?;
        let rows = first_row..step.inputs.len();
        step.positions
            .extend(work.positions.clone().map(|position| position as u32));
        step.slots.resize(rows.end, work.slot);
        cache_rows.extend_from_slice(&work.cache_rows);
        batch
            .logits_of
            .push(work.gives_token.then_some(step.logits_rows.len()));
        if work.gives_token {
            step.logits_rows.push(rows.end as u32 - 1);
        }
        step.segments.push(Segment {
            rows,
            keys: work.keys.clone(),
        });
    }
    if step.logits_rows.is_empty() {
        // The model wants a row to give logits of, even if nobody does.
        step.logits_rows
            .extend((step.inputs.len() as u32).checked_sub(1));
    }
    step.cache_rows = Some(cache_rows);
    step.image_features = features.cat()?;
    Ok(batch)
}

/// The image features of a step: of each image those rows that are read.
#[derive(Default)]
struct Features<'a> {
    parts: Vec<Tensor>,
    /// Rows of the parts.
    n_rows: usize,
    /// The rows of the present image that are read, which stand in order.
    run: Option<Run<'a>>,
}

struct Run<'a> {
    features: &'a Tensor,
    first: usize,
    count: usize,
}

impl<'a> Features<'a> {
    /// The step's feature row for a row of an image.
    fn row(&mut self, sequence: &'a Sequence, image: usize, patch: usize) -> Result<u32> {
        let Some(Some(features)) = sequence.features.get(image) else {
            bail!("image {image} is not encoded")
        };
        // The first row of an image cannot go on where another ended.
        if patch == 0 {
            self.close()?;
        }
        let run = self.run.get_or_insert(Run {
            features,
            first: patch,
            count: 0,
        });
        run.count = patch + 1 - run.first;
        Ok((self.n_rows + patch - run.first) as u32)
    }

    /// Ends the present image.
    fn close(&mut self) -> Result<()> {
        if let Some(Run {
            features,
            first,
            count,
        }) = self.run.take()
        {
            self.parts.push(features.narrow(0, first, count)?);
            self.n_rows += count;
        }
        Ok(())
    }

    fn cat(&self) -> Result<Option<Tensor>> {
        match self.parts.as_slice() {
            [] => Ok(None),
            [one] => one.contiguous().map(Some),
            several => Tensor::cat(several, 0).map(Some),
        }
    }
}
