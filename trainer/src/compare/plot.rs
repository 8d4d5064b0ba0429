//! Plots as SVG. In: points with intervals. Out: the text of a picture that needs nothing else. It must not
//! know what the points mean.

use std::fmt::Write;

use super::table::{Row, Table};

/// One axis.
#[derive(Clone, Copy, Debug)]
pub struct Axis<'a> {
    /// What stands beside it.
    pub name: &'a str,
    /// Whether it is logarithmic, to base 10.
    pub logarithmic: bool,
}

/// A point with the interval of its height.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Point {
    pub x: f64,
    pub y: f64,
    pub low: f64,
    pub high: f64,
}

/// Points that belong together, in the order in which they are joined.
#[derive(Clone, Debug, PartialEq)]
pub struct Series {
    /// Its name.
    pub label: String,
    /// Its points.
    pub points: Vec<Point>,
}

const SIZE: (f64, f64) = (720.0, 440.0);
/// Left, top, right, bottom.
const MARGIN: (f64, f64, f64, f64) = (70.0, 40.0, 170.0, 60.0);
/// Colours that people tell apart however they see them (M. Okabe, K. Ito).
const COLOURS: [&str; 8] = [
    "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#888888",
];

/// The span of an axis and where its values lie in the picture.
struct Scale {
    logarithmic: bool,
    low: f64,
    high: f64,
    from: f64,
    to: f64,
}

impl Scale {
    fn new(axis: Axis, values: impl Iterator<Item = f64>, (from, to): (f64, f64)) -> Self {
        let measured = values.map(|value| {
            if axis.logarithmic {
                value.log10()
            } else {
                value
            }
        });
        let (mut low, mut high) = measured
            .filter(|value| value.is_finite())
            .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| {
                (low.min(value), high.max(value))
            });
        if low > high {
            (low, high) = (0.0, 1.0);
        }
        let room = ((high - low) * 0.08).max(if high > low { 0.0 } else { 0.5 });
        Self {
            logarithmic: axis.logarithmic,
            low: low - room,
            high: high + room,
            from,
            to,
        }
    }

    fn place(&self, value: f64) -> f64 {
        let value = if self.logarithmic {
            value.log10()
        } else {
            value
        };
        self.from + (value - self.low) / (self.high - self.low) * (self.to - self.from)
    }

    /// Round values within the span.
    fn ticks(&self) -> Vec<f64> {
        if self.logarithmic {
            let powers = self.low.ceil() as i32..=self.high.floor() as i32;
            let ticks: Vec<f64> = powers.map(|power| 10f64.powi(power)).collect();
            if ticks.len() > 1 {
                return ticks;
            }
            return vec![10f64.powf(self.low), 10f64.powf(self.high)];
        }
        let rough = (self.high - self.low) / 5.0;
        let power = 10f64.powf(rough.log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0]
            .into_iter()
            .find(|one| one * power >= rough);
        let step = step.unwrap_or(10.0) * power;
        let first = (self.low / step).ceil() as i64;
        let last = (self.high / step).floor() as i64;
        (first..=last).map(|at| at as f64 * step).collect()
    }
}

/// The picture. Points that a logarithmic axis cannot show are left out.
pub fn svg(title: &str, (x, y): (Axis, Axis), series: &[Series]) -> String {
    let shown = |point: &&Point| {
        let of = |axis: Axis, value: f64| value.is_finite() && (!axis.logarithmic || value > 0.0);
        of(x, point.x) && of(y, point.low) && of(y, point.high)
    };
    let points = || {
        series
            .iter()
            .flat_map(|one| one.points.iter().filter(shown))
    };
    let (left, right) = (MARGIN.0, SIZE.0 - MARGIN.2);
    let (top, bottom) = (MARGIN.1, SIZE.1 - MARGIN.3);
    let across = Scale::new(x, points().map(|one| one.x), (left, right));
    let heights = points().flat_map(|one| [one.low, one.high]);
    let up = Scale::new(y, heights, (bottom, top));
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{}\" height=\"{}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
         <text x=\"{left}\" y=\"24\" font-size=\"15\">{}</text>\n",
        SIZE.0,
        SIZE.1,
        escaped(title)
    );
    for tick in across.ticks() {
        let at = across.place(tick);
        let _ = writeln!(
            text,
            "<path d=\"M{at:.1} {top}V{bottom}\" stroke=\"#dddddd\"/><text x=\"{at:.1}\" y=\"{}\" text-anchor=\"middle\">{}</text>",
            bottom + 18.0,
            number(tick)
        );
    }
    for tick in up.ticks() {
        let at = up.place(tick);
        let _ = writeln!(
            text,
            "<path d=\"M{left} {at:.1}H{right}\" stroke=\"#dddddd\"/><text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            left - 8.0,
            at + 4.0,
            number(tick)
        );
    }
    let (middle_x, middle_y) = (f64::midpoint(left, right), f64::midpoint(top, bottom));
    let _ = writeln!(
        text,
        "<text x=\"{middle_x}\" y=\"{}\" text-anchor=\"middle\">{}</text>\n\
         <text transform=\"translate(20 {middle_y}) rotate(-90)\" text-anchor=\"middle\">{}</text>",
        SIZE.1 - 16.0,
        escaped(x.name),
        escaped(y.name)
    );
    for (at, one) in series.iter().enumerate() {
        let colour = COLOURS[at % COLOURS.len()];
        // A second round of colours has hollow circles.
        let fill = if at < COLOURS.len() { colour } else { "white" };
        let places: Vec<(f64, &Point)> = one
            .points
            .iter()
            .filter(shown)
            .map(|point| (across.place(point.x), point))
            .collect();
        let joined: Vec<String> = places
            .iter()
            .map(|(x, point)| format!("{x:.1},{:.1}", up.place(point.y)))
            .collect();
        let _ = writeln!(
            text,
            "<g stroke=\"{colour}\" fill=\"{fill}\"><polyline points=\"{}\" fill=\"none\"/>",
            joined.join(" ")
        );
        for (x, point) in places {
            let _ = writeln!(
                text,
                "<path d=\"M{x:.1} {:.1}V{:.1}\"/><circle cx=\"{x:.1}\" cy=\"{:.1}\" r=\"4\"/>",
                up.place(point.low),
                up.place(point.high),
                up.place(point.y)
            );
        }
        let line = top + 10.0 + 18.0 * at as f64;
        let _ = writeln!(
            text,
            "</g><circle cx=\"{}\" cy=\"{line}\" r=\"4\" stroke=\"{colour}\" fill=\"{fill}\"/><text x=\"{}\" y=\"{}\">{}</text>",
            right + 16.0,
            right + 26.0,
            line + 4.0,
            escaped(&one.label)
        );
    }
    text + "</svg>\n"
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

