//! The auxiliary task of pre-training: from the tower's features, what lies where in the film.
//!
//! In: tower features and the generator's labels. Out: a loss. The heads live while the base is
//! pre-trained and are then thrown away. Without this task small findings and their sides are learnt
//! late or not at all.

use anyhow::Result;
use candle_core::Tensor;
use norma::model::linear::Linear;
use norma::model::parameters::Parameters;

use crate::phantom::draw::{IMAGE_CLASSES, Labels, PATCH_CLASSES};

/// A finding covers few patches, so a patch that has it counts more.
const PRESENT: f32 = 3.0;

/// Heads on the tower's features: classes of a patch, classes of a film.
pub struct LabelHeads {
    patch: Linear,
    image: Linear,
    width: usize,
}

impl LabelHeads {
    /// `width`: of a row of tower features.
    pub fn new(parameters: &dyn Parameters, width: usize) -> Result<Self> {
        let head = |name: &str, classes| Linear::new(parameters, name, &[classes, width], true);
        Ok(Self {
            patch: head("auxiliary.patch", PATCH_CLASSES)?,
            image: head("auxiliary.image", IMAGE_CLASSES)?,
            width,
        })
    }

    /// Mean binary cross-entropy of all patch labels plus that of all film labels. `features`:
    /// `[n * patches, width]`.
    pub fn loss(&self, features: &Tensor, labels: &[Labels]) -> Result<Tensor> {
        let patches = labels.iter().flat_map(|labels| &labels.patches);
        let patch = cross_entropy(
            &self.patch.forward(features)?,
            patches,
            PATCH_CLASSES,
            PRESENT,
        )?;
        let (n, rows) = (labels.len(), features.dim(0)?);
        let pooled = features.reshape((n, rows / n, self.width))?.mean(1)?; // [n, width]
        let images = labels.iter().map(|labels| &labels.image);
        let image = cross_entropy(&self.image.forward(&pooled)?, images, IMAGE_CLASSES, 1.0)?;
        Ok((patch + image)?)
    }
}

/// Mean binary cross-entropy of logits `[rows, classes]` against sets of classes as bits; a class
/// that is there counts `present` times.
fn cross_entropy<'a>(
    logits: &Tensor,
    sets: impl Iterator<Item = &'a u32>,
    classes: usize,
    present: f32,
) -> Result<Tensor> {
    let bits = |set: &u32| {
        let set = *set;
        (0..classes).map(move |class| set >> class & 1 == 1)
    };
    // -log sigmoid(x) = softplus(-x), so the sign says which of the two is meant.
    let (signs, weights): (Vec<f32>, Vec<f32>) = sets
        .flat_map(bits)
        .map(|there| if there { (-1.0, present) } else { (1.0, 1.0) })
        .unzip();
    let signs = Tensor::from_vec(signs, logits.shape(), logits.device())?;
    let weights = Tensor::from_vec(weights, logits.shape(), logits.device())?;
    let x = (logits * signs)?;
    // softplus(x) = max(x, 0) + log(1 + e^-|x|)
    let softplus = (x.relu()? + (x.abs()?.neg()?.exp()? + 1.0)?.log()?)?;
    Ok((softplus * weights)?.mean_all()?)
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn cross_entropy_is_minus_the_log_likelihood() {
        let logits = Tensor::new(&[[0.5f32, -2.0], [30.0, 0.0]], &Device::Cpu).unwrap();
        let got = cross_entropy(&logits, [0b01, 0b10].iter(), 2, 2.0).unwrap();
        let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
        let terms = [(2.0, 0.5), (1.0, 2.0), (1.0, -30.0), (2.0, 0.0)];
        let want = -terms.iter().map(|(w, x)| w * sigmoid(*x).ln()).sum::<f64>() / 4.0;
        assert!((f64::from(got.to_scalar::<f32>().unwrap()) - want).abs() < 1e-5);
    }
}
