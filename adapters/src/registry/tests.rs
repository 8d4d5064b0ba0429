//! Ownership, compare-and-swap, names, pages, restart.

use std::collections::BTreeSet;

use super::*;
use crate::format;
use crate::manifest::tests::example;
use crate::site::{Part, Scope, Site, SiteKind, SiteTable};
use crate::values::AdapterValues;
use tempfile::TempDir;

mod interrupted;
mod races;

const LIMIT: u64 = 100_000;

fn base() -> Digest {
    Digest::of(b"base")
}

fn open(dir: &Path) -> Registry {
    Registry::open(dir, base(), LIMIT).unwrap()
}

fn fresh() -> (TempDir, Registry) {
    let dir = tempfile::tempdir().unwrap();
    let registry = open(dir.path());
    (dir, registry)
}

/// A real adapter file for a base of one site; `id` makes it differ from others.
fn adapter_of(id: u32, base: Digest) -> (Vec<u8>, Adapter) {
    let table = SiteTable::new(vec![Site {
        name: "language_model.model.norm".into(),
        kind: SiteKind::RmsNorm,
        width: 4,
        part: Part::Language,
        used: true,
    }])
    .unwrap();
    let row = vec![id as f32; 4];
    let values = AdapterValues::new(&table, row.clone(), Scope::Language).unwrap();
    let manifest = example(base, Scope::Language);
    let bytes = format::write(&values.stored(&table), &manifest).unwrap();
    let adapter = format::read(&bytes, &table, &row, &base).unwrap();
    (bytes, adapter)
}

fn adapter(id: u32) -> (Vec<u8>, Adapter) {
    adapter_of(id, base())
}

fn upload(registry: &Registry, bytes: &[u8]) -> IncomingFile {
    let mut incoming = registry.incoming().unwrap();
    incoming.append(bytes).unwrap();
    incoming
}

fn add(registry: &Registry, tenant: &str, id: u32) -> (Generation, Added) {
    let (bytes, adapter) = adapter(id);
    let added = registry
        .add(tenant, upload(registry, &bytes), &adapter)
        .unwrap();
    (adapter.generation, added)
}

#[test]
fn an_added_adapter_has_a_record_and_its_bytes() {
    let (_dir, registry) = fresh();
    let (bytes, adapter) = adapter(1);
    let generation = adapter.generation;
    assert_eq!(
        registry
            .add("a", upload(&registry, &bytes), &adapter)
            .unwrap(),
        Added::New
    );
    let record = registry.record("a", &generation).unwrap().unwrap();
    let want = Record {
        generation,
        base_digest: base(),
        created: record.created,
        bytes: bytes.len() as u64,
        task: adapter.manifest.task.clone(),
        scope: Scope::Language,
        n_sites: 1,
        n_values: 4,
        state: State::Ready,
    };
    assert_eq!(record, want);
    assert!(record.created.abs_diff(now()) < 60);
    assert_eq!(registry.open_blob("a", &generation).unwrap(), bytes);
    assert_eq!(add(&registry, "a", 1), (generation, Added::Existing));
    assert_eq!(registry.record("a", &generation).unwrap().unwrap(), want);
    assert_eq!(registry.resolve("a", "x"), None);
}

#[test]
fn nothing_of_another_tenant_is_seen() {
    let (_dir, registry) = fresh();
    let (generation, _) = add(&registry, "a", 1);
    registry
        .put_alias("a", "x", &generation, Expected::Any)
        .unwrap();
    assert_eq!(registry.resolve("b", "x"), None);
    assert_eq!(registry.alias("b", "x").unwrap(), None);
    assert_eq!(registry.record("b", &generation).unwrap(), None);
    assert!(registry.records("b", 10, None).unwrap().data.is_empty());
    assert!(registry.list("b", 10, None).unwrap().data.is_empty());
    assert!(
        registry
            .generations("b", "x", 10, None)
            .unwrap()
            .data
            .is_empty()
    );
    assert_eq!(registry.delete_alias("b", "x").unwrap(), None);
    for err in [
        registry.open_blob("b", &generation).unwrap_err(),
        registry
            .put_alias("b", "x", &generation, Expected::Any)
            .unwrap_err(),
    ] {
        assert!(
            matches!(err, RegistryError::UnknownGeneration { .. }),
            "{err}"
        );
    }
    assert_eq!(registry.resolve("a", "x"), Some(generation));
    // The same content of another tenant is as new to that tenant as any.
    assert_eq!(add(&registry, "b", 1), (generation, Added::New));
    registry
        .put_alias("b", "x", &generation, Expected::Absent)
        .unwrap();
    assert_eq!(registry.delete_alias("b", "x").unwrap(), Some(generation));
    assert_eq!(registry.resolve("a", "x"), Some(generation));
}

