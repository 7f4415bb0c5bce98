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

/// The file that removes a backend may also say how long such a one lingers; and so may one that comes later.
#[test]
fn another_linger_holds_for_who_lingers() {
    const SECOND: u64 = 1_000_000_000;
    let mut state = healthy(&[web()]);
    state.advance(0);
    let mut next = web();
    next.backends.retain(|b| b.address != ip(B));
    next.times.linger = Duration::from_secs(600);
    state.reload(&config(std::slice::from_ref(&next))).unwrap();
    state.advance(SECOND);
    state.advance(300 * SECOND);
    assert!(state.addresses().contains(&ip(B)), "longer than 60 s");

    next.times.linger = Duration::from_secs(200);
    state.reload(&config(std::slice::from_ref(&next))).unwrap();
    state.advance(301 * SECOND);
    assert!(!state.addresses().contains(&ip(B)), "no longer than 200 s");
}

/// A removed backend's flows linger, and its packets go where it is now.
#[test]
fn next_hops_are_followed_while_flows_linger() {
    const SECOND: u64 = 1_000_000_000;
    let mut state = healthy(&[web(), dns()]);
    state.advance(0);
    remove(&mut state, "web", B).unwrap();
    assert!(
        state.addresses().contains(&ip(B)),
        "before it is known to linger"
    );
    state.advance(SECOND);
    assert!(!state.has_let_go());

    let moved = NextHop {
        destination_mac: [2, 0, 0, 0, 0, 77],
        ..hop()
    };
    let route_of_b = |state: &State| {
        let desired = state.desired();
        let key = web().key;
        let web = desired.iter().find(|s| s.key == key).expect("the service");
        let b = web.backends.iter().find(|b| b.address == ip(B));
        b.map(|b| (b.lingers, b.eligible, b.route))
    };
    let node = config(&[]).node;
    let expected = |hop: &NextHop| {
        let next_hop = NextHopState::Resolved(hop.clone());
        route(&node, &web(), ip(B), Some(&next_hop)).ok()
    };
    assert_eq!(route_of_b(&state), Some((true, false, expected(&hop()))));
    state.set_next_hop(ip(B), NextHopState::Resolved(moved.clone()));
    assert_eq!(route_of_b(&state), Some((true, false, expected(&moved))));
    // What is not known now leaves the route that is installed.
    state.set_next_hop(ip(B), NextHopState::Unresolved("lost".to_owned()));
    assert_eq!(route_of_b(&state), Some((true, false, None)));

    state.set_next_hop(ip(B), NextHopState::Resolved(moved));
    state.advance(61 * SECOND);
    assert_eq!(route_of_b(&state), None);
    assert!(state.has_let_go(), "the watcher is told once");
    assert!(!state.has_let_go());
    assert!(!state.addresses().contains(&ip(B)));
    assert!(
        state.next_hop(ip(B)).is_none(),
        "it is old news if it comes back"
    );

    // Not for a service that is gone with all its flows.
    remove(&mut state, "dns", A).unwrap();
    state.reload(&config(&[dns()])).unwrap();
    state.advance(62 * SECOND);
    assert_eq!(state.addresses(), HashSet::from([ip(A)]));
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
