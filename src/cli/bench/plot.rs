//! A run's curves as one SVG: a few panels of lines over a logarithmic axis.

use std::fmt::Write as _;

use super::report::Report;

const WIDTH: f64 = 420.0;
const HEIGHT: f64 = 260.0;
/// Around a panel's axes: left, top, right, bottom.
const MARGIN: [f64; 4] = [58.0, 34.0, 16.0, 42.0];
const COLOURS: [&str; 3] = ["#1f6feb", "#d1242f", "#2da44e"];

/// A panel: curves of one unit over counts.
struct Panel {
    title: &'static str,
    x: &'static str,
    y: &'static str,
    curves: Vec<Curve>,
}

struct Curve {
    name: &'static str,
    /// (count, value), counts of one or more and rising.
    points: Vec<(f64, f64)>,
}

/// The SVG of a run. Panels without figures are left out.
pub fn svg(report: &Report) -> String {
    let panels: Vec<Panel> = panels(report)
        .into_iter()
        .filter(|panel| panel.curves.iter().any(|curve| curve.points.len() > 1))
        .collect();
    let rows = panels.len().div_ceil(2).max(1) as f64;
    let (width, height) = (2.0 * WIDTH, rows * HEIGHT + 24.0);
    let mut out = String::new();
    let _ = write!(
        out,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" \
         font-family=\"sans-serif\" font-size=\"11\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
    );
    for (index, panel) in panels.iter().enumerate() {
        let (column, row) = (index % 2, index / 2);
        let _ = writeln!(
            out,
            "<g transform=\"translate({},{})\">",
            column as f64 * WIDTH,
            row as f64 * HEIGHT
        );
        draw(&mut out, panel);
        out.push_str("</g>\n");
    }
    let foot = format!("Norma {}, {}", report.norma, report.target);
    text(&mut out, (8.0, height - 8.0), ("start", "#57606a"), &foot);
    out.push_str("</svg>\n");
    out
}

fn panels(report: &Report) -> Vec<Panel> {
    let by_streams = |value: fn(&super::load::LoadFigures) -> f64| {
        let points = report.streams.iter();
        points
            .map(|load| (load.streams as f64, value(load)))
            .collect()
    };
    let registered = |value: fn(&super::registered::Registered) -> f64| {
        let points = report.registered.iter();
        points.map(|r| (r.adapters as f64, value(r))).collect()
    };
    let adapters = report.adapters.iter();
    let adapters = adapters.map(|load| (load.adapters as f64, load.tokens_per_second));
    vec![
        Panel {
            title: "Throughput, the base alone",
            x: "streams at once",
            y: "tokens/s",
            curves: vec![Curve {
                name: "tokens/s",
                points: by_streams(|load| load.tokens_per_second),
            }],
        },
        Panel {
            title: "From a token to the next",
            x: "streams at once",
            y: "ms",
            curves: vec![
                Curve {
                    name: "p50",
                    points: by_streams(|load| load.inter_token_ms.p50),
                },
                Curve {
                    name: "p99",
                    points: by_streams(|load| load.inter_token_ms.p99),
                },
            ],
        },
        Panel {
            title: "Throughput, most streams",
            x: "distinct adapters",
            y: "tokens/s",
            curves: vec![Curve {
                name: "tokens/s",
                points: adapters.collect(),
            }],
        },
        Panel {
            title: "Registry",
            x: "registered adapters",
            y: "ms",
            curves: vec![
                Curve {
                    name: "open",
                    points: registered(|r| r.open_ms),
                },
                Curve {
                    name: "list a page",
                    points: registered(|r| r.list_page_ms),
                },
            ],
        },
    ]
}

fn draw(out: &mut String, panel: &Panel) {
    let [left, top, right, bottom] = MARGIN;
    let points = || panel.curves.iter().flat_map(|curve| &curve.points);
    let most = points().map(|(x, _)| *x).fold(2.0, f64::max);
    let least = points().map(|(x, _)| *x).fold(most, f64::min).max(1.0);
    let ceiling = round_up(points().map(|(_, y)| *y).fold(0.0, f64::max));
    let span = (most / least).ln().max(f64::MIN_POSITIVE);
    let at_x = |x: f64| left + (x / least).ln() / span * (WIDTH - left - right);
    let at_y = |y: f64| HEIGHT - bottom - y / ceiling * (HEIGHT - top - bottom);
    text(out, (left, 20.0), ("start", "#1f2328"), panel.title);
    let middle = left + (WIDTH - left - right) / 2.0;
    text(out, (middle, HEIGHT - 10.0), ("middle", "#57606a"), panel.x);
    text(out, (left - 8.0, top - 6.0), ("end", "#57606a"), panel.y);
    for step in 0..=4 {
        let y = ceiling * f64::from(step) / 4.0;
        let _ = writeln!(
            out,
            "<line x1=\"{left}\" x2=\"{:.1}\" y1=\"{1:.1}\" y2=\"{1:.1}\" stroke=\"#d8dee4\"/>",
            WIDTH - right,
            at_y(y)
        );
        text(
            out,
            (left - 8.0, at_y(y) + 4.0),
            ("end", "#57606a"),
            &short(y),
        );
    }
    if let Some(longest) = panel.curves.iter().max_by_key(|curve| curve.points.len()) {
        for (x, _) in &longest.points {
            let place = (at_x(*x), HEIGHT - bottom + 15.0);
            text(out, place, ("middle", "#57606a"), &short(*x));
        }
    }
    for (index, curve) in panel.curves.iter().enumerate() {
        let colour = COLOURS[index % COLOURS.len()];
        let places: Vec<String> = curve
            .points
            .iter()
            .map(|(x, y)| format!("{:.1},{:.1}", at_x(*x), at_y(*y)))
            .collect();
        let _ = writeln!(
            out,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>",
            places.join(" ")
        );
        let place = (WIDTH - right, 20.0 + 13.0 * index as f64);
        text(out, place, ("end", colour), curve.name);
    }
}

fn text(out: &mut String, (x, y): (f64, f64), (anchor, colour): (&str, &str), words: &str) {
    let words = words
        .replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;");
    let _ = writeln!(
        out,
        "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\" fill=\"{colour}\">{words}</text>"
    );
}

/// The next of 1, 2, 4, 8 times a power of ten, so that quarters are short numbers.
fn round_up(value: f64) -> f64 {
    if value <= 0.0 {
        return 1.0;
    }
    let power = 10f64.powf(value.log10().floor());
    let steps = [1.0, 2.0, 4.0, 8.0, 10.0];
    let step = steps.into_iter().find(|step| step * power >= value);
    step.unwrap_or(10.0) * power
}

fn short(value: f64) -> String {
    if value >= 1000.0 {
        format!("{}k", value / 1000.0)
    } else {
        format!("{}", (value * 1000.0).round() / 1000.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_end_at_short_numbers_above_everything() {
        for (value, end) in [
            (0.0, 1.0),
            (1.0, 1.0),
            (1.1, 2.0),
            (37.0, 40.0),
            (810.0, 1000.0),
        ] {
            assert!((round_up(value) - end).abs() < 1e-9, "{value}");
        }
        assert_eq!(
            (short(2500.0).as_str(), short(0.25).as_str()),
            ("2.5k", "0.25")
        );
    }

    #[test]
    fn words_cannot_break_out_of_the_drawing() {
        let mut out = String::new();
        text(&mut out, (0.0, 0.0), ("end", "red"), "<a & b>");
        assert!(out.contains("&lt;a &amp; b&gt;"), "{out}");
    }
}
