//! Many threads on one registry.

use std::sync::Barrier;

use super::*;

#[test]
fn of_racing_swaps_exactly_one_wins_each_round() {
    let (_dir, registry) = fresh();
    let generations: Vec<Generation> = (0..8).map(|id| add(&registry, "a", id).0).collect();
    let mut present = None;
    for round in 0..10 {
        let expected = present.map_or(Expected::Absent, Expected::Is);
        let rivals: Vec<Generation> = generations
            .iter()
            .copied()
            .filter(|one| Some(*one) != present)
            .collect();
        let barrier = Barrier::new(rivals.len());
        let winners: Vec<Generation> = std::thread::scope(|scope| {
            let threads: Vec<_> = rivals
                .iter()
                .map(|rival| {
                    let (registry, barrier) = (&registry, &barrier);
                    scope.spawn(move || {
                        barrier.wait();
                        match registry.put_alias("a", "x", rival, expected) {
                            Ok(_) => Some(*rival),
                            Err(RegistryError::AliasConflict {
                                present: Some(_), ..
                            }) => None,
                            Err(other) => panic!("{other}"),
                        }
                    })
                })
                .collect();
            threads
                .into_iter()
                .filter_map(|thread| thread.join().unwrap())
                .collect()
        });
        assert_eq!(winners.len(), 1, "round {round}");
        present = Some(winners[0]);
        assert_eq!(registry.resolve("a", "x"), present);
    }
    assert_eq!(
        registry
            .generations("a", "x", 100, None)
            .unwrap()
            .data
            .len(),
        10
    );
}

#[test]
fn racing_uploads_of_one_content_leave_one_record_and_readers_see_whole_files() {
    let (_dir, registry) = fresh();
    let (bytes, adapter) = adapter(1);
    let barrier = Barrier::new(4);
    let n_new = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    barrier.wait();
                    let added = registry
                        .add("a", upload(&registry, &bytes), &adapter)
                        .unwrap();
                    assert_eq!(registry.open_blob("a", &adapter.generation).unwrap(), bytes);
                    registry
                        .put_alias("a", "x", &adapter.generation, Expected::Any)
                        .unwrap();
                    assert_eq!(registry.resolve("a", "x"), Some(adapter.generation));
                    added
                })
            })
            .collect();
        let added = threads.into_iter().map(|thread| thread.join().unwrap());
        added.filter(|added| *added == Added::New).count()
    });
    assert_eq!(n_new, 1);
    assert_eq!(registry.records("a", 10, None).unwrap().data.len(), 1);
}
