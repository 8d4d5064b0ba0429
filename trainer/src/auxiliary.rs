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
        let patch = cross_entropy(&self.patch.forward(features)?, patches, PATCH_CLASSES)?;
        let (n, rows) = (labels.len(), features.dim(0)?);
        let pooled = features.reshape((n, rows / n, self.width))?.mean(1)?; // [n, width]
        let images = labels.iter().map(|labels| &labels.image);
        let image = cross_entropy(&self.image.forward(&pooled)?, images, IMAGE_CLASSES)?;
        Ok((patch + image)?)
    }
}

/// Mean binary cross-entropy of logits `[rows, classes]` against sets of classes as bits.
fn cross_entropy<'a>(
    logits: &Tensor,
    sets: impl Iterator<Item = &'a u32>,
    classes: usize,
) -> Result<Tensor> {
    let bits = |set: &u32| {
        let set = *set;
        (0..classes).map(move |class| (set >> class & 1) as f32)
    };
    let targets: Vec<f32> = sets.flat_map(bits).collect();
    let targets = Tensor::from_vec(targets, logits.shape(), logits.device())?;
    // max(x, 0) - x t + log(1 + e^-|x|)
    let softplus = (logits.abs()?.neg()?.exp()? + 1.0)?.log()?;
    Ok(((logits.relu()? - (logits * targets)?)? + softplus)?.mean_all()?)
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn cross_entropy_is_minus_the_log_likelihood() {
        let logits = Tensor::new(&[[0.5f32, -2.0], [30.0, 0.0]], &Device::Cpu).unwrap();
        let got = cross_entropy(&logits, [0b01, 0b10].iter(), 2).unwrap();
        let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
        let terms = [sigmoid(0.5), sigmoid(2.0), sigmoid(-30.0), sigmoid(0.0)];
        let want = -terms.iter().map(|p| p.ln()).sum::<f64>() / 4.0;
        assert!((f64::from(got.to_scalar::<f32>().unwrap()) - want).abs() < 1e-5);
    }
}
