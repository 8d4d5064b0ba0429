//! BitFit: the biases that a base has learn, those of linear maps and of norms; nothing is added where
//! there is none (Llama's decoder has none at all).
//!
//! The bias of a key projection without rotary positions has no part in any answer: the softmax takes
//! away what all keys share. It learns as in the reference, from gradients that are rounding alone.
//!
//! Reference: E. Ben Zaken et al., arXiv:2106.10199.

use std::sync::Arc;

use candle_core::{Result, Tensor};
use norma::model::ops::frozen_linear::FrozenLinear;
use norma::model::parameters::{ParameterError, Weight};
use norma_adapters::Site;

use super::attachments::LinearMap;
use super::{Attach, Learns};

pub(super) struct Bias;

impl Attach for Bias {
    fn linear(&self, map: &LinearMap) -> std::result::Result<Weight, ParameterError> {
        match map.bias_that_learns()? {
            None => map.frozen(false),
            Some(bias) => Ok(Weight::Frozen(Arc::new(BiasLinear {
                inner: map.frozen_map(false)?,
                bias,
            }))),
        }
    }

    fn norm(&self, site: &Site) -> Learns {
        Learns {
            gain: false,
            bias: site.kind.has_bias(),
        }
    }
}

/// `W x` frozen, `+ b` trained.
#[derive(Debug)]
struct BiasLinear {
    inner: Arc<dyn FrozenLinear>,
    bias: Tensor,
}

impl FrozenLinear for BiasLinear {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.inner.forward(x)?.broadcast_add(&self.bias)
    }

    fn bytes(&self) -> usize {
        self.inner.bytes() + self.bias.elem_count() * 4
    }
}
