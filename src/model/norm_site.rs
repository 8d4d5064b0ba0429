//! A norm of a model: which site of the bank it reads, and how it normalises.

use candle_core::{DType, Result, Tensor};
use norma_adapters::{Part, Site, SiteKind};

use super::bank::{self, NormBank};
use super::ops::norm::{Statistic, norm, norm_of_rows};
use super::ops::{Kernels, RowIndex};

/// Collects a family's sites in the order in which it declares them.
#[derive(Debug, Default)]
pub struct SiteList(Vec<Site>);

impl SiteList {
    /// Declares a site and returns the norm that reads it. `used`: whether the forward reaches it.
    pub fn declare(&mut self, site: Site, eps: f32) -> NormSite {
        let statistic = match site.kind {
            SiteKind::LayerNorm => Statistic::Centred,
            SiteKind::RmsNorm | SiteKind::RmsNormOffset => Statistic::Uncentred,
        };
        self.0.push(site);
        NormSite {
            site: self.0.len() - 1,
            statistic,
            eps,
        }
    }

    /// The sites declared so far.
    pub fn into_sites(self) -> Vec<Site> {
        self.0
    }
}

/// A LayerNorm with bias of a vision tower.
pub fn vision_layer_norm(name: String, width: usize, used: bool) -> Site {
    Site {
        name,
        kind: SiteKind::LayerNorm,
        width,
        part: Part::Vision,
        used,
    }
}

/// An RMSNorm of a decoder.
pub fn language_rms_norm(name: String, width: usize) -> Site {
    Site {
        name,
        kind: SiteKind::RmsNorm,
        width,
        part: Part::Language,
        used: true,
    }
}

/// What every norm of a forward pass shares.
#[derive(Clone, Copy, Debug)]
pub struct NormContext<'a> {
    /// The values.
    pub bank: &'a NormBank,
    /// The slot of every row.
    pub slots: &'a RowIndex,
    /// Fused or composed.
    pub kernels: Kernels,
    /// What a norm gives, for the linear maps behind it.
    pub activations: DType,
}

/// One norm.
#[derive(Clone, Copy, Debug)]
pub struct NormSite {
    site: usize,
    statistic: Statistic,
    eps: f32,
}

impl NormSite {
    /// Normalises `x`, `[rows, width]`, and rounds the result to the context's type of activations.
    pub fn forward(&self, x: &Tensor, context: NormContext) -> Result<Tensor> {
        self.normalise(x, context)?.to_dtype(context.activations)
    }

    /// As [`Self::forward`], in the type of `x`: where the result goes on as the stream.
    pub fn normalise(&self, x: &Tensor, context: NormContext) -> Result<Tensor> {
        let NormContext {
            bank,
            slots,
            kernels,
            ..
        } = context;
        let kind = (self.statistic, self.eps);
        match bank.site(self.site)? {
            bank::Site::Rows(rows) => norm_of_rows(x, rows, slots, kind, kernels),
            bank::Site::Tensors(values) => norm(x, values, slots, kind, kernels),
        }
    }
}