#[test]
fn an_alias_moves_only_from_what_is_expected() {
    let (_dir, registry) = fresh();
    let (one, _) = add(&registry, "a", 1);
    let (two, _) = add(&registry, "a", 2);
    let put = |generation: &Generation, expected| {
        registry
            .put_alias("a", "x", generation, expected)
            .map_err(|err| match err {
                RegistryError::AliasConflict { present, .. } => present,
                other => panic!("{other}"),
            })
    };
    assert_eq!(put(&one, Expected::Is(two)), Err(None));
    assert_eq!(put(&one, Expected::Absent), Ok(None));
    assert_eq!(put(&two, Expected::Absent), Err(Some(one)));
    assert_eq!(put(&two, Expected::Is(two)), Err(Some(one)));
    assert_eq!(registry.resolve("a", "x"), Some(one));
    assert_eq!(put(&two, Expected::Is(one)), Ok(Some(one)));
    assert_eq!(registry.resolve("a", "x"), Some(two));
    assert_eq!(put(&two, Expected::Any), Ok(Some(two)));
    assert_eq!(put(&one, Expected::Is(two)), Ok(Some(two)));
    assert_eq!(registry.delete_alias("a", "x").unwrap(), Some(one));
    assert_eq!(registry.resolve("a", "x"), None);
    assert_eq!(registry.delete_alias("a", "x").unwrap(), None);

    let history = registry.generations("a", "x", 10, None).unwrap();
    let named: Vec<_> = history.data.iter().map(|step| step.generation).collect();
    assert_eq!(named, [None, Some(one), Some(two), Some(one)]);
    assert!(
        history
            .data
            .is_sorted_by(|later, earlier| later.id > earlier.id)
    );
}

#[test]
fn names_out_of_bounds_are_refused_by_field() {
    let (_dir, registry) = fresh();
    let (generation, _) = add(&registry, "a", 1);
    let put = |tenant, alias| registry.put_alias(tenant, alias, &generation, Expected::Any);
    let long = "x".repeat(65);
    for bad in [
        "", ".", ".x", "a/b", "a b", "a:b", "ä", "a\0", "../x", &long,
    ] {
        let err = put("a", bad).unwrap_err();
        assert!(
            matches!(err, RegistryError::Name { field: "alias" }),
            "{bad}: {err}"
        );
        let err = put(bad, "x").unwrap_err();
        assert!(
            matches!(err, RegistryError::Name { field: "tenant" }),
            "{bad}: {err}"
        );
    }
    for good in ["x", "-", "_.", "chest-ct.v2", &long[..64]] {
        put("a", good).unwrap();
    }
}

#[test]
fn an_upload_is_what_was_checked_and_within_the_limit() {
    let (_dir, registry) = fresh();
    let ((bytes, adapter), (other, _)) = (adapter(1), adapter(2));
    let err = registry
        .add("a", upload(&registry, &other), &adapter)
        .unwrap_err();
    assert!(matches!(err, RegistryError::NotTheUpload { .. }), "{err}");
    let err = registry
        .add("../a", upload(&registry, &bytes), &adapter)
        .unwrap_err();
    assert!(
        matches!(err, RegistryError::Name { field: "tenant" }),
        "{err}"
    );
    let mut incoming = registry.incoming().unwrap();
    let err = incoming.append(&vec![0; LIMIT as usize + 1]).unwrap_err();
    assert!(
        matches!(err, StoreError::TooLarge { limit: LIMIT }),
        "{err}"
    );
}

