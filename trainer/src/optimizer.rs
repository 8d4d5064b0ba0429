//! AdamW with groups, gradient clipping, and the learning rate's schedule.
//!
//! In: variables and their gradients. Out: the variables' new values, the same on every run.
//! Masters and moments are f32. It must not know what the variables mean.
//!
//! Reference: `torch.optim.AdamW` (I. Loshchilov, F. Hutter, arXiv:1711.05101).

use std::sync::{Mutex, PoisonError};

use candle_core::{CpuStorage, InplaceOp1, Layout, Result, bail};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::variables::NamedVar;

/// The constants of AdamW that all groups share.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct AdamConfig {
    /// Decay of the mean of gradients.
    pub beta1: f64,
    /// Decay of the mean of squared gradients.
    pub beta2: f64,
    /// Added to the root of the mean square.
    pub eps: f64,
}

impl Default for AdamConfig {
    fn default() -> Self {
        Self {
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
        }
    }
}

/// What a group of variables does differently.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Group {
    /// Multiplies the step's learning rate.
    pub rate_scale: f64,
    /// Share of the value that is taken away a unit of learning rate; of its distance from where it
    /// started, after [`AdamW::decay_to_start`].
    pub weight_decay: f64,
}

/// One variable with its moments.
struct Slot {
    variable: NamedVar,
    group: Group,
    mean: Vec<f32>,
    square: Vec<f32>,
    /// What decay pulls towards; zero if there is none.
    anchor: Option<Vec<f32>>,
}

/// Two moments of one variable's gradients: the mean, and the mean of squares.
pub type Moments = (Vec<f32>, Vec<f32>);

/// The optimiser's state.
pub struct AdamW {
    config: AdamConfig,
    slots: Vec<Slot>,
    steps: i32,
}

/// Gradients of an optimiser's variables, in its order; `None` where the loss does not reach one.
pub type Gradients = Vec<Option<Vec<f32>>>;

impl AdamW {
    /// `group` says how each variable is treated.
    pub fn new(
        variables: impl IntoIterator<Item = NamedVar>,
        group: impl Fn(&NamedVar) -> Group,
        config: AdamConfig,
    ) -> Self {
        let slots = variables
            .into_iter()
            .map(|variable| {
                let zeros = vec![0f32; variable.var.elem_count()];
                Slot {
                    group: group(&variable),
                    mean: zeros.clone(),
                    square: zeros,
                    anchor: None,
                    variable,
                }
            })
            .collect();
        Self {
            config,
            slots,
            steps: 0,
        }
    }

    /// The variables, in the order of gradients.
    pub fn variables(&self) -> impl Iterator<Item = &NamedVar> {
        self.slots.iter().map(|slot| &slot.variable)
    }

    /// Values that are trained.
    pub fn n_values(&self) -> usize {
        self.slots.iter().map(|slot| slot.mean.len()).sum()
    }

    /// From here on decay takes `share` of the distance from the values as they are now.
    pub fn decay_to_start(&mut self, share: f64) -> Result<()> {
        for slot in &mut self.slots {
            slot.group.weight_decay = share;
            slot.anchor = Some(slot.variable.var.flatten_all()?.to_vec1()?);
        }
        Ok(())
    }

    /// The moments, in the order of gradients.
    pub fn moments(&self) -> impl Iterator<Item = (&[f32], &[f32])> {
        let slots = self.slots.iter();
        slots.map(|slot| (slot.mean.as_slice(), slot.square.as_slice()))
    }

    /// Goes on from moments that `steps` steps left, in the order of gradients.
    pub fn restore(&mut self, steps: usize, moments: Vec<Moments>) -> Result<()> {
        if moments.len() != self.slots.len() {
            bail!(
                "{} moments for {} variables",
                moments.len(),
                self.slots.len()
            );
        }
        for (slot, (mean, square)) in self.slots.iter_mut().zip(moments) {
            let wanted = slot.mean.len();
            if [mean.len(), square.len()] != [wanted; 2] {
                let (name, got) = (&slot.variable.name, mean.len());
                bail!("`{name}` of {wanted} values got moments of {got}");
            }
            (slot.mean, slot.square) = (mean, square);
        }
        self.steps = i32::try_from(steps).map_err(candle_core::Error::wrap)?;
        Ok(())
    }

