//! A healthy chest with anatomical variation. In: an image seed. Out: the geometry that the
//! findings are placed by, and the healthy film in grey levels. It knows no findings beyond the
//! heart's size, and no words.
//!
//! Lengths are pixels of a 64 x 64 film. A lung is described in its own frame: `d` is the distance
//! from the midline outward to the lung's side, `y` grows downward.

use rand::Rng;

use super::draw::SIDE;
use super::{Side, Stream, rng};

/// One value a pixel, row by row.
pub(super) type Field = Vec<f64>;

/// Builds a field from the pixel centres.
pub(super) fn field(value: impl Fn(f64, f64) -> f64) -> Field {
    (0..SIDE * SIDE)
        .map(|at| {
            let (x, y) = pixel_centre(at);
            value(x, y)
        })
        .collect()
}

fn pixel_centre(at: usize) -> (f64, f64) {
    ((at % SIDE) as f64 + 0.5, (at / SIDE) as f64 + 0.5)
}

/// 0 below `-softness`, 1 above `softness`, smooth between: an antialiased edge.
pub(super) fn edge(distance: f64, softness: f64) -> f64 {
    let t = (0.5 + 0.5 * distance / softness).clamp(0.0, 1.0);
    t * t * (3.0 - 2.0 * t)
}

/// Mixes `level` into every pixel by its alpha.
pub(super) fn paint(film: &mut Field, alpha: &Field, level: f64) {
    for (value, alpha) in film.iter_mut().zip(alpha) {
        *value += (level - *value) * alpha;
    }
}

/// The varying measures of one chest.
pub(super) struct Anatomy {
    midline: f64,
    apex: f64,
    /// Height of the diaphragm's dome: left, right.
    dome: [f64; 2],
    width: f64,
    heart_y: f64,
    heart_rx: f64,
    heart_ry: f64,
    big_heart_rx: f64,
    rib_phase: f64,
    rib_slope: f64,
    lung_level: f64,
    vessels: Vec<Vessel>,
}

struct Vessel {
    side: Side,
    /// Sine and cosine of its angle below the horizontal.
    direction: (f64, f64),
    length: f64,
    bend: f64,
}

impl Anatomy {
    pub(super) fn sample(seed: u64) -> Self {
        let rng = &mut rng(seed, Stream::Anatomy, 0);
        let dome = 46.0 + rng.random_range(-1.5..1.5);
        let heart_rx = rng.random_range(7.6..9.2);
        let mut vessels = Vec::new();
        for side in Side::ALL {
            for at in 0..5 {
                vessels.push(Vessel {
                    side,
                    direction: f64::sin_cos(
                        -1.2 + 0.6 * f64::from(at) + rng.random_range(-0.2..0.2),
                    ),
                    length: rng.random_range(8.0..14.0),
                    bend: rng.random_range(-0.03..0.03),
                });
            }
        }
        Self {
            midline: 32.0 + rng.random_range(-1.5..1.5),
            apex: 7.5 + rng.random_range(-1.0..1.5),
            dome: [dome + 1.5, dome],
            width: rng.random_range(0.94..1.06),
            heart_y: 40.5 + rng.random_range(-1.0..1.0),
            heart_rx,
            heart_ry: rng.random_range(8.4..9.6),
            big_heart_rx: heart_rx + rng.random_range(5.2..6.6),
            rib_phase: rng.random_range(0.0..5.5),
            rib_slope: rng.random_range(0.25..0.45),
            lung_level: rng.random_range(40.0..54.0),
            vessels,
        }
    }

    /// Distance from the midline, outward to `side` (the patient's right is at the image's left).
    pub(super) fn outward(&self, side: Side, x: f64) -> f64 {
        match side {
            Side::Left => x - self.midline,
            Side::Right => self.midline - x,
        }
    }

    /// Height of the dome of one half of the diaphragm.
    pub(super) fn dome(&self, side: Side) -> f64 {
        self.dome[side as usize]
    }

    /// The diaphragm's height at `d`: a dome that falls to the costophrenic angle.
    fn diaphragm(&self, side: Side, d: f64) -> f64 {
        self.dome(side) + 0.05 * (d - 12.0).powi(2)
    }

    /// Depth inside the lung measured from its apex and outer wall only; positive inside.
    pub(super) fn wall_depth(&self, d: f64, y: f64) -> f64 {
        let height = ((y - self.apex) / 44.0).clamp(0.0, 1.0);
        let outer = self.width * (13.0 + 12.0 * (1.0 - (1.0 - height).powi(2)));
        let top = self.apex + 0.11 * (d - 11.0).powi(2);
        (outer - d).min((y - top) * 0.8)
    }

    /// Depth inside the lung; positive inside.
    pub(super) fn lung_depth(&self, side: Side, d: f64, y: f64) -> f64 {
        self.wall_depth(d, y)
            .min(d - 4.0)
            .min(self.diaphragm(side, d) - y)
    }

