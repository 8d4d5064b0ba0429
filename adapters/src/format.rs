//! The adapter file: safetensors with one manifest in its metadata.
//!
//! In: foreign bytes, the base's sites, row and digest. Out: an adapter that fits that base in
//! every site, or one error that names what does not. The other way: values and a manifest give
//! bytes, the same bytes each time. Knows no disk and no network.

use std::collections::{BTreeMap, HashMap};

use half::{bf16, f16};
use safetensors::tensor::{Dtype, SafeTensorError, SafeTensors, TensorView};
use thiserror::Error;

use crate::digest::{Digest, Generation};
use crate::header::{self, HeaderError};
use crate::manifest::{Manifest, ManifestError};
use crate::names;
use crate::site::{Scope, Site, SiteTable};
use crate::values::{AdapterValues, SiteValues, StoredValues, ValuesError};

pub use crate::header::MAX_HEADER;

/// One immutable set of norm values, checked against its base.
#[derive(Clone, Debug)]
pub struct Adapter {
    pub manifest: Manifest,
    /// The full row, base values where the adapter has none.
    pub values: AdapterValues,
    /// Digest of the file.
    pub generation: Generation,
    /// Sites that the adapter itself holds.
    pub n_sites: usize,
    /// Values that the adapter itself holds.
    pub n_values: usize,
}

