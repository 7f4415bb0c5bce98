//! The file, what operators changed at run time, and what probes and netlink say: what comes of it.

mod carried_on;
mod changes;
mod eligible;
mod kept;
mod observed;
mod reloads;
mod replaces;

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
        tracking: crate::model::Tracking::Adaptive,
        times: crate::model::FlowTimes::usual(Protocol::Tcp),
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
        replaces: None,
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
            icmp_echo: lb_common::service::Echo::default(),
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
        xdp_transmit: crate::netlink::XdpTransmit::Yes,
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

fn stamp() -> Stamp {
    Stamp {
        by: Some("ada".to_owned()),
        at: Some(7),
    }
}

fn record(admin: Admin) -> AdminRecord {
    AdminRecord {
        admin,
        reason: Some("disk".to_owned()),
        by: Some("ada".to_owned()),
        at: Some(7),
        until: None,
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
            overlay.set_weight(service, ip(address), weight, stamp());
            Ok(())
        })
        .unwrap()
}

fn add(state: &mut State, service: &str, address: &str, weight: u32) -> Result<bool, ChangeError> {
    state.change(|overlay, _, services| {
        let service = services.iter().find(|s| s.spec.name == service).unwrap();
        overlay.add_backend(service, &spec(address, weight), stamp())
    })
}

fn remove(state: &mut State, service: &str, address: &str) -> Result<bool, ChangeError> {
    state.change(|overlay, _, services| {
        let service = services.iter().find(|s| s.spec.name == service).unwrap();
        overlay.remove_backend(service, ip(address), stamp());
        Ok(())
    })
}

fn add_service(state: &mut State, spec: ServiceSpec) -> Result<bool, ChangeError> {
    state.change(|overlay, _, _| overlay.add_service(spec, stamp()))
}

fn remove_service(state: &mut State, name: &str) -> Result<bool, ChangeError> {
    state.change(|overlay, file, _| overlay.remove_service(name, file, stamp()))
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