#[test]
fn pages_cover_everything_once() {
    let (_dir, registry) = fresh();
    let mut generations = BTreeSet::new();
    for id in 0..7 {
        let (generation, _) = add(&registry, "a", id);
        generations.insert(generation);
        registry
            .put_alias("a", &format!("x{id}"), &generation, Expected::Absent)
            .unwrap();
        registry
            .put_alias("a", "moving", &generation, Expected::Any)
            .unwrap();
    }
    let mut seen = Vec::new();
    loop {
        let page = registry
            .list("a", 3, seen.last().map(String::as_str))
            .unwrap();
        assert!(page.data.len() == 3 || !page.has_more);
        for entry in &page.data {
            assert_eq!(
                registry.resolve("a", &entry.alias),
                Some(entry.record.generation)
            );
            assert_eq!(
                registry.alias("a", &entry.alias).unwrap().as_ref(),
                Some(entry)
            );
        }
        seen.extend(page.data.into_iter().map(|entry| entry.alias));
        if !page.has_more {
            break;
        }
    }
    assert_eq!(seen, ["moving", "x0", "x1", "x2", "x3", "x4", "x5", "x6"]);

    let first = registry.records("a", 4, None).unwrap();
    assert!(first.has_more);
    let second = registry
        .records("a", 3, Some(&first.data[3].generation))
        .unwrap();
    assert!(!second.has_more);
    let all: Vec<_> = first
        .data
        .iter()
        .chain(&second.data)
        .map(|r| r.generation)
        .collect();
    assert_eq!(all, generations.into_iter().collect::<Vec<_>>());

    let mut ids = Vec::new();
    loop {
        let page = registry
            .generations("a", "moving", 2, ids.last().copied())
            .unwrap();
        ids.extend(page.data.iter().map(|step| step.id));
        if !page.has_more {
            break;
        }
    }
    assert_eq!(ids.len(), 7);
    assert!(ids.is_sorted_by(|later, earlier| later > earlier));
    assert!(
        registry
            .generations("a", "moving", 2, Some(u64::MAX))
            .unwrap()
            .has_more
    );
}

#[test]
fn a_restart_changes_nothing() {
    let (dir, registry) = fresh();
    let (one, _) = add(&registry, "a", 1);
    let (two, _) = add(&registry, "b", 2);
    registry.put_alias("a", "x", &one, Expected::Any).unwrap();
    registry.put_alias("b", "x", &two, Expected::Any).unwrap();
    registry
        .put_alias("b", "gone", &two, Expected::Any)
        .unwrap();
    registry.delete_alias("b", "gone").unwrap();
    let before = registry.list("b", 10, None).unwrap();
    assert!(matches!(
        Registry::open(dir.path(), base(), LIMIT),
        Err(RegistryError::Store(StoreError::Locked))
    ));
    drop(registry);
    let registry = open(dir.path());
    assert_eq!(registry.resolve("a", "x"), Some(one));
    assert_eq!(registry.resolve("b", "x"), Some(two));
    assert_eq!(registry.resolve("b", "gone"), None);
    assert_eq!(registry.list("b", 10, None).unwrap(), before);
    assert_eq!(registry.open_blob("b", &two).unwrap(), adapter(2).0);
}

#[test]
fn adapters_of_another_base_are_kept_and_not_served() {
    let (dir, registry) = fresh();
    let (one, _) = add(&registry, "a", 1);
    registry.put_alias("a", "x", &one, Expected::Any).unwrap();
    drop(registry);
    let other = Digest::of(b"other base");
    let registry = Registry::open(dir.path(), other, LIMIT).unwrap();
    assert_eq!(registry.resolve("a", "x"), None);
    assert_eq!(
        registry.alias("a", "x").unwrap().unwrap().record.state,
        State::OtherBase
    );
    let err = registry
        .put_alias("a", "y", &one, Expected::Any)
        .unwrap_err();
    assert!(matches!(err, RegistryError::OtherBase { .. }), "{err}");
    let (bytes, adapter) = adapter(2);
    let err = registry
        .add("a", upload(&registry, &bytes), &adapter)
        .unwrap_err();
    assert!(matches!(err, RegistryError::OtherBase { .. }), "{err}");
    // The new base's adapter takes the alias over; going back shows what was left.
    let (bytes, adapter) = adapter_of(3, other);
    registry
        .add("a", upload(&registry, &bytes), &adapter)
        .unwrap();
    let present = registry
        .put_alias("a", "x", &adapter.generation, Expected::Is(one))
        .unwrap();
    assert_eq!(present, Some(one));
    assert_eq!(registry.resolve("a", "x"), Some(adapter.generation));
    drop(registry);
    assert_eq!(open(dir.path()).resolve("a", "x"), None);
}

#[test]
fn a_database_of_a_later_version_is_left_alone() {
    let (dir, registry) = fresh();
    drop(registry);
    let connection = Connection::open(dir.path().join("registry.sqlite")).unwrap();
    connection.pragma_update(None, "user_version", 2).unwrap();
    drop(connection);
    let err = Registry::open(dir.path(), base(), LIMIT).unwrap_err();
    assert!(matches!(err, RegistryError::Version { got: 2 }), "{err}");
}
