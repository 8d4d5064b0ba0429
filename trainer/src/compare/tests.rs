//! A tiny grid on a tiny base, from the jobs to the files, interrupted and taken up again.

use std::path::Path;

use norma::base::{Base, OpenOptions};
use norma_adapters::Digest;
use serde_json::json;

use super::table::Table;
use super::tasks::{Part, TaskSpec};
use super::work::Workplace;
use super::*;
use crate::folder::{self, Beside, Storage};
use crate::optimizer::{AdamConfig, Schedule};
use crate::phantom::score::Score;
use crate::phantom::turns::Mix;
use crate::phantom_base::Sizes;
use crate::pretrain::{PretrainRecipe, pretrain};
use crate::records::proofs as records;

/// A base that has learnt next to nothing.
fn write_base(folder: &Path) -> Digest {
    let schedule = Schedule {
        peak: 0.01,
        warm_up: 1,
        steps: 2,
        floor: 0.1,
    };
    let recipe = PretrainRecipe {
        seed: 5,
        sizes: Sizes {
            width: 32,
            head: 16,
            tower_layers: 1,
            tower_inner: 32,
            decoder_layers: 1,
            decoder_inner: 32,
        },
        films: (2, 2),
        shards: 1,
        mix: Mix {
            questions: 1,
            reports: 1,
            ..Mix::default()
        },
        warm_up: schedule,
        joint: schedule,
        label_weight: 0.5,
        tower_rate: 0.5,
        weight_decay: 0.05,
        adam: AdamConfig::default(),
        clip: 1.0,
    };
    let base = pretrain(&recipe, |_| {}).unwrap();
    folder::write(&base, Beside::phantom().unwrap(), Storage::Float32, folder).unwrap();
    Base::open(folder, &OpenOptions::default())
        .unwrap()
        .digest()
}

fn grid() -> Grid {
    let task = |task: &str| json!({ "phantom": { "task": task, "data_seed": 1, "train": 6, "validation": 4, "test": 5 } });
    serde_json::from_value(json!({
        "task": task("urgent"),
        "zero_shot": task("codes"),
        "base_task": task("house"),
        "methods": [
            { "label": "LN", "method": { "name": "layernorm" }, "rates": [0.01, 0.05] },
            { "label": "LoRA", "method": { "name": "lora", "rank": 2 }, "scope": "language", "rates": [0.01] },
            { "label": "prefix", "method": { "name": "prefix", "tokens": 3 }, "rates": [0.01] },
        ],
        "seeds": [1, 2],
        "shares": [0.5, 1.0],
        "run": {
            "images": 2, "shards": 1, "steps": 2, "warm_up": 1, "floor": 0.1,
            "adam": { "beta1": 0.9, "beta2": 0.98, "eps": 1e-8 }, "clip": 1.0,
        },
    }))
    .unwrap()
}

#[test]
fn an_interrupted_grid_goes_on_and_gives_the_same_table() {
    let (base, out) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let digest = write_base(base.path());
    let place = Workplace {
        base: base.path().into(),
        out: out.path().into(),
    };
    let (grid, path) = (grid(), out.path().join("results.jsonl"));
    let once = |limit: usize| {
        let mut done = 0;
        let mut ledger = Ledger::open(&path, digest).unwrap();
        let work = |job: &Job| {
            ensure!(done < limit, "interrupted");
            done += 1;
            place.work(job, |_| {})
        };
        let found = run(&grid, &mut ledger, work, |_| {});
        (found, done)
    };
    let (broken, done) = once(3);
    assert_eq!(
        (broken.unwrap_err().to_string(), done),
        ("interrupted".into(), 3)
    );
    // The interruption tore the last line.
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, &text[..text.len() - 7]).unwrap();
    // The base, and for both shares: LN two rates and a second seed, two methods of two seeds; six measured.
    let all = 1 + 2 * ((3 + 2 + 2) + 6);
    let (whole, done) = once(usize::MAX);
    assert_eq!(done, all - 2);
    let whole = whole.unwrap();
    let (again, done) = once(0);
    assert_eq!(done, 0);
    let tables = [whole, again.unwrap()].map(|one| Table::new(&grid, &one).unwrap());
    assert_eq!(tables[0].markdown(), tables[1].markdown());
    assert_eq!(tables[0].csv(), tables[1].csv());
    check(&tables[0]);
}