    /// Depth inside the heart, which lies more to the patient's left; positive inside.
    pub(super) fn heart_depth(&self, enlarged: bool, x: f64, y: f64) -> f64 {
        let rx = if enlarged {
            self.big_heart_rx
        } else {
            self.heart_rx
        };
        let ry = if enlarged {
            self.heart_ry + 1.5
        } else {
            self.heart_ry
        };
        let dx = x - self.midline - 4.0;
        // The apex hangs lower at the patient's left.
        let dy = y - self.heart_y - 0.12 * dx;
        (1.0 - (dx / rx).hypot(dy / ry)) * rx.min(ry)
    }

    /// The healthy chest in grey levels (about 0 to 255, not clamped, without noise).
    pub(super) fn healthy_film(&self) -> Field {
        let mut film = field(|x, y| {
            let shoulder = 3.0 + 0.016 * (x - self.midline).powi(2);
            let flank = 30.5 * self.width - (x - self.midline).abs();
            14.0 + 84.0 * edge((y - shoulder).min(flank), 1.2)
        });
        let lungs = self.lungs();
        paint(&mut film, &lungs, self.lung_level);
        self.add_vessels(&mut film, &lungs);
        self.add_ribs(&mut film);
        let below = field(|x, y| {
            let side = if x < self.midline {
                Side::Right
            } else {
                Side::Left
            };
            let d = self.outward(side, x);
            edge(
                (y - self.diaphragm(side, d)).min(25.0 * self.width - d),
                0.9,
            )
        });
        paint(&mut film, &below, 132.0);
        let bubble = field(|x, y| {
            let d = self.outward(Side::Left, x);
            0.7 * edge(
                3.4 - (d - 11.0).hypot((y - self.dome(Side::Left) - 6.5) * 1.3),
                1.0,
            )
        });
        paint(&mut film, &bubble, 60.0);
        let mediastinum = field(|x, y| {
            let half = 4.6 + 1.4 * ((y - 22.0) / 8.0).cos().max(0.0);
            0.9 * edge(half - (x - self.midline - 0.4).abs(), 1.0) * edge(y - 4.0, 1.5)
        });
        paint(&mut film, &mediastinum, 128.0);
        let spine = field(|x, y| {
            let joint = 0.75 + 0.25 * (y * 1.4).sin();
            0.45 * joint * edge(2.2 - (x - self.midline).abs(), 0.8)
        });
        paint(&mut film, &spine, 168.0);
        let heart = field(|x, y| edge(self.heart_depth(false, x, y), 0.9));
        paint(&mut film, &heart, HEART_LEVEL);
        film
    }

    /// Both lungs as an alpha mask.
    pub(super) fn lungs(&self) -> Field {
        field(|x, y| {
            let side = if x < self.midline {
                Side::Right
            } else {
                Side::Left
            };
            edge(self.lung_depth(side, self.outward(side, x), y), 0.8)
        })
    }

    fn add_vessels(&self, film: &mut Field, lungs: &Field) {
        let inside = film
            .iter_mut()
            .zip(lungs)
            .enumerate()
            .filter(|(_, (_, lung))| **lung > 0.0);
        for (at, (value, lung)) in inside {
            let (x, y) = pixel_centre(at);
            let strongest = self
                .vessels
                .iter()
                .map(|vessel| self.vessel_at(vessel, x, y));
            *value += 26.0 * lung * strongest.fold(0.0, f64::max);
        }
    }

    /// How much of a vessel lies at a point, from 0 to 1.
    fn vessel_at(&self, vessel: &Vessel, x: f64, y: f64) -> f64 {
        let (sin, cos) = vessel.direction;
        let (dx, dy) = (self.outward(vessel.side, x) - 5.0, y - 27.0);
        let along = dx * cos + dy * sin;
        if along <= 0.0 || along >= vessel.length {
            return 0.0;
        }
        let off = (dy * cos - dx * sin - vessel.bend * along * along).abs();
        (1.0 - along / vessel.length) * edge(0.9 - off, 0.8)
    }

    fn add_ribs(&self, film: &mut Field) {
        let ribs = field(|x, y| {
            let d = (x - self.midline).abs();
            let inside = edge(27.0 * self.width - d, 1.0) * edge(d - 3.0, 1.0);
            let drop = self.rib_slope * d + 0.012 * (d - 12.0).powi(2);
            let phase = (y - drop - self.rib_phase).rem_euclid(5.5) - 2.75;
            let height = edge(y - 6.0, 2.0) * edge(50.0 - y, 3.0);
            inside * height * edge(0.75 - phase.abs(), 0.7)
        });
        let clavicles = field(|x, y| {
            let d = (x - self.midline).abs();
            let line = self.apex + 5.5 - 0.22 * d;
            edge(0.8 - (y - line).abs(), 0.7) * edge(d - 3.0, 1.0) * edge(25.0 - d, 1.0)
        });
        for ((value, rib), clavicle) in film.iter_mut().zip(ribs).zip(clavicles) {
            *value += 13.0 * rib + 34.0 * clavicle;
        }
    }
}

/// Grey level of the heart, healthy or enlarged.
pub(super) const HEART_LEVEL: f64 = 142.0;
