//! What is trained: variables by canonical name, made from nothing or from a checkpoint.
//!
//! In: names and shapes, as a model asks for them; the base's norm row. Out: the same tensors with
//! gradients, and the bank that a forward reads. It must not know how gradients become new values.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use candle_core::{Device, Result, Tensor, Var};
use norma::model::bank::{NormBank, SiteValues};
use norma::model::parameters::{ParameterError, Parameters, Weight};
use norma_adapters::{Scope, Site, SiteTable};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use sha2::{Digest, Sha256};

use crate::methods::Learns;

/// A named variable.
#[derive(Clone, Debug)]
pub struct NamedVar {
    /// Canonical tensor name.
    pub name: String,
    /// The variable.
    pub var: Var,
}

/// Where the first values of variables come from.
#[derive(Clone, Copy)]
pub enum Source<'a> {
    /// Drawn by name and shape from a seed.
    Seed(u64),
    /// Copied from a checkpoint.
    Checkpoint(&'a dyn Parameters),
}

/// Parameters that are all trained. A name asked for twice is one variable, so that a tied head
/// adds to the gradient of its embedding.
pub struct Variables<'a> {
    source: Source<'a>,
    device: Device,
    vars: Mutex<BTreeMap<String, Var>>,
}

impl<'a> Variables<'a> {
    /// No variables yet; a model that is built from these makes them.
    pub fn new(source: Source<'a>, device: &Device) -> Self {
        Self {
            source,
            device: device.clone(),
            vars: Mutex::new(BTreeMap::new()),
        }
    }

    /// The variable of this name, made at its first use.
    pub fn var(&self, name: &str, shape: &[usize]) -> std::result::Result<Var, ParameterError> {
        let mut vars = self.vars.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(var) = vars.get(name) {
            if var.dims() == shape {
                return Ok(var.clone());
            }
            return Err(ParameterError::Shape {
                name: name.into(),
                file: None,
                got: var.dims().into(),
                want: shape.into(),
            });
        }
        let failed = ParameterError::reading(name);
        let first = match self.source {
            Source::Seed(seed) => {
                Tensor::from_vec(first_values(name, shape, seed), shape, &self.device)
                    .map_err(&failed)?
            }
            Source::Checkpoint(parameters) => parameters.tensor(name, shape)?,
        };
        let var = Var::from_tensor(&first).map_err(&failed)?;
        vars.insert(name.into(), var.clone());
        Ok(var)
    }

    /// All variables made so far, sorted by name.
    pub fn all(&self) -> Vec<NamedVar> {
        let vars = self.vars.lock().unwrap_or_else(PoisonError::into_inner);
        vars.iter()
            .map(|(name, var)| NamedVar {
                name: name.clone(),
                var: var.clone(),
            })
            .collect()
    }
}

impl Parameters for Variables<'_> {
    fn device(&self) -> &Device {
        &self.device
    }

    fn tensor(&self, name: &str, shape: &[usize]) -> std::result::Result<Tensor, ParameterError> {
        Ok(self.var(name, shape)?.as_tensor().clone())
    }

    fn linear(
        &self,
        _name: &str,
        weight: Tensor,
        bias: Option<Tensor>,
    ) -> std::result::Result<Weight, ParameterError> {
        Ok(Weight::Trainable { weight, bias })
    }
}

/// Projections whose output is added to the residual stream start smaller, so that the stream's
/// variance does not grow with the number of layers.
const RESIDUAL: [&str; 4] = [
    "o_proj.weight",
    "down_proj.weight",
    "out_proj.weight",
    "fc2.weight",
];
const RESIDUAL_SCALE: f64 = 0.35;
const EMBEDDING_DEVIATION: f64 = 0.05;

/// Each name has its own random stream, so values do not depend on the order of construction.
fn first_values(name: &str, shape: &[usize], seed: u64) -> Vec<f32> {
    let count = shape.iter().product();
    if name.rsplit('.').next() == Some("bias") {
        return vec![0.0; count];
    }
    let deviation = if name.contains("embedding") || name.contains("embed_tokens") {
        if name.contains("patch_embedding") {
            fan_in(shape)
        } else {
            EMBEDDING_DEVIATION
        }
    } else if RESIDUAL.iter().any(|end| name.ends_with(end)) {
        RESIDUAL_SCALE * fan_in(shape)
    } else {
        fan_in(shape)
    };
    let mut rng = stream_of(name, seed);
    (0..count)
        .map(|_| (deviation * gaussian(&mut rng)) as f32)
        .collect()
}

/// The random stream of a name.
fn stream_of(name: &str, seed: u64) -> ChaCha8Rng {
    let hash = Sha256::digest(name.as_bytes());
    let stream = u64::from_le_bytes(hash[..8].try_into().expect("a digest has 32 bytes"));
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(stream);
    rng
}

