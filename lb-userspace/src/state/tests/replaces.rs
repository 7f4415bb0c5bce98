//! Backends in the place of others: who has which place, and when it is handed over.

use super::*;
use crate::tracking::SECOND;

const D: &str = "10.0.0.4";

fn replace(
    state: &mut State,
    service: &str,
    old: &str,
    new: &str,
    weight: u32,
) -> Result<bool, ChangeError> {
    state.change(|overlay, _, services| {
        let service = services.iter().find(|s| s.spec.name == service).unwrap();
        let old = service.backend(ip(old)).unwrap();
        overlay.replace_backend(service, old, ip(new), weight, &stamp())
    })
}

/// (address, identity) of the backends of "web".
fn places(state: &State) -> Vec<(String, String)> {
    let backends = &state.service("web").unwrap().backends;
    let row = |b: &EffectiveBackend| (b.address.to_string(), b.identity.to_string());
    backends.iter().map(row).collect()
}

fn pairs(of: &[(&str, &str)]) -> Vec<(String, String)> {
    let own = |(a, b): &(&str, &str)| ((*a).to_owned(), (*b).to_owned());
    of.iter().map(own).collect()
}

/// Who may be in the table of "web", with which identity.
fn table(state: &State) -> Vec<(String, String)> {
    let desired = state.desired();
    let web = desired.iter().find(|d| d.key == web().key).unwrap();
    let seats = web.backends.iter().filter(|b| b.eligible);
    let mut seats: Vec<_> = seats
        .map(|b| (b.address.to_string(), b.identity.to_string()))
        .collect();
    seats.sort();
    seats
}

#[test]
fn a_chain_of_heirs_has_the_first_ones_place() {
    let mut state = healthy(&[web()]);
    assert!(replace(&mut state, "web", A, C, 1).unwrap());
    assert_eq!(places(&state), pairs(&[(B, B), (C, A)]));
    assert!(replace(&mut state, "web", C, D, 4).unwrap());
    assert_eq!(places(&state), pairs(&[(B, B), (D, A)]));
    // In another's place nobody else can be.
    let error = add(&mut state, "web", A, 1).unwrap_err();
    let ChangeError::Conflict(text) = &error else {
        panic!("{error:?}")
    };
    assert!(
        text.contains("replaced 10.0.0.1") && text.contains("--replaces 10.0.0.4"),
        "{text}"
    );
    // What was said of the first is not said of those in its place.
    let now: Vec<_> = state.differences().into_iter().map(|d| d.now).collect();
    let added = Some("weight 4, in the place of 10.0.0.1".to_owned());
    assert_eq!(now, [None, added]);
    // The way back is the way out: then nothing differs from the file.
    assert!(replace(&mut state, "web", D, A, 1).unwrap());
    assert_eq!(places(&state), pairs(&[(A, A), (B, B)]));
    assert!(state.overlay().is_empty());
}

#[test]
fn what_cannot_be_replaced_is_refused_and_nothing_changes() {
    let mut state = healthy(&[web()]);
    let before = state.services().to_vec();
    let error = replace(&mut state, "web", A, A, 1).unwrap_err();
    assert!(matches!(error, ChangeError::Invalid(_)), "{error}");
    let error = replace(&mut state, "web", A, B, 1).unwrap_err();
    assert!(matches!(error, ChangeError::Conflict(_)), "{error}");
    assert_eq!(state.services(), before);
    assert!(state.overlay().is_empty());
}

