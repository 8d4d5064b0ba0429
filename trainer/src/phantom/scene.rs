//! What is true of one phantom film. In: a seed. Out: a consistent list of findings.
//! It knows neither pixels nor words.

use rand::Rng;
use rand::seq::{IndexedRandom, SliceRandom};
use serde::{Deserialize, Serialize};

use super::{Stream, rng};

/// The patient's side: the patient's right lies at the image's left.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Side {
    Left,
    Right,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Size {
    Small,
    Large,
}

/// The height within the lung.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Zone {
    Upper,
    Middle,
    Lower,
}

/// The kinds of finding, the most pressing first: this order ranks reports and decides which
/// finding is the main one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    Pneumothorax,
    Effusion,
    Opacity,
    Nodule,
    Cardiomegaly,
    Pacemaker,
}

impl Side {
    pub const ALL: [Self; 2] = [Self::Left, Self::Right];
}

impl Size {
    pub const ALL: [Self; 2] = [Self::Small, Self::Large];
}

impl Zone {
    pub const ALL: [Self; 3] = [Self::Upper, Self::Middle, Self::Lower];
}

impl Kind {
    pub const ALL: [Self; 6] = [
        Self::Pneumothorax,
        Self::Effusion,
        Self::Opacity,
        Self::Nodule,
        Self::Cardiomegaly,
        Self::Pacemaker,
    ];

    pub fn has_side(self) -> bool {
        self != Self::Cardiomegaly
    }

    pub fn has_size(self) -> bool {
        matches!(self, Self::Pneumothorax | Self::Effusion | Self::Nodule)
    }

    pub fn has_zone(self) -> bool {
        matches!(self, Self::Opacity | Self::Nodule)
    }
}

/// One finding. In a sampled scene exactly the attributes that its kind has are present; one read
/// back from a text may lack some ([`Finding::is_complete`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Finding {
    pub kind: Kind,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub side: Option<Side>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<Size>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<Zone>,
}

impl Finding {
    /// A finding of which nothing but its kind is known.
    pub fn bare(kind: Kind) -> Self {
        Self {
            kind,
            side: None,
            size: None,
            zone: None,
        }
    }

    /// Whether exactly the attributes that the kind has are present.
    pub fn is_complete(&self) -> bool {
        self.side.is_some() == self.kind.has_side()
            && self.size.is_some() == self.kind.has_size()
            && self.zone.is_some() == self.kind.has_zone()
    }

    fn sample(kind: Kind, rng: &mut impl Rng) -> Self {
        let mut finding = Self::bare(kind);
        if kind.has_side() {
            finding.side = Side::ALL.choose(rng).copied();
        }
        if kind.has_size() {
            finding.size = Size::ALL.choose(rng).copied();
        }
        if kind.has_zone() {
            finding.zone = Zone::ALL.choose(rng).copied();
        }
        finding
    }
}

/// The truth of one film: up to three findings, each kind at most once, in [`Kind`]'s order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Scene {
    pub findings: Vec<Finding>,
}

/// How often a film has zero, one, two or three findings, in parts of twenty.
const COUNT_WEIGHTS: [(usize, u32); 4] = [(0, 3), (1, 6), (2, 6), (3, 5)];

impl Scene {
    /// The scene of an image seed.
    pub fn sample(seed: u64) -> Self {
        let mut rng = rng(seed, Stream::Scene, 0);
        let count = COUNT_WEIGHTS
            .choose_weighted(&mut rng, |(_, weight)| *weight)
            .expect("the weights are positive")
            .0;
        let mut kinds = Kind::ALL;
        kinds.shuffle(&mut rng);
        // Only attributes are drawn anew on a conflict, so the number of findings and their kinds
        // keep their distribution.
        loop {
            let findings = kinds[..count]
                .iter()
                .map(|kind| Finding::sample(*kind, &mut rng));
            let scene = Self::from_findings(findings);
            if scene.is_consistent() {
                return scene;
            }
        }
    }

    /// A scene of the given findings, put into rank order.
    pub fn from_findings(findings: impl IntoIterator<Item = Finding>) -> Self {
        let mut findings: Vec<Finding> = findings.into_iter().collect();
        findings.sort_unstable();
        Self { findings }
    }

