//! What operators change at run time.

use super::*;

#[test]
fn a_backend_is_added_weighed_drained_and_removed() {
    let mut state = healthy(&[web()]);
    assert!(add(&mut state, "web", C, 3).unwrap());
    assert_eq!(
        backends(&state, "web")[2],
        row(C, 3, Admin::Active, "runtime")
    );
    assert!(weigh(&mut state, "web", C, 5));
    assert_eq!(
        backends(&state, "web")[2],
        row(C, 5, Admin::Active, "runtime")
    );
    assert!(drain(&mut state, "web", C));
    assert_eq!(
        backends(&state, "web")[2],
        row(C, 5, Admin::Draining, "runtime")
    );
    let error = add(&mut state, "web", C, 1).unwrap_err();
    assert!(matches!(error, ChangeError::Conflict(_)), "{error}");
    assert!(remove(&mut state, "web", C).unwrap());
    assert_eq!(backends(&state, "web").len(), 2);
    // Added once more it has nothing of its former life.
    assert!(add(&mut state, "web", C, 2).unwrap());
    assert_eq!(
        backends(&state, "web")[2],
        row(C, 2, Admin::Active, "runtime")
    );
    assert_eq!(why_not(&state, "web", C), "not probed yet");
}

#[test]
fn a_backend_of_the_file_is_removed_and_added_again() {
    let mut state = healthy(&[web()]);
    drain(&mut state, "web", A);
    weigh(&mut state, "web", A, 9);
    assert!(remove(&mut state, "web", A).unwrap());
    assert_eq!(backends(&state, "web"), [row(B, 1, Admin::Active, "file")]);
    state.reload(&config(&[web()])).unwrap();
    assert_eq!(
        backends(&state, "web").len(),
        1,
        "a reload does not bring it back"
    );
    assert!(add(&mut state, "web", A, 4).unwrap());
    assert_eq!(backends(&state, "web")[0], row(A, 4, Admin::Active, "file"));
    assert_eq!(why_not(&state, "web", A), "not probed yet");
}

#[test]
fn what_is_so_already_is_no_change() {
    let mut state = healthy(&[web()]);
    assert!(!weigh(&mut state, "web", A, 1));
    // And leaves no trace: the file's weight still counts.
    let mut heavier = web();
    heavier.backends[0].weight = 8;
    state.reload(&config(&[heavier])).unwrap();
    assert_eq!(backends(&state, "web")[0], row(A, 8, Admin::Active, "file"));
}

#[test]
fn a_service_is_added_and_removed() {
    let mut state = healthy(&[web()]);
    assert!(add_service(&mut state, dns()).unwrap());
    assert_eq!(state.service("dns").unwrap().origin, Origin::Runtime);
    assert!(remove_service(&mut state, "dns").unwrap());
    assert!(state.service("dns").is_none());
    let error = remove_service(&mut state, "dns").unwrap_err();
    assert!(matches!(error, ChangeError::NotFound(_)), "{error}");
}

#[test]
fn a_service_of_the_file_comes_back_as_another_one() {
    let mut state = healthy(&[web(), dns()]);
    drain(&mut state, "web", A);
    weigh(&mut state, "web", B, 7);
    remove_service(&mut state, "web").unwrap();
    let error = remove_service(&mut state, "web").unwrap_err();
    assert!(matches!(error, ChangeError::NotFound(_)), "{error}");
    add_service(&mut state, service("web", "203.0.113.9", &[A, B])).unwrap();
    assert_eq!(
        backends(&state, "web"),
        [
            row(A, 1, Admin::Active, "file"),
            row(B, 1, Admin::Active, "file")
        ]
    );
    assert_eq!(state.service("web").unwrap().origin, Origin::Runtime);
    assert_eq!(why_not(&state, "web", A), "not probed yet");
    // Removed once more, the file's one does not come to light.
    remove_service(&mut state, "web").unwrap();
    assert!(state.service("web").is_none());
    state.reload(&config(&[web(), dns()])).unwrap();
    assert!(state.service("web").is_none());
}

#[test]
fn a_vip_that_is_taken_is_refused_and_nothing_changes() {
    let mut state = healthy(&[web()]);
    let before = state.services().to_vec();
    let error = add_service(&mut state, service("other", "203.0.113.1", &[C])).unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, ChangeError::Conflict(_)));
    for part in ["\"other\"", "203.0.113.1:80/tcp", "\"web\"", "remove"] {
        assert!(text.contains(part), "{text}");
    }
    assert_eq!(state.services(), before);
    assert_eq!(why_not(&state, "web", A), "");
}
