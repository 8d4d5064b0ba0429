//! The table of a comparison, as Markdown and as CSV. In: a comparison. Out: text. It must not know how
//! anything was measured.

use std::fmt::Write;

use anyhow::{Context, Result};

use super::grid::{Entry, Grid};
use super::job::Measured;
use super::statistics::{Difference, Measure, difference, primary, score};
use super::{Compared, Comparison};
use crate::phantom::score::Score;

/// A method with one share of the data; the first row is the base itself.
#[derive(Clone, Debug)]
pub struct Row {
    /// The method's name, or `base`.
    pub label: String,
    /// Where it learns.
    pub scope: String,
    /// The share of the training images.
    pub share: f64,
    /// The learning rate that validation chose.
    pub rate: Option<f64>,
    /// Runs that are averaged.
    pub seeds: usize,
    /// Values that learnt.
    pub trainable: usize,
    /// The same as a share of the base's values.
    pub trainable_share: f64,
    /// The measures of the task.
    pub scores: Vec<(String, Score)>,
    /// The primary measure less that of the first LayerNorm row of the same share.
    pub against: Option<Difference>,
    /// The median step, in milliseconds, the mean of seeds.
    pub step_ms: Option<f64>,
    /// The highest peak of memory of all seeds, in bytes.
    pub peak_bytes: Option<u64>,
    /// Bytes of the file.
    pub file_bytes: Option<usize>,
    /// The primary measure of a task that was never seen.
    pub zero_shot: Option<Score>,
    /// The primary measure of what the base could do before, less the base's own.
    pub forgetting: Option<Difference>,
    /// All measures of the other sets, for the long table: the set and the measure's name before each.
    pub others: Vec<(&'static str, String, Score)>,
}

/// All rows.
#[derive(Clone, Debug)]
pub struct Table {
    /// The name of the primary measure.
    pub primary: String,
    /// Rows.
    pub rows: Vec<Row>,
}

/// Measures by question kind are many: they stand in the long table only.
const KIND: &str = "kind: ";

type Pick = fn(&Measured) -> &Vec<Measure>;

const TASK: Pick = |one| &one.task;
const ZERO_SHOT: Pick = |one| &one.zero_shot;
const BASE_TASK: Pick = |one| &one.base_task;

/// One measure of several runs.
fn of<'a>(runs: &[&'a Measured], pick: Pick, name: Option<&str>) -> Vec<&'a Measure> {
    runs.iter()
        .filter_map(|run| primary(pick(run), name))
        .collect()
}

/// The grid's measure where a set has it, else the set's first.
fn main_name(grid: &Grid, measures: &[Measure]) -> Option<String> {
    let named = primary(measures, grid.primary.as_deref());
    named.or(measures.first()).map(|one| one.name.clone())
}

impl Table {
    /// Works out intervals and differences.
    pub fn new(grid: &Grid, comparison: &Comparison) -> Result<Self> {
        let untouched = &comparison.untouched;
        let main = main_name(grid, &untouched.task).context("the test part is empty")?;
        let base = [untouched];
        let mut rows = vec![Row::of(grid, &base, "base".into())];
        for one in &comparison.compared {
            let runs: Vec<&Measured> = one.measured.iter().collect();
            let mut row = Row::of(grid, &runs, one.entry.label.clone());
            row.describe(one);
            let same =
                |other: &&Compared| other.share == one.share && other.entry.method.makes_adapter();
            if let Some(reference) = comparison.compared.iter().find(same)
                && reference.entry.label != one.entry.label
            {
                let those: Vec<&Measured> = reference.measured.iter().collect();
                row.against = difference(
                    &of(&runs, TASK, Some(&main)),
                    &of(&those, TASK, Some(&main)),
                );
            }
            if let Some(name) = main_name(grid, &untouched.base_task) {
                row.forgetting = difference(
                    &of(&runs, BASE_TASK, Some(&name)),
                    &of(&base, BASE_TASK, Some(&name)),
                );
            }
            rows.push(row);
        }
        Ok(Self {
            primary: main,
            rows,
        })
    }

    /// The names of the task's measures, kinds left out.
    pub fn columns(&self) -> Vec<&str> {
        let first = self.rows.first().map(|row| row.scores.as_slice());
        let names = first.unwrap_or_default().iter().map(|one| one.0.as_str());
        names.filter(|name| !name.starts_with(KIND)).collect()
    }

