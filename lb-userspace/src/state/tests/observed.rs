//! What probes and netlink say, and what comes of it.

use super::*;

#[test]
fn a_change_of_health_is_told_once_and_dated() {
    let mut state = State::new(&config(&[web()]));
    let web_a = [("web".to_owned(), ip(A))];
    let start = Instant::now();
    let later = start + Duration::from_secs(5);
    assert_eq!(state.observe(&web_a, Health::Up, "200", start), web_a);
    assert_eq!(state.observe(&web_a, Health::Up, "204", later), []);
    let observed = state.observed("web", ip(A)).unwrap();
    assert_eq!((observed.since, observed.reason.as_str()), (start, "204"));
    assert_eq!(state.observe(&web_a, Health::Down, "refused", later), web_a);
    assert_eq!(state.observed("web", ip(A)).unwrap().since, later);
}

#[test]
fn news_of_what_is_gone_come_too_late() {
    let mut state = healthy(&[web()]);
    remove(&mut state, "web", A).unwrap();
    assert_eq!(up(&mut state, "web", A, Health::Up), 0);
    state.set_next_hop(ip(A), NextHopState::Resolved(hop()));
    assert_eq!(up(&mut state, "no such", A, Health::Up), 0);
    add(&mut state, "web", A, 1).unwrap();
    assert!(state.observed("web", ip(A)).is_none());
    assert!(state.next_hop(ip(A)).is_none());
}

#[test]
fn identical_probes_are_made_once() {
    let mut state = State::new(&config(&[web(), dns()]));
    let targets = state.probe_targets();
    assert_eq!(targets.len(), 2);
    let of_a = targets
        .iter()
        .find(|(t, _)| t.address.ip() == ip(A))
        .unwrap();
    assert_eq!(of_a.0.address.port(), 80, "the service's own port");
    let mut shared = of_a.1.clone();
    shared.sort();
    assert_eq!(
        shared,
        [("dns".to_owned(), ip(A)), ("web".to_owned(), ip(A))]
    );
    assert_eq!(
        state.observe(&shared, Health::Up, "", Instant::now()).len(),
        2
    );
    // The next hop of an address is needed as long as one service has it.
    state.set_next_hop(ip(A), NextHopState::Resolved(hop()));
    remove(&mut state, "web", A).unwrap();
    assert!(state.next_hop(ip(A)).is_some());
    remove(&mut state, "dns", A).unwrap();
    assert!(state.next_hop(ip(A)).is_none());
}

#[test]
fn desired_is_sorted_and_says_who_may_stay() {
    let mut state = healthy(&[service("z", "203.0.113.200", &[A]), web()]);
    drain(&mut state, "web", A);
    let disable = |overlay: &mut Overlay, _: &[ServiceSpec], services: &[Effective]| {
        let web = services.iter().find(|s| s.spec.name == "web").unwrap();
        overlay.set_admin(web, ip(B), record(Admin::Disabled));
        Ok(())
    };
    state.change(disable).unwrap();
    let desired = state.desired();
    assert!(desired.is_sorted_by_key(|service| service.key));
    let web: Vec<_> = desired[0]
        .backends
        .iter()
        .map(|b| (b.eligible, b.may_keep))
        .collect();
    assert_eq!(web, [(false, true), (false, false)]);
    assert!(desired[0].backends.iter().all(|b| b.route.is_some()));
    assert!(desired[1].backends[0].eligible);
}
