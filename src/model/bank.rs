//! The norm bank: the values of every resident adapter, one slot each, on the model's device.
//!
//! Slot 0 holds the base's own values. Which adapter lives in which slot, and when a slot may be filled,
//! is not known here (`norma_adapters::SlotTable` keeps those books).
//!
//! In the CPU's memory a slot refers to the adapter's row itself: filling it copies nothing, and an adapter
//! takes one row however many hold it. Elsewhere the bank is a matrix on the device.

use std::ops::Range;
use std::sync::Arc;

use candle_core::{Device, Result, Tensor, bail};
use norma_adapters::{SiteRange, SiteTable};

pub use super::ops::norm::{SiteRows, SiteValues};

/// Norm values by site and slot.
#[derive(Debug)]
pub struct NormBank {
    values: Values,
    n_slots: usize,
}

/// Sites that the base never uses are `None`.
#[derive(Debug)]
enum Values {
    Rows {
        sites: Vec<Option<SiteRange>>,
        row_len: usize,
        rows: Arc<Vec<Arc<[f32]>>>,
    },
    Matrix {
        sites: Vec<Option<SiteValues>>,
        /// `[slots, row_len]`, which `sites` are views of.
        matrix: Tensor,
    },
    Variables(Vec<Option<SiteValues>>),
}

/// The values of one site.
#[derive(Debug)]
pub enum Site<'a> {
    /// In adapters' rows.
    Rows(SiteRows),
    /// In tensors.
    Tensors(&'a SiteValues),
}

impl Site<'_> {
    /// All slots' values as tensors.
    pub fn to_values(&self) -> Result<SiteValues> {
        match self {
            Self::Rows(rows) => rows.to_values(),
            Self::Tensors(values) => Ok((*values).clone()),
        }
    }
}

impl NormBank {
    /// A bank of `n_slots` slots that all hold the base's values (`base_row`: `row_len` values).
    pub fn resident(
        table: &SiteTable,
        base_row: &[f32],
        n_slots: usize,
        device: &Device,
    ) -> Result<Self> {
        if base_row.len() != table.row_len() || n_slots == 0 {
            bail!(
                "a bank of {n_slots} slots got a row of {} for {}",
                base_row.len(),
                table.row_len()
            );
        }
        let sites = table.sites().iter().enumerate();
        let sites = sites.map(|(idx, site)| site.used.then(|| table.range(idx)));
        let values = if device.is_cpu() {
            Values::Rows {
                sites: sites.collect(),
                row_len: table.row_len(),
                rows: Arc::new(vec![base_row.into(); n_slots]),
            }
        } else {
            let row = Tensor::new(base_row, device)?.unsqueeze(0)?;
            let matrix = row.repeat((n_slots, 1))?.contiguous()?; // [slots, row_len]
            let view = |range: Range<usize>| matrix.narrow(1, range.start, range.len());
            let values = |range: SiteRange| {
                Ok(SiteValues {
                    gain: view(range.gain)?,
                    bias: range.bias.map(view).transpose()?,
                    trainable: false,
                })
            };
            Values::Matrix {
                sites: sites
                    .map(|range| range.map(values).transpose())
                    .collect::<Result<_>>()?,
                matrix,
            }
        };
        Ok(Self { values, n_slots })
    }

    /// A bank of given values, by site index: a trainer's variables. All have `n_slots` rows.
    pub fn from_values(sites: Vec<Option<SiteValues>>, n_slots: usize) -> Self {
        Self {
            values: Values::Variables(sites),
            n_slots,
        }
    }

    /// Writes every site of a slot. `row`: `row_len` values. The caller must know that no running
    /// sequence uses the slot.
    pub fn fill(&mut self, slot: u32, row: Arc<[f32]>) -> Result<()> {
        if slot == 0 || slot as usize >= self.n_slots {
            bail!(
                "slot {slot} cannot be filled; a bank has slots 1 to {}",
                self.n_slots - 1
            );
        }
        match &mut self.values {
            Values::Rows { row_len, rows, .. } => {
                if row.len() != *row_len {
                    bail!("a row of {} values for a bank of {row_len}", row.len());
                }
                Arc::make_mut(rows)[slot as usize] = row;
                Ok(())
            }
            Values::Matrix { matrix, .. } => {
                let row = Tensor::new(&*row, matrix.device())?.unsqueeze(0)?;
                matrix.slice_set(&row, 0, slot as usize)
            }
            Values::Variables(_) => bail!("a bank of variables has no slots to fill"),
        }
    }

    /// The values of a used site.
    pub fn site(&self, idx: usize) -> Result<Site<'_>> {
        let found = match &self.values {
            Values::Rows { sites, rows, .. } => {
                sites.get(idx).and_then(Option::as_ref).map(|range| {
                    Site::Rows(SiteRows {
                        rows: Arc::clone(rows),
                        gain: range.gain.clone(),
                        bias: range.bias.clone(),
                    })
                })
            }
            Values::Matrix { sites, .. } | Values::Variables(sites) => {
                sites.get(idx).and_then(Option::as_ref).map(Site::Tensors)
            }
        };
        match found {
            Some(site) => Ok(site),
            None => bail!("site {idx} has no values in the bank"),
        }
    }

    /// The number of slots, the base's included.
    pub fn n_slots(&self) -> usize {
        self.n_slots
    }
}
