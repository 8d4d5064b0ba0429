//! Runs that are cut off, and runs against a plain loop, on the phantom base.

use std::cell::Cell;
use std::path::Path;

use anyhow::bail;
use norma_adapters::Scope;

use super::*;
use crate::checkpoint::CheckpointError;
use crate::extras::{Extras, Validation};
use crate::lesson::Teacher;
use crate::methods::{Lora, Method};
use crate::opened;
use crate::optimizer::{AdamConfig, Schedule};
use crate::phantom::{Example, Split, Task};

const STEPS: usize = 7;

fn recipe() -> TuneRecipe {
    TuneRecipe {
        seed: 3,
        scope: Scope::Language,
        method: Method::default(),
        images: 4,
        shards: 1,
        schedule: Schedule {
            peak: 0.03,
            warm_up: 2,
            steps: STEPS,
            floor: 0.1,
        },
        adam: AdamConfig::default(),
        clip: 1.0,
        checkpoint_layers: false,
        extras: Extras::default(),
    }
}

/// Everything at once.
fn busy() -> TuneRecipe {
    TuneRecipe {
        extras: Extras {
            accumulate: 2,
            decay: 0.5,
            average: Some(0.9),
            validation: Some(Validation {
                every: 2,
                patience: None,
            }),
        },
        ..recipe()
    }
}

fn base(recipe: &TuneRecipe) -> FrozenBase {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/phantom/base");
    opened::to_train(&folder, Some(&recipe.choice())).unwrap().0
}

fn lessons(task: Task, split: Split, count: u64) -> Vec<Lesson> {
    let teacher = Teacher::new().unwrap();
    let example = |index| Example::new(task, split, 9, index).unwrap();
    (0..count)
        .map(|index| teacher.lesson(&example(index)).unwrap())
        .collect()
}

fn sets() -> (Vec<Lesson>, Vec<Lesson>) {
    (
        lessons(Task::Urgent, Split::Train, 6),
        lessons(Task::Urgent, Split::Validation, 3),
    )
}

/// Runs until `stop` steps are done, or the report of step `die` fails.
fn go(
    base: &FrozenBase,
    lessons: &Lessons,
    recipe: &TuneRecipe,
    keeper: Option<&Keeper>,
    (stop, die): (usize, usize),
) -> Result<Ended> {
    let done = Cell::new(0);
    let around = Around {
        keeper,
        stop: &|| done.get() >= stop,
        report: &mut |event| {
            match *event {
                Event::Start { resumed, .. } => done.set(resumed),
                Event::Step { done: now, .. } => {
                    done.set(now);
                    if now == die {
                        bail!("killed");
                    }
                }
                _ => {}
            }
            Ok(())
        },
    };
    run(base, lessons, recipe, around)
}

const NEVER: usize = usize::MAX;

