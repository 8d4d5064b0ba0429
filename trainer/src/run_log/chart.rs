//! Drawings of a run as inline SVG: curves over steps, and a heat map of how far sites moved. In: numbers.
//! Out: SVG text. It must not know pages.

use std::collections::BTreeMap;
use std::fmt::Write;

/// A curve.
pub struct Curve<'a> {
    /// What it shows.
    pub name: &'a str,
    /// Steps and values.
    pub points: Vec<(f64, f64)>,
    /// A CSS colour.
    pub colour: &'a str,
}

/// How far one tensor moved.
#[derive(Clone, Debug, PartialEq)]
pub struct Movement {
    /// Canonical name.
    pub name: String,
    /// Root mean square of the differences.
    pub rms: f64,
}

/// Text that stands for itself in HTML and SVG.
pub fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            other => out.push(other),
        }
    }
    out
}

const SIZE: (f64, f64) = (720.0, 260.0);
const EDGE: (f64, f64) = (56.0, 28.0);
/// More points than this cannot be told apart.
const MOST_POINTS: usize = 700;

/// Curves over steps.
pub fn curves(curves: &[Curve]) -> String {
    let points = || curves.iter().flat_map(|curve| &curve.points);
    let span = |values: &mut dyn Iterator<Item = f64>| {
        let (mut low, mut high) = (f64::INFINITY, f64::NEG_INFINITY);
        for value in values.filter(|value| value.is_finite()) {
            (low, high) = (low.min(value), high.max(value));
        }
        if low > high {
            return (0.0, 1.0);
        }
        (low, if high > low { high } else { low + 1.0 })
    };
    let (left, right) = span(&mut points().map(|point| point.0));
    let (low, high) = span(&mut points().map(|point| point.1));
    let ((width, height), (edge, foot)) = (SIZE, EDGE);
    let x = |step: f64| edge + (step - left) / (right - left) * (width - edge - 8.0);
    let y = |value: f64| 8.0 + (high - value) / (high - low) * (height - foot - 8.0);
    let mut svg = format!("<svg viewBox=\"0 0 {width} {height}\" role=\"img\" class=\"chart\">");
    for at in 0..=4 {
        let share = f64::from(at) / 4.0;
        let (value, step) = (low + share * (high - low), left + share * (right - left));
        let (line, place) = (y(value), x(step));
        let end = width - 8.0;
        let _ = write!(
            svg,
            "<line x1=\"{edge}\" x2=\"{end}\" y1=\"{line:.1}\" y2=\"{line:.1}\" class=\"grid\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>\
             <text x=\"{place:.1}\" y=\"{height}\" dy=\"-8\" text-anchor=\"middle\">{step:.0}</text>",
            edge - 6.0,
            line + 4.0,
            short(value)
        );
    }
    for curve in curves {
        let finite = curve.points.iter().filter(|point| point.1.is_finite());
        let finite: Vec<&(f64, f64)> = finite.collect();
        let every = finite.len().div_ceil(MOST_POINTS).max(1);
        let last = finite.len().saturating_sub(1);
        let kept = finite.iter().enumerate();
        let kept = kept.filter(|(at, _)| at % every == 0 || *at == last);
        let places: Vec<String> = kept
            .map(|(_, (step, value))| format!("{:.1},{:.1}", x(*step), y(*value)))
            .collect();
        let _ = write!(
            svg,
            "<polyline points=\"{}\" stroke=\"{}\" class=\"curve\"><title>{}</title></polyline>",
            places.join(" "),
            curve.colour,
            escaped(curve.name)
        );
    }
    svg.push_str("</svg>");
    svg
}

fn short(value: f64) -> String {
    if value != 0.0 && (value.abs() < 1e-2 || value.abs() >= 1e5) {
        format!("{value:.1e}")
    } else {
        format!("{value:.3}")
    }
}

