//! The ways to backends, and addresses that are where they should not be.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

use lb_common::gue;

use super::Finding;
use crate::model::{Forward, NodeSpec, ServiceSpec, XdpMode};
use crate::netlink::{Interface, NextHop, NextHopState, XdpTransmit};
use crate::state::{Mute, transmits};

/// What clients on the Internet send at most.
const CLIENT_MTU: u32 = 1_500;

/// Outer source addresses ought to be this host's: ICMP errors about encapsulated packets come back to them.
pub fn sources(sources: &[IpAddr], present: &[Interface]) -> Vec<Finding> {
    sources
        .iter()
        .filter(|source| !present.iter().any(|interface| interface.addresses.contains(source)))
        .map(|source| {
            Finding::warning(
                format!("source {source}"),
                "is not an address of this host: ICMP errors about encapsulated packets would not find it",
                format!("ip addr add {source} dev lo   (or leave node.source out)"),
            )
        })
        .collect()
}

/// VIPs that are addresses of an interface of this host.
pub fn vips(services: &[ServiceSpec], present: &[Interface]) -> Vec<Finding> {
    let vips: BTreeSet<IpAddr> = services.iter().map(|service| service.key.vip).collect();
    let mut findings = Vec::new();
    for vip in vips {
        for interface in present
            .iter()
            .filter(|i| !i.loopback && i.addresses.contains(&vip))
        {
            let name = &interface.name;
            findings.push(Finding::warning(
                format!("VIP {vip}"),
                format!(
                    "is an address of {name}: ports that are no service, and all of them when Sluice is detached, are \
                     answered by this host itself"
                ),
                format!(
                    "route {vip} to this host (BGP or a static route) and remove it from {name}; keep it only if this \
                     host must answer ARP for it"
                ),
            ));
        }
    }
    findings
}

/// One service's backends: whether each can be reached, in the way the service forwards, with packets of full size.
pub fn backends(
    service: &ServiceSpec,
    states: &HashMap<IpAddr, NextHopState>,
    node: &NodeSpec,
    present: &[Interface],
) -> Vec<Finding> {
    let attached = &node.interfaces;
    let mut findings = Vec::new();
    let mut resolved = 0;
    // Many backends share an interface: complaints about it are made once.
    let mut small: BTreeSet<(String, u32, u32)> = BTreeSet::new();
    let mut foreign: BTreeSet<&str> = BTreeSet::new();
    let mut mute: BTreeMap<&str, Mute> = BTreeMap::new();
    for backend in &service.backends {
        let address = backend.address;
        let what = format!("backend {address} of {}: next hop", service.name);
        let next_hop = match states.get(&address) {
            Some(NextHopState::Resolved(next_hop)) => next_hop,
            Some(NextHopState::Unresolved(why)) => {
                findings.push(unreachable(what, address, why));
                continue;
            }
            None => continue,
        };
        if service.forward == Forward::L2 && !next_hop.on_link {
            findings.push(Finding::error(
                what,
                format!(
                    "is behind a gateway on {}; forward = \"l2\" reaches only this link",
                    next_hop.interface
                ),
                format!(
                    "set forward = \"ipip\" for {}, or move the backend to this link",
                    service.name
                ),
            ));
            continue;
        }
        if let Err(why) = transmits(node, next_hop) {
            mute.insert(&next_hop.interface, why);
            continue;
        }
        resolved += 1;
        let unsure =
            next_hop.xdp_transmit == XdpTransmit::Unknown && node.xdp_mode != XdpMode::Generic;
        if unsure && !attached.contains(&next_hop.interface) {
            foreign.insert(&next_hop.interface);
        }
        small.extend(too_small(service, address, next_hop, attached, present));
    }
    if resolved > 0 {
        let all = service.backends.len();
        findings.insert(
            0,
            Finding::ok(
                format!("{}: next hops", service.name),
                format!("{resolved} of {all} backends can be reached"),
            ),
        );
    }
    for (interface, why) in mute {
        let what = format!("{}: {interface}", service.name);
        let found = format!(
            "backends are reached by {interface}, and {}: every packet would be lost",
            why.found
        );
        findings.push(Finding::error(what, found, why.mend));
    }
    for interface in foreign {
        findings.push(Finding::warning(
            format!("{}: {interface}", service.name),
            format!("backends are reached by {interface}, which is not in node.interfaces: many drivers send \
                     redirected frames only while an XDP program is attached to them"),
            format!("add \"{interface}\" to node.interfaces"),
        ));
    }
    for (interface, mtu, overhead) in small {
        findings.push(mtu_complaint(service, &interface, mtu, overhead));
    }
    findings
}

