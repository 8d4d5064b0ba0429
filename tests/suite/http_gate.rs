//! A model behind a gate, so that a test can look at a server between two steps without haste.

use std::sync::{Arc, Condvar, Mutex};

use candle_core::{Device, Result, Tensor};
use norma::model::bank::NormBank;
use norma::model::key_values::KeyValues;
use norma::model::step::Step;
use norma::model::{MedVlm, ModelShape};
use norma_adapters::SiteTable;

/// A model that steps only when it is let.
pub struct Gated {
    model: Box<dyn MedVlm>,
    gate: Arc<Gate>,
}

impl Gated {
    pub fn new(model: Box<dyn MedVlm>, gate: &Arc<Gate>) -> Self {
        Self {
            model,
            gate: Arc::clone(gate),
        }
    }
}

/// Closed at first.
#[derive(Default)]
pub struct Gate {
    state: Mutex<GateState>,
    changed: Condvar,
}

#[derive(Default)]
struct GateState {
    is_open: bool,
    waiting: bool,
}

impl Gate {
    /// Lets all steps pass from now on.
    pub fn open(&self) {
        self.state.lock().unwrap().is_open = true;
        self.changed.notify_all();
    }

    /// Lets no step pass from now on.
    pub fn close(&self) {
        *self.state.lock().unwrap() = GateState::default();
    }

    /// Whether a step waits to be let.
    pub fn is_waited_for(&self) -> bool {
        self.state.lock().unwrap().waiting
    }

    fn pass(&self) {
        let mut state = self.state.lock().unwrap();
        while !state.is_open {
            state.waiting = true;
            state = self.changed.wait(state).unwrap();
        }
        state.waiting = false;
    }
}

impl MedVlm for Gated {
    fn sites(&self) -> &SiteTable {
        self.model.sites()
    }

    fn shape(&self) -> &ModelShape {
        self.model.shape()
    }

    fn device(&self) -> &Device {
        self.model.device()
    }

    fn encode_images(&self, pixels: &Tensor, slots: &[u32], bank: &NormBank) -> Result<Tensor> {
        self.model.encode_images(pixels, slots, bank)
    }

    fn forward(
        &self,
        step: &Step,
        bank: &NormBank,
        cache: Option<&dyn KeyValues>,
    ) -> Result<Tensor> {
        self.gate.pass();
        self.model.forward(step, bank, cache)
    }
}
