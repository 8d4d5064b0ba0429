//! A page about a run, in one file that needs nothing else. In: what the run came to, as plain data. Out:
//! HTML. It must not know how anything was measured.

use std::fmt::Write;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use norma_adapters::{Scope, SiteTable};
use serde_json::Value;

use super::chart::{Curve, Movement, curves, escaped, heat_map};
use crate::run::Tuned;

/// An answer before and after.
pub struct Shown {
    /// The picture as a PNG file's bytes, if there is one.
    pub png: Option<Vec<u8>>,
    /// What was asked.
    pub question: String,
    /// What is right.
    pub wanted: String,
    /// The untouched base's answer.
    pub before: String,
    /// The tuned base's answer.
    pub after: String,
}

/// All that a page says.
pub struct Page<'a> {
    /// What it is about.
    pub title: String,
    /// Names and values of what there is to know.
    pub facts: Vec<(String, String)>,
    /// Losses.
    pub tuned: &'a Tuned,
    /// How far tensors moved.
    pub movements: Vec<Movement>,
    /// The variants of a sweep with their lowest validation losses; the kept one is named in the facts.
    pub variants: Vec<(String, f64)>,
    /// Answers.
    pub shown: Vec<Shown>,
}

/// How far the norm values of each site moved, gains and biases apart. `rows`: the base's and the tuned one.
pub fn movements(table: &SiteTable, rows: [&[f32]; 2]) -> Vec<Movement> {
    let rms = |range: std::ops::Range<usize>| {
        let [before, after] = rows.map(|row| &row[range.clone()]);
        let pairs = before.iter().zip(after);
        let squares = pairs.map(|(before, after)| (f64::from(*after) - f64::from(*before)).powi(2));
        (squares.sum::<f64>() / range.len().max(1) as f64).sqrt()
    };
    let mut moved = Vec::new();
    for idx in table.selected(Scope::All) {
        let (site, range) = (&table.sites()[idx], table.range(idx));
        let mut push = |name: String, range| {
            moved.push(Movement {
                name,
                rms: rms(range),
            });
        };
        push(site.weight_name(), range.gain);
        if let (Some(name), Some(range)) = (site.bias_name(), range.bias) {
            push(name, range);
        }
    }
    moved
}

/// The numbers and words of a JSON value with their paths.
pub fn flattened(value: &Value) -> Vec<(String, String)> {
    fn walk(path: &str, value: &Value, found: &mut Vec<(String, String)>) {
        let below = |key: &str| match path {
            "" => key.to_owned(),
            path => format!("{path}.{key}"),
        };
        match value {
            Value::Object(map) => {
                for (key, value) in map {
                    walk(&below(key), value, found);
                }
            }
            Value::Array(list) => {
                for (at, value) in list.iter().enumerate() {
                    walk(&below(&at.to_string()), value, found);
                }
            }
            Value::Null => {}
            Value::String(text) => found.push((path.into(), text.clone())),
            other => found.push((path.into(), other.to_string())),
        }
    }
    let mut found = Vec::new();
    walk("", value, &mut found);
    found
}

const STYLE: &str = "body{font:15px/1.45 system-ui,sans-serif;max-width:60rem;margin:2rem auto;\
padding:0 1rem;color:#222;background:#fff}h1{font-size:1.5rem}h2{font-size:1.1rem;margin-top:2rem}\
svg{width:100%;height:auto}svg text{font:11px system-ui,sans-serif;fill:#555}.grid{stroke:#ddd}\
.curve{fill:none;stroke-width:1.6}.cell{stroke:#ccc;stroke-width:.5}table{border-collapse:collapse}\
td,th{padding:.2rem .8rem .2rem 0;text-align:left;vertical-align:top;border-bottom:1px solid #eee}\
figure{display:flex;gap:1rem;margin:1rem 0}figure img{width:12rem;height:12rem;object-fit:contain;\
background:#000}";

