//! How a finding looks. In: a finding and the chest it lies in. Out: layers (an alpha mask and a
//! grey level) to paint over the healthy film. It knows no words.

use rand::Rng;
use rand_chacha::ChaCha8Rng;

use super::anatomy::{Anatomy, Field, HEART_LEVEL, edge, field};
use super::{Finding, Kind, Side, Size, Stream, Zone, rng};

/// One thing painted over the film.
pub(super) struct Layer {
    pub(super) alpha: Field,
    pub(super) level: f64,
    /// Whether the mask marks the finding for the per-patch labels (a lead or a pleural line is
    /// drawn but too thin to mark).
    pub(super) marks: bool,
}

/// The layers of `finding`, the lowest first. Deterministic in the seed, and independent of the
/// other findings of the scene.
pub(super) fn layers(finding: Finding, anatomy: &Anatomy, seed: u64) -> Vec<Layer> {
    let mut rng = rng(seed, Stream::Finding, finding.kind as u64);
    let side = finding.side.unwrap_or(Side::Left);
    let large = finding.size == Some(Size::Large);
    match finding.kind {
        Kind::Pneumothorax => pneumothorax(anatomy, side, large, &mut rng),
        Kind::Effusion => effusion(anatomy, side, large, &mut rng),
        Kind::Opacity => opacity(anatomy, side, finding.zone, &mut rng),
        Kind::Nodule => nodule(anatomy, side, (finding.zone, large), &mut rng),
        Kind::Cardiomegaly => cardiomegaly(anatomy),
        Kind::Pacemaker => pacemaker(anatomy, side, &mut rng),
    }
}

/// A dark rim without markings between the chest wall and a fine bright pleural line.
fn pneumothorax(anatomy: &Anatomy, side: Side, large: bool, rng: &mut ChaCha8Rng) -> Vec<Layer> {
    let (rim, floor) = if large {
        (rng.random_range(8.0..9.5), 60.0)
    } else {
        (rng.random_range(3.6..4.4), rng.random_range(28.0..32.0))
    };
    let inside = |x: f64, y: f64| {
        let d = anatomy.outward(side, x);
        let lung = edge(anatomy.lung_depth(side, d, y), 0.8);
        (lung * edge(floor - y, 2.0), anatomy.wall_depth(d, y))
    };
    let air = field(|x, y| {
        let (inside, depth) = inside(x, y);
        0.92 * inside * edge(rim - depth, 0.8)
    });
    let line = field(|x, y| {
        let (inside, depth) = inside(x, y);
        0.75 * inside * edge(0.7 - (depth - rim).abs(), 0.6)
    });
    vec![
        Layer {
            alpha: air,
            level: 8.0,
            marks: true,
        },
        Layer {
            alpha: line,
            level: 135.0,
            marks: false,
        },
    ]
}

/// Fluid over the diaphragm that climbs the outer wall.
fn effusion(anatomy: &Anatomy, side: Side, large: bool, rng: &mut ChaCha8Rng) -> Vec<Layer> {
    let dome = anatomy.dome(side);
    let jitter = rng.random_range(-0.8..0.8);
    let alpha = field(|x, y| {
        let d = anatomy.outward(side, x);
        let surface = if large {
            dome - 13.0 + jitter - 5.0 * ((d - 8.0) / 16.0).powi(2)
        } else {
            dome + 2.0 + jitter - 0.05 * (d - 10.0).max(0.0).powi(2)
        };
        0.94 * edge(anatomy.lung_depth(side, d, y), 0.8) * edge(y - surface, 0.9)
    });
    vec![Layer {
        alpha,
        level: 150.0,
        marks: true,
    }]
}

/// The centre (`d`, `y`) of a finding in a zone.
fn centre(side: Side, zone: Option<Zone>, rng: &mut ChaCha8Rng) -> (f64, f64) {
    let (y, d) = match (zone.unwrap_or(Zone::Middle), side) {
        (Zone::Upper, _) => (17.5, 11.0..14.0),
        (Zone::Middle, _) => (29.0, 12.5..16.5),
        (Zone::Lower, Side::Right) => (40.0, 12.5..17.0),
        // Beside the heart.
        (Zone::Lower, Side::Left) => (40.0, 17.0..19.0),
    };
    (rng.random_range(d), y + rng.random_range(-1.5..1.5))
}

