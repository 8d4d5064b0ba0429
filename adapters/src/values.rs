//! The values of one adapter, laid out as a bank row.
//!
//! In: values per site as a checkpoint stores them, and the base's row. Out: one full row of
//! effective values, checked for length and for NaN and infinity. Knows no file format.

use std::collections::BTreeMap;
use std::sync::Arc;

use thiserror::Error;

use crate::digest::Digest;
use crate::site::{Scope, SiteTable};

/// One site's values **as a checkpoint stores them** (for [`crate::SiteKind::RmsNormOffset`] the
/// gain less 1).
#[derive(Clone, Debug, PartialEq)]
pub struct SiteValues {
    /// `[width]`
    pub weight: Vec<f32>,
    /// `[width]`, where the site has a bias.
    pub bias: Option<Vec<f32>>,
}

/// Stored values by canonical site name.
pub type StoredValues = BTreeMap<String, SiteValues>;

/// Why values make no row.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ValuesError {
    #[error("a row holds {got} values, the base wants {want}")]
    RowLength { got: usize, want: usize },
    #[error("`{tensor}` is missing")]
    Missing { tensor: String },
    #[error("site `{site}` has no place in an adapter of scope `{scope}` for this base")]
    NotInScope { site: String, scope: Scope },
    #[error("`{tensor}` holds {got} values, the base wants {want}")]
    Width {
        tensor: String,
        got: usize,
        want: usize,
    },
    #[error("`{tensor}` holds a value that is NaN or infinite, at index {index}")]
    NotFinite { tensor: String, index: usize },
}

/// A full, checked row: [`SiteTable::row_len`] effective values, in the table's order. Sites that
/// the scope leaves out hold the base's values. Cheap to clone.
#[derive(Clone, Debug)]
pub struct AdapterValues {
    row: Arc<[f32]>,
    scope: Scope,
    vision_digest: Digest,
}

impl AdapterValues {
    /// Takes a row of effective values.
    ///
    /// # Errors
    /// A length other than the table's, or a value that is not finite.
    pub fn new(table: &SiteTable, row: Vec<f32>, scope: Scope) -> Result<Self, ValuesError> {
        if row.len() != table.row_len() {
            return Err(ValuesError::RowLength {
                got: row.len(),
                want: table.row_len(),
            });
        }
        for (idx, site) in table.sites().iter().enumerate() {
            let range = table.range(idx);
            finite(&row[range.gain], || site.weight_name())?;
            if let Some(bias) = range.bias {
                finite(&row[bias], || format!("{}.bias", site.name))?;
            }
        }
        let vision_digest = table.vision_digest(&row);
        Ok(Self {
            row: row.into(),
            scope,
            vision_digest,
        })
    }

    /// Builds a row from stored values: exactly the sites that `scope` selects, over `base_row`.
    ///
    /// # Errors
    /// A site missing, one too many, a wrong width, a value that is not finite; each by name.
    pub fn fill(
        table: &SiteTable,
        base_row: &[f32],
        scope: Scope,
        stored: &StoredValues,
    ) -> Result<Self, ValuesError> {
        if base_row.len() != table.row_len() {
            return Err(ValuesError::RowLength {
                got: base_row.len(),
                want: table.row_len(),
            });
        }
        for name in stored.keys() {
            let site = table.get(name).map(|idx| &table.sites()[idx]);
            if !site.is_some_and(|site| site.used && scope.selects(site.part)) {
                return Err(ValuesError::NotInScope {
                    site: name.clone(),
                    scope,
                });
            }
        }
        let mut row = base_row.to_vec();
        for idx in table.selected(scope) {
            let site = &table.sites()[idx];
            let values = stored.get(&site.name).ok_or_else(|| ValuesError::Missing {
                tensor: site.weight_name(),
            })?;
            let range = table.range(idx);
            put(
                &mut row[range.gain.clone()],
                &values.weight,
                &site.weight_name(),
            )?;
            for gain in &mut row[range.gain] {
                *gain += site.kind.gain_offset();
            }
            let bias_name = format!("{}.bias", site.name);
            match (range.bias, &values.bias) {
                (Some(range), Some(bias)) => put(&mut row[range], bias, &bias_name)?,
                (None, None) => {}
                (Some(_), None) => return Err(ValuesError::Missing { tensor: bias_name }),
                (None, Some(bias)) => {
                    return Err(ValuesError::Width {
                        tensor: bias_name,
                        got: bias.len(),
                        want: 0,
                    });
                }
            }
        }
        Self::new(table, row, scope)
    }

    /// The effective values, `[row_len]`.
    pub fn row(&self) -> &[f32] {
        &self.row
    }

    /// The row, shared.
    pub fn shared_row(&self) -> Arc<[f32]> {
        Arc::clone(&self.row)
    }

    /// Which sites the adapter itself holds.
    pub fn scope(&self) -> Scope {
        self.scope
    }

    /// Digest over the values that an image's features depend on.
    pub fn vision_digest(&self) -> Digest {
        self.vision_digest
    }