impl Page<'_> {
    /// The page.
    pub fn to_html(&self) -> String {
        let title = escaped(&self.title);
        let mut html = format!(
            "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>{title}</title>\
             <meta name=\"viewport\" content=\"width=device-width\"><style>{STYLE}</style></head>\
             <body><h1>{title}</h1>\n"
        );
        table(&mut html, &self.facts);
        self.losses(&mut html);
        if !self.variants.is_empty() {
            html.push_str("<h2>Variants, by their lowest validation loss</h2>\n");
            let mut variants: Vec<&(String, f64)> = self.variants.iter().collect();
            variants.sort_by(|one, other| one.1.total_cmp(&other.1));
            let rows = variants
                .iter()
                .map(|(name, loss)| (name.clone(), format!("{loss:.4}")));
            table(&mut html, &rows.collect::<Vec<_>>());
        }
        html.push_str("<h2>How far norm values moved, by layer</h2>\n");
        html.push_str(
            "<p>Root mean square; the darkest moved furthest. Point at a cell for its name.</p>\n",
        );
        html.push_str(&heat_map(&self.movements));
        if !self.shown.is_empty() {
            html.push_str("<h2>Answers before and after</h2>\n");
            self.shown.iter().for_each(|shown| figure(&mut html, shown));
        }
        html.push_str("</body></html>\n");
        html
    }

    fn losses(&self, html: &mut String) {
        let steps = self.tuned.losses.iter().enumerate();
        let train = Curve {
            name: "training",
            points: steps.map(|(at, loss)| ((at + 1) as f64, *loss)).collect(),
            colour: "#8a8a8a",
        };
        let validated = self.tuned.validated.iter();
        let validation = Curve {
            name: "validation",
            points: validated.map(|one| (one.done as f64, one.loss)).collect(),
            colour: "#b3400e",
        };
        html.push_str("\n<h2>Loss by step: training grey");
        let mut drawn = vec![train];
        if !validation.points.is_empty() {
            html.push_str(", validation red");
            drawn.push(validation);
        }
        html.push_str("</h2>\n");
        html.push_str(&curves(&drawn));
    }
}

fn table(html: &mut String, rows: &[(String, String)]) {
    html.push_str("<table>");
    for (name, value) in rows {
        let _ = write!(
            html,
            "<tr><th>{}</th><td>{}</td></tr>",
            escaped(name),
            escaped(value)
        );
    }
    html.push_str("</table>\n");
}

fn figure(html: &mut String, shown: &Shown) {
    html.push_str("<figure>");
    if let Some(png) = &shown.png {
        let data = STANDARD.encode(png);
        let _ = write!(html, "<img alt=\"\" src=\"data:image/png;base64,{data}\">");
    }
    html.push_str("<figcaption>");
    let said = [
        ("asked", &shown.question),
        ("wanted", &shown.wanted),
        ("before", &shown.before),
        ("after", &shown.after),
    ];
    let rows = said.map(|(name, text)| (name.to_owned(), text.clone()));
    table(html, &rows);
    html.push_str("</figcaption></figure>\n");
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::extras::Validated;

    #[test]
    fn a_page_stands_alone_and_shows_what_it_was_given() {
        let tuned = Tuned {
            row: Vec::new(),
            losses: vec![2.0, 1.0],
            moved: (1, 1),
            seconds: vec![0.1; 2],
            validated: vec![Validated { done: 2, loss: 1.5 }],
        };
        let shown = Shown {
            png: Some(vec![1, 2, 3]),
            question: "Is a < b?".into(),
            wanted: "yes".into(),
            before: "no".into(),
            after: "<script>".into(),
        };
        let page = Page {
            title: "A & B".into(),
            facts: vec![("rate".into(), "0.1".into())],
            tuned: &tuned,
            movements: vec![Movement {
                name: "norm.weight".into(),
                rms: 0.5,
            }],
            variants: vec![("worse".into(), 2.0), ("better".into(), 1.0)],
            shown: vec![shown],
        };
        let html = page.to_html();
        for part in [
            "<title>A &amp; B</title>",
            "src=\"data:image/png;base64,AQID\"",
            "Is a &lt; b?",
            "&lt;script&gt;",
            "validation red",
            "norm.weight: 5.000e-1",
        ] {
            assert!(html.contains(part), "{part}");
        }
        assert!(html.find("better") < html.find("worse"));
        assert!(!html.contains("<script") && !html.contains("http"));
        assert_eq!(html.matches("<polyline").count(), 2);
    }

    #[test]
    fn metrics_become_rows() {
        let rows =
            flattened(&json!({ "set": "films", "before": { "n": 3, "none": null }, "l": [1.5] }));
        let rows: Vec<String> = rows.iter().map(|(k, v)| format!("{k}={v}")).collect();
        assert_eq!(rows, ["set=films", "before.n=3", "l.0=1.5"]);
    }
}