fn number(value: f64) -> String {
    if value.abs() >= 1e6 {
        format!("{value:.0e}")
    } else {
        let text = format!("{value:.4}");
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    }
}

/// What a point's place across is taken from.
type X = fn(&Row) -> Option<f64>;

/// The plots of a table, by file name: the primary measure against trained values, against step time, and,
/// where there are several, against the share of the data.
pub fn of_table(table: &Table) -> Vec<(&'static str, String)> {
    let name = format!("{}, %", table.primary);
    let largest = table.rows.iter().map(|row| row.share).fold(0.0, f64::max);
    let height = Axis {
        name: &name,
        logarithmic: false,
    };
    let logarithmic = |name| Axis {
        name,
        logarithmic: true,
    };
    let series = |x: X, all_shares: bool| {
        let mut series: Vec<Series> = Vec::new();
        for row in table.rows.iter().skip(1) {
            let (Some(x), Some(score)) = (x(row), row.score(&table.primary)) else {
                continue;
            };
            if !all_shares && row.share < largest {
                continue;
            }
            let point = Point {
                x,
                y: 100.0 * score.value,
                low: 100.0 * score.low,
                high: 100.0 * score.high,
            };
            match series.iter_mut().find(|one| one.label == row.label) {
                Some(one) => one.points.push(point),
                None => series.push(Series {
                    label: row.label.clone(),
                    points: vec![point],
                }),
            }
        }
        for one in &mut series {
            one.points.sort_by(|a, b| a.x.total_cmp(&b.x));
        }
        series
    };
    let mut plots = vec![
        (
            "trainable.svg",
            svg(
                &format!("{} by trained values", table.primary),
                (logarithmic("trained values"), height),
                &series(|row| Some(row.trainable as f64), false),
            ),
        ),
        (
            "step_time.svg",
            svg(
                &format!("{} by time of a step", table.primary),
                (logarithmic("milliseconds a step"), height),
                &series(|row| row.step_ms, false),
            ),
        ),
    ];
    if table.rows.iter().skip(1).any(|row| row.share < largest) {
        plots.push((
            "share.svg",
            svg(
                &format!("{} by share of the training images", table.primary),
                (logarithmic("share of the training images"), height),
                &series(|row| Some(row.share), true),
            ),
        ));
    }
    plots
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_within_the_span() {
        let axis = |logarithmic| Axis {
            name: "",
            logarithmic,
        };
        let scale = Scale::new(axis(false), [31.0, 78.0].into_iter(), (0.0, 100.0));
        assert_eq!(scale.ticks(), [40.0, 60.0, 80.0]);
        assert!(scale.place(31.0) > 0.0 && scale.place(78.0) < 100.0);
        let scale = Scale::new(axis(true), [500.0, 2e6].into_iter(), (0.0, 100.0));
        assert_eq!(scale.ticks(), [1e3, 1e4, 1e5, 1e6]);
        let scale = Scale::new(axis(false), [5.0].into_iter(), (0.0, 100.0));
        assert!((scale.place(5.0) - 50.0).abs() < 1e-9);
    }

    #[test]
    fn every_point_is_drawn_and_labels_are_escaped() {
        let point = |x| Point {
            x,
            y: 2.0,
            low: 1.0,
            high: 3.0,
        };
        let series = [Series {
            label: "a<b".into(),
            points: vec![point(1.0), point(10.0), point(0.0)],
        }];
        let axis = |logarithmic| Axis {
            name: "x & y",
            logarithmic,
        };
        let text = svg("t", (axis(true), axis(false)), &series);
        // Two points and the legend; zero has no logarithm.
        assert_eq!(text.matches("<circle").count(), 3);
        assert!(text.contains("a&lt;b") && text.contains("x &amp; y"));
        assert!(text.starts_with("<svg") && text.ends_with("</svg>\n"));
        assert!(!text.contains("NaN") && !text.contains("inf"));
    }
}