fn unreachable(what: String, address: IpAddr, why: &str) -> Finding {
    let mend = if why.contains("does not answer") || why.contains("has not answered") {
        format!(
            "is it switched on, and on this link? `ping -c1 {address}` and `ip neigh show` tell"
        )
    } else if why.contains("address of this host") {
        "name another host as backend; a balancer cannot be its own".to_owned()
    } else {
        format!("give this host a route: `ip route get {address}` must name an Ethernet interface")
    };
    Finding::error(what, why, mend)
}

/// The egress interface, its MTU and the encapsulation's overhead, when a client's full-size packet would not fit.
fn too_small(
    service: &ServiceSpec,
    backend: IpAddr,
    next_hop: &NextHop,
    attached: &[String],
    present: &[Interface],
) -> Option<(String, u32, u32)> {
    let behind_ip = match service.forward {
        Forward::Ipip => 0,
        Forward::Gue => gue::LENGTH as u32,
        Forward::L2 => return None,
    };
    let overhead = behind_ip + if backend.is_ipv4() { 20 } else { 40 };
    // No client's packet is larger than the interface by which it comes.
    let ingress = present
        .iter()
        .filter(|i| attached.contains(&i.name))
        .map(|i| i.mtu)
        .max()
        .unwrap_or(CLIENT_MTU);
    let largest = ingress.min(CLIENT_MTU);
    (next_hop.mtu < largest + overhead)
        .then(|| (next_hop.interface.clone(), next_hop.mtu, overhead))
}