    /// The table for people.
    pub fn markdown(&self) -> String {
        let columns = self.columns();
        let mut head = vec![
            "method".to_owned(),
            "scope".into(),
            "images".into(),
            "rate".into(),
        ];
        head.push("trainable".into());
        head.extend(columns.iter().map(|name| format!("{name}, %")));
        head.extend(
            [
                &format!("{} against LN (p)", self.primary),
                "zero-shot, %",
                "base task, change",
                "step, ms",
                "peak, MiB",
                "file, bytes",
            ]
            .map(String::from),
        );
        let mut text = line(&head);
        text += &line(&vec!["---".to_owned(); head.len()]);
        for row in &self.rows {
            let mut cells = vec![
                row.label.clone(),
                row.scope.clone(),
                row.rate
                    .map_or(String::new(), |_| format!("{} %", 100.0 * row.share)),
                row.rate.map_or(String::new(), |rate| rate.to_string()),
                match row.trainable {
                    0 => "0".into(),
                    n => format!("{n} ({:.3} %)", 100.0 * row.trainable_share),
                },
            ];
            cells.extend(columns.iter().map(|name| percent(row.score(name).as_ref())));
            cells.push(change(row.against.as_ref(), true));
            cells.push(percent(row.zero_shot.as_ref()));
            cells.push(change(row.forgetting.as_ref(), false));
            cells.push(row.step_ms.map_or(String::new(), |ms| format!("{ms:.0}")));
            let mebibytes = |bytes: u64| format!("{:.0}", bytes as f64 / f64::from(1 << 20));
            cells.push(row.peak_bytes.map_or(String::new(), mebibytes));
            cells.push(row.file_bytes.map_or(String::new(), |n| n.to_string()));
            text += &line(&cells);
        }
        let seeds = self.rows.iter().map(|row| row.seeds).max().unwrap_or(1);
        let _ = write!(
            text,
            "\nMeans over {seeds} seed(s) with 95 % intervals of a bootstrap over images; differences are paired by image.\n"
        );
        text
    }

    /// The same, a value a cell.
    pub fn csv(&self) -> String {
        let columns = self.columns();
        let mut head: Vec<String> = [
            "method",
            "scope",
            "share",
            "rate",
            "seeds",
            "trainable",
            "trainable_share",
        ]
        .map(String::from)
        .into();
        let triple = |name: &str| ["", "_low", "_high"].map(|end| format!("{name}{end}"));
        for name in &columns {
            head.extend(triple(name));
        }
        for name in ["against_ln", "zero_shot", "base_task_change"] {
            head.extend(triple(name));
        }
        head.extend(["p_against_ln", "step_ms", "peak_bytes", "file_bytes"].map(String::from));
        let mut text = csv_line(&head);
        for row in &self.rows {
            let mut cells = vec![
                row.label.clone(),
                row.scope.clone(),
                row.share.to_string(),
                optional(row.rate),
                row.seeds.to_string(),
                row.trainable.to_string(),
                row.trainable_share.to_string(),
            ];
            for name in &columns {
                cells.extend(values(row.score(name)));
            }
            cells.extend(values(row.against.map(|one| one.score)));
            cells.extend(values(row.zero_shot));
            cells.extend(values(row.forgetting.map(|one| one.score)));
            cells.push(optional(row.against.map(|one| one.p)));
            cells.push(optional(row.step_ms));
            cells.push(optional(row.peak_bytes));
            cells.push(optional(row.file_bytes));
            text += &csv_line(&cells);
        }
        text
    }

    /// Every measure of every set, a line each.
    pub fn long_csv(&self) -> String {
        let head = [
            "method", "scope", "share", "set", "measure", "value", "low", "high", "images",
        ];
        let mut text = csv_line(&head.map(String::from));
        for row in &self.rows {
            let own = row.scores.iter().map(|(name, score)| ("task", name, score));
            let others = row
                .others
                .iter()
                .map(|(set, name, score)| (*set, name, score));
            for (set, name, score) in own.chain(others) {
                let mut cells = vec![row.label.clone(), row.scope.clone(), row.share.to_string()];
                cells.extend([set.to_owned(), name.clone()]);
                cells.extend(values(Some(*score)));
                cells.push(score.n.to_string());
                text += &csv_line(&cells);
            }
        }
        text
    }
}