fn check(table: &Table) {
    assert_eq!(table.primary, "questions");
    let labels: Vec<&str> = table.rows.iter().map(|row| row.label.as_str()).collect();
    assert_eq!(
        labels,
        ["base", "LN", "LoRA", "prefix", "LN", "LoRA", "prefix"]
    );
    for row in &table.rows[1..] {
        assert_eq!((row.seeds, row.scores[0].1.n), (2, 5));
        assert_eq!(row.against.is_some(), row.label != "LN");
        assert!(row.zero_shot.is_some() && row.forgetting.is_some());
        assert!(row.file_bytes.unwrap() > 4 * row.trainable);
        assert!(row.step_ms.unwrap() > 0.0);
        assert!(row.trainable_share > 0.0 && row.trainable_share < 1.0);
    }
    // Two projections of width 32 and rank 2; three tokens of keys and values.
    assert_eq!(
        (table.rows[2].trainable, table.rows[3].trainable),
        (2 * 2 * 2 * 32, 2 * 3 * 32)
    );
    let markdown = table.markdown();
    assert_eq!(
        markdown
            .lines()
            .filter(|line| line.starts_with('|'))
            .count(),
        9
    );
    let cells = |line: &str| line.split(',').count();
    let csv = table.csv();
    assert!(
        csv.lines()
            .all(|line| cells(line) == cells(csv.lines().next().unwrap()))
    );
    assert!(
        table
            .long_csv()
            .lines()
            .any(|line| line.starts_with("LoRA,language,1,base task,"))
    );
    let plots = plot::of_table(table);
    let names: Vec<&str> = plots.iter().map(|one| one.0).collect();
    assert_eq!(names, ["trainable.svg", "step_time.svg", "share.svg"]);
}

/// Rates are chosen on one fold of images, measured is another, and neither is learnt from.
#[test]
fn a_real_set_is_compared_on_folds_that_nothing_learnt_from() {
    let (set, out) = (records::set(), tempfile::tempdir().unwrap());
    let base = out.path().join("base");
    let (trained, beside) = records::train(set.path(), &records::recipe(2));
    folder::write(&trained, beside, Storage::Float32, &base).unwrap();
    let digest = Base::open(&base, &OpenOptions::default()).unwrap().digest();
    let name = format!("slake:{}", set.path().display());
    let mut grid = grid();
    let task = |test: serde_json::Value| -> TaskSpec {
        let task = json!({ "set": name, "folds": 4, "validation": { "fold": 1 }, "test": test });
        serde_json::from_value(json!({ "records": task })).unwrap()
    };
    grid.task = task(json!({ "fold": 0 }));
    grid.zero_shot = Some(task(json!("validation")));
    grid.base_task = None;
    grid.methods.truncate(2);
    (grid.seeds, grid.shares) = (vec![1], vec![1.0]);
    let place = Workplace {
        base: base.clone(),
        out: out.path().into(),
    };
    let mut ledger = Ledger::open(&out.path().join("results.jsonl"), digest).unwrap();
    let found = run(&grid, &mut ledger, |job| place.work(job, |_| {}), |_| {}).unwrap();
    let table = Table::new(&grid, &found).unwrap();
    let images = |scores: &[(String, Score)]| scores[0].1.n;
    let tested = images(&table.rows[1].scores);
    assert_eq!(table.rows[1].zero_shot.unwrap().n, 8);
    assert_eq!(
        (table.columns(), table.rows.len()),
        (vec!["questions", "closed", "open"], 3)
    );

    let (opened, around) = crate::opened::to_train(&base, None).unwrap();
    let task = grid.task.open(&around, &opened).unwrap();
    let validation = task
        .measure((&opened, &around), &opened.row, Part::Validation)
        .unwrap();
    let learnt = task.lessons(1.0).unwrap().len();
    assert_eq!(tested + validation[0].units.len() + learnt, 16);
    assert!(tested > 0 && learnt > 0);
    assert_eq!(task.lessons(0.5).unwrap().len(), learnt.div_ceil(2));
}

#[test]
fn a_grid_that_cannot_be_is_refused_by_field() {
    let refuse = |change: &dyn Fn(&mut Grid)| {
        let mut grid = grid();
        change(&mut grid);
        format!("{:#}", grid.check().unwrap_err())
    };
    assert!(refuse(&|grid| grid.methods.clear()).contains("`methods`"));
    assert!(refuse(&|grid| grid.seeds.clear()).contains("`seeds`"));
    assert!(refuse(&|grid| grid.shares = vec![1.5]).contains("at most 1"));
    assert!(refuse(&|grid| grid.methods[1].rates = vec![0.0]).contains("`rates` of `LoRA` has 0"));
    assert!(refuse(&|grid| grid.methods[1].label = "LN".into()).contains("two methods"));
    let rank = |grid: &mut Grid| {
        grid.methods[1].method = crate::methods::Method::Lora(crate::methods::Lora {
            rank: 0,
            ..crate::methods::Lora::default()
        });
    };
    assert!(refuse(&rank).contains("`rank` of lora is 0"));
}

#[test]
fn validation_chooses_the_best_rate_and_of_equals_the_lowest() {
    assert_eq!(
        best(&[(0.1, 0.5), (0.01, 0.5), (0.001, 0.4)]).unwrap(),
        0.01
    );
    assert_eq!(best(&[(0.1, 0.6), (0.01, 0.5)]).unwrap(), 0.1);
    assert!(best(&[]).is_err());
}
