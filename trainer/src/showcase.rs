//! What `norma demo` shows: a few films, questions about them, and what is true.
//!
//! In: a seed and a count. Out: films as PNG, `demo.json` (the table of contents that the program
//! embeds) and `truth.json` (the findings of every film). It must not know a model: nothing here depends
//! on what any adapter answers.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::phantom::question::QuestionKind;
use crate::phantom::style::REPORT_PROMPT;
use crate::phantom::tokenizer::{build, encode};
use crate::phantom::{Example, Split, Task, Turn, dataset};

/// The adapters of the demo: their alias, their task, and what they do. The last is published while
/// answers stream.
const ADAPTERS: [(&str, Task, &str); 5] = [
    (
        "decision-rule",
        Task::Urgent,
        "a rule that the base was never taught: is the film urgent?",
    ),
    (
        "code-table",
        Task::Codes,
        "a hospital's own codes for the main finding",
    ),
    ("house-style", Task::House, "a house's style of report"),
    ("low-dose", Task::LowDose, "films of a low-dose scanner"),
    (
        "inverted",
        Task::Inverted,
        "films with black and white exchanged",
    ),
];

/// Films looked through for each adapter.
const CANDIDATES: u64 = 200;

/// Writes `films/`, `demo.json` and `truth.json` into a folder: `count` films for every adapter, from
/// the test split.
pub fn export(folder: &Path, seed: u64, count: usize) -> Result<()> {
    let films = folder.join("films");
    std::fs::create_dir_all(&films)
        .with_context(|| format!("cannot make the folder {}", films.display()))?;
    let tokenizer = build()?;
    let spoken = |text: &str| -> Result<String> {
        let decoded = tokenizer.decode(&encode(text)?, true);
        decoded.map_err(|error| anyhow::anyhow!("cannot write `{text}`: {error}"))
    };
    let (mut cases, mut truth) = (Vec::new(), Vec::new());
    for (alias, task, _) in ADAPTERS {
        for (number, (example, turn)) in choose(task, seed, count)?.iter().enumerate() {
            let name = format!("{alias}-{}.png", number + 1);
            let path = films.join(&name);
            let film = example.film().to_grey();
            film.save(&path)
                .with_context(|| format!("cannot write {}", path.display()))?;
            cases.push(json!({
                "alias": alias,
                "film": name,
                "question": spoken(&turn.question)?,
                "truth": spoken(&turn.answer)?,
                "report": turn.kind == QuestionKind::Report,
            }));
            truth.push(json!({
                "film": name,
                "image_seed": example.image,
                "shift": example.shift,
                "findings": example.scene().findings,
            }));
        }
    }
    let adapters: Vec<Value> = ADAPTERS
        .iter()
        .map(|(alias, _, about)| json!({ "alias": alias, "about": about }))
        .collect();
    let report_prompt = spoken(&format!("{REPORT_PROMPT} ."))?;
    let contents = json!({ "report_prompt": report_prompt, "adapters": adapters, "cases": cases });
    for (name, value) in [("demo.json", contents), ("truth.json", Value::Array(truth))] {
        let path = folder.join(name);
        let text = format!("{}\n", serde_json::to_string_pretty(&value)?);
        std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

/// The first films with two findings or more whose answers differ from one another.
fn choose(task: Task, seed: u64, count: usize) -> Result<Vec<(Example, Turn)>> {
    let mut chosen: Vec<(Example, Turn)> = Vec::new();
    let mut seen = BTreeSet::new();
    for example in dataset::examples(task, Split::Test, seed, CANDIDATES) {
        let example = example?;
        if chosen.len() == count {
            break;
        }
        let asks = |turn: &&Turn| {
            let mixed = matches!(task, Task::Inverted | Task::LowDose);
            !mixed || matches!(turn.kind, QuestionKind::WhereIs | QuestionKind::SideOf)
        };
        let Some(turn) = example.turns.iter().find(asks).cloned() else {
            continue;
        };
        if example.scene().findings.len() > 1 && seen.insert(turn.answer.clone()) {
            chosen.push((example, turn));
        }
    }
    Ok(chosen)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_export_repeats_and_its_films_are_there() {
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        for folder in [&one, &two] {
            export(folder.path(), 1, 2).unwrap();
        }
        let read = |folder: &tempfile::TempDir, name: &str| {
            std::fs::read(folder.path().join(name)).unwrap()
        };
        let contents: Value = serde_json::from_slice(&read(&one, "demo.json")).unwrap();
        let cases = contents["cases"].as_array().unwrap();
        assert_eq!(cases.len(), 2 * ADAPTERS.len());
        for case in cases {
            let film = format!("films/{}", case["film"].as_str().unwrap());
            assert_eq!(read(&one, &film), read(&two, &film));
            assert!(!case["truth"].as_str().unwrap().is_empty());
        }
        for name in ["demo.json", "truth.json"] {
            assert_eq!(read(&one, name), read(&two, name));
        }
        assert_eq!(contents["report_prompt"], "write a report.");
    }
}