#[test]
fn the_old_one_stays_in_the_table_until_its_heir_is_known() {
    let mut state = healthy(&[web()]);
    state.advance(0);
    replace(&mut state, "web", A, C, 3).unwrap();
    state.advance(SECOND);
    assert_eq!(table(&state), pairs(&[(A, A), (B, B)]));
    let desired = state.desired();
    let old = desired[0].backends.iter().find(|b| b.address == ip(A));
    assert_eq!(old.map(|b| (b.weight, b.lingers)), Some((3, true)));
    // Replaced before it was known: the place is handed on.
    replace(&mut state, "web", C, D, 3).unwrap();
    state.advance(2 * SECOND);
    assert_eq!(table(&state), pairs(&[(A, A), (B, B)]));
    all_up(&mut state);
    state.advance(3 * SECOND);
    assert_eq!(table(&state), pairs(&[(B, B), (D, A)]));
    // For good, even if the heir fails.
    up(&mut state, "web", D, Health::Down);
    state.advance(4 * SECOND);
    assert_eq!(table(&state), pairs(&[(B, B)]));
}

#[test]
fn one_that_got_no_new_flows_gets_none_for_its_heir() {
    let mut state = healthy(&[web()]);
    drain(&mut state, "web", A);
    state.advance(0);
    replace(&mut state, "web", A, C, 1).unwrap();
    state.advance(SECOND);
    assert_eq!(table(&state), pairs(&[(B, B)]));
}

#[test]
fn nobody_waits_longer_than_the_old_one_lingers() {
    let mut state = healthy(&[web()]);
    state.advance(0);
    replace(&mut state, "web", A, C, 1).unwrap();
    state.advance(SECOND);
    assert_eq!(table(&state), pairs(&[(A, A), (B, B)]));
    state.advance(61 * SECOND);
    assert_eq!(table(&state), pairs(&[(B, B)]));
}

#[test]
fn a_file_hands_places_over_too() {
    let mut state = healthy(&[web()]);
    state.advance(0);
    let mut next = web();
    next.backends[0] = BackendSpec {
        replaces: Some(ip(A)),
        ..spec(C, 1)
    };
    state.reload(&config(std::slice::from_ref(&next))).unwrap();
    state.advance(SECOND);
    assert_eq!(table(&state), pairs(&[(A, A), (B, B)]));
    all_up(&mut state);
    state.advance(2 * SECOND);
    assert_eq!(table(&state), pairs(&[(B, B), (C, A)]));
}

#[test]
fn the_file_goes_before_places_given_at_run_time() {
    // Saved and loaded, it is the file's.
    let mut state = healthy(&[web()]);
    replace(&mut state, "web", A, C, 1).unwrap();
    let folded = state.service("web").unwrap().folded();
    assert_eq!(folded.backends[1].replaces, Some(ip(A)));
    let mut saved = state.clone();
    saved.reload(&config(&[folded])).unwrap();
    assert!(saved.overlay().is_empty(), "{:?}", saved.overlay());
    assert_eq!(places(&saved), pairs(&[(B, B), (C, A)]));

    // A file that puts another one there is refused while the daemon runs …
    let mut other = web();
    other.backends[0] = BackendSpec {
        replaces: Some(ip(A)),
        ..spec(D, 1)
    };
    let other = config(&[other]);
    let error = state.reload(&other).unwrap_err();
    let expected = "both replace 10.0.0.1";
    assert!(error.to_string().contains(expected), "{error}");
    assert_eq!(places(&state), pairs(&[(B, B), (C, A)]));
    // … and goes before when it starts.
    let (restored, lost) = State::restore(&other, state.overlay().clone());
    assert_eq!(places(&restored), pairs(&[(D, A), (B, B), (C, C)]));
    assert!(
        lost.iter()
            .any(|l| l.contains("put in the place of 10.0.0.1")),
        "{lost:?}"
    );

    // So does one that has an heir of what was added at run time.
    let mut state = healthy(&[web()]);
    add(&mut state, "web", C, 1).unwrap();
    let mut heir = web();
    heir.backends[0] = BackendSpec {
        replaces: Some(ip(C)),
        ..spec(D, 1)
    };
    let heir = config(&[heir]);
    assert!(state.reload(&heir).is_err());
    let (restored, lost) = State::restore(&heir, state.overlay().clone());
    assert_eq!(places(&restored), pairs(&[(D, C), (B, B)]));
    assert!(
        lost.iter().any(|l| l.contains("added at run time")),
        "{lost:?}"
    );
}