/// `count` samples of the standard normal distribution, the same for the same name and seed.
pub fn named_gaussian(name: &str, count: usize, seed: u64) -> Vec<f32> {
    let mut rng = stream_of(name, seed);
    (0..count).map(|_| gaussian(&mut rng) as f32).collect()
}

/// `count` samples between `-bound` and `bound`, the same for the same name and seed.
pub fn named_uniform(name: &str, count: usize, seed: u64, bound: f64) -> Vec<f32> {
    use rand::Rng;
    let mut rng = stream_of(name, seed);
    (0..count)
        .map(|_| rng.random_range(-bound..bound) as f32)
        .collect()
}

fn fan_in(shape: &[usize]) -> f64 {
    let inputs: usize = shape.iter().skip(1).product();
    (inputs.max(1) as f64).sqrt().recip()
}

/// A sample of the standard normal distribution (Box and Muller).
fn gaussian(rng: &mut ChaCha8Rng) -> f64 {
    use rand::Rng;
    let radius = (-2.0 * rng.random_range(f64::EPSILON..1.0).ln()).sqrt();
    radius * (std::f64::consts::TAU * rng.random_range(0.0..1.0)).cos()
}

/// The norm values of a base, those of some sites as variables.
pub struct NormVariables {
    bank: NormBank,
    vars: Vec<NamedVar>,
}

impl NormVariables {
    /// One slot that holds `row` (`table.row_len()` values); the sites of `scope` are variables,
    /// none if there is no scope.
    pub fn new(
        table: &SiteTable,
        row: &[f32],
        scope: Option<Scope>,
        device: &Device,
    ) -> Result<Self> {
        let rule = |site: &Site| {
            let all = scope.is_some_and(|scope| scope.selects(site.part));
            Learns {
                gain: all,
                bias: all,
            }
        };
        Self::choose(table, row, rule, device)
    }

    /// One slot that holds `row`; of each used site the values that `rule` names are variables.
    pub fn choose(
        table: &SiteTable,
        row: &[f32],
        rule: impl Fn(&Site) -> Learns,
        device: &Device,
    ) -> Result<Self> {
        let mut vars = Vec::new();
        let mut sites = Vec::with_capacity(table.sites().len());
        for (idx, site) in table.sites().iter().enumerate() {
            if !site.used {
                sites.push(None);
                continue;
            }
            let learns = rule(site);
            let mut values = |name: String, range: std::ops::Range<usize>, trainable: bool| {
                let tensor = Tensor::new(&row[range], device)?.unsqueeze(0)?; // [1, width]
                if !trainable {
                    return Ok(tensor);
                }
                let var = Var::from_tensor(&tensor)?;
                vars.push(NamedVar {
                    name,
                    var: var.clone(),
                });
                Ok::<_, candle_core::Error>(var.as_tensor().clone())
            };
            let range = table.range(idx);
            let gain = values(site.weight_name(), range.gain, learns.gain)?;
            let bias = match (site.bias_name(), range.bias) {
                (Some(name), Some(range)) => Some(values(name, range, learns.bias)?),
                _ => None,
            };
            sites.push(Some(SiteValues {
                gain,
                bias,
                trainable: learns.any(),
            }));
        }
        Ok(Self {
            bank: NormBank::from_values(sites, 1),
            vars,
        })
    }

    /// The bank of one slot.
    pub fn bank(&self) -> &NormBank {
        &self.bank
    }

    /// The variables, in the table's order.
    pub fn all(&self) -> &[NamedVar] {
        &self.vars
    }

    /// The values as they are now, `[row_len]`.
    pub fn row(&self, table: &SiteTable) -> Result<Vec<f32>> {
        let mut row = vec![0f32; table.row_len()];
        for (idx, site) in table.sites().iter().enumerate() {
            if !site.used {
                continue;
            }
            let (range, values) = (table.range(idx), self.bank.site(idx)?.to_values()?);
            row[range.gain].copy_from_slice(&values.gain.flatten_all()?.to_vec1::<f32>()?);
            if let (Some(range), Some(bias)) = (range.bias, &values.bias) {
                row[range].copy_from_slice(&bias.flatten_all()?.to_vec1::<f32>()?);
            }
        }
        Ok(row)
    }
}

/// The row of a base that has learnt nothing: gains 1, biases 0.
pub fn neutral_row(table: &SiteTable) -> Vec<f32> {
    let mut row = vec![0f32; table.row_len()];
    for idx in 0..table.sites().len() {
        row[table.range(idx).gain].fill(1.0);
    }
    row
}
