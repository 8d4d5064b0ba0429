//! Encodes the images that a step's work reads, a part at a time where answers would have to wait.
//!
//! In: work and its sequences. Out: features in the sequences, and who failed. It knows no schedule.
//!
//! Features that are still kept are taken. Where no answer is in progress, the other images are encoded at
//! once. Where answers go on, one image goes through some of the tower's layers in each step, so that no
//! answer waits for a whole image; the sequences that need it have no work until it is done, those in the background until
//! the step after.

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::Tensor;

use super::compute::{Compute, Fault};
use super::config::EngineConfig;
use super::features::{FeatureCache, FeatureKey};
use super::request::{Priority, RequestError};
use super::scheduler::{Limits, SequenceId, Work};
use super::sequence::Sequence;
use crate::model::ImageEncoding;

/// See the module.
pub(super) struct Encoder {
    features: FeatureCache,
    /// The image that is on its way.
    partial: Option<Partial>,
    max_images: usize,
    rows_beside_answers: [usize; 2],
}

struct Partial {
    key: FeatureKey,
    slot: u32,
    encoding: ImageEncoding,
}

/// An image to encode, and the sequences that wait for it.
struct Wanted {
    key: FeatureKey,
    pixels: Tensor,
    slot: u32,
    /// Sequences, and which of their images it is; at least one.
    places: Vec<(SequenceId, usize)>,
}

impl Wanted {
    fn is_in_the_background(&self, sequences: &Sequences) -> bool {
        self.places.iter().all(|(id, _)| {
            let sequence = sequences.get(id);
            sequence.is_some_and(|one| one.request.priority == Priority::Background)
        })
    }
}

/// What became of a step's images.
#[derive(Default)]
pub(super) struct Encoded {
    /// Whether any was not kept, so that the model worked on it or it still waits.
    pub worked: bool,
    /// Sequences that must end.
    pub failed: Vec<(SequenceId, RequestError)>,
    /// Sequences in the background that have had their part of this step, even if their image is complete.
    pub wait: Vec<SequenceId>,
    /// Panics caught.
    pub panics: u64,
}

type Sequences = BTreeMap<SequenceId, Sequence>;

impl Encoder {
    pub fn new(config: &EngineConfig, limits: &Limits) -> Self {
        Self {
            features: FeatureCache::new(config.image_cache_bytes),
            partial: None,
            max_images: limits.max_step_images,
            rows_beside_answers: [
                limits.max_rows_beside_answers,
                limits.background_rows_beside_answers(),
            ],
        }
    }

    /// What is kept.
    pub fn features(&self) -> &FeatureCache {
        &self.features
    }

    /// Puts features into the sequences whose work reads them, as far as they are ready.
    pub fn encode(
        &mut self,
        compute: &Compute,
        works: &[Work],
        sequences: &mut Sequences,
    ) -> Encoded {
        let wanted = self.wanted(compute, works, sequences);
        let mut encoded = Encoded::default();
        let Some(first) = wanted.first() else {
            self.partial = None;
            return encoded;
        };
        encoded.worked = true;
        let answers = works.iter().any(|work| {
            let sequence = sequences.get(&work.id);
            sequence.is_some_and(|sequence| !sequence.is_fresh())
        });
        if answers {
            let [live, background] = self.rows_beside_answers;
            let mut rows = live;
            if first.is_in_the_background(sequences) {
                rows = background;
                encoded.wait = first.places.iter().map(|(id, _)| *id).collect();
            }
            self.go_on(compute, (first, rows), sequences, &mut encoded);
            return encoded;
        }
        let mut others = wanted.as_slice();
        if self.is_on_its_way(&first.key, first.slot) {
            let rows = compute.rows_of_image();
            self.go_on(compute, (first, rows), sequences, &mut encoded);
            others = &wanted[1..];
        }
        self.partial = None;
        for group in others.chunks(self.max_images) {
            self.encode_group(compute, group, sequences, &mut encoded);
        }
        encoded
    }