fn mtu_complaint(service: &ServiceSpec, interface: &str, mtu: u32, overhead: u32) -> Finding {
    let fits = mtu - overhead.min(mtu);
    // IP and TCP headers of the inner packet.
    let headers = if service.key.vip.is_ipv4() { 40 } else { 60 };
    let mss = fits.saturating_sub(headers);
    let wanted = CLIENT_MTU + overhead;
    Finding::warning(
        format!("{}: mtu of {interface}", service.name),
        format!(
            "{mtu}: encapsulation adds {overhead} bytes, so clients' packets above {fits} bytes do not fit and are \
             dropped (reason too-big)"
        ),
        format!(
            "ip link set {interface} mtu {wanted}   (if the whole way to the backends carries that), or make the \
             backends announce a smaller MSS: ip route change default … advmss {mss}"
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::Severity;
    use crate::model::{
        Affinity, BackendSpec, HealthSpec, OnEmpty, Protocol, ServiceKey, TableSize,
    };

    fn service(forward: Forward, backends: &[&str]) -> ServiceSpec {
        ServiceSpec {
            name: "web".into(),
            key: ServiceKey {
                vip: "203.0.113.10".parse().unwrap(),
                port: 80,
                protocol: Protocol::Tcp,
            },
            forward,
            affinity: Affinity::default(),
            tracking: crate::model::Tracking::Adaptive,
            times: crate::model::FlowTimes::usual(Protocol::Tcp),
            table_size: TableSize::Auto,
            on_empty: OnEmpty::default(),
            health: HealthSpec::default(),
            backends: backends
                .iter()
                .map(|address| BackendSpec {
                    address: address.parse().unwrap(),
                    weight: 1,
                    replaces: None,
                })
                .collect(),
        }
    }

    fn way(interface: &str, mtu: u32, on_link: bool) -> NextHopState {
        NextHopState::Resolved(NextHop {
            ifindex: 2,
            interface: interface.into(),
            source_mac: [2, 0, 0, 0, 0, 1],
            destination_mac: [2, 0, 0, 0, 0, 2],
            mtu,
            source: "10.0.0.1".parse().unwrap(),
            on_link,
            xdp_transmit: XdpTransmit::Unknown,
        })
    }

    fn node(xdp_mode: XdpMode) -> NodeSpec {
        NodeSpec {
            interfaces: vec!["eth0".into()],
            xdp_mode,
            source: Vec::new(),
            hash_seed: None,
            pin: "/sys/fs/bpf/sluice".into(),
            state: "/var/lib/sluice".into(),
            icmp_echo: lb_common::service::Echo::default(),
        }
    }

    fn judge(service: &ServiceSpec, state: &NextHopState) -> Vec<Finding> {
        judge_in(XdpMode::Auto, service, state)
    }

    fn judge_in(mode: XdpMode, service: &ServiceSpec, state: &NextHopState) -> Vec<Finding> {
        let states = service
            .backends
            .iter()
            .map(|backend| (backend.address, state.clone()))
            .collect();
        backends(service, &states, &node(mode), &[])
    }

    #[test]
    fn full_size_packets_must_fit_the_tunnel() {
        let v4 = service(Forward::Ipip, &["10.0.0.11", "10.0.0.12"]);
        let findings = judge(&v4, &way("eth0", 1500, true));
        let [ok, complaint] = findings.as_slice() else {
            panic!("one complaint for both: {findings:?}")
        };
        assert_eq!(ok.found, "2 of 2 backends can be reached");
        assert_eq!(complaint.severity, Severity::Warning);
        assert!(
            complaint.found.contains("above 1480 bytes"),
            "{complaint:?}"
        );
        assert!(
            complaint.mend.contains("mtu 1520") && complaint.mend.contains("advmss 1440"),
            "{complaint:?}"
        );
        assert_eq!(judge(&v4, &way("eth0", 1520, true)).len(), 1);

        let v6 = service(Forward::Ipip, &["fd00::1"]);
        assert_eq!(
            judge(&v6, &way("eth0", 1520, true)).len(),
            2,
            "40 bytes do not fit into 20"
        );
        assert_eq!(judge(&v6, &way("eth0", 1540, true)).len(), 1);
        // UDP and GUE behind the outer IP header.
        for (backend, mtu, fits) in [("10.0.0.11", 1532, 1499), ("fd00::1", 1552, 1499)] {
            let gue = service(Forward::Gue, &[backend]);
            assert_eq!(judge(&gue, &way("eth0", mtu, true)).len(), 1, "{backend}");
            let findings = judge(&gue, &way("eth0", mtu - 1, true));
            let [_, complaint] = findings.as_slice() else {
                panic!("{backend}: {findings:?}")
            };
            assert!(
                complaint.found.contains(&format!("above {fits} bytes"))
                    && complaint.mend.contains(&format!("mtu {mtu}")),
                "{complaint:?}"
            );
        }
        assert_eq!(
            judge(
                &service(Forward::L2, &["10.0.0.11"]),
                &way("eth0", 1500, true)
            )
            .len(),
            1
        );
    }

    #[test]
    fn l2_needs_the_link() {
        let findings = judge(
            &service(Forward::L2, &["10.0.0.11"]),
            &way("eth0", 1500, false),
        );
        assert_eq!(findings.len(), 1);
        assert_eq!(findings[0].severity, Severity::Error);
        assert!(findings[0].mend.contains("ipip"));
    }

    #[test]
    fn another_egress_interface_is_named() {
        let findings = judge(
            &service(Forward::Ipip, &["10.0.0.11"]),
            &way("eth1", 9000, true),
        );
        assert_eq!(
            findings.last().unwrap().mend,
            "add \"eth1\" to node.interfaces"
        );
    }

    #[test]
    fn an_egress_that_loses_every_packet_is_an_error() {
        let through = |xdp_transmit| {
            let NextHopState::Resolved(hop) = way("br0", 9000, true) else {
                unreachable!("made so")
            };
            NextHopState::Resolved(NextHop {
                xdp_transmit,
                ..hop
            })
        };
        let service = service(Forward::Ipip, &["10.0.0.11", "10.0.0.12"]);
        for (can, mend) in [
            (XdpTransmit::No, "set node.xdp_mode = \"generic\""),
            (XdpTransmit::WithProgram, "add \"br0\" to node.interfaces"),
        ] {
            let findings = judge(&service, &through(can));
            let [finding] = findings.as_slice() else {
                panic!("one for both backends: {findings:?}")
            };
            assert_eq!(finding.severity, Severity::Error);
            assert!(finding.mend.starts_with(mend), "{finding:?}");
            let generic = judge_in(XdpMode::Generic, &service, &through(can));
            assert_eq!(generic.len(), 1, "{generic:?}");
            assert_eq!(generic[0].severity, Severity::Ok);
        }
        assert_eq!(judge(&service, &through(XdpTransmit::Yes)).len(), 1);
    }

    #[test]
    fn each_unreachable_backend_is_an_error_with_the_reason() {
        let state = NextHopState::Unresolved("10.0.0.11 on eth0 does not answer ARP".into());
        let findings = judge(&service(Forward::Ipip, &["10.0.0.11"]), &state);
        let [finding] = findings.as_slice() else {
            panic!("{findings:?}")
        };
        assert_eq!(finding.severity, Severity::Error);
        assert!(finding.mend.contains("ping -c1 10.0.0.11"), "{finding:?}");
    }

    #[test]
    fn addresses_in_the_wrong_place() {
        let eth0 = |loopback| Interface {
            ifindex: 2,
            name: "eth0".into(),
            mtu: 1500,
            mac: None,
            up: true,
            carrier: true,
            loopback,
            addresses: vec!["203.0.113.10".parse().unwrap()],
            driver: None,
            lro: false,
        };
        let services = [service(Forward::Ipip, &[])];
        assert_eq!(vips(&services, &[eth0(false)]).len(), 1);
        assert!(
            vips(&services, &[eth0(true)]).is_empty(),
            "on loopback it is where it may be"
        );
        assert!(sources(&["203.0.113.10".parse().unwrap()], &[eth0(false)]).is_empty());
        assert_eq!(
            sources(&["192.0.2.1".parse().unwrap()], &[eth0(false)]).len(),
            1
        );
    }
}
