//! The model with its bank and its KV cache, behind a wall that errors and panics do not pass.
//!
//! In: work and its sequences. Out: an outcome for each of them. It knows no schedule: who runs, and
//! who ends after a failure, is decided elsewhere.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use candle_core::{DType, Device, Result, Tensor, bail};
use norma_adapters::{AdapterValues, BASE_SLOT, Digest};

use super::batch;
use super::config::{EngineConfig, EngineError};
use super::request::RequestError;
use super::scheduler::Work;
use super::sequence::Sequence;
use crate::model::bank::NormBank;
use crate::model::key_values::{KeyValues, cache_of};
use crate::model::kv_cache::KvType;
use crate::model::{ImageEncoding, MedVlm};

/// The model and what it reads and writes.
pub(super) struct Compute {
    model: Box<dyn MedVlm>,
    base_row: Arc<[f32]>,
    bank_slots: usize,
    cache_rows: usize,
    kv_type: KvType,
    bank: NormBank,
    /// By slot: the digest of the values that image features depend on.
    vision: Vec<Digest>,
    /// `None` only while it is being replaced.
    cache: Option<Box<dyn KeyValues>>,
}

/// What became of a run for several sequences.
pub(super) struct Computed<T> {
    /// By sequence, in the order given.
    pub outcomes: Vec<std::result::Result<T, RequestError>>,
    /// Panics caught.
    pub panics: u64,
    /// Whether the KV cache can no longer be used ([`Compute::replace_cache`]).
    pub cache_lost: bool,
}

/// What can go wrong in the model.
pub(super) enum Fault {
    Error(String),
    Panic,
}

impl From<Fault> for RequestError {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Error(message) => Self::Model { message },
            Fault::Panic => Self::Panicked,
        }
    }
}

impl Compute {
    pub fn new(
        model: Box<dyn MedVlm>,
        base_row: Vec<f32>,
        config: &EngineConfig,
    ) -> std::result::Result<Self, EngineError> {
        let (got, want) = (base_row.len(), model.sites().row_len());
        if got != want {
            return Err(EngineError::BaseRow { got, want });
        }
        let cache_rows = config.n_blocks() * config.block_rows;
        let bank = new_bank(&*model, &base_row, config.bank_slots)?;
        let kv_type = config.kv_type;
        let cache = Some(new_cache(&*model, cache_rows, kv_type)?);
        let vision = vec![model.sites().vision_digest(&base_row); config.bank_slots];
        Ok(Self {
            model,
            vision,
            base_row: base_row.into(),
            bank_slots: config.bank_slots,
            cache_rows,
            kv_type,
            bank,
            cache,
        })
    }

    /// An empty bank and an empty cache.
    pub fn rebuild(&mut self) -> std::result::Result<(), EngineError> {
        self.bank = new_bank(&*self.model, &self.base_row, self.bank_slots)?;
        self.replace_cache()
    }

    /// An empty cache.
    pub fn replace_cache(&mut self) -> std::result::Result<(), EngineError> {
        // The old one goes first: there may be no memory for two.
        self.cache = None;
        self.cache = Some(new_cache(&*self.model, self.cache_rows, self.kv_type)?);
        Ok(())
    }

    /// Fills a slot that no running sequence uses.
    pub fn fill(
        &mut self,
        slot: u32,
        values: &AdapterValues,
    ) -> std::result::Result<(), RequestError> {
        let filled = self.bank.fill(slot, values.shared_row());
        filled.map_err(|error| RequestError::Model {
            message: first_line(&error),
        })?;
        self.vision[slot as usize] = values.vision_digest();
        Ok(())
    }

    /// Lets a slot that nothing reads hold the base's values, so that the bank keeps no other row for it.
    pub fn clear(&mut self, slot: u32) -> Result<()> {
        self.bank.fill(slot, Arc::clone(&self.base_row))?;
        self.vision[slot as usize] = self.vision[BASE_SLOT];
        Ok(())
    }

    /// The digest of a slot's values that image features depend on.
    pub fn vision_of(&self, slot: u32) -> Digest {
        self.vision[slot as usize]
    }

    /// The features of each image, `[image_tokens, hidden]`. `images`: pixels and slots. All at once; if
    /// that gives an error, each alone, so that only the culprit fails. After a panic the outcomes may be
    /// fewer than the images; those left out may be tried again.
    pub fn encode(&self, images: &[(&Tensor, u32)]) -> Computed<Tensor> {
        each_alone_on_error(images, &|images| {
            let (pixels, slots): (Vec<&Tensor>, Vec<u32>) = images.iter().copied().unzip();
            let pixels = Tensor::stack(&pixels, 0)?.to_device(self.model.device())?;
            let features = self.model.encode_images(&pixels, &slots, &self.bank)?;
            let rows = features.dim(0)?;
            let each = self.model.shape().image_tokens;
            if rows != slots.len() * each {
                bail!(
                    "{} images gave {rows} feature rows, each gives {each}",
                    slots.len()
                );
            }
            if slots.len() == 1 {
                return Ok(vec![features]);
            }
            // Copies, so that keeping one does not keep all.
            let of = |image: usize| features.narrow(0, image * each, each)?.copy();
            (0..slots.len()).map(of).collect()
        })
    }