/// A cloud with a soft, uneven outline.
fn opacity(anatomy: &Anatomy, side: Side, zone: Option<Zone>, rng: &mut ChaCha8Rng) -> Vec<Layer> {
    let (d, y) = centre(side, zone, rng);
    let puffs: Vec<(f64, f64, f64)> = (0..7)
        .map(|_| {
            let (dd, dy) = (rng.random_range(-3.6..3.6), rng.random_range(-3.2..3.2));
            (d + dd, y + dy, rng.random_range(2.4..3.8))
        })
        .collect();
    let alpha = field(|x, py| {
        let pd = anatomy.outward(side, x);
        let clear = puffs.iter().fold(1.0, |clear, (d, y, radius)| {
            let distance = (pd - d).hypot(py - y) / radius;
            clear * (1.0 - 0.45 * (-distance * distance).exp())
        });
        0.95 * (1.0 - clear) * edge(anatomy.lung_depth(side, pd, py), 0.8)
    });
    vec![Layer {
        alpha,
        level: 150.0,
        marks: true,
    }]
}

/// A crisp bright disc.
fn nodule(
    anatomy: &Anatomy,
    side: Side,
    (zone, large): (Option<Zone>, bool),
    rng: &mut ChaCha8Rng,
) -> Vec<Layer> {
    let (d, y) = centre(side, zone, rng);
    let radius = if large {
        rng.random_range(4.2..4.9)
    } else {
        rng.random_range(2.0..2.5)
    };
    let alpha =
        field(|x, py| 0.95 * edge(radius - (anatomy.outward(side, x) - d).hypot(py - y), 0.7));
    vec![Layer {
        alpha,
        level: 186.0,
        marks: true,
    }]
}

/// A heart wider than half the chest. What it adds to the healthy heart is marked.
fn cardiomegaly(anatomy: &Anatomy) -> Vec<Layer> {
    let whole = field(|x, y| edge(anatomy.heart_depth(true, x, y), 0.9));
    let added = field(|x, y| {
        let healthy = edge(anatomy.heart_depth(false, x, y), 0.9);
        edge(anatomy.heart_depth(true, x, y), 0.9) * (1.0 - healthy)
    });
    vec![
        Layer {
            alpha: whole,
            level: HEART_LEVEL,
            marks: false,
        },
        Layer {
            alpha: added,
            level: HEART_LEVEL,
            marks: true,
        },
    ]
}

/// A metal box below the clavicle and a lead to the heart.
fn pacemaker(anatomy: &Anatomy, side: Side, rng: &mut ChaCha8Rng) -> Vec<Layer> {
    let (d, y) = (
        20.0 + rng.random_range(-1.0..1.0),
        15.5 + rng.random_range(-1.2..1.2),
    );
    let frame = |x: f64, py: f64| (anatomy.outward(side, x) - d, py - y);
    let lead = field(|x, py| {
        let (out, down) = frame(x, py);
        // From the box inward, bending down along the midline to the heart.
        let bend = (-out / (d - 1.0)).clamp(0.0, 1.0);
        let line = 24.0 * bend.powi(3);
        let slope = 1.0 + 3.0 * bend;
        0.6 * edge(0.45 - (down - line).abs() / slope, 0.6)
            * f64::from(u8::from(bend > 0.0 && bend < 1.0))
    });
    let body = field(|x, py| {
        let (out, down) = frame(x, py);
        edge((3.8 - out.abs()).min(2.9 - down.abs()), 0.6)
    });
    vec![
        Layer {
            alpha: lead,
            level: 215.0,
            marks: false,
        },
        Layer {
            alpha: body,
            level: 238.0,
            marks: true,
        },
    ]
}
