//! The norm bank: the values of every resident adapter, one slot each, on the model's device.
//!
//! Slot 0 holds the base's own values. Which adapter lives in which slot, and when a slot may be filled,
//! is not known here (`norma_adapters::SlotTable` keeps those books).
//!
//! In the CPU's memory a slot refers to the adapter's row itself: filling it copies nothing, and an adapter
//! takes one row however many hold it. Elsewhere every site has a table on the device, `[slots, width]`, in one
//! piece, so that a norm looks its rows up in it without copying it; an adapter crosses to the device once, as
//! a row, and is spread over the tables there.

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
    Tables {
        /// Where a site's values lie in a row.
        ranges: Vec<Option<SiteRange>>,
        row_len: usize,
        sites: Vec<Option<SiteValues>>,
        device: Device,
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
            tables(sites.collect(), base_row, n_slots, device)?
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
            Values::Tables {
                ranges,
                row_len,
                sites,
                device,
            } => {
                if row.len() != *row_len {
                    bail!("a row of {} values for a bank of {row_len}", row.len());
                }
                let row = Tensor::new(&*row, device)?.unsqueeze(0)?; // [1, row_len]
                for (range, values) in ranges.iter().zip(sites) {
                    let (Some(range), Some(values)) = (range, values) else {
                        continue;
                    };
                    write(&values.gain, &row, &range.gain, slot)?;
                    if let (Some(bias), Some(range)) = (&values.bias, &range.bias) {
                        write(bias, &row, range, slot)?;
                    }
                }
                Ok(())
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
            Values::Tables { sites, .. } | Values::Variables(sites) => {
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

/// Tables of sites, all slots filled with the base's values.
fn tables(
    ranges: Vec<Option<SiteRange>>,
    base_row: &[f32],
    n_slots: usize,
    device: &Device,
) -> Result<Values> {
    let row = Tensor::new(base_row, device)?.unsqueeze(0)?; // [1, row_len]
    let table = |range: &Range<usize>| {
        let values = row.narrow(1, range.start, range.len())?;
        values
            .broadcast_as((n_slots, range.len()))?
            .force_contiguous() // [slots, width]
    };
    let values = |range: &SiteRange| {
        Ok(SiteValues {
            gain: table(&range.gain)?,
            bias: range.bias.as_ref().map(table).transpose()?,
            trainable: false,
        })
    };
    let sites = ranges.iter();
    let sites = sites.map(|range| range.as_ref().map(values).transpose());
    Ok(Values::Tables {
        sites: sites.collect::<Result<_>>()?,
        ranges,
        row_len: base_row.len(),
        device: device.clone(),
    })
}

/// Writes a part of a row (`[1, row_len]`) into a slot of a table.
fn write(table: &Tensor, row: &Tensor, range: &Range<usize>, slot: u32) -> Result<()> {
    let part = row.narrow(1, range.start, range.len())?;
    table.slice_set(&part.contiguous()?, 0, slot as usize)
}

#[cfg(test)]
mod tests {
    use norma_adapters::{Part, Site, SiteKind};

    use super::*;

    fn table() -> SiteTable {
        let site = |name: &str, kind, used| Site {
            name: name.into(),
            kind,
            width: 3,
            part: Part::Vision,
            used,
        };
        SiteTable::new(vec![
            site("first", SiteKind::LayerNorm, true),
            site("above", SiteKind::LayerNorm, false),
            site("last", SiteKind::RmsNorm, true),
        ])
        .unwrap()
    }

    /// The tables that a device has hold what the rows of the CPU hold; here both are in its memory.
    #[test]
    fn a_filled_slot_changes_alone_in_rows_and_in_tables() {
        let table = table();
        let row =
            |first: f32| -> Vec<f32> { (0..table.row_len()).map(|i| first + i as f32).collect() };
        let mut rows = NormBank::resident(&table, &row(0.0), 3, &Device::Cpu).unwrap();
        let ranges = (0..3).map(|idx| table.sites()[idx].used.then(|| table.range(idx)));
        let mut tables = NormBank {
            values: tables(ranges.collect(), &row(0.0), 3, &Device::Cpu).unwrap(),
            n_slots: 3,
        };
        for slot in [2, 1, 2] {
            let row = row(100.0 * slot as f32);
            rows.fill(slot, row.clone().into()).unwrap();
            tables.fill(slot, row.into()).unwrap();
        }
        for idx in [0, 2] {
            let values = |bank: &NormBank| bank.site(idx).unwrap().to_values().unwrap();
            let (rows, tables) = (values(&rows), values(&tables));
            let numbers = |tensor: &Tensor| tensor.to_vec2::<f32>().unwrap();
            assert_eq!(numbers(&rows.gain), numbers(&tables.gain));
            let bias = |values: &SiteValues| values.bias.as_ref().map(numbers);
            assert_eq!(bias(&rows), bias(&tables));
            assert_eq!(numbers(&tables.gain)[0], row(0.0)[table.range(idx).gain]);
        }
        assert!(tables.site(1).is_err());
        assert!(tables.fill(0, row(1.0).into()).is_err());
        assert!(tables.fill(1, vec![1.0].into()).is_err());
    }
}