    /// Rows of an image in the tower.
    pub fn rows_of_image(&self) -> usize {
        self.model.shape().tower_rows
    }

    /// Begins to encode one image, see [`Self::continue_image`].
    pub fn begin_image(&self, pixels: &Tensor, slot: u32) -> Result<ImageEncoding> {
        Ok(ImageEncoding {
            pixels: pixels.unsqueeze(0)?.to_device(self.model.device())?,
            slots: vec![slot],
            pass: None,
        })
    }

    /// Goes on with a part of the tower that takes about as long as a prompt of `rows` rows, one layer at
    /// least; features once all is done.
    pub fn continue_image(
        &self,
        encoding: &mut ImageEncoding,
        rows: usize,
    ) -> std::result::Result<Option<Tensor>, Fault> {
        let shape = self.model.shape();
        let n_layers = (shape.tower_layers * rows / shape.tower_rows).max(1);
        guarded(|| self.model.continue_images(encoding, n_layers, &self.bank))
    }

    /// The logits of each work that gives a token, `[vocab]` on the CPU. As [`Self::encode`] if there is an error. A panic
    /// may have left the cache locked or half written, so it counts as lost; work that was not reached
    /// after that has no outcome, so the outcomes may be fewer than the works.
    pub fn forward(&self, works: &[(&Work, &Sequence)]) -> Computed<Option<Tensor>> {
        let mut computed = each_alone_on_error(works, &|works| self.logits(works));
        computed.cache_lost = computed.panics > 0;
        computed
    }

    fn logits(&self, works: &[(&Work, &Sequence)]) -> Result<Vec<Option<Tensor>>> {
        let shape = self.model.shape();
        let batch = batch::build(works)?;
        let logits = self
            .model
            .forward(&batch.step, &self.bank, self.cache.as_deref())?;
        let wanted = (batch.step.logits_rows.len(), shape.vocab_size);
        if logits.dims2()? != wanted {
            bail!(
                "the model gave logits {:?}, {wanted:?} were wanted",
                logits.shape()
            );
        }
        let logits = logits.to_dtype(DType::F32)?.to_device(&Device::Cpu)?;
        let of = |row: &Option<usize>| row.map(|row| logits.get(row)).transpose();
        batch.logits_of.iter().map(of).collect()
    }
}

/// Runs `run` for all items, and after an error for each alone. A panic fails all items of its run and
/// ends the runs: the items after it have no outcome.
fn each_alone_on_error<I: Copy, T>(
    items: &[I],
    run: &dyn Fn(&[I]) -> Result<Vec<T>>,
) -> Computed<T> {
    let mut computed = Computed {
        outcomes: Vec::new(),
        panics: 0,
        cache_lost: false,
    };
    match guarded(|| run(items)) {
        Ok(values) => computed.outcomes.extend(values.into_iter().map(Ok)),
        Err(Fault::Panic) => {
            computed.panics = 1;
            computed
                .outcomes
                .extend(items.iter().map(|_| Err(RequestError::Panicked)));
        }
        Err(Fault::Error(message)) if items.len() == 1 => {
            computed.outcomes.push(Err(RequestError::Model { message }));
        }
        Err(Fault::Error(message)) => {
            tracing::warn!(%message, sequences = items.len(), "a step failed; each is tried alone");
            for item in items {
                let alone = each_alone_on_error(std::slice::from_ref(item), run);
                computed.panics += alone.panics;
                computed.outcomes.extend(alone.outcomes);
                if alone.panics > 0 {
                    break;
                }
            }
        }
    }
    computed
}

fn guarded<T>(run: impl FnOnce() -> Result<T>) -> std::result::Result<T, Fault> {
    match catch_unwind(AssertUnwindSafe(run)) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(Fault::Error(first_line(&error))),
        Err(_) => Err(Fault::Panic),
    }
}

/// The error without the backtrace that candle may add, which is nothing for a client.
fn first_line(error: &candle_core::Error) -> String {
    error
        .to_string()
        .lines()
        .next()
        .unwrap_or_default()
        .to_owned()
}

fn new_bank(
    model: &dyn MedVlm,
    base_row: &[f32],
    n_slots: usize,
) -> std::result::Result<NormBank, EngineError> {
    NormBank::resident(model.sites(), base_row, n_slots, model.device()).map_err(|source| {
        EngineError::Allocate {
            what: "norm bank",
            source,
        }
    })
}

fn new_cache(
    model: &dyn MedVlm,
    rows: usize,
    kv_type: KvType,
) -> std::result::Result<Box<dyn KeyValues>, EngineError> {
    cache_of(model, rows, kv_type).map_err(|source| EngineError::Allocate {
        what: "KV cache",
        source,
    })
}
