//! LN-tuning adapters of PEFT (`LNTuningConfig`): read into a norm row, written from one.
//!
//! In: the two files that PEFT saves, in any of the layouts that a base is found in; or an adapter. Out:
//! a row, and what of the file is not in it; or the two files. PEFT trains whatever it was pointed at,
//! embeddings, projector and head among them, and norms that the base never uses: a norm row has no
//! place for those, and nothing is left out unsaid. It must not know folders or commands.

use std::collections::{BTreeMap, BTreeSet};

use norma_adapters::format::widened;
use norma_adapters::names::{from_peft, to_peft};
use norma_adapters::{Part, Scope, SiteTable, StoredValues};
use safetensors::tensor::{Dtype, SafeTensorError, SafeTensors, TensorView};
use serde_json::{Value, json};
use thiserror::Error;

/// The file of the configuration.
pub const CONFIG_FILE: &str = "adapter_config.json";
/// The file of the tensors.
pub const TENSORS_FILE: &str = "adapter_model.safetensors";

const KIND: &str = "LN_TUNING";
/// Names that a message shows.
const SHOWN: usize = 6;

/// Why a PEFT adapter cannot be read or written.
#[derive(Debug, Error)]
pub enum PeftError {
    /// The configuration is no JSON object.
    #[error("{CONFIG_FILE} is not JSON: {0}")]
    Json(#[from] serde_json::Error),
    /// Another method than LN-tuning.
    #[error(
        "{CONFIG_FILE}: `peft_type` is {got}, only {KIND} is an adapter of norms that a server can swap"
    )]
    Kind {
        /// What it says.
        got: Value,
    },
    /// The tensors are no safetensors file.
    #[error("{TENSORS_FILE} is not well-formed safetensors: {0}")]
    Safetensors(#[from] SafeTensorError),
    /// Tensors that no norm of the base takes.
    #[error(
        "{} of the file's tensors belong to no norm of this base: {}; --drop-others leaves them out, and what they learnt with them",
        tensors.len(),
        some(tensors)
    )]
    Others {
        /// Their names in the file.
        tensors: Vec<String>,
    },
    /// Nothing of the file is a norm that the base uses.
    #[error("the file holds no norm that this base uses")]
    NoNorm,
    /// A tensor of another shape than its site.
    #[error("tensor `{tensor}` has shape {got:?}, the base wants [{want}]")]
    Shape {
        /// Its name in the file.
        tensor: String,
        /// Its shape.
        got: Vec<usize>,
        /// The site's width.
        want: usize,
    },
    /// A tensor of a type that is no float of 16 or 32 bits.
    #[error("tensor `{tensor}` has type {got}; f32, f16 and bf16 are read")]
    Dtype {
        /// Its name in the file.
        tensor: String,
        /// Its type.
        got: Dtype,
    },
    /// Two tensors for one place.
    #[error("`{tensor}` is in the file twice, under two spellings")]
    Twice {
        /// Its canonical name.
        tensor: String,
    },
    /// A name that PEFT has no place for.
    #[error("site `{site}` has no name in PEFT")]
    NoName {
        /// The site.
        site: String,
    },
}

fn some(names: &[String]) -> String {
    let shown: Vec<&str> = names.iter().take(SHOWN).map(String::as_str).collect();
    let more = if names.len() > SHOWN { ", ..." } else { "" };
    format!("{}{more}", shown.join(", "))
}

/// What came out of a PEFT adapter.
#[derive(Debug)]
pub struct Imported {
    /// Effective values, `[row_len]`; the base's where the file has none.
    pub row: Vec<f32>,
    /// The smallest scope that holds all of them.
    pub scope: Scope,
    /// Values taken over.
    pub n_values: usize,
    /// Tensors of norms that the base has and never uses.
    pub unused: Vec<String>,
    /// Tensors of no norm, left out because that was wanted.
    pub others: Vec<String>,
    /// Tensors in scope that the file does not have: they keep the base's values.
    pub missing: Vec<String>,
}

/// Reads an adapter. `base_row`: `[table.row_len()]`. With `drop_others` tensors of no norm are left out
/// and listed, else they are an error.
pub fn import(
    (config, tensors): (&[u8], &[u8]),
    table: &SiteTable,
    base_row: &[f32],
    drop_others: bool,
) -> Result<Imported, PeftError> {
    let config: Value = serde_json::from_slice(config)?;
    if config["peft_type"] != KIND {
        return Err(PeftError::Kind {
            got: config["peft_type"].clone(),
        });
    }
    let file = SafeTensors::deserialize(tensors)?;
    let views: BTreeMap<String, TensorView> = file.tensors().into_iter().collect();
    let mut row = base_row.to_vec();
    let (mut unused, mut others) = (Vec::new(), Vec::new());
    let mut taken = BTreeSet::new();
    let mut n_values = 0;
    for (name, view) in views {
        match place(&name, table) {
            Place::Other => others.push(name),
            Place::Unused => unused.push(name),
            Place::At(canonical, range, offset) => {
                put(&name, &view, &mut row[range], offset)?;
                n_values += view.shape()[0];
                if !taken.insert(canonical.clone()) {
                    return Err(PeftError::Twice { tensor: canonical });
                }
            }
        }
    }
    if !(others.is_empty() || drop_others) {
        return Err(PeftError::Others { tensors: others });
    }
    let scope = scope(table, &taken).ok_or(PeftError::NoNorm)?;
    let wanted = table.selected(scope).flat_map(|idx| {
        let site = &table.sites()[idx];
        [Some(site.weight_name()), site.bias_name()]
    });
    let missing = wanted.flatten().filter(|name| !taken.contains(name));
    Ok(Imported {
        missing: missing.collect(),
        row,
        scope,
        n_values,
        unused,
        others,
    })
}

