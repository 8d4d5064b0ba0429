//! A checkpoint's parameters in the form in which a model computes with them.
//!
//! In: a checkpoint, the kernels and the type of weights. Out: parameters. A map's weight is read a panel
//! at a time and packed at once, by all threads, so that it is in memory once only, packed.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use candle_core::{DType, Device, Tensor};
use half::bf16;

use super::checkpoint::Checkpoint;
use super::weights::WeightType;
use crate::model::ops::Kernels;
use crate::model::ops::frozen_linear::{
    DenseLinear, DeviceLinear, FrozenLinear, Packed, PackedLinear, PackedWeight, Paired,
    QuantisedLinear,
};
use crate::model::parameters::{ParameterError, Parameters, Weight};

/// See the module.
pub struct Loader<'a> {
    checkpoint: &'a Checkpoint,
    kernels: Kernels,
    weights: WeightType,
    progress: Progress,
}

impl<'a> Loader<'a> {
    /// `total`: bytes that the loaded parameters will take.
    pub fn new(
        checkpoint: &'a Checkpoint,
        kernels: Kernels,
        weights: WeightType,
        total: u64,
    ) -> Self {
        Self {
            checkpoint,
            kernels,
            weights,
            progress: Progress::new(total),
        }
    }

    fn held_as(&self, n_in: usize) -> WeightType {
        self.weights.for_inputs(n_in, self.kernels)
    }

    fn done(&self, linear: impl FrozenLinear + 'static) -> Weight {
        self.progress.add(linear.bytes() as u64);
        Weight::Frozen(Arc::new(linear))
    }

    /// Packs `name.weight` from the file.
    fn pack<P: PackedWeight>(
        &self,
        name: &str,
        shape: &[usize],
        bias: Option<&Tensor>,
    ) -> Result<Weight, ParameterError> {
        let (n_out, n_in) = flattened(shape);
        let weight = format!("{name}.weight");
        let read = self.checkpoint.rows(&weight, shape)?;
        PackedLinear::<P>::from_rows((n_out, n_in), bias, read)
            .map(|linear| self.done(linear))
            .map_err(ParameterError::reading(name))
    }
}

impl Parameters for Loader<'_> {
    fn device(&self) -> &Device {
        self.checkpoint.device()
    }

    fn activations(&self) -> DType {
        self.weights.activations(self.kernels)
    }

    fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor, ParameterError> {
        self.checkpoint.tensor(name, shape)
    }

    fn table(&self, name: &str, shape: &[usize]) -> Result<Tensor, ParameterError> {
        let table = if self.weights == WeightType::F32 {
            self.checkpoint.tensor(name, shape)?
        } else {
            self.checkpoint.narrow(name, shape)?
        };
        let bytes = table.elem_count() * table.dtype().size_in_bytes();
        self.progress.add(bytes as u64);
        Ok(table)
    }

    fn linear(
        &self,
        name: &str,
        weight: Tensor,
        bias: Option<Tensor>,
    ) -> Result<Weight, ParameterError> {
        let made = || {
            let (weight, bias) = (weight.to_dtype(DType::F32)?, bias.as_ref());
            let (_, n_in) = weight.dims2()?;
            Ok(match (self.held_as(n_in), self.kernels) {
                (WeightType::Blocks(blocks), _) => {
                    let (to, device) = (blocks.isq(), self.device());
                    self.done(QuantisedLinear::quantise(&weight, bias, to, device)?)
                }
                (WeightType::Bf16, Kernels::Composed) => {
                    self.done(DeviceLinear::new(&weight, bias)?)
                }
                (_, Kernels::Composed) => self.done(DenseLinear::new(&weight, bias)?),
                (WeightType::F32, Kernels::Fused) => {
                    self.done(PackedLinear::<Packed<f32>>::new(&weight, bias)?)
                }
                (WeightType::Bf16, Kernels::Fused) => {
                    self.done(PackedLinear::<Packed<bf16>>::new(&weight, bias)?)
                }
                (WeightType::Bf16Dot, Kernels::Fused) => {
                    self.done(PackedLinear::<Paired>::new(&weight, bias)?)
                }
                (WeightType::Int8, Kernels::Fused) => {
                    self.done(PackedLinear::<Packed<i8>>::new(&weight, bias)?)
                }
            })
        };
        made().map_err(ParameterError::reading(name))
    }

    fn read_linear(
        &self,
        name: &str,
        shape: &[usize],
        bias: bool,
    ) -> Result<Weight, ParameterError> {
        let bias = bias
            .then(|| self.tensor(&format!("{name}.bias"), &shape[..1]))
            .transpose()?;
        match (self.held_as(flattened(shape).1), self.kernels) {
            (WeightType::F32, Kernels::Fused) => {
                self.pack::<Packed<f32>>(name, shape, bias.as_ref())
            }
            (WeightType::Bf16, Kernels::Fused) => {
                self.pack::<Packed<bf16>>(name, shape, bias.as_ref())
            }
            (WeightType::Bf16Dot, Kernels::Fused) => {
                self.pack::<Paired>(name, shape, bias.as_ref())
            }
            (WeightType::Int8, Kernels::Fused) => {
                self.pack::<Packed<i8>>(name, shape, bias.as_ref())
            }
            (WeightType::Bf16, Kernels::Composed) => {
                let weight = self.checkpoint.narrow(&format!("{name}.weight"), shape)?;
                let made = || DeviceLinear::new(&weight.flatten_from(1)?, bias.as_ref());
                let made = made().map_err(ParameterError::reading(name))?;
                Ok(self.done(made))
            }
            (WeightType::Blocks(_), _) => {
                // Blocks are made on the CPU, so a device's weight need not go there first.
                let weight = self.checkpoint.on_cpu(&format!("{name}.weight"), shape)?;
                let weight = weight.flatten_from(1);
                self.linear(name, weight.map_err(ParameterError::reading(name))?, bias)
            }
            (WeightType::F32 | WeightType::Bf16Dot | WeightType::Int8, Kernels::Composed) => {
                let weight = self.tensor(&format!("{name}.weight"), shape)?;
                let weight = weight.flatten_from(1);
                self.linear(name, weight.map_err(ParameterError::reading(name))?, bias)
            }
        }
    }

    /// The head is made from the file as every other map: the table may be held otherwise.
    fn tied_linear(&self, name: &str, table: &Tensor) -> Result<Weight, ParameterError> {
        self.read_linear(name, table.dims(), false)
    }
}

/// `[out, in]` of a weight whose trailing dimensions are all inputs.
fn flattened(shape: &[usize]) -> (usize, usize) {
    let n_out = shape.first().copied().unwrap_or(1);
    (n_out, shape.iter().skip(1).product())
}

/// Says now and then how far loading is, if it takes long.
struct Progress {
    total: u64,
    done: AtomicU64,
    started: Instant,
    /// The second in which a line was written last.
    told: AtomicU64,
}

/// Seconds between two lines.
const INTERVAL: u64 = 2;

impl Progress {
    fn new(total: u64) -> Self {
        Self {
            total,
            done: AtomicU64::new(0),
            started: Instant::now(),
            told: AtomicU64::new(0),
        }
    }

    fn add(&self, bytes: u64) {
        let done = bytes + self.done.fetch_add(bytes, Ordering::Relaxed);
        let seconds = self.started.elapsed().as_secs();
        if seconds >= self.told.load(Ordering::Relaxed) + INTERVAL {
            self.told.store(seconds, Ordering::Relaxed);
            let percent = 100 * done / self.total.max(1);
            tracing::info!(percent, seconds, "loading the base");
        }
    }
}
