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
    /// Share of the value that is taken away a unit of learning rate.
    pub weight_decay: f64,
}

/// One variable with its moments.
struct Slot {
    variable: NamedVar,
    group: Group,
    mean: Vec<f32>,
    square: Vec<f32>,
}

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
                    moments: Mutex::new((&mut slot.mean, &mut slot.square)),
                    // Taken from 1 before rounding: the f32 nearest 0.999 is 5e-5 of the difference off.
                    share: ((1.0 - beta1) as f32, (1.0 - beta2) as f32),
                    beta2: beta2 as f32,
                    keep: (1.0 - rate * slot.group.weight_decay) as f32,
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
    moments: Mutex<(&'a mut Vec<f32>, &'a mut Vec<f32>)>,
    share: (f32, f32),
    beta2: f32,
    keep: f32,
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
        let values = values[start..end].iter_mut().zip(self.gradient);
        for (((value, gradient), mean), square) in
            values.zip(mean.iter_mut()).zip(square.iter_mut())
        {
            *mean += mean_share * (gradient - *mean);
            *square = self.beta2 * *square + square_share * gradient * gradient;
            let root = square.sqrt() * self.root_scale + self.eps;
            *value = *value * self.keep - self.step_size * *mean / root;
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
mod tests {
    use candle_core::{Device, Tensor, Var};

    use super::*;

    fn variable(values: &[f32]) -> NamedVar {
        let tensor = Tensor::new(values, &Device::Cpu).unwrap();
        NamedVar {
            name: "w".into(),
            var: Var::from_tensor(&tensor).unwrap(),
        }
    }

    /// Expected values from torch 2.12.1:
    /// `p = Parameter(tensor([1., -2., 3.])); o = AdamW([p], lr=.1, weight_decay=.1)`, gradients
    /// `[.5, -1., 2.]` then `[-1., .25, 0.]`.
    #[test]
    fn two_steps_give_torchs_values() {
        let variable = variable(&[1.0, -2.0, 3.0]);
        let group = Group {
            rate_scale: 1.0,
            weight_decay: 0.1,
        };
        let mut optimizer = AdamW::new([variable.clone()], |_| group, AdamConfig::default());
        for gradient in [[0.5f32, -1.0, 2.0], [-1.0, 0.25, 0.0]] {
            optimizer.step(&vec![Some(gradient.to_vec())], 0.1).unwrap();
        }
        let got = variable.var.to_vec1::<f32>().unwrap();
        for (got, want) in got.iter().zip(TORCH) {
            assert!((got - want).abs() < 2e-6, "{got} {want}");
        }
    }

    const TORCH: [f32; 3] = [0.917_710_4, -1.814_253_2, 2.774_294_4];

    #[test]
    fn clones_of_a_variable_see_the_step() {
        let variable = variable(&[1.0]);
        let seen = variable.var.as_tensor().clone();
        let group = Group {
            rate_scale: 1.0,
            weight_decay: 0.0,
        };
        let mut optimizer = AdamW::new([variable], |_| group, AdamConfig::default());
        optimizer.step(&vec![Some(vec![2.0])], 0.25).unwrap();
        assert!((seen.to_vec1::<f32>().unwrap()[0] - 0.75).abs() < 1e-6);
        optimizer.step(&vec![None], 0.25).unwrap();
        assert!((seen.to_vec1::<f32>().unwrap()[0] - 0.75).abs() < 1e-6);
        assert!(optimizer.step(&vec![], 0.25).is_err());
    }

    #[test]
    fn clipping_keeps_the_direction() {
        let mut gradients = vec![Some(vec![3.0f32]), None, Some(vec![0.0, 4.0])];
        assert!((clip(&mut gradients, 10.0) - 5.0).abs() < 1e-12);
        assert_eq!(gradients[0].as_deref(), Some(&[3.0f32][..]));
        assert!((clip(&mut gradients, 1.0) - 5.0).abs() < 1e-12);
        assert!((gradients[0].as_ref().unwrap()[0] - 0.6).abs() < 1e-6);
        assert!((gradients[2].as_ref().unwrap()[1] - 0.8).abs() < 1e-6);
    }

    #[test]
    fn the_rate_rises_then_falls_to_its_floor() {
        let schedule = Schedule {
            peak: 1.0,
            warm_up: 4,
            steps: 14,
            floor: 0.1,
        };
        assert!((schedule.rate(0) - 0.25).abs() < 1e-12);
        assert!((schedule.rate(3) - 1.0).abs() < 1e-12);
        assert!((schedule.rate(9) - 0.55).abs() < 1e-12);
        assert!((schedule.rate(14) - 0.1).abs() < 1e-12);
        assert!((schedule.rate(99) - 0.1).abs() < 1e-12);
    }
}