fn finished(ended: Ended) -> Tuned {
    match ended {
        Ended::Finished(tuned) => tuned,
        Ended::Stopped { done } => panic!("stopped after {done}"),
    }
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

fn assert_same(one: &Tuned, other: &Tuned) {
    assert_eq!(bits(&one.row), bits(&other.row));
    assert_eq!(one.losses, other.losses);
    assert_eq!(one.validated, other.validated);
    assert_eq!(one.moved, other.moved);
}

#[test]
fn a_run_that_is_cut_off_anywhere_ends_in_the_same_bytes() {
    let (train, validation) = sets();
    let lessons = Lessons::new(&train, &validation);
    let recipe = busy();
    let base = base(&recipe);
    let whole = finished(go(&base, &lessons, &recipe, None, (NEVER, NEVER)).unwrap());
    assert_eq!((whole.losses.len(), whole.validated.len()), (STEPS, 4));
    // Stopped, as Ctrl-C does: at every step in turn, in one run.
    let folder = tempfile::tempdir().unwrap();
    let keeper = Keeper::open(folder.path(), 0).unwrap();
    for stop in 0..STEPS {
        match go(&base, &lessons, &recipe, Some(&keeper), (stop, NEVER)).unwrap() {
            Ended::Stopped { done } => assert_eq!(done, stop),
            Ended::Finished(_) => panic!("finished at {stop}"),
        }
    }
    let last = go(&base, &lessons, &recipe, Some(&keeper), (NEVER, NEVER)).unwrap();
    assert_same(&whole, &finished(last));
    // Killed: some steps after the last checkpoint, which are then done again.
    for die in [1, 3, 6] {
        let folder = tempfile::tempdir().unwrap();
        let keeper = Keeper::open(folder.path(), 2).unwrap();
        let killed = go(&base, &lessons, &recipe, Some(&keeper), (NEVER, die));
        assert_eq!(killed.unwrap_err().to_string(), "killed");
        let last = go(&base, &lessons, &recipe, Some(&keeper), (NEVER, NEVER)).unwrap();
        assert_same(&whole, &finished(last));
    }
}

#[test]
fn attached_tensors_come_back_too() {
    let recipe = TuneRecipe {
        method: Method::Lora(Lora::default()),
        schedule: Schedule {
            steps: 4,
            ..recipe().schedule
        },
        ..recipe()
    };
    let (train, _) = sets();
    let lessons = Lessons::new(&train, &[]);
    let values = |base: &FrozenBase| -> Vec<Vec<u32>> {
        let values = |var: &candle_core::Var| var.flatten_all().unwrap().to_vec1().unwrap();
        base.variables
            .iter()
            .map(|one| bits(&values(&one.var)))
            .collect()
    };
    let whole = base(&recipe);
    finished(go(&whole, &lessons, &recipe, None, (NEVER, NEVER)).unwrap());
    let folder = tempfile::tempdir().unwrap();
    let keeper = Keeper::open(folder.path(), 0).unwrap();
    go(&base(&recipe), &lessons, &recipe, Some(&keeper), (2, NEVER)).unwrap();
    let resumed = base(&recipe);
    finished(go(&resumed, &lessons, &recipe, Some(&keeper), (NEVER, NEVER)).unwrap());
    assert!(values(&whole) == values(&resumed));
}

#[test]
fn other_lessons_or_another_recipe_do_not_go_on() {
    let (train, validation) = sets();
    let recipe = recipe();
    let base = base(&recipe);
    let folder = tempfile::tempdir().unwrap();
    let keeper = Keeper::open(folder.path(), 0).unwrap();
    let lessons = Lessons::new(&train, &[]);
    go(&base, &lessons, &recipe, Some(&keeper), (1, NEVER)).unwrap();
    let said = |lessons: &Lessons, recipe: &TuneRecipe| {
        let error = go(&base, lessons, recipe, Some(&keeper), (NEVER, NEVER)).unwrap_err();
        let error = error.downcast_ref::<CheckpointError>().unwrap();
        error.to_string()
    };
    let others = said(&Lessons::new(&validation, &[]), &recipe);
    assert!(others.contains("it learns from other lessons"), "{others}");
    let mut longer = recipe.clone();
    longer.schedule.steps = 99;
    let other = said(&lessons, &longer);
    assert!(
        other.contains("`recipe.schedule.steps` is 7 there and 99 here"),
        "{other}"
    );
}

#[test]
fn accumulated_parts_give_the_step_of_the_whole() {
    let (train, _) = sets();
    let recipe = recipe();
    let base = base(&recipe);
    let first = |parts: usize| {
        let mut tuner = Tuner::new(&base, &recipe.choice(), recipe.adam, 1).unwrap();
        let prepared = tuner.prepare(&train).unwrap();
        let all: Vec<&Prepared> = prepared.iter().collect();
        let told = tuner.step_in_parts(&all, parts, (1e-3, 1e9)).unwrap();
        (told, tuner.values().unwrap().concat())
    };
    let ((loss, norm), values) = first(1);
    // Six lessons: in equal parts, in unequal ones, one by one, and more parts than lessons.
    for parts in [2, 4, 6, 9] {
        let ((other_loss, other_norm), others) = first(parts);
        assert!(
            (loss - other_loss).abs() < 1e-5 * loss,
            "{loss} {other_loss}"
        );
        assert!(
            (norm - other_norm).abs() < 1e-4 * norm,
            "{norm} {other_norm}"
        );
        let far = values
            .iter()
            .zip(&others)
            .filter(|(a, b)| (*a - *b).abs() > 1e-5);
        // AdamW's first step is as large where a gradient is near zero; its sign may turn there.
        assert!(far.count() <= values.len() / 200);
    }
}

/// A plain loop: steps, the average in f64, the loss of the averaged values, the lowest of them kept.
#[test]
fn average_and_lowest_validation_loss_are_those_of_a_plain_loop() {
    let (train, validation) = sets();
    let mut recipe = recipe();
    recipe.schedule.peak = 0.3;
    recipe.extras.average = Some(0.5);
    recipe.extras.validation = Some(Validation {
        every: 1,
        patience: Some(2),
    });
    let base = base(&recipe);
    let lessons = Lessons::new(&train, &validation);
    let tuned = finished(go(&base, &lessons, &recipe, None, (NEVER, NEVER)).unwrap());

    let mut tuner = Tuner::new(&base, &recipe.choice(), recipe.adam, 1).unwrap();
    let train = tuner.prepare(&train).unwrap();
    let validation = tuner.prepare(&validation).unwrap();
    let validation: Vec<&Prepared> = validation.iter().collect();
    let mut order = Order::new(train.len(), recipe.seed);
    let mut batch = || -> Vec<&Prepared> { (0..4).map(|_| &train[order.draw()]).collect() };
    batch();
    let wide = |values: Vec<f32>| values.into_iter().map(f64::from).collect::<Vec<f64>>();
    let mut mean = wide(tuner.values().unwrap().concat());
    let (mut lowest, mut waited) = (f64::INFINITY, 0);
    let mut kept = Vec::new();
    let mut losses = Vec::new();
    for step in 0..STEPS {
        let rate = recipe.schedule.rate(step);
        tuner.step(&batch(), rate, recipe.clip).unwrap();
        let values = tuner.values().unwrap();
        let keep = 0.5f64.min((2.0 + step as f64) / (11.0 + step as f64));
        for (mean, now) in mean.iter_mut().zip(wide(values.concat())) {
            *mean = keep * *mean + (1.0 - keep) * now;
        }
        let mut rest: &[f64] = &mean;
        let averaged: Vec<Vec<f32>> = values
            .iter()
            .map(|one| {
                let (head, tail) = rest.split_at(one.len());
                rest = tail;
                head.iter().map(|value| *value as f32).collect()
            })
            .collect();
        tuner
            .set_values(averaged.iter().map(Vec::as_slice))
            .unwrap();
        let loss = tuner.evaluate(&validation).unwrap();
        let row = tuner.norms().row(base.model.sites()).unwrap();
        tuner.set_values(values.iter().map(Vec::as_slice)).unwrap();
        losses.push(loss);
        if loss < lowest {
            (lowest, waited, kept) = (loss, 0, row);
        } else {
            waited += 1;
        }
        if waited == 2 {
            break;
        }
    }
    assert_eq!(tuned.validated.len(), losses.len());
    for (got, want) in tuned.validated.iter().zip(&losses) {
        assert!((got.loss - want).abs() < 1e-3 * want, "{got:?} {want}");
    }
    for (got, want) in tuned.row.iter().zip(&kept) {
        assert!((got - want).abs() < 1e-4, "{got} {want}");
    }
    assert!(tuned.validated.len() > 1);
}

#[test]
fn a_validation_loss_needs_lessons() {
    let (train, _) = sets();
    let recipe = busy();
    let base = base(&recipe);
    let ended = go(&base, &Lessons::new(&train, &[]), &recipe, None, (1, NEVER));
    assert!(ended.unwrap_err().to_string().contains("no lessons for it"));
}
