//! Who may get new flows, and why not.

use lb_common::abi::Encap;

use super::*;

#[test]
fn each_obstacle_has_its_reason() {
    let mut state = State::new(&config(&[web()]));
    assert_eq!(why_not(&state, "web", A), "not probed yet");
    up(&mut state, "web", A, Health::Unknown);
    assert_eq!(why_not(&state, "web", A), "not probed yet");
    up(&mut state, "web", A, Health::Down);
    assert_eq!(why_not(&state, "web", A), "probes fail: refused");
    up(&mut state, "web", A, Health::Up);
    assert_eq!(why_not(&state, "web", A), "next hop not looked up yet");
    state.set_next_hop(ip(A), NextHopState::Unresolved("no route".to_owned()));
    assert_eq!(why_not(&state, "web", A), "next hop unknown: no route");
    state.set_next_hop(ip(A), NextHopState::Resolved(hop()));
    assert_eq!(why_not(&state, "web", A), "");
    weigh(&mut state, "web", A, 0);
    assert_eq!(why_not(&state, "web", A), "weight is 0");
    drain(&mut state, "web", A);
    assert_eq!(why_not(&state, "web", A), "draining: disk");
}

#[test]
fn l2_needs_the_backend_on_a_link() {
    let mut spec = web();
    spec.forward = Forward::L2;
    let mut state = healthy(&[spec]);
    assert_eq!(why_not(&state, "web", A), "");
    let routed = NextHop {
        on_link: false,
        ..hop()
    };
    state.set_next_hop(ip(A), NextHopState::Resolved(routed));
    let why = why_not(&state, "web", A);
    assert!(why.contains("gateway") && why.contains("eth0"), "{why}");
    let desired = &state.desired()[0].backends[0];
    assert_eq!((desired.eligible, desired.route), (false, None));
}

#[test]
fn ipip_needs_a_source_of_the_backends_family() {
    let mut state = healthy(&[web()]);
    let foreign = NextHop {
        source: ip("2001:db8::1"),
        ..hop()
    };
    state.set_next_hop(ip(A), NextHopState::Resolved(foreign));
    let why = why_not(&state, "web", A);
    assert!(why.contains("node.source") && why.contains(A), "{why}");
    // Set by hand, it is taken; that of the other family is not.
    let mut file = config(&[web()]);
    file.node.source = vec![ip("2001:db8::77"), ip("192.0.2.77")];
    state.reload(&file).unwrap();
    assert_eq!(why_not(&state, "web", A), "");
    let route = state.desired()[0].backends[0].route.unwrap();
    assert_eq!(route.header[26..30], [192, 0, 2, 77]);
    assert_eq!(route.header[30..34], [10, 0, 0, 1]);
    assert_eq!((route.ifindex, route.mtu), (3, 1_500));
}

#[test]
fn gue_takes_the_backends_family_and_a_source_of_it() {
    let mut spec = web();
    spec.forward = Forward::Gue;
    let mut state = healthy(&[spec]);
    let route = state.desired()[0].backends[0].route.unwrap();
    assert_eq!(route.encap, Encap::Gue4 as u16);
    assert_eq!(route.header[30..34], [10, 0, 0, 1]);
    let foreign = NextHop {
        source: ip("2001:db8::1"),
        ..hop()
    };
    state.set_next_hop(ip(A), NextHopState::Resolved(foreign));
    let why = why_not(&state, "web", A);
    assert!(why.contains("node.source") && why.contains(A), "{why}");
}

#[test]
fn what_is_unknown_is_named() {
    let mut state = State::new(&config(&[web()]));
    let both = [("web".to_owned(), ip(A)), ("web".to_owned(), ip(B))];
    assert_eq!(state.unknown(), both);
    state.observe(&both, Health::Down, "refused", Instant::now());
    assert_eq!(state.unknown(), both, "no next hops yet");
    state.set_next_hop(ip(A), NextHopState::Unresolved("no route".to_owned()));
    state.set_next_hop(ip(B), NextHopState::Resolved(hop()));
    assert_eq!(state.unknown(), []);
    add(&mut state, "web", C, 1).unwrap();
    assert_eq!(state.unknown(), [("web".to_owned(), ip(C))]);
}