/// Why bytes are not an adapter of this base. Names are those of the file, cut where they are
/// longer than any real one.
#[derive(Debug, Error)]
pub enum AdapterError {
    #[error(transparent)]
    Header(#[from] HeaderError),
    #[error("the file is not well-formed safetensors: {0}")]
    Safetensors(#[source] SafeTensorError),
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    #[error("manifest field `base_digest` is {got}, this server's base is {want}")]
    BaseDigest { got: Digest, want: Digest },
    #[error("manifest field `scope` is `{scope}`, and this base has no site there")]
    EmptyScope { scope: Scope },
    #[error("tensor `{tensor}` is not a norm's weight or bias under any known spelling")]
    UnknownTensor { tensor: String },
    #[error("site `{site}` does not exist in this base")]
    UnknownSite { site: String },
    #[error("site `{site}` is never used by this base, so an adapter must leave it out")]
    UnusedSite { site: String },
    #[error("site `{site}` lies outside the adapter's scope `{scope}`")]
    OutOfScope { site: String, scope: Scope },
    #[error("tensor `{tensor}` is in the file twice, under two spellings")]
    Twice { tensor: String },
    #[error("tensor `{tensor}` is one too many, its site has no bias")]
    NoBias { tensor: String },
    #[error("tensor `{tensor}` has type {got}; f32, f16 and bf16 are read")]
    Dtype { tensor: String, got: Dtype },
    #[error("tensor `{tensor}` has shape {got:?}, the base wants {want:?}")]
    Shape {
        tensor: String,
        got: Vec<usize>,
        want: Vec<usize>,
    },
    #[error(transparent)]
    Values(#[from] ValuesError),
}

impl AdapterError {
    /// A word for counters: one of a fixed few, whatever the file holds.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Header(_) | Self::Safetensors(_) => "format",
            Self::Manifest(_) => "manifest",
            Self::BaseDigest { .. } => "base",
            Self::EmptyScope { .. } | Self::OutOfScope { .. } => "scope",
            Self::UnknownTensor { .. }
            | Self::UnknownSite { .. }
            | Self::UnusedSite { .. }
            | Self::Twice { .. }
            | Self::NoBias { .. } => "site",
            Self::Dtype { .. } => "dtype",
            Self::Shape { .. } => "shape",
            Self::Values(error) => match error {
                ValuesError::NotFinite { .. } => "not_finite",
                ValuesError::Missing { .. } | ValuesError::NotInScope { .. } => "site",
                ValuesError::RowLength { .. } | ValuesError::Width { .. } => "shape",
            },
        }
    }
}

/// The manifest alone, from a file's bytes or just the start of them that holds the header.
/// Tensors are not looked at.
pub fn read_header(bytes: &[u8]) -> Result<Manifest, AdapterError> {
    Ok(Manifest::from_json(&header::manifest_text(bytes)?)?)
}

/// Reads an adapter file for one base.
///
/// `base_row` is the base's own row, `[table.row_len()]`. Tensors may be named in any layout that
/// [`names::canonical`] knows and be f32, f16 or bf16, each of shape `[width]`.
///
/// # Errors
/// The first thing found that does not fit, by name.
pub fn read(
    bytes: &[u8],
    table: &SiteTable,
    base_row: &[f32],
    base_digest: &Digest,
) -> Result<Adapter, AdapterError> {
    let manifest = read_header(bytes)?;
    if manifest.base_digest != *base_digest {
        return Err(AdapterError::BaseDigest {
            got: manifest.base_digest,
            want: *base_digest,
        });
    }
    let scope = manifest.scope;
    if table.selected(scope).next().is_none() {
        return Err(AdapterError::EmptyScope { scope });
    }
    let file = SafeTensors::deserialize(bytes).map_err(AdapterError::Safetensors)?;
    let mut tensors: Vec<_> = file.iter().collect();
    // A fixed order, so that a file with several faults is always refused for the same one.
    tensors.sort_unstable_by_key(|(name, _)| *name);

    let mut weights = BTreeMap::new();
    let mut biases = BTreeMap::new();
    for (spelling, view) in tensors {
        let (site, is_bias) = find_site(spelling, table, scope)?;
        let tensor = format!("{}.{}", site.name, if is_bias { "bias" } else { "weight" });
        if view.shape() != [site.width] {
            let got = view.shape().to_vec();
            return Err(AdapterError::Shape {
                tensor,
                got,
                want: vec![site.width],
            });
        }
        let values = widened(&view).ok_or_else(|| AdapterError::Dtype {
            tensor: tensor.clone(),
            got: view.dtype(),
        })?;
        let map = if is_bias { &mut biases } else { &mut weights };
        if map.insert(site.name.clone(), values).is_some() {
            return Err(AdapterError::Twice { tensor });
        }
    }
    if let Some(site) = biases.keys().find(|site| !weights.contains_key(*site)) {
        return Err(ValuesError::Missing {
            tensor: format!("{site}.weight"),
        }
        .into());
    }
    let stored: StoredValues = weights
        .into_iter()
        .map(|(site, weight)| {
            let bias = biases.remove(&site);
            (site, SiteValues { weight, bias })
        })
        .collect();
    let values = AdapterValues::fill(table, base_row, scope, &stored)?;
    Ok(Adapter {
        manifest,
        values,
        generation: Generation::of(bytes),
        n_sites: stored.len(),
        n_values: table
            .selected(scope)
            .map(|idx| table.sites()[idx].n_values())
            .sum(),
    })
}

/// Writes an adapter file: the stored values as f32 under canonical names, and the manifest.
/// Equal arguments give equal bytes.
///
/// # Errors
/// A manifest that [`Manifest::check`] refuses, a value that is not finite, or a header above
/// [`MAX_HEADER`].
pub fn write(values: &StoredValues, manifest: &Manifest) -> Result<Vec<u8>, AdapterError> {
    let mut tensors = Vec::with_capacity(2 * values.len());
    for (site, values) in values {
        tensors.push((format!("{site}.weight"), &values.weight));
        if let Some(bias) = &values.bias {
            tensors.push((format!("{site}.bias"), bias));
        }
    }
    let mut bytes = Vec::with_capacity(tensors.len());
    for (tensor, values) in tensors {
        if let Some(index) = values.iter().position(|value| !value.is_finite()) {
            return Err(ValuesError::NotFinite { tensor, index }.into());
        }
        let data: Vec<u8> = values
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect();
        bytes.push((tensor, vec![values.len()], data));
    }
    let views = bytes
        .iter()
        .map(|(name, shape, data)| Ok((name, TensorView::new(Dtype::F32, shape.clone(), data)?)))
        .collect::<Result<Vec<_>, _>>()
        .map_err(AdapterError::Safetensors)?;
    let metadata = HashMap::from([(header::MANIFEST_KEY.to_owned(), manifest.to_json()?)]);
    let file = safetensors::serialize(views, Some(metadata)).map_err(AdapterError::Safetensors)?;
    header::manifest_text(&file)?;
    Ok(file)
}

/// The site that a tensor's name stands for, and whether the tensor is its bias.
fn find_site<'a>(
    spelling: &str,
    table: &'a SiteTable,
    scope: Scope,
) -> Result<(&'a Site, bool), AdapterError> {
    let unknown = || AdapterError::UnknownTensor {
        tensor: shorten(spelling),
    };
    let (spelt_site, leaf) = spelling.rsplit_once('.').ok_or_else(unknown)?;
    let is_bias = match leaf {
        "weight" => false,
        "bias" => true,
        _ => return Err(unknown()),
    };
    let name = names::canonical(spelt_site).ok_or_else(unknown)?;
    let Some(idx) = table.get(&name) else {
        return Err(AdapterError::UnknownSite {
            site: shorten(&name),
        });
    };
    let site = &table.sites()[idx];
    if !site.used {
        return Err(AdapterError::UnusedSite { site: name });
    }
    if !scope.selects(site.part) {
        return Err(AdapterError::OutOfScope { site: name, scope });
    }
    if is_bias && !site.kind.has_bias() {
        return Err(AdapterError::NoBias {
            tensor: format!("{name}.bias"),
        });
    }
    Ok((site, is_bias))
}

/// A tensor's values in f32, or nothing where its type is not one that adapters use (f32, f16, bf16).
pub fn widened(view: &TensorView) -> Option<Vec<f32>> {
    let (pairs, _) = view.data().as_chunks::<2>();
    match view.dtype() {
        Dtype::F32 => {
            let (quads, _) = view.data().as_chunks::<4>();
            Some(
                quads
                    .iter()
                    .map(|bytes| f32::from_le_bytes(*bytes))
                    .collect(),
            )
        }
        Dtype::F16 => Some(
            pairs
                .iter()
                .map(|b| f16::from_le_bytes(*b).to_f32())
                .collect(),
        ),
        Dtype::BF16 => Some(
            pairs
                .iter()
                .map(|b| bf16::from_le_bytes(*b).to_f32())
                .collect(),
        ),
        _ => None,
    }
}

/// Names in messages are foreign text: long enough for any real site, no longer.
fn shorten(name: &str) -> String {
    const LONGEST: usize = 160;
    if name.chars().count() <= LONGEST {
        return name.to_owned();
    }
    name.chars().take(LONGEST).chain(['…']).collect()
}

#[cfg(test)]
mod tests;
