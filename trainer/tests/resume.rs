//! The program `norma-train` is killed, interrupted, and left without room to write.
#![cfg(unix)]
#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot go on should stop there"
)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use safetensors::SafeTensors;

const RECIPE: &str = r#"{
  "task": "urgent", "data_seed": 1, "train": 12, "test": 4,
  "tune": {
    "seed": 1, "scope": "language", "images": 4, "shards": 1,
    "schedule": {"peak": 0.05, "warm_up": 2, "steps": 40, "floor": 0.1},
    "adam": {"beta1": 0.9, "beta2": 0.98, "eps": 1e-8},
    "clip": 1.0
  }
}"#;

fn base() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/phantom/base")
}

fn arguments(folder: &Path, out: &str) -> Vec<String> {
    let recipe = folder.join("recipe.json");
    fs::write(&recipe, RECIPE).unwrap();
    let text = |path: &Path| path.to_str().unwrap().to_owned();
    vec![
        "tune".into(),
        "--base".into(),
        text(&base()),
        "--recipe".into(),
        text(&recipe),
        "--out".into(),
        text(&folder.join(out)),
        "--checkpoint-every".into(),
        "3".into(),
        "--ema".into(),
        "0.9".into(),
    ]
}

fn start(folder: &Path, out: &str) -> Child {
    Command::new(env!("CARGO_BIN_EXE_norma-train"))
        .args(arguments(folder, out))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

fn steps(checkpoint: &Path) -> Option<usize> {
    let bytes = fs::read(checkpoint).ok()?;
    let file = SafeTensors::deserialize(&bytes).unwrap();
    Some(file.tensor("losses").unwrap().shape()[0])
}

/// Waits until a checkpoint has at least so many steps.
fn wait_for(checkpoint: &Path, wanted: usize) {
    let start = Instant::now();
    while steps(checkpoint).is_none_or(|done| done < wanted) {
        assert!(
            start.elapsed() < Duration::from_secs(300),
            "no such checkpoint"
        );
        sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_killed_and_interrupted_run_writes_the_same_adapter() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let whole = start(folder, "whole").wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&whole.stderr);
    assert!(whole.status.success(), "{said}");
    assert!(!folder.join("whole.checkpoint").exists());

    let kept = folder.join("cut.checkpoint");
    let checkpoint = kept.join("checkpoint.safetensors");
    for at in [3, 12] {
        let mut child = start(folder, "cut");
        wait_for(&checkpoint, at);
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!folder.join("cut").exists());
        assert!(steps(&checkpoint).unwrap() < 40);
    }
    let child = start(folder, "cut");
    wait_for(&checkpoint, 21);
    let sent = Command::new("kill")
        .args(["-INT", &child.id().to_string()])
        .status();
    assert!(sent.unwrap().success());
    let stopped = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&stopped.stderr);
    assert_eq!(stopped.status.code(), Some(130), "{said}");
    assert!(
        said.contains("The same command goes on from there"),
        "{said}"
    );
    let done = steps(&checkpoint).unwrap();
    assert!(
        said.contains(&format!("stopped after step {done};")),
        "{said}"
    );

    let last = start(folder, "cut").wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&last.stdout);
    assert!(
        said.contains(&format!("going on after step {done} of 40")),
        "{said}"
    );
    let read = |name: &str| fs::read(folder.join(name)).unwrap();
    assert!(read("whole") == read("cut"));
    assert!(!kept.exists());
}

/// A limit on the size of files stands for a full disk: writes beyond it fail.
#[test]
fn without_room_the_last_checkpoint_stays() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let checkpoint = folder.join("out.checkpoint/checkpoint.safetensors");
    let mut child = start(folder, "out");
    wait_for(&checkpoint, 3);
    child.kill().unwrap();
    child.wait().unwrap();
    let before = fs::read(&checkpoint).unwrap();
    let done = steps(&checkpoint).unwrap();

    let quoted: Vec<String> = arguments(folder, "out")
        .iter()
        .map(|one| format!("'{one}'"))
        .collect();
    let program = env!("CARGO_BIN_EXE_norma-train");
    let line = format!(
        "trap '' XFSZ; ulimit -f 8; exec '{program}' {}",
        quoted.join(" ")
    );
    let full = Command::new("sh").args(["-c", &line]).output().unwrap();
    let said = String::from_utf8_lossy(&full.stderr);
    assert!(!full.status.success());
    assert!(
        said.contains("cannot write the checkpoint")
            && said.contains(&format!("the last checkpoint, of step {done}, is intact")),
        "{said}"
    );
    assert!(fs::read(&checkpoint).unwrap() == before);
    let last = start(folder, "out").wait_with_output().unwrap();
    assert!(last.status.success());
}

#[test]
fn a_file_that_cannot_be_written_is_known_before_the_work() {
    let folder = tempfile::tempdir().unwrap();
    let nowhere = start(folder.path(), "no/such/folder/out")
        .wait_with_output()
        .unwrap();
    let said = String::from_utf8_lossy(&nowhere.stderr);
    assert!(!nowhere.status.success());
    assert!(
        said.contains("cannot write") && said.contains("no/such/folder"),
        "{said}"
    );
}