    /// Moves every variable that has a gradient. `rate`: the learning rate of this step.
    pub fn step(&mut self, gradients: &Gradients, rate: f64) -> Result<()> {
        if gradients.len() != self.slots.len() {
            bail!(
                "{} gradients for {} variables",
                gradients.len(),
                self.slots.len()
            );
        }
        self.steps += 1;
        let AdamConfig { beta1, beta2, eps } = self.config;
        let first = 1.0 - beta1.powi(self.steps);
        let second = (1.0 - beta2.powi(self.steps)).sqrt();
        self.slots
            .par_iter_mut()
            .zip(gradients)
            .try_for_each(|(slot, gradient)| {
                let Some(gradient) = gradient else {
                    return Ok(());
                };
                if gradient.len() != slot.mean.len() {
                    let name = &slot.variable.name;
                    bail!(
                        "`{name}` of {} values got a gradient of {}",
                        slot.mean.len(),
                        gradient.len()
                    );
                }
                let rate = rate * slot.group.rate_scale;
                let update = Update {
                    gradient,
                    anchor: slot.anchor.as_deref(),
                    moments: Mutex::new((&mut slot.mean, &mut slot.square)),
                    // Taken from 1 before rounding: the f32 nearest 0.999 is 5e-5 of the difference off.
                    share: ((1.0 - beta1) as f32, (1.0 - beta2) as f32),
                    beta2: beta2 as f32,
                    keep: (1.0 - rate * slot.group.weight_decay) as f32,
                    pull: (rate * slot.group.weight_decay) as f32,
                    step_size: (rate / first) as f32,
                    root_scale: second.recip() as f32,
                    eps: eps as f32,
                };
                slot.variable.var.inplace_op1(&update)
            })
    }
}

/// The fused loop over one variable.
struct Update<'a> {
    gradient: &'a [f32],
    anchor: Option<&'a [f32]>,
    moments: Mutex<(&'a mut Vec<f32>, &'a mut Vec<f32>)>,
    share: (f32, f32),
    beta2: f32,
    keep: f32,
    pull: f32,
    step_size: f32,
    root_scale: f32,
    eps: f32,
}

impl InplaceOp1 for Update<'_> {
    fn name(&self) -> &'static str {
        "adamw"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        let CpuStorage::F32(values) = storage else {
            bail!("variables are f32")
        };
        let Some((start, end)) = layout.contiguous_offsets() else {
            bail!("variables are contiguous")
        };
        let mut moments = self.moments.lock().unwrap_or_else(PoisonError::into_inner);
        let (mean, square) = &mut *moments;
        let (mean_share, square_share) = self.share;
        let values = &mut values[start..end];
        if let Some(anchor) = self.anchor {
            for (value, anchor) in values.iter_mut().zip(anchor) {
                *value -= self.pull * (*value - anchor);
            }
        }
        let keep = if self.anchor.is_some() {
            1.0
        } else {
            self.keep
        };
        let values = values.iter_mut().zip(self.gradient);
        for (((value, gradient), mean), square) in
            values.zip(mean.iter_mut()).zip(square.iter_mut())
        {
            *mean += mean_share * (gradient - *mean);
            *square = self.beta2 * *square + square_share * gradient * gradient;
            let root = square.sqrt() * self.root_scale + self.eps;
            *value = *value * keep - self.step_size * *mean / root;
        }
        Ok(())
    }
}

/// Scales gradients so that their joint norm is at most `limit`; returns the norm before.
pub fn clip(gradients: &mut Gradients, limit: f64) -> f64 {
    let squares: Vec<f64> = gradients
        .par_iter()
        .map(|gradient| {
            let values = gradient.iter().flatten();
            values
                .map(|value| f64::from(*value) * f64::from(*value))
                .sum()
        })
        .collect();
    let norm = squares.iter().sum::<f64>().sqrt();
    if norm > limit {
        let scale = (limit / norm) as f32;
        gradients.par_iter_mut().flatten().for_each(|gradient| {
            for value in gradient {
                *value *= scale;
            }
        });
    }
    norm
}

/// A linear warm-up, then a cosine from the peak to a share of it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Schedule {
    /// The highest learning rate.
    pub peak: f64,
    /// Steps in which the rate rises to its peak.
    pub warm_up: usize,
    /// All steps.
    pub steps: usize,
    /// The last rate as a share of the peak.
    pub floor: f64,
}

impl Schedule {
    /// The learning rate of a step, counted from 0.
    pub fn rate(&self, step: usize) -> f64 {
        if step < self.warm_up {
            return self.peak * (step + 1) as f64 / self.warm_up as f64;
        }
        let run = self.steps.saturating_sub(self.warm_up).max(1);
        let progress = ((step - self.warm_up) as f64 / run as f64).min(1.0);
        let cosine = 0.5 * (1.0 + (std::f64::consts::PI * progress).cos());
        self.peak * (self.floor + (1.0 - self.floor) * cosine)
    }
}

#[cfg(test)]
mod tests;
