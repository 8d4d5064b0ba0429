//! Norm sites and the row they make up.
//!
//! In: the list of sites that a base declares, in its fixed order. Out: where each site's gain and
//! bias live inside one bank row. Knows no tensor, no file and no model.

use std::collections::HashMap;
use std::ops::Range;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::digest::Digest;

/// How a site normalises, and so which values it holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SiteKind {
    /// Gain and bias.
    LayerNorm,
    /// Gain only.
    RmsNorm,
    /// Gain only; the checkpoint stores `gain - 1` (Gemma's form).
    RmsNormOffset,
}

impl SiteKind {
    /// Whether the site has a bias beside its gain.
    pub fn has_bias(self) -> bool {
        matches!(self, SiteKind::LayerNorm)
    }

    /// What is added to a stored weight to get the effective gain: 1 for the offset form, else 0.
    pub fn gain_offset(self) -> f32 {
        match self {
            SiteKind::LayerNorm | SiteKind::RmsNorm => 0.0,
            SiteKind::RmsNormOffset => 1.0,
        }
    }
}

/// The part of the base that a site belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Part {
    Vision,
    Projector,
    Language,
}

/// Which parts of the base an adapter holds values for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    All,
    Vision,
    Projector,
    Language,
}

impl Scope {
    /// Whether sites of this part belong to the scope.
    pub fn selects(self, part: Part) -> bool {
        match self {
            Scope::All => true,
            Scope::Vision => part == Part::Vision,
            Scope::Projector => part == Part::Projector,
            Scope::Language => part == Part::Language,
        }
    }

    /// The word used in manifests, on the command line and in listings.
    pub fn as_str(self) -> &'static str {
        match self {
            Scope::All => "all",
            Scope::Vision => "vision",
            Scope::Projector => "projector",
            Scope::Language => "language",
        }
    }
}

impl std::fmt::Display for Scope {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A scope word that is none of `all`, `vision`, `projector`, `language`.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("scope `{0}` is unknown; use `all`, `vision`, `projector` or `language`")]
pub struct UnknownScope(pub String);

impl std::str::FromStr for Scope {
    type Err = UnknownScope;

    fn from_str(word: &str) -> Result<Self, Self::Err> {
        [Scope::All, Scope::Vision, Scope::Projector, Scope::Language]
            .into_iter()
            .find(|scope| scope.as_str() == word)
            .ok_or_else(|| UnknownScope(word.to_owned()))
    }
}

/// One norm of the base.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Site {
    /// Canonical name, such as `language_model.model.layers.0.input_layernorm`; its tensors are
    /// the name followed by `.weight` and, where there is a bias, `.bias`.
    pub name: String,
    pub kind: SiteKind,
    /// Values in the gain, and in the bias where there is one.
    pub width: usize,
    pub part: Part,
    /// False where the forward never reaches the site (tower norms above the selected layer).
    /// Such a site has no place in a row and none in an adapter.
    pub used: bool,
}

impl Site {
    /// How many values the site holds: its gain and, where it has one, its bias.
    pub fn n_values(&self) -> usize {
        if self.kind.has_bias() {
            2 * self.width
        } else {
            self.width
        }
    }

    /// Name of the gain's tensor.
    pub fn weight_name(&self) -> String {
        format!("{}.weight", self.name)
    }

    /// Name of the bias's tensor, where the site has a bias.
    pub fn bias_name(&self) -> Option<String> {
        self.kind.has_bias().then(|| format!("{}.bias", self.name))
    }
}

/// Where one site's values lie inside a row. Both ranges are empty for a site that is not used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SiteRange {
    pub gain: Range<usize>,
    pub bias: Option<Range<usize>>,
}

/// Why a list of sites makes no table.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum SiteTableError {
    #[error("site `{0}` is listed twice")]
    Duplicate(String),
    #[error("site `{0}` has width 0")]
    ZeroWidth(String),
    #[error("site `{0}` breaks the run of vision and projector sites, which must lie together")]
    Scattered(String),
}

/// All sites of one base, and the layout of a row.
///
/// A row holds the used sites in the order given, each site's gain and then its bias.
#[derive(Clone, Debug)]
pub struct SiteTable {
    sites: Vec<Site>,
    ranges: Vec<SiteRange>,
    by_name: HashMap<String, usize>,
    row_len: usize,
    vision: Range<usize>,
}

impl SiteTable {
    /// Lays the sites out.
    ///
    /// # Errors
    /// A name listed twice, a width of 0, or used vision and projector sites that do not follow
    /// each other without a language site between them.
    pub fn new(sites: Vec<Site>) -> Result<Self, SiteTableError> {
        let mut by_name = HashMap::with_capacity(sites.len());
        let mut ranges = Vec::with_capacity(sites.len());
        let mut vision: Option<Range<usize>> = None;
        let mut end = 0;
        for (idx, site) in sites.iter().enumerate() {
            if by_name.insert(site.name.clone(), idx).is_some() {
                return Err(SiteTableError::Duplicate(site.name.clone()));
            }
            if site.width == 0 {
                return Err(SiteTableError::ZeroWidth(site.name.clone()));
            }
            let start = end;
            if !site.used {
                let bias = site.kind.has_bias().then_some(start..start);
                ranges.push(SiteRange {
                    gain: start..start,
                    bias,
                });
                continue;
            }
            end = start + site.n_values();
            let gain_end = start + site.width;
            let bias = site.kind.has_bias().then_some(gain_end..end);
            ranges.push(SiteRange {
                gain: start..gain_end,
                bias,
            });
            if site.part != Part::Language {
                let run = vision.get_or_insert(start..start);
                if run.end != start {
                    return Err(SiteTableError::Scattered(site.name.clone()));
                }
                run.end = end;
            }
        }
        let vision = vision.unwrap_or(0..0);
        Ok(Self {
            sites,
            ranges,
            by_name,
            row_len: end,
            vision,
        })
    }

