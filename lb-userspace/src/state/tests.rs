//! The file, what operators changed at run time, and what probes and netlink say: what comes of it.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::*;
use crate::model::{
    Admin, Affinity, BackendSpec, Capacity, Forward, HealthSpec, OnEmpty, ProbeKind, Protocol,
    TableSize, XdpMode,
};
use crate::netlink::NextHop;

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

const A: &str = "10.0.0.1";
const B: &str = "10.0.0.2";
const C: &str = "10.0.0.3";

fn service(name: &str, vip: &str, backends: &[&str]) -> ServiceSpec {
    ServiceSpec {
        name: name.to_owned(),
        key: ServiceKey {
            vip: ip(vip),
            port: 80,
            protocol: Protocol::Tcp,
        },
        forward: Forward::Ipip,
        affinity: Affinity::FiveTuple,
        table_size: TableSize::Auto,
        on_empty: OnEmpty::Keep,
        health: HealthSpec::default(),
        backends: backends.iter().map(|a| spec(a, 1)).collect(),
    }
}

fn spec(address: &str, weight: u32) -> BackendSpec {
    BackendSpec {
        address: ip(address),
        weight,
    }
}

fn config(services: &[ServiceSpec]) -> Config {
    Config {
        node: NodeSpec {
            interfaces: vec!["eth0".to_owned()],
            xdp_mode: XdpMode::Auto,
            source: vec![],
            hash_seed: None,
            pin: "/sys/fs/bpf/sluice".into(),
            state: "/var/lib/sluice".into(),
        },
        capacity: Capacity::default(),
        socket: "/run/sluice/sluice.sock".into(),
        metrics_listen: None,
        services: services.to_vec(),
    }
}

fn web() -> ServiceSpec {
    service("web", "203.0.113.1", &[A, B])
}

fn dns() -> ServiceSpec {
    service("dns", "203.0.113.2", &[A])
}

fn hop() -> NextHop {
    NextHop {
        ifindex: 3,
        interface: "eth0".to_owned(),
        source_mac: [2, 0, 0, 0, 0, 1],
        destination_mac: [2, 0, 0, 0, 0, 2],
        mtu: 1_500,
        source: ip("192.0.2.1"),
        on_link: true,
    }
}

/// Everything is up and reachable.
fn healthy(services: &[ServiceSpec]) -> State {
    let mut state = State::new(&config(services));
    all_up(&mut state);
    state
}

fn all_up(state: &mut State) {
    let backends: Vec<_> = state.backends().collect();
    state.observe(&backends, Health::Up, "", Instant::now());
    for address in state.addresses() {
        state.set_next_hop(address, NextHopState::Resolved(hop()));
    }
}

fn up(state: &mut State, service: &str, address: &str, health: Health) -> usize {
    let backend = (service.to_owned(), ip(address));
    state
        .observe(&[backend], health, "refused", Instant::now())
        .len()
}

fn record(admin: Admin) -> AdminRecord {
    AdminRecord {
        admin,
        reason: Some("disk".to_owned()),
        by: Some("ada".to_owned()),
        at: Some(7),
    }
}

// What operators do, as the daemon's commands do it.

fn drain(state: &mut State, service: &str, address: &str) -> bool {
    state
        .change(|overlay, _, services| {
            let service = services.iter().find(|s| s.spec.name == service).unwrap();
            overlay.set_admin(service, ip(address), record(Admin::Draining));
            Ok(())
        })
        .unwrap()
}

fn weigh(state: &mut State, service: &str, address: &str, weight: u32) -> bool {
    state
        .change(|overlay, _, services| {
            let service = services.iter().find(|s| s.spec.name == service).unwrap();
            overlay.set_weight(service, ip(address), weight);
            Ok(())
        })
        .unwrap()
}

fn add(state: &mut State, service: &str, address: &str, weight: u32) -> Result<bool, ChangeError> {
    state.change(|overlay, _, services| {
        let service = services.iter().find(|s| s.spec.name == service).unwrap();
        overlay.add_backend(service, &spec(address, weight))
    })
}

fn remove(state: &mut State, service: &str, address: &str) -> Result<bool, ChangeError> {
    state.change(|overlay, _, services| {
        let service = services.iter().find(|s| s.spec.name == service).unwrap();
        overlay.remove_backend(service, ip(address))
    })
}

fn add_service(state: &mut State, spec: ServiceSpec) -> Result<bool, ChangeError> {
    state.change(|overlay, _, _| overlay.add_service(spec))
}

fn remove_service(state: &mut State, name: &str) -> Result<bool, ChangeError> {
    state.change(|overlay, file, _| overlay.remove_service(name, file))
}

/// (address, weight, admin state, origin) of a service's backends.
fn backends(state: &State, service: &str) -> Vec<(String, u32, Admin, &'static str)> {
    let service = state.service(service).expect("there is such a service");
    let row = |b: &EffectiveBackend| {
        let origin = b.origin.name();
        (b.address.to_string(), b.weight, b.admin.admin, origin)
    };
    service.backends.iter().map(row).collect()
}

fn row(
    address: &str,
    weight: u32,
    admin: Admin,
    origin: &'static str,
) -> (String, u32, Admin, &'static str) {
    (address.to_owned(), weight, admin, origin)
}

/// Why a backend gets no new flows; empty: it does.
fn why_not(state: &State, service: &str, address: &str) -> String {
    let service = state.service(service).unwrap();
    let address = ip(address);
    let backend = service.backend(address).unwrap();
    let observed = state.observed(&service.spec.name, address);
    let hop = state.next_hop(address);
    eligibility(state.node(), &service.spec, backend, observed, hop)
        .err()
        .unwrap_or_default()
}

mod changes {
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
}

mod reloads {
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
}

mod eligible {
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
}

mod observed {
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
}