    /// The images that are not kept; what is kept goes to its sequences. The one on its way comes first.
    fn wanted(
        &mut self,
        compute: &Compute,
        works: &[Work],
        sequences: &mut Sequences,
    ) -> Vec<Wanted> {
        let mut wanted: Vec<Wanted> = Vec::new();
        for work in works {
            let Some(sequence) = sequences.get_mut(&work.id) else {
                continue;
            };
            for image in sequence.lacking_images(work.positions.clone()) {
                let place = (work.id, image);
                let asked = &sequence.request.images[image];
                let key = FeatureKey {
                    tenant: Arc::clone(&sequence.request.tenant),
                    image: *asked.digest(),
                    vision: compute.vision_of(work.slot),
                };
                if let Some(same) = wanted.iter_mut().find(|other| other.key == key) {
                    same.places.push(place);
                    continue;
                }
                let begun = self.is_on_its_way(&key, work.slot);
                if !begun && let Some(features) = self.features.get(&key) {
                    sequence.features[image] = Some(features);
                    continue;
                }
                let one = Wanted {
                    key,
                    pixels: asked.pixels().clone(),
                    slot: work.slot,
                    places: vec![place],
                };
                wanted.insert(if begun { 0 } else { wanted.len() }, one);
            }
        }
        wanted
    }

    /// The key names the slot's present values, so an encoding of the same key and slot was begun with them.
    fn is_on_its_way(&self, key: &FeatureKey, slot: u32) -> bool {
        let partial = self.partial.as_ref();
        partial.is_some_and(|partial| partial.key == *key && partial.slot == slot)
    }

    /// Some more layers for one image: as many as take the time of so many rows.
    fn go_on(
        &mut self,
        compute: &Compute,
        (wanted, rows): (&Wanted, usize),
        sequences: &mut Sequences,
        encoded: &mut Encoded,
    ) {
        let partial = if self.is_on_its_way(&wanted.key, wanted.slot) {
            self.partial.take()
        } else {
            let begun = compute.begin_image(&wanted.pixels, wanted.slot);
            match begun {
                Ok(encoding) => Some(Partial {
                    key: wanted.key.clone(),
                    slot: wanted.slot,
                    encoding,
                }),
                Err(error) => {
                    let message = error.to_string();
                    self.settle(
                        wanted,
                        Err(RequestError::Model { message }),
                        sequences,
                        encoded,
                    );
                    None
                }
            }
        };
        let Some(mut partial) = partial else { return };
        match compute.continue_image(&mut partial.encoding, rows) {
            Ok(None) => self.partial = Some(partial),
            Ok(Some(features)) => self.settle(wanted, Ok(features), sequences, encoded),
            Err(fault) => {
                encoded.panics += u64::from(matches!(fault, Fault::Panic));
                self.settle(wanted, Err(fault.into()), sequences, encoded);
            }
        }
    }

    fn encode_group(
        &mut self,
        compute: &Compute,
        group: &[Wanted],
        sequences: &mut Sequences,
        encoded: &mut Encoded,
    ) {
        let images: Vec<_> = group
            .iter()
            .map(|wanted| (&wanted.pixels, wanted.slot))
            .collect();
        let computed = compute.encode(&images);
        encoded.panics += computed.panics;
        for (wanted, features) in group.iter().zip(computed.outcomes) {
            self.settle(wanted, features, sequences, encoded);
        }
    }

    /// Tells everybody who waits for an image.
    fn settle(
        &mut self,
        wanted: &Wanted,
        features: Result<Tensor, RequestError>,
        sequences: &mut Sequences,
        encoded: &mut Encoded,
    ) {
        let places = wanted.places.iter();
        match features {
            Ok(features) => {
                self.features.put(wanted.key.clone(), &features);
                for (id, image) in places {
                    if let Some(sequence) = sequences.get_mut(id) {
                        sequence.features[*image] = Some(features.clone());
                    }
                }
            }
            Err(error) => encoded
                .failed
                .extend(places.map(|(id, _)| (*id, error.clone()))),
        }
    }
}