    /// Every site, used or not, in the base's order.
    pub fn sites(&self) -> &[Site] {
        &self.sites
    }

    /// Index of the site with this canonical name.
    pub fn get(&self, name: &str) -> Option<usize> {
        self.by_name.get(name).copied()
    }

    /// Number of f32 values in a row: those of the used sites.
    pub fn row_len(&self) -> usize {
        self.row_len
    }

    /// Where the values of site `idx` lie in a row; empty ranges where the site is not used.
    ///
    /// # Panics
    /// When `idx` is not below `sites().len()`.
    pub fn range(&self, idx: usize) -> SiteRange {
        self.ranges[idx].clone()
    }

    /// The values that an image's features depend on: those of the vision tower and, because the
    /// features are kept as they leave it, of the projector.
    pub fn vision_range(&self) -> Range<usize> {
        self.vision.clone()
    }

    /// Indices of the used sites that a scope selects, in the base's order.
    pub fn selected(&self, scope: Scope) -> impl Iterator<Item = usize> + '_ {
        self.sites
            .iter()
            .enumerate()
            .filter(move |(_, site)| site.used && scope.selects(site.part))
            .map(|(idx, _)| idx)
    }

    /// Digest over the part of a row that an image's features depend on.
    ///
    /// # Panics
    /// When the row is not `row_len()` long.
    pub fn vision_digest(&self, row: &[f32]) -> Digest {
        assert_eq!(row.len(), self.row_len, "a row of another table");
        Digest::of_f32(&row[self.vision_range()])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn site(name: &str, kind: SiteKind, width: usize, part: Part, used: bool) -> Site {
        Site {
            name: name.to_owned(),
            kind,
            width,
            part,
            used,
        }
    }

    #[test]
    fn a_row_holds_used_sites_in_order_gain_then_bias() {
        let table = SiteTable::new(vec![
            site("v.0", SiteKind::LayerNorm, 4, Part::Vision, true),
            site("v.1", SiteKind::LayerNorm, 4, Part::Vision, false),
            site("p.0", SiteKind::RmsNormOffset, 3, Part::Projector, true),
            site("l.0", SiteKind::RmsNorm, 5, Part::Language, true),
        ])
        .unwrap();
        assert_eq!(table.row_len(), 8 + 3 + 5);
        assert_eq!(
            table.range(0),
            SiteRange {
                gain: 0..4,
                bias: Some(4..8)
            }
        );
        assert_eq!(
            table.range(1),
            SiteRange {
                gain: 8..8,
                bias: Some(8..8)
            }
        );
        assert_eq!(
            table.range(2),
            SiteRange {
                gain: 8..11,
                bias: None
            }
        );
        assert_eq!(
            table.range(3),
            SiteRange {
                gain: 11..16,
                bias: None
            }
        );
        assert_eq!(table.vision_range(), 0..11);
        assert_eq!(table.get("l.0"), Some(3));
        assert_eq!(table.get("l.1"), None);
        assert_eq!(table.selected(Scope::All).collect::<Vec<_>>(), [0, 2, 3]);
        assert_eq!(table.selected(Scope::Vision).collect::<Vec<_>>(), [0]);
        assert_eq!(table.selected(Scope::Language).collect::<Vec<_>>(), [3]);
    }

    #[test]
    fn the_vision_digest_sees_the_vision_part_and_nothing_else() {
        let table = SiteTable::new(vec![
            site("l.0", SiteKind::RmsNorm, 2, Part::Language, true),
            site("v.0", SiteKind::LayerNorm, 2, Part::Vision, true),
        ])
        .unwrap();
        let digest = |row: [f32; 6]| table.vision_digest(&row);
        let base = digest([1.0, 1.0, 1.0, 1.0, 0.0, 0.0]);
        assert_eq!(base, digest([2.0, 3.0, 1.0, 1.0, 0.0, 0.0]));
        assert_ne!(base, digest([1.0, 1.0, 1.0, 1.0, 0.0, 0.5]));
    }

    #[test]
    fn doubtful_lists_are_refused_by_name() {
        let rms = |name: &str, width, part| site(name, SiteKind::RmsNorm, width, part, true);
        let err = |sites| SiteTable::new(sites).unwrap_err();
        assert_eq!(
            err(vec![
                rms("a", 1, Part::Language),
                rms("a", 2, Part::Language)
            ]),
            SiteTableError::Duplicate("a".into())
        );
        assert_eq!(
            err(vec![rms("a", 0, Part::Vision)]),
            SiteTableError::ZeroWidth("a".into())
        );
        assert_eq!(
            err(vec![
                rms("v", 1, Part::Vision),
                rms("l", 1, Part::Language),
                rms("p", 1, Part::Projector)
            ]),
            SiteTableError::Scattered("p".into())
        );
    }

    #[test]
    fn scope_words_go_both_ways() {
        for scope in [Scope::All, Scope::Vision, Scope::Projector, Scope::Language] {
            assert_eq!(scope.as_str().parse::<Scope>().unwrap(), scope);
            assert_eq!(serde_json::to_value(scope).unwrap(), scope.as_str());
        }
        assert_eq!("tower".parse::<Scope>(), Err(UnknownScope("tower".into())));
    }
}