enum Place {
    /// The tensor's canonical name, its place in the row, and what is added to what is stored.
    At(String, std::ops::Range<usize>, f32),
    Unused,
    Other,
}

fn place(name: &str, table: &SiteTable) -> Place {
    let Some(canonical) = from_peft(name) else {
        return Place::Other;
    };
    let Some((site, leaf)) = canonical.rsplit_once('.') else {
        return Place::Other;
    };
    let Some(idx) = table.get(site) else {
        return Place::Other;
    };
    let site = &table.sites()[idx];
    if !site.used {
        return Place::Unused;
    }
    let range = table.range(idx);
    match (leaf, range.bias) {
        ("weight", _) => Place::At(canonical, range.gain, site.kind.gain_offset()),
        ("bias", Some(bias)) => Place::At(canonical, bias, 0.0),
        _ => Place::Other,
    }
}

fn put(name: &str, view: &TensorView, into: &mut [f32], offset: f32) -> Result<(), PeftError> {
    if view.shape() != [into.len()] {
        return Err(PeftError::Shape {
            tensor: name.into(),
            got: view.shape().to_vec(),
            want: into.len(),
        });
    }
    let values = widened(view).ok_or_else(|| PeftError::Dtype {
        tensor: name.into(),
        got: view.dtype(),
    })?;
    for (into, value) in into.iter_mut().zip(values) {
        *into = value + offset;
    }
    Ok(())
}

/// The smallest scope that the tensors lie in.
fn scope(table: &SiteTable, taken: &BTreeSet<String>) -> Option<Scope> {
    let sites = taken.iter().filter_map(|name| name.rsplit_once('.'));
    let parts: Vec<Part> = sites
        .filter_map(|(site, _)| Some(table.sites()[table.get(site)?].part))
        .collect();
    let only = |part| parts.iter().all(|one| *one == part);
    match parts.first()? {
        Part::Vision if only(Part::Vision) => Some(Scope::Vision),
        Part::Projector if only(Part::Projector) => Some(Scope::Projector),
        Part::Language if only(Part::Language) => Some(Scope::Language),
        _ => Some(Scope::All),
    }
}

/// The two files that PEFT loads an adapter from.
#[derive(Debug)]
pub struct Exported {
    /// [`CONFIG_FILE`].
    pub config: Vec<u8>,
    /// [`TENSORS_FILE`].
    pub tensors: Vec<u8>,
}

/// Writes values (as a checkpoint stores them) for PEFT, for a LLaVA that transformers 5 loads from
/// `base_name`, a hub's name or a folder.
pub fn export(stored: &StoredValues, base_name: &str) -> Result<Exported, PeftError> {
    let mut modules = Vec::new();
    let mut tensors = Vec::new();
    for (site, values) in stored {
        let no_name = || PeftError::NoName { site: site.clone() };
        let weight = to_peft(&format!("{site}.weight")).ok_or_else(no_name)?;
        modules.push(module(&weight).ok_or_else(no_name)?.to_owned());
        tensors.push((weight, &values.weight));
        if let Some(bias) = &values.bias {
            let name = to_peft(&format!("{site}.bias")).ok_or_else(no_name)?;
            tensors.push((name, bias));
        }
    }
    modules.sort_unstable();
    let config = json!({
        "auto_mapping": null,
        "base_model_name_or_path": base_name,
        "exclude_modules": null,
        "inference_mode": true,
        "modules_to_save": null,
        "peft_type": KIND,
        "revision": null,
        "target_modules": modules,
        "task_type": null,
    });
    let bytes: Vec<(String, Vec<u8>)> = tensors
        .into_iter()
        .map(|(name, values)| (name, values.iter().flat_map(|v| v.to_le_bytes()).collect()))
        .collect();
    let views = bytes
        .iter()
        .map(|(name, data)| {
            let view = TensorView::new(Dtype::F32, vec![data.len() / size_of::<f32>()], data)?;
            Ok((name.as_str(), view))
        })
        .collect::<Result<Vec<_>, SafeTensorError>>()?;
    // What transformers wants to be told of a file of tensors.
    let about = [("format".to_owned(), "pt".to_owned())].into();
    Ok(Exported {
        config: serde_json::to_vec_pretty(&config)?,
        tensors: safetensors::serialize(views, Some(about))?,
    })
}

/// The module that a tensor of PEFT's belongs to.
fn module(tensor: &str) -> Option<&str> {
    let path = tensor.strip_prefix("base_model.model.")?;
    Some(path.split_once(".ln_tuning_layers.")?.0)
}
