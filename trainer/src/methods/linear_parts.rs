//! Tuning of whole weights: the MLPs (FFN tuning), the attention projections (attention tuning), or all
//! there is (full tuning). The copies that learn are f32, whatever the checkpoint holds.

use norma::model::parameters::{ParameterError, Weight};
use norma_adapters::Site;

use super::attachments::LinearMap;
use super::{Attach, Learns};

/// MLPs of the layers of tower and decoder; not the projector.
pub(super) struct Ffn;

impl Attach for Ffn {
    fn linear(&self, map: &LinearMap) -> Result<Weight, ParameterError> {
        trained_if(map, map.name.contains(".mlp."))
    }
}

/// Projections of queries, keys, values and of what attention gives.
pub(super) struct Attention;

impl Attach for Attention {
    fn linear(&self, map: &LinearMap) -> Result<Weight, ParameterError> {
        trained_if(map, map.name.contains(".self_attn."))
    }
}

/// Linear maps, embeddings, tables, norms.
pub(super) struct Full;

impl Attach for Full {
    fn linear(&self, map: &LinearMap) -> Result<Weight, ParameterError> {
        trained_if(map, true)
    }

    fn trains_tensor(&self) -> bool {
        true
    }

    fn norm(&self, site: &Site) -> Learns {
        Learns {
            gain: true,
            bias: site.kind.has_bias(),
        }
    }
}

fn trained_if(map: &LinearMap, trained: bool) -> Result<Weight, ParameterError> {
    if !trained {
        return map.frozen(map.has_bias);
    }
    let weight = map.copied("weight", map.shape)?;
    Ok(Weight::Trainable {
        weight: weight.flatten_from(1).map_err(map.failed())?,
        bias: map.bias_that_learns()?,
    })
}
