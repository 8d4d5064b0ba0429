//! Examples packed into a step: one sequence an image, however many questions there are about it.
//!
//! In: token rows of dialogues. Out: a [`Step`] and the tokens that it should predict. The rows up to
//! the last image row come once; every question with its answer is a branch that sees them and
//! itself, not its sisters, at positions that restart behind them. Losses and gradients are those
//! of separate sequences. It must not know pixels, text or a model.

use anyhow::{Result, bail, ensure};
use norma::model::ops::attention::Segment;
use norma::model::step::{RowInput, Step};

/// One question about an image: what follows the shared rows, and what is to be answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Branch {
    /// Tokens between the shared rows and the answer; at least one.
    pub prompt: Vec<u32>,
    /// The tokens to be predicted, the end of the text among them.
    pub answer: Vec<u32>,
}

/// All questions about one image (or about none).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dialogue {
    /// The rows that all branches share, to the last image row.
    pub prefix: Vec<RowInput>,
    /// The questions.
    pub branches: Vec<Branch>,
}

impl Dialogue {
    /// A dialogue of whole sequences about the same image. `sequences`: token ids in which every
    /// image row is `image_token`, and where in them the answer starts. All must be equal up to the
    /// last image row.
    pub fn from_sequences(sequences: &[(Vec<u32>, usize)], image_token: u32) -> Result<Self> {
        let shared = |ids: &[u32]| {
            ids.iter()
                .rposition(|id| *id == image_token)
                .map_or(0, |last| last + 1)
        };
        let Some((first, _)) = sequences.first() else {
            bail!("a dialogue has no sequence")
        };
        let prefix = &first[..shared(first)];
        let mut branches = Vec::with_capacity(sequences.len());
        for (ids, answer) in sequences {
            ensure!(
                shared(ids) == prefix.len() && ids.starts_with(prefix),
                "the sequences of a dialogue differ before the end of the image"
            );
            ensure!(
                prefix.len() < *answer && *answer < ids.len(),
                "an answer must follow a prompt: it starts at {answer} of {} tokens",
                ids.len()
            );
            branches.push(Branch {
                prompt: ids[prefix.len()..*answer].to_vec(),
                answer: ids[*answer..].to_vec(),
            });
        }
        let mut next = 0;
        let prefix = prefix
            .iter()
            .map(|id| {
                if *id == image_token {
                    next += 1;
                    RowInput::Feature(next - 1)
                } else {
                    RowInput::Token(*id)
                }
            })
            .collect();
        Ok(Self { prefix, branches })
    }

    /// The same questions as dialogues of their own.
    pub fn separate(&self) -> Vec<Self> {
        let one = |branch: &Branch| Self {
            prefix: self.prefix.clone(),
            branches: vec![branch.clone()],
        };
        self.branches.iter().map(one).collect()
    }

    fn n_features(&self) -> u32 {
        self.prefix
            .iter()
            .filter(|row| matches!(row, RowInput::Feature(_)))
            .count() as u32
    }
}

/// A step and what it should predict.
#[derive(Clone, Debug, Default)]
pub struct Packed {
    /// The batch; its image features are still to be set.
    pub step: Step,
    /// The wanted token of each of the step's `logits_rows`.
    pub targets: Vec<u32>,
}

/// Packs dialogues. The image features of dialogue `i` are expected behind those of the dialogues
/// before it.
pub fn pack<'a>(dialogues: impl IntoIterator<Item = &'a Dialogue>) -> Packed {
    let mut packed = Packed::default();
    let mut features = 0;
    for dialogue in dialogues {
        packed.push_dialogue(dialogue, features);
        features += dialogue.n_features();
    }
    let rows = packed.step.inputs.len();
    packed.step.slots = vec![0; rows];
    packed
}

impl Packed {
    fn push_dialogue(&mut self, dialogue: &Dialogue, features: u32) {
        let step = &mut self.step;
        let start = step.inputs.len();
        step.inputs
            .extend(dialogue.prefix.iter().map(|row| match row {
                RowInput::Feature(row) => RowInput::Feature(features + row),
                RowInput::Token(token) => RowInput::Token(*token),
            }));
        step.positions.extend(0..dialogue.prefix.len() as u32);
        let prefix = start..step.inputs.len();
        if !prefix.is_empty() {
            step.segments.push(Segment {
                rows: prefix.clone(),
                keys: vec![prefix.clone()],
            });
        }
        for Branch { prompt, answer } in &dialogue.branches {
            let start = step.inputs.len();
            // The last token of an answer predicts nothing, so it is no row.
            let inputs = prompt.iter().chain(&answer[..answer.len() - 1]);
            step.inputs
                .extend(inputs.map(|token| RowInput::Token(*token)));
            let rows = start..step.inputs.len();
            let first = prefix.len() as u32;
            step.positions.extend(first..first + rows.len() as u32);
            let keys = [prefix.clone(), rows.clone()];
            let keys = keys.into_iter().filter(|span| !span.is_empty()).collect();
            let first_answer_row = start + prompt.len() - 1;
            step.logits_rows
                .extend(first_answer_row as u32..rows.end as u32);
            self.targets.extend(answer);
            step.segments.push(Segment { rows, keys });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_branch_sees_the_image_and_itself() {
        use RowInput::{Feature, Token};
        let sequences = [(vec![1, 9, 9, 5, 6, 7], 4), (vec![1, 9, 9, 8, 4, 3, 2], 5)];
        let dialogue = Dialogue::from_sequences(&sequences, 9).unwrap();
        let packed = pack([&dialogue, &dialogue]);
        let step = &packed.step;
        assert_eq!(
            step.inputs[..8],
            [
                Token(1),
                Feature(0),
                Feature(1),
                Token(5),
                Token(6),
                Token(8),
                Token(4),
                Token(3)
            ]
        );
        assert_eq!(step.inputs[8..10], [Token(1), Feature(2)]);
        assert_eq!(step.positions[..8], [0, 1, 2, 3, 4, 3, 4, 5]);
        assert_eq!(
            step.segments[1],
            Segment {
                rows: 3..5,
                keys: vec![0..3, 3..5]
            }
        );
        assert_eq!(
            step.segments[2],
            Segment {
                rows: 5..8,
                keys: vec![0..3, 5..8]
            }
        );
        assert_eq!(
            step.segments[4],
            Segment {
                rows: 11..13,
                keys: vec![8..11, 11..13]
            }
        );
        assert_eq!(step.logits_rows[..4], [3, 4, 6, 7]);
        assert_eq!(packed.targets[..4], [6, 7, 3, 2]);
        assert_eq!(step.slots.len(), step.inputs.len());
    }

    #[test]
    fn sequences_about_different_images_are_refused() {
        let refuse = |sequences: &[(Vec<u32>, usize)]| {
            Dialogue::from_sequences(sequences, 9)
                .unwrap_err()
                .to_string()
        };
        assert!(refuse(&[(vec![1, 9, 5, 6], 3), (vec![1, 9, 9, 5, 6], 4)]).contains("differ"));
        assert!(refuse(&[(vec![1, 9, 5], 2)]).contains("follow a prompt"));
        assert!(refuse(&[(vec![1, 9, 5], 3)]).contains("follow a prompt"));
        assert!(refuse(&[]).contains("no sequence"));
    }
}