    pub fn find(&self, kind: Kind) -> Option<&Finding> {
        self.findings.iter().find(|finding| finding.kind == kind)
    }

    pub fn has(&self, kind: Kind) -> bool {
        self.find(kind).is_some()
    }

    /// The most pressing finding.
    pub fn main(&self) -> Option<Kind> {
        self.findings.iter().map(|finding| finding.kind).min()
    }

    /// The decision rule that pre-training never mentions: any pneumothorax, a large effusion or a
    /// large nodule is urgent.
    pub fn is_urgent(&self) -> bool {
        self.findings.iter().any(|finding| match finding.kind {
            Kind::Pneumothorax => true,
            Kind::Effusion | Kind::Nodule => finding.size == Some(Size::Large),
            Kind::Opacity | Kind::Cardiomegaly | Kind::Pacemaker => false,
        })
    }

    /// Whether the findings can be seen apart: no kind twice, none hidden behind another.
    pub fn is_consistent(&self) -> bool {
        let pairs = self.findings.iter().enumerate().flat_map(|(at, first)| {
            self.findings[at + 1..]
                .iter()
                .map(move |other| (first, other))
        });
        self.findings.len() <= 3
            && self.findings.iter().all(Finding::is_complete)
            && pairs
                .into_iter()
                .all(|(first, other)| !hides(*first, *other))
    }
}

/// Whether two findings of a ranked list overlap so far that one hides the other.
fn hides(first: Finding, other: Finding) -> bool {
    if first.kind == other.kind {
        return true;
    }
    let same_side = first.side == other.side;
    match (first.kind, other.kind) {
        (Kind::Pneumothorax, Kind::Opacity | Kind::Nodule) => {
            same_side && (first.size == Some(Size::Large) || other.zone == Some(Zone::Upper))
        }
        (Kind::Effusion, Kind::Opacity | Kind::Nodule) => {
            same_side
                && (other.zone == Some(Zone::Lower)
                    || (first.size == Some(Size::Large) && other.zone == Some(Zone::Middle)))
        }
        (Kind::Opacity, Kind::Nodule) => same_side && first.zone == other.zone,
        (Kind::Opacity | Kind::Nodule, Kind::Cardiomegaly) => {
            first.side == Some(Side::Left) && first.zone == Some(Zone::Lower)
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sampled_scenes_are_consistent_and_use_every_attribute() {
        let mut seen = std::collections::HashSet::new();
        let mut counts = [0_usize; 4];
        for seed in 0..4_000 {
            let scene = Scene::sample(seed);
            assert!(scene.is_consistent(), "{scene:?}");
            assert!(scene.findings.is_sorted());
            counts[scene.findings.len()] += 1;
            seen.extend(scene.findings);
        }
        // 4 pneumothoraces, 4 effusions, 6 opacities, 12 nodules, 1 heart, 2 pacemakers.
        assert_eq!(seen.len(), 29);
        assert!(counts.iter().all(|count| *count > 400), "{counts:?}");
    }

    #[test]
    fn a_seed_fixes_the_scene() {
        for seed in 0..50 {
            assert_eq!(Scene::sample(seed), Scene::sample(seed));
        }
        assert!((1..50).any(|seed| Scene::sample(seed) != Scene::sample(0)));
    }

    #[test]
    fn a_finding_behind_another_is_refused() {
        let nodule = Finding {
            kind: Kind::Nodule,
            side: Some(Side::Left),
            size: Some(Size::Small),
            zone: Some(Zone::Lower),
        };
        let effusion = Finding {
            kind: Kind::Effusion,
            side: Some(Side::Left),
            size: Some(Size::Small),
            zone: None,
        };
        assert!(!Scene::from_findings([nodule, effusion]).is_consistent());
        let elsewhere = Finding {
            side: Some(Side::Right),
            ..effusion
        };
        assert!(Scene::from_findings([nodule, elsewhere]).is_consistent());
        assert!(!Scene::from_findings([Finding::bare(Kind::Nodule)]).is_consistent());
    }
}
