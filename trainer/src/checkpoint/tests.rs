use super::*;

fn identity() -> Identity {
    Identity {
        base: Digest::of(b"base"),
        recipe: r#"{"seed":1,"schedule":{"peak":0.02,"steps":5}}"#.into(),
        lessons: Digest::of(b"lessons"),
        validation: Digest::of(b""),
    }
}

fn state() -> State {
    let slot = |name: &str, best: Option<Vec<f32>>| SlotState {
        name: name.into(),
        value: vec![1.5, -0.0],
        mean: vec![f32::MIN_POSITIVE / 2.0, 3.0],
        square: vec![0.1, 1e-30],
        average: best.clone(),
        best,
    };
    State {
        losses: vec![0.1 + 0.2, 1.0 / 3.0, f64::MIN_POSITIVE],
        seconds: vec![0.5; 3],
        validated: vec![Validated { done: 2, loss: 0.7 }],
        slots: vec![slot("a.weight", Some(vec![9.0, 8.0])), slot("b.bias", None)],
    }
}

fn names() -> Vec<(String, usize)> {
    vec![("a.weight".into(), 2), ("b.bias".into(), 2)]
}

#[test]
fn a_state_comes_back_to_the_bit() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path().join("new").join("folder");
    let keeper = Keeper::open(&folder, 2).unwrap();
    assert_eq!(keeper.load(&identity(), &names()).unwrap(), None);
    keeper.save(&state(), &identity()).unwrap();
    let back = keeper.load(&identity(), &names()).unwrap().unwrap();
    assert_eq!(back, state());
    assert_eq!(back.slots[0].value[1].to_bits(), (-0.0f32).to_bits());
    assert!(keeper.is_due(4) && !keeper.is_due(5));
    keeper.clear().unwrap();
    assert!(!folder.exists());
}

#[test]
fn a_checkpoint_of_another_run_is_refused_with_what_differs() {
    let folder = tempfile::tempdir().unwrap();
    let keeper = Keeper::open(folder.path(), 0).unwrap();
    keeper.save(&state(), &identity()).unwrap();
    let refused = |identity: Identity| keeper.load(&identity, &names()).unwrap_err().to_string();
    let recipe = |text: &str| Identity {
        recipe: text.into(),
        ..identity()
    };
    let said = refused(recipe(r#"{"seed":1,"schedule":{"peak":0.03,"steps":5}}"#));
    assert!(
        said.contains("`recipe.schedule.peak` is 0.02 there and 0.03 here"),
        "{said}"
    );
    assert!(!said.contains("steps"), "{said}");
    let said = refused(recipe(
        r#"{"seed":1,"schedule":{"peak":0.02,"steps":5},"extras":{"decay":1}}"#,
    ));
    assert!(said.contains("`recipe.extras` is null there"), "{said}");
    let said = refused(Identity {
        base: Digest::of(b"another"),
        lessons: Digest::of(b"others"),
        ..identity()
    });
    assert!(
        said.contains("its base is sha256:") && said.contains("other lessons"),
        "{said}"
    );
    let other: Vec<(String, usize)> = vec![("a.weight".into(), 3)];
    let said = keeper.load(&identity(), &other).unwrap_err().to_string();
    assert!(said.contains("has 2 values, not 3"), "{said}");
    let bytes = fs::read(keeper.path()).unwrap();
    fs::write(keeper.path(), &bytes[..bytes.len() - 1]).unwrap();
    let said = keeper.load(&identity(), &names()).unwrap_err().to_string();
    assert!(said.contains("is no checkpoint of this run"), "{said}");
}

#[test]
fn a_failing_write_leaves_the_last_checkpoint_and_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let keeper = Keeper::open(folder.path(), 0).unwrap();
    let none = keeper.save_with(&state(), &identity(), |_, _| {
        Err(io::ErrorKind::StorageFull.into())
    });
    let said = none.unwrap_err().to_string();
    assert!(said.contains("there is none yet"), "{said}");
    keeper.save(&state(), &identity()).unwrap();
    let mut later = state();
    later.losses.push(0.25);
    let whole = later.to_bytes(&identity()).unwrap().len();
    for k in [0, 1, 8, whole / 2, whole - 1, whole] {
        let failed = keeper.save_with(&later, &identity(), |file, bytes| {
            file.write_all(&bytes[..k])?;
            Err(io::ErrorKind::StorageFull.into())
        });
        let said = failed.unwrap_err().to_string();
        assert!(
            said.contains("of step 3, is intact") && said.contains("cannot write"),
            "{said}"
        );
        let back = keeper.load(&identity(), &names()).unwrap().unwrap();
        assert_eq!(back, state());
    }
    // The place of the new file is taken: the system itself refuses.
    fs::create_dir(atomic_file::beside(&keeper.path())).unwrap();
    let said = keeper.save(&later, &identity()).unwrap_err().to_string();
    assert!(said.contains("of step 3, is intact"), "{said}");
    assert_eq!(
        keeper.load(&identity(), &names()).unwrap().unwrap(),
        state()
    );
}

#[test]
fn a_folder_that_cannot_be_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "").unwrap();
    let said = Keeper::open(&file.join("inside"), 1)
        .err()
        .unwrap()
        .to_string();
    assert!(said.contains("cannot write the checkpoint"), "{said}");
}

#[test]
fn a_folder_serves_one_run_at_a_time() {
    let folder = tempfile::tempdir().unwrap();
    let first = Keeper::open(folder.path(), 1).unwrap();
    let said = Keeper::open(folder.path(), 1).err().unwrap().to_string();
    assert!(said.contains("another run is using"), "{said}");
    drop(first);
    assert!(Keeper::open(folder.path(), 1).is_ok());
}