/// A cell a tensor: a row for each kind, a column for each layer. The darker, the further it moved.
pub fn heat_map(movements: &[Movement]) -> String {
    let mut rows: Vec<(String, BTreeMap<usize, &Movement>)> = Vec::new();
    for movement in movements {
        let (kind, layer) = kind_and_layer(&movement.name);
        let place = rows.iter().position(|(name, _)| *name == kind);
        let place = place.unwrap_or_else(|| {
            rows.push((kind, BTreeMap::new()));
            rows.len() - 1
        });
        rows[place].1.insert(layer, movement);
    }
    let largest = movements.iter().map(|one| one.rms).fold(0.0, f64::max);
    let columns = rows.iter().filter_map(|(_, cells)| cells.keys().last());
    let columns = columns.max().map_or(1, |last| last + 1);
    let (names, cell) = (430, 22);
    let (width, height) = (names + cell * columns, cell * (rows.len() + 1));
    let mut svg = format!(
        "<svg viewBox=\"0 0 {width} {height}\" role=\"img\" style=\"max-width:{width}px\">"
    );
    for (at, (kind, cells)) in rows.iter().enumerate() {
        let top = at * cell;
        let _ = write!(
            svg,
            "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{}</text>",
            names - 8,
            top + 15,
            escaped(kind)
        );
        for (layer, movement) in cells {
            let share = if largest > 0.0 {
                movement.rms / largest
            } else {
                0.0
            };
            let _ = write!(
                svg,
                "<rect x=\"{}\" y=\"{top}\" width=\"{side}\" height=\"{side}\" fill=\"#b3400e\" \
                 fill-opacity=\"{:.3}\" class=\"cell\"><title>{}: {:.3e}</title></rect>",
                names + layer * cell,
                share,
                escaped(&movement.name),
                movement.rms,
                side = cell - 2,
            );
        }
    }
    let foot = rows.len() * cell + 15;
    for layer in 0..columns {
        let middle = names + layer * cell + cell / 2 - 1;
        let _ = write!(
            svg,
            "<text x=\"{middle}\" y=\"{foot}\" text-anchor=\"middle\">{layer}</text>"
        );
    }
    svg.push_str("</svg>");
    svg
}

/// A tensor's name without the number of its layer, and that number.
fn kind_and_layer(name: &str) -> (String, usize) {
    let mut layer = None;
    let parts: Vec<&str> = name
        .split('.')
        .filter(|part| match (layer, part.parse()) {
            (None, Ok(number)) => {
                layer = Some(number);
                false
            }
            _ => true,
        })
        .collect();
    (parts.join("."), layer.unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_curve_goes_through_its_points() {
        let svg = curves(&[Curve {
            name: "a < b",
            points: vec![(0.0, 2.0), (5.0, f64::NAN), (10.0, 1.0)],
            colour: "red",
        }]);
        assert!(svg.contains("points=\"56.0,8.0 712.0,232.0\""), "{svg}");
        assert!(svg.contains("a &lt; b"));
        assert!(curves(&[]).ends_with("</svg>"));
    }

    #[test]
    fn many_points_are_thinned_and_the_last_stays() {
        let svg = curves(&[Curve {
            name: "",
            points: (0..=10_000)
                .map(|at| (f64::from(at), 1.0 / f64::from(at + 1)))
                .collect(),
            colour: "red",
        }]);
        let points = svg
            .split("points=\"")
            .nth(1)
            .unwrap()
            .split('"')
            .next()
            .unwrap();
        assert!(points.split(' ').count() < 800);
        assert!(points.ends_with("712.0,232.0"), "{points}");
    }

    #[test]
    fn a_heat_map_has_kinds_by_layers() {
        let movement = |name: &str, rms| Movement {
            name: name.into(),
            rms,
        };
        let svg = heat_map(&[
            movement("model.layers.0.norm.weight", 0.5),
            movement("model.layers.11.norm.weight", 1.0),
            movement("model.norm.weight", 0.0),
        ]);
        assert_eq!(svg.matches("<rect").count(), 3);
        assert!(svg.contains(">model.layers.norm.weight</text>"));
        assert!(
            svg.contains(&format!("x=\"{}\" y=\"0\"", 430 + 11 * 22)),
            "{svg}"
        );
        assert!(svg.contains("fill-opacity=\"0.500\"") && svg.contains("fill-opacity=\"0.000\""));
        assert!(heat_map(&[]).ends_with("</svg>"));
    }
}
