//! A new file under the run-time changes.

use super::*;

#[test]
fn health_operator_state_and_additions_are_carried() {
    let mut state = healthy(&[web()]);
    drain(&mut state, "web", A);
    weigh(&mut state, "web", B, 6);
    add(&mut state, "web", C, 2).unwrap();
    add_service(&mut state, service("run", "203.0.113.7", &[A])).unwrap();
    let mut file = web();
    file.backends.push(spec("10.0.0.4", 1));
    state.reload(&config(&[dns(), file])).unwrap();
    assert_eq!(
        backends(&state, "web"),
        [
            row(A, 1, Admin::Draining, "file"),
            row(B, 6, Admin::Active, "file"),
            row("10.0.0.4", 1, Admin::Active, "file"),
            row(C, 2, Admin::Active, "runtime"),
        ]
    );
    let admin = &state.service("web").unwrap().backend(ip(A)).unwrap().admin;
    assert_eq!(*admin, record(Admin::Draining));
    assert!(state.service("run").is_some());
    assert_eq!(why_not(&state, "web", B), "");
    assert_eq!(why_not(&state, "dns", A), "not probed yet");
}

#[test]
fn health_is_kept_when_the_probe_changes() {
    let mut state = healthy(&[web()]);
    up(&mut state, "web", B, Health::Down);
    let mut file = web();
    file.health.kind = ProbeKind::None;
    file.health.port = 8_080;
    file.health.interval = Duration::from_secs(9);
    state.reload(&config(&[file])).unwrap();
    assert_eq!(why_not(&state, "web", A), "");
    assert_eq!(why_not(&state, "web", B), "probes fail: refused");
    let targets = state.probe_targets();
    assert_eq!(targets.len(), 2);
    assert!(targets.keys().all(|t| t.address.port() == 8_080));
}

#[test]
fn new_times_hold_for_what_runs_already() {
    use crate::tracking::SECOND;
    let mut state = healthy(&[web()]);
    state.advance(0);
    up(&mut state, "web", A, Health::Down);
    assert_eq!(state.advance(SECOND), Some(31 * SECOND), "grace");
    let mut patient = web();
    patient.times.grace = Duration::from_secs(90);
    patient.times.flow_idle = Duration::from_secs(60);
    state
        .reload(&config(std::slice::from_ref(&patient)))
        .unwrap();
    assert_eq!(state.advance(40 * SECOND), Some(91 * SECOND));
    assert_eq!(
        state.desired()[0].flow_idle,
        crate::plan::idle_units(Duration::from_secs(60))
    );
    patient.times.grace = Duration::ZERO;
    patient.times.hold_down = Duration::from_secs(20);
    state.reload(&config(&[patient])).unwrap();
    assert_eq!(state.advance(41 * SECOND), Some(61 * SECOND), "hold-down");
    state.advance(61 * SECOND);
    let there = |state: &State| {
        let desired = state.desired();
        desired[0].backends.iter().any(|b| b.address == ip(A))
    };
    assert!(!there(&state), "forgotten");
}

#[test]
fn a_service_that_collides_is_refused_and_nothing_changes() {
    for (name, vip, way_out) in [
        ("run", "203.0.113.8", "sluice service remove run"),
        ("new", "203.0.113.7", "or remove one"),
    ] {
        let mut state = healthy(&[web()]);
        drain(&mut state, "web", A);
        add_service(&mut state, service("run", "203.0.113.7", &[C])).unwrap();
        let before = state.services().to_vec();
        let mut file = config(&[service(name, vip, &[B])]);
        file.node.source = vec![ip("192.0.2.77")];
        let error = state.reload(&file).unwrap_err();
        let text = error.to_string();
        assert!(matches!(error, ChangeError::Conflict(_)), "{text}");
        assert!(text.contains(way_out), "{text}");
        assert_eq!(state.services(), before);
        assert_eq!(state.node().source, Vec::<IpAddr>::new());
        assert_eq!(why_not(&state, "web", B), "");
        // The way out works.
        remove_service(&mut state, "run").unwrap();
        state.reload(&file).unwrap();
        assert_eq!(state.service(name).unwrap().origin, Origin::File);
    }
}

/// What is gone from the file and comes again is new: no removal, drain or weight of before sticks to it.
#[test]
fn what_the_file_drops_is_forgotten() {
    let mut state = healthy(&[web(), dns()]);
    drain(&mut state, "web", A);
    remove(&mut state, "web", B).unwrap();
    remove_service(&mut state, "dns").unwrap();
    state
        .reload(&config(&[service("web", "203.0.113.1", &[C])]))
        .unwrap();
    assert_eq!(backends(&state, "web"), [row(C, 1, Admin::Active, "file")]);
    assert!(state.observed("web", ip(A)).is_none());
    assert!(state.next_hop(ip(A)).is_none());
    state.reload(&config(&[web(), dns()])).unwrap();
    assert_eq!(
        backends(&state, "web"),
        [
            row(A, 1, Admin::Active, "file"),
            row(B, 1, Admin::Active, "file")
        ]
    );
    assert!(state.service("dns").is_some());
    assert_eq!(state.unknown().len(), 3);
}

/// Added in a hurry, then written down: from then on the file has the say.
#[test]
fn an_added_backend_that_the_file_adopts_is_the_files() {
    let mut state = healthy(&[web()]);
    add(&mut state, "web", C, 5).unwrap();
    drain(&mut state, "web", C);
    let adopted = service("web", "203.0.113.1", &[A, B, C]);
    state.reload(&config(&[adopted])).unwrap();
    assert_eq!(
        backends(&state, "web")[2],
        row(C, 1, Admin::Draining, "file")
    );
    state.reload(&config(&[web()])).unwrap();
    assert_eq!(backends(&state, "web").len(), 2);
}

#[test]
fn a_refused_reload_forgets_nothing() {
    let mut state = healthy(&[web(), dns()]);
    remove_service(&mut state, "dns").unwrap();
    add_service(&mut state, service("run", "203.0.113.7", &[C])).unwrap();
    state
        .reload(&config(&[service("run", "203.0.113.8", &[C])]))
        .unwrap_err();
    state.reload(&config(&[web(), dns()])).unwrap();
    assert!(state.service("dns").is_none(), "still removed");
}
