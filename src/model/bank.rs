//! The norm bank: the values of every resident adapter, one slot each, on the model's device.
//!
//! Row 0 is the base's own values. Which adapter lives in which slot, and when a slot may be filled,
//! is not known here (`norma_adapters::SlotTable` keeps those books).

use candle_core::{Device, Result, Tensor, bail};
use norma_adapters::SiteTable;

pub use super::ops::norm::SiteValues;

/// Norm values by site and slot.
#[derive(Debug)]
pub struct NormBank {
    /// By site index; `None` where the base never uses the site.
    sites: Vec<Option<SiteValues>>,
    /// `[slots, row_len]`, which `sites` are views of; `None` in a bank of variables.
    matrix: Option<Tensor>,
    n_slots: usize,
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
        let row = Tensor::new(base_row, device)?.unsqueeze(0)?;
        let matrix = row.repeat((n_slots, 1))?.contiguous()?; // [slots, row_len]
        let view = |range: std::ops::Range<usize>| matrix.narrow(1, range.start, range.len());
        let sites = table
            .sites()
            .iter()
            .enumerate()
            .map(|(idx, site)| {
                if !site.used {
                    return Ok(None);
                }
                let range = table.range(idx);
                let bias = range.bias.map(view).transpose()?;
                Ok(Some(SiteValues {
                    gain: view(range.gain)?,
                    bias,
                    trainable: false,
                }))
            })
            .collect::<Result<_>>()?;
        Ok(Self {
            sites,
            matrix: Some(matrix),
            n_slots,
        })
    }

    /// A bank of given values, by site index: a trainer's variables. All have `n_slots` rows.
    pub fn from_values(sites: Vec<Option<SiteValues>>, n_slots: usize) -> Self {
        Self {
            sites,
            matrix: None,
            n_slots,
        }
    }

    /// Writes every site of a slot. `row`: `row_len` values. The caller must know that no running
    /// sequence uses the slot.
    pub fn fill(&mut self, slot: u32, row: &[f32]) -> Result<()> {
        let Some(matrix) = &self.matrix else {
            bail!("a bank of variables has no slots to fill")
        };
        if slot == 0 || slot as usize >= self.n_slots {
            bail!(
                "slot {slot} cannot be filled; a bank has slots 1 to {}",
                self.n_slots - 1
            );
        }
        let row = Tensor::new(row, matrix.device())?.unsqueeze(0)?;
        matrix.slice_set(&row, 0, slot as usize)
    }

    /// The values of a used site.
    pub fn site(&self, idx: usize) -> Result<&SiteValues> {
        match self.sites.get(idx) {
            Some(Some(values)) => Ok(values),
            _ => bail!("site {idx} has no values in the bank"),
        }
    }

    /// The number of slots, the base's included.
    pub fn n_slots(&self) -> usize {
        self.n_slots
    }

    /// Bytes of the bank on its device.
    pub fn bytes(&self) -> usize {
        self.matrix
            .as_ref()
            .map_or(0, |matrix| matrix.elem_count() * 4)
    }
}
