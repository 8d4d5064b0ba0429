//! IA3: factors, one a column, of keys, of values, and of what lies inside the MLPs (there on the input
//! of the map that leads out). They start at one.
//!
//! Reference: H. Liu et al., arXiv:2205.05638; which maps, as PEFT has them for Llama and CLIP.

use std::sync::Arc;

use candle_core::{Result, Tensor};
use norma::model::ops::frozen_linear::FrozenLinear;
use norma::model::parameters::{ParameterError, Weight};

use super::Attach;
use super::attachments::LinearMap;

pub(super) struct Ia3;

const OUTPUTS: [&str; 2] = ["self_attn.k_proj", "self_attn.v_proj"];
const INPUTS: [&str; 2] = ["mlp.down_proj", "mlp.fc2"];

impl Attach for Ia3 {
    fn linear(&self, map: &LinearMap) -> std::result::Result<Weight, ParameterError> {
        let ends = |names: [&str; 2]| names.iter().any(|end| map.name.ends_with(end));
        let (side, width) = if ends(OUTPUTS) {
            (Side::Output, map.n_out())
        } else if ends(INPUTS) {
            (Side::Input, map.n_in())
        } else {
            return map.frozen(map.has_bias);
        };
        Ok(Weight::Frozen(Arc::new(ScaledLinear {
            inner: map.frozen_map(map.has_bias)?,
            factors: map.added("ia3_l", &map.filled(&[width], 1.0)?)?,
            side,
        })))
    }
}

#[derive(Clone, Copy, Debug)]
enum Side {
    Input,
    Output,
}

/// A frozen map with its rows multiplied, before or after.
#[derive(Debug)]
struct ScaledLinear {
    inner: Arc<dyn FrozenLinear>,
    factors: Tensor,
    side: Side,
}

impl FrozenLinear for ScaledLinear {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match self.side {
            Side::Input => self.inner.forward(&x.broadcast_mul(&self.factors)?),
            Side::Output => self.inner.forward(x)?.broadcast_mul(&self.factors),
        }
    }

    fn bytes(&self) -> usize {
        self.inner.bytes() + self.factors.elem_count() * 4
    }
}