impl Row {
    /// What can be said of runs without knowing how they were trained.
    fn of(grid: &Grid, runs: &[&Measured], label: String) -> Self {
        let scores = |pick: Pick| -> Vec<(String, Score)> {
            let names = runs.first().map_or(&[][..], |run| pick(run));
            let names = names.iter().map(|one| one.name.clone());
            names
                .filter_map(|name| Some((name.clone(), score(&of(runs, pick, Some(&name)))?)))
                .collect()
        };
        let zero_shot = scores(ZERO_SHOT);
        let first = runs.first().map_or(&[][..], |run| &run.zero_shot);
        let main = main_name(grid, first);
        let main = zero_shot.iter().find(|one| Some(&one.0) == main.as_ref());
        let main = main.map(|one| one.1);
        let named = |set, scores: Vec<(String, Score)>| {
            scores
                .into_iter()
                .map(move |(name, score)| (set, name, score))
        };
        let others = named("zero-shot", zero_shot)
            .chain(named("base task", scores(BASE_TASK)))
            .collect();
        Self {
            label,
            scope: String::new(),
            share: 0.0,
            rate: None,
            seeds: runs.len(),
            trainable: 0,
            trainable_share: 0.0,
            scores: scores(TASK),
            against: None,
            step_ms: None,
            peak_bytes: None,
            file_bytes: None,
            zero_shot: main,
            forgetting: None,
            others,
        }
    }

    /// Adds how they were trained.
    fn describe(&mut self, one: &Compared) {
        let Entry { scope, .. } = &one.entry;
        self.scope = scope.to_string();
        self.share = one.share;
        self.rate = Some(one.rate);
        let runs = &one.trained;
        if let Some(first) = runs.first() {
            self.trainable = first.trainable;
            self.trainable_share = first.trainable as f64 / first.total.max(1) as f64;
            self.file_bytes = Some(first.file_bytes);
        }
        let sum: f64 = runs.iter().map(|run| run.step_ms).sum();
        self.step_ms = (!runs.is_empty()).then(|| sum / runs.len() as f64);
        self.peak_bytes = runs.iter().filter_map(|run| run.peak_bytes).max();
    }

    /// A measure of the task.
    pub fn score(&self, name: &str) -> Option<Score> {
        let found = self.scores.iter().find(|one| one.0 == name);
        found.map(|one| one.1)
    }
}

fn percent(score: Option<&Score>) -> String {
    score.map_or(String::new(), |score| {
        let [value, low, high] = [score.value, score.low, score.high].map(|one| 100.0 * one);
        format!("{value:.1} [{low:.1}, {high:.1}]")
    })
}

fn change(difference: Option<&Difference>, with_p: bool) -> String {
    difference.map_or(String::new(), |one| {
        let [value, low, high] =
            [one.score.value, one.score.low, one.score.high].map(|one| 100.0 * one);
        let p = match (with_p, one.p) {
            (false, _) => String::new(),
            (true, p) if p < 0.001 => " (< 0.001)".into(),
            (true, p) => format!(" ({p:.3})"),
        };
        format!("{value:+.1} [{low:+.1}, {high:+.1}]{p}")
    })
}

fn line(cells: &[String]) -> String {
    let cells: Vec<String> = cells.iter().map(|cell| cell.replace('|', r"\|")).collect();
    format!("| {} |\n", cells.join(" | "))
}

fn values(score: Option<Score>) -> [String; 3] {
    score.map_or_else(Default::default, |score| {
        [score.value, score.low, score.high].map(|one| one.to_string())
    })
}

fn optional<T: ToString>(value: Option<T>) -> String {
    value.map_or(String::new(), |value| value.to_string())
}

fn csv_line(cells: &[String]) -> String {
    let quoted = cells.iter().map(|cell| {
        if cell.contains(['"', ',', '\n', '\r']) {
            format!("\"{}\"", cell.replace('"', "\"\""))
        } else {
            cell.clone()
        }
    });
    quoted.collect::<Vec<_>>().join(",") + "\n"
}