    /// The adapter's own sites as a checkpoint stores them, ready to be written.
    ///
    /// An offset gain comes back as `gain - 1`, which gives the same gain again when it is filled
    /// in if the gain lies between 0.5 and 2, and one within 2^-24 of it (or its rounding) else.
    ///
    /// # Panics
    /// When `table` is not the table that the row was built for.
    pub fn stored(&self, table: &SiteTable) -> StoredValues {
        assert_eq!(self.row.len(), table.row_len(), "a row of another table");
        let mut stored = StoredValues::new();
        for idx in table.selected(self.scope) {
            let site = &table.sites()[idx];
            let range = table.range(idx);
            let offset = site.kind.gain_offset();
            let weight = self.row[range.gain]
                .iter()
                .map(|gain| gain - offset)
                .collect();
            let bias = range.bias.map(|range| self.row[range].to_vec());
            stored.insert(site.name.clone(), SiteValues { weight, bias });
        }
        stored
    }
}

fn put(into: &mut [f32], values: &[f32], tensor: &str) -> Result<(), ValuesError> {
    if values.len() != into.len() {
        return Err(ValuesError::Width {
            tensor: tensor.to_owned(),
            got: values.len(),
            want: into.len(),
        });
    }
    into.copy_from_slice(values);
    Ok(())
}

fn finite(values: &[f32], tensor: impl FnOnce() -> String) -> Result<(), ValuesError> {
    match values.iter().position(|value| !value.is_finite()) {
        None => Ok(()),
        Some(index) => Err(ValuesError::NotFinite {
            tensor: tensor(),
            index,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::site::{Part, Site, SiteKind};

    fn table() -> SiteTable {
        let site = |name: &str, kind, part, used| Site {
            name: name.to_owned(),
            kind,
            width: 2,
            part,
            used,
        };
        SiteTable::new(vec![
            site("v", SiteKind::LayerNorm, Part::Vision, true),
            site("v.above", SiteKind::LayerNorm, Part::Vision, false),
            site("l", SiteKind::RmsNormOffset, Part::Language, true),
        ])
        .unwrap()
    }

    const BASE: [f32; 6] = [1.0, 1.0, 0.0, 0.0, 1.5, 1.5];

    type Entry<'a> = (&'a str, [f32; 2], Option<[f32; 2]>);

    fn stored(sites: &[Entry]) -> StoredValues {
        sites
            .iter()
            .map(|&(name, weight, bias)| {
                let bias = bias.map(Vec::from);
                (
                    name.to_owned(),
                    SiteValues {
                        weight: weight.to_vec(),
                        bias,
                    },
                )
            })
            .collect()
    }

    #[test]
    fn sites_left_out_hold_the_base_and_offsets_become_gains() {
        let only = stored(&[("l", [0.25, -0.5], None)]);
        let values = AdapterValues::fill(&table(), &BASE, Scope::Language, &only).unwrap();
        assert_eq!(values.row(), [1.0, 1.0, 0.0, 0.0, 1.25, 0.5]);
        assert_eq!(values.stored(&table()), only);
        assert_eq!(values.vision_digest(), table().vision_digest(&BASE));
    }

    #[test]
    fn the_site_set_is_exact() {
        let (v, l) = (("v", [2.0, 2.0], Some([0.5, 0.5])), ("l", [0.0, 0.0], None));
        let fill =
            |scope, sites: &[Entry]| AdapterValues::fill(&table(), &BASE, scope, &stored(sites));
        assert!(fill(Scope::All, &[v, l]).is_ok());
        assert!(fill(Scope::Vision, &[v]).is_ok());
        assert_eq!(
            fill(Scope::All, &[v]).unwrap_err(),
            ValuesError::Missing {
                tensor: "l.weight".into()
            }
        );
        assert_eq!(
            fill(Scope::Vision, &[v, l]).unwrap_err(),
            ValuesError::NotInScope {
                site: "l".into(),
                scope: Scope::Vision
            }
        );
        assert_eq!(
            fill(
                Scope::Vision,
                &[v, ("v.above", [1.0, 1.0], Some([0.0, 0.0]))]
            )
            .unwrap_err(),
            ValuesError::NotInScope {
                site: "v.above".into(),
                scope: Scope::Vision
            }
        );
        assert_eq!(
            fill(Scope::Vision, &[("v", [1.0, 1.0], None)]).unwrap_err(),
            ValuesError::Missing {
                tensor: "v.bias".into()
            }
        );
        assert_eq!(
            fill(Scope::Language, &[("l", [1.0, 1.0], Some([0.0, 0.0]))]).unwrap_err(),
            ValuesError::Width {
                tensor: "l.bias".into(),
                got: 2,
                want: 0
            }
        );
        assert_eq!(
            fill(Scope::Vision, &[("v", [1.0, 1.0], Some([0.0, f32::NAN]))]).unwrap_err(),
            ValuesError::NotFinite {
                tensor: "v.bias".into(),
                index: 1
            }
        );
    }

    #[test]
    fn rows_of_another_length_are_refused() {
        let want = ValuesError::RowLength { got: 5, want: 6 };
        let new = AdapterValues::new(&table(), vec![1.0; 5], Scope::All).unwrap_err();
        assert_eq!(new, want);
        let none = StoredValues::new();
        assert_eq!(
            AdapterValues::fill(&table(), &BASE[..5], Scope::Projector, &none).unwrap_err(),
            want
        );
    }
}
