//! Errors and panics of the model: whose request fails, and how the others go on.

use norma::engine::{EngineConfig, Request, RequestError};

use crate::engine::at_rest;
use crate::engine_toy::{
    self as toy, BAD_PIXEL, FAILS, PANIC_PIXEL, PANICS, adapter, collect, config, expected,
    request, tokens,
};

#[test]
fn a_panic_fails_the_requests_of_its_step_and_no_other() {
    let (engine, control) = toy::start(EngineConfig {
        max_sequences: 3,
        ..config()
    });
    control.permit(0);
    let first = engine.submit(request(&[], &[5], 4)).unwrap();
    control.wait_arrived(1);
    // Nine rows of the second step, so that the third reads a part of its prompt in it.
    let panics = engine
        .submit(request(&[], &[2, 3, 4, 5, 6, 7, 8, 9, PANICS], 4))
        .unwrap();
    let third = Request {
        adapter: Some(adapter(2)),
        ..request(&[4.0], &[9, 10, 11], 9)
    };
    let third = engine.submit(third).unwrap();
    let waits = engine.submit(request(&[5.0], &[12], 9)).unwrap();
    control.open();
    let (seen, end) = collect(first);
    assert_eq!((seen.len(), end), (1, Err(RequestError::Panicked)));
    assert_eq!(collect(panics), (vec![], Err(RequestError::Panicked)));
    assert_eq!(collect(third), (vec![], Err(RequestError::Panicked)));
    assert_eq!(tokens(waits), expected(&[5.0], &[12], 9, None));
    engine.drain();
    engine.join();
    let stats = engine.stats();
    at_rest(&stats);
    assert_eq!(
        (stats.panics, stats.finished.failed, stats.finished.length),
        (1, 3, 1)
    );
}

#[test]
fn an_error_fails_only_the_request_that_causes_it() {
    let (engine, control) = toy::start(config());
    control.permit(0);
    let hold = engine.submit(request(&[], &[5], 6)).unwrap();
    control.wait_arrived(1);
    let bad = engine.submit(request(&[], &[6, FAILS], 6)).unwrap();
    let good = engine.submit(request(&[2.0], &[7], 6)).unwrap();
    control.open();
    let error = RequestError::Model {
        message: "a bad token".into(),
    };
    assert_eq!(collect(bad), (vec![], Err(error)));
    assert_eq!(tokens(hold), expected(&[], &[5], 6, None));
    assert_eq!(tokens(good), expected(&[2.0], &[7], 6, None));
    engine.drain();
    engine.join();
    at_rest(&engine.stats());
    assert_eq!(
        (engine.stats().panics, engine.stats().finished.failed),
        (0, 1)
    );
}

#[test]
fn sequences_beside_a_lost_cache_read_again() {
    // The second step fails by one request. Tried alone, the first goes on, another panics, so that the
    // cache is lost, and the last is not reached.
    let (engine, control) = toy::start(EngineConfig {
        max_step_tokens: 40,
        ..config()
    });
    control.permit(0);
    let first = engine.submit(request(&[1.0, 2.0, 3.0], &[5], 6)).unwrap();
    control.wait_arrived(1);
    let fails = engine.submit(request(&[], &[6, FAILS], 6)).unwrap();
    let panics = engine.submit(request(&[], &[6, PANICS], 6)).unwrap();
    let last = Request {
        adapter: Some(adapter(3)),
        ..request(&[4.0], &[7], 6)
    };
    let last = engine.submit(last).unwrap();
    control.open();
    assert!(matches!(
        collect(fails),
        (_, Err(RequestError::Model { .. }))
    ));
    assert_eq!(collect(panics), (vec![], Err(RequestError::Panicked)));
    assert_eq!(tokens(first), expected(&[1.0, 2.0, 3.0], &[5], 6, None));
    assert_eq!(tokens(last), expected(&[4.0], &[7], 6, Some(3)));
    engine.drain();
    engine.join();
    at_rest(&engine.stats());
    let alone = control
        .steps()
        .iter()
        .skip(2)
        .take(3)
        .all(|step| step.sequences == 1);
    assert!(alone && control.steps()[1].sequences == 4);
}

#[test]
fn an_image_that_cannot_be_encoded_fails_alone() {
    let (engine, control) = toy::start(EngineConfig {
        max_step_tokens: 40,
        ..config()
    });
    control.permit(0);
    let hold = engine.submit(request(&[], &[5], 6)).unwrap();
    control.wait_arrived(1);
    let bad = engine.submit(request(&[BAD_PIXEL], &[6], 6)).unwrap();
    let good = engine.submit(request(&[2.0], &[7], 6)).unwrap();
    let panics = engine.submit(request(&[PANIC_PIXEL], &[6], 6)).unwrap();
    let last = engine.submit(request(&[3.0, 4.0, 5.0], &[8], 6)).unwrap();
    control.open();
    let error = RequestError::Model {
        message: "a bad picture".into(),
    };
    assert_eq!(collect(bad), (vec![], Err(error)));
    assert_eq!(collect(panics), (vec![], Err(RequestError::Panicked)));
    assert_eq!(tokens(hold), expected(&[], &[5], 6, None));
    assert_eq!(tokens(good), expected(&[2.0], &[7], 6, None));
    assert_eq!(tokens(last), expected(&[3.0, 4.0, 5.0], &[8], 6, None));
    assert_eq!(engine.stats().panics, 1);
}
