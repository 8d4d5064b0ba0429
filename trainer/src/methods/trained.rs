//! What a method learnt as a file: a safetensors file of the trained tensors under canonical names, with a
//! JSON header that names the method. In: a tuned base. Out: bytes, and back. The server takes no such
//! file; it is for measuring.

use std::collections::BTreeMap;

use candle_core::Tensor;
use norma::model::MedVlm;
use norma_adapters::{Digest, SiteTable};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Choice, MethodError};
use crate::frozen::FrozenBase;

/// The name of the header in the file's metadata.
const HEADER: &str = "norma_trained";

/// What the file says about itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Header {
    /// The base that it belongs to.
    pub base_digest: Digest,
    /// Method, scope, seed.
    #[serde(flatten)]
    pub choice: Choice,
    /// What is needed to train it again.
    pub recipe: Value,
    /// Held-out measures.
    pub metrics: Value,
}

/// The file of a tuned base. `row`: its norm values, `[row_len]`.
pub fn write(base: &FrozenBase, row: &[f32], header: &Header) -> anyhow::Result<Vec<u8>> {
    let mut tensors: BTreeMap<String, (Vec<usize>, Vec<u8>)> = BTreeMap::new();
    let bytes = |values: &[f32]| {
        values
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect()
    };
    for variable in &base.variables {
        let tensor = variable.var.as_tensor();
        let values = tensor.flatten_all()?.to_vec1::<f32>()?;
        tensors.insert(
            variable.name.clone(),
            (tensor.dims().into(), bytes(&values)),
        );
    }
    for (name, range) in norm_tensors(base.model.sites(), &header.choice)? {
        let values = &row[range];
        tensors.insert(name, (vec![values.len()], bytes(values)));
    }
    let views: Vec<(&String, TensorView)> = tensors
        .iter()
        .map(|(name, (shape, data))| Ok((name, TensorView::new(Dtype::F32, shape.clone(), data)?)))
        .collect::<Result<_, safetensors::SafeTensorError>>()?;
    let metadata = [(HEADER.to_owned(), serde_json::to_string(header)?)].into();
    Ok(safetensors::serialize(views, Some(metadata))?)
}

/// The header of a file.
pub fn header(bytes: &[u8]) -> Result<Header, MethodError> {
    let (_, metadata) = SafeTensors::read_metadata(bytes)?;
    let found = metadata.metadata().as_ref().and_then(|all| all.get(HEADER));
    let header = found.and_then(|text| serde_json::from_str(text).ok());
    header.ok_or(MethodError::Header { field: HEADER })
}

/// Puts a file's values into a base that was built for its choice; returns the norm row.
pub fn restore(base: &FrozenBase, bytes: &[u8]) -> Result<Vec<f32>, MethodError> {
    let header = header(bytes)?;
    if header.base_digest != base.digest {
        return Err(MethodError::OtherBase {
            got: header.base_digest,
            want: base.digest,
        });
    }
    let file = SafeTensors::deserialize(bytes)?;
    let mut left: Vec<&str> = file.names();
    let mut values = |name: &str, shape: &[usize]| -> Result<Vec<f32>, MethodError> {
        left.retain(|other| *other != name);
        let view = file.tensor(name).map_err(|error| problem(name, &error))?;
        if view.shape() != shape || view.dtype() != Dtype::F32 {
            let got = format!("{:?} {:?}", view.dtype(), view.shape());
            return Err(problem(name, &format!("is {got}, wanted is F32 {shape:?}")));
        }
        let words = view.data().chunks_exact(4);
        let values: Vec<f32> = words
            .map(|word| f32::from_le_bytes([word[0], word[1], word[2], word[3]]))
            .collect();
        if values.iter().any(|value| !value.is_finite()) {
            return Err(problem(name, &"holds a value that is not finite"));
        }
        Ok(values)
    };
    for variable in &base.variables {
        let var = &variable.var;
        let failed = |error: candle_core::Error| problem(&variable.name, &error);
        let values = values(&variable.name, var.dims())?;
        let tensor = Tensor::from_vec(values, var.dims(), var.device()).map_err(failed)?;
        var.set(&tensor).map_err(failed)?;
    }
    let mut row = base.row.clone();
    for (name, range) in norm_tensors(base.model.sites(), &header.choice)? {
        let values = values(&name, &[range.len()])?;
        row[range].copy_from_slice(&values);
    }
    match left.first() {
        None => Ok(row),
        Some(name) => Err(problem(name, &"is none that the method trains")),
    }
}

fn problem(name: &str, problem: &dyn std::fmt::Display) -> MethodError {
    MethodError::Tensor {
        name: name.into(),
        problem: problem.to_string(),
    }
}

/// The norm tensors that a choice trains, with their place in a row.
pub fn norm_tensors(
    table: &SiteTable,
    choice: &Choice,
) -> Result<Vec<(String, std::ops::Range<usize>)>, MethodError> {
    let rule = choice.norm_rule()?;
    let mut tensors = Vec::new();
    for (idx, site) in table.sites().iter().enumerate() {
        let (learns, range) = (rule(site), table.range(idx));
        if learns.gain {
            tensors.push((site.weight_name(), range.gain));
        }
        if let (true, Some(name), Some(range)) = (learns.bias, site.bias_name(), range.bias) {
            tensors.push((name, range));
        }
    }
    Ok(tensors)
}
