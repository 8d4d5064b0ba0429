//! The states that a stop can leave behind, made by hand, each followed by a start; and a process
//! that is killed for real.

use std::fs;
use std::io::{self, BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use super::*;

fn blob_path(dir: &Path, generation: &Generation) -> PathBuf {
    let hex = generation.digest().hex();
    dir.join("blobs/sha256")
        .join(&hex[..2])
        .join(format!("{hex}.safetensors"))
}

/// After a start, the upload that was cut short can be made again and is then as any other.
fn recovers(dir: &Path) {
    let registry = open(dir);
    let generation = adapter(1).1.generation;
    assert_eq!(fs::read_dir(dir.join("incoming")).unwrap().count(), 0);
    assert_eq!(registry.record("a", &generation).unwrap(), None);
    assert_eq!(registry.resolve("a", "x"), None);
    assert_eq!(add(&registry, "a", 1), (generation, Added::New));
    registry
        .put_alias("a", "x", &generation, Expected::Absent)
        .unwrap();
    assert_eq!(registry.open_blob("a", &generation).unwrap(), adapter(1).0);
}

fn stopped() -> TempDir {
    let (dir, registry) = fresh();
    drop(registry);
    dir
}

#[test]
fn while_the_upload_arrives() {
    let dir = stopped();
    fs::write(dir.path().join("incoming/upload-cut"), &adapter(1).0[..50]).unwrap();
    recovers(dir.path());
}

#[test]
fn between_the_blob_folder_and_the_blob() {
    let dir = stopped();
    let (bytes, adapter) = adapter(1);
    fs::write(dir.path().join("incoming/upload-whole"), bytes).unwrap();
    fs::create_dir(blob_path(dir.path(), &adapter.generation).parent().unwrap()).unwrap();
    recovers(dir.path());
}

#[test]
fn between_the_blob_and_its_record() {
    for content in [&adapter(1).0[..], &adapter(1).0[..50], &[]] {
        let dir = stopped();
        let path = blob_path(dir.path(), &adapter(1).1.generation);
        fs::create_dir(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
        recovers(dir.path());
    }
}

#[test]
fn between_the_record_and_the_alias() {
    let (dir, registry) = fresh();
    let (generation, _) = add(&registry, "a", 1);
    drop(registry);
    let registry = open(dir.path());
    assert_eq!(registry.resolve("a", "x"), None);
    assert_eq!(registry.open_blob("a", &generation).unwrap(), adapter(1).0);
    assert_eq!(add(&registry, "a", 1), (generation, Added::Existing));
    registry
        .put_alias("a", "x", &generation, Expected::Absent)
        .unwrap();
}

#[test]
fn inside_the_database() {
    let dir = stopped();
    let (_, adapter) = adapter(1);
    let generation = adapter.generation.to_string();
    let connection = Connection::open(dir.path().join("registry.sqlite")).unwrap();
    connection
        .execute_batch("PRAGMA cache_size = 1; BEGIN IMMEDIATE")
        .unwrap();
    let record = "INSERT INTO generations VALUES (?1, ?2, ?3, 1, 1, 'vqa', 'language', 1, 4)";
    connection
        .execute(record, ["a", &generation, &base().to_string()])
        .unwrap();
    let alias = "INSERT INTO aliases VALUES ('a', 'x', ?1, 1)";
    connection.execute(alias, [&generation]).unwrap();
    // More than the cache holds, so that half of the change is in the files already.
    for idx in 0..2000 {
        let other = Generation::of(&[idx as u8, (idx >> 8) as u8]).to_string();
        connection
            .execute(record, ["z", &other, &base().to_string()])
            .unwrap();
    }
    let wal = dir.path().join("registry.sqlite-wal");
    assert!(fs::metadata(&wal).unwrap().len() > 100_000);
    let copy = tempfile::tempdir().unwrap();
    for name in [
        "registry.sqlite",
        "registry.sqlite-wal",
        "registry.sqlite-shm",
    ] {
        fs::copy(dir.path().join(name), copy.path().join(name)).unwrap();
    }
    recovers(copy.path());
    assert!(
        open(copy.path())
            .records("z", 1, None)
            .unwrap()
            .data
            .is_empty()
    );
}

#[test]
fn a_record_never_shows_another_files_content() {
    let (dir, registry) = fresh();
    let (generation, _) = add(&registry, "a", 1);
    fs::write(blob_path(dir.path(), &generation), adapter(2).0).unwrap();
    let err = registry.open_blob("a", &generation).unwrap_err();
    assert!(
        matches!(err, RegistryError::Store(StoreError::Damaged { .. })),
        "{err}"
    );
    assert_eq!(add(&registry, "a", 1), (generation, Added::Existing));
    assert_eq!(registry.open_blob("a", &generation).unwrap(), adapter(1).0);
}

/// Set in the process that the next test starts and kills.
const KILLED_DIR: &str = "NORMA_TEST_KILLED_DIR";

/// Publishes one adapter after another, says so each time, and never stops by itself.
fn publish_until_killed(dir: &Path) -> ! {
    let registry = open(dir);
    let mut id = 0;
    loop {
        let (generation, _) = add(&registry, "a", id);
        registry
            .put_alias("a", "x", &generation, Expected::Any)
            .unwrap();
        // Not `println`, which the test harness would keep to itself.
        writeln!(io::stdout(), "published {id}").unwrap();
        id += 1;
    }
}

#[test]
fn a_killed_process_loses_nothing_that_it_had_published() {
    if let Some(dir) = std::env::var_os(KILLED_DIR) {
        publish_until_killed(Path::new(&dir));
    }
    let name = "registry::tests::interrupted::a_killed_process_loses_nothing_that_it_had_published";
    let dir = tempfile::tempdir().unwrap();
    for n_published in [1, 7, 20] {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", name])
            .env(KILLED_DIR, dir.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let last = format!("published {}", n_published - 1);
        assert!(lines.any(|line| line.unwrap().ends_with(&last)));
        child.kill().unwrap();
        child.wait().unwrap();

        let registry = open(dir.path());
        assert_eq!(
            fs::read_dir(dir.path().join("incoming")).unwrap().count(),
            0
        );
        for id in 0..n_published {
            let (bytes, adapter) = adapter(id);
            assert_eq!(registry.open_blob("a", &adapter.generation).unwrap(), bytes);
        }
        // The alias may have moved on after the last word that was heard, never back.
        let present = registry.resolve("a", "x").unwrap();
        let mut later = n_published - 1..n_published + 1000;
        assert!(later.any(|id| adapter(id).1.generation == present));
        let newest = registry.generations("a", "x", 1, None).unwrap().data[0].generation;
        assert_eq!(newest, Some(present));
        registry.open_blob("a", &present).unwrap();
    }
}
