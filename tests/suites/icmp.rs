//! ICMP to a VIP: pings are answered by the data path, and errors reach the backend whose packet they are about.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result, ensure};
use lab::capture::SETTLE;
use lab::config::{File, Service};
use lab::packet::{self, ETHERTYPE_IPV4, ETHERTYPE_IPV6, Ethernet, IPPROTO_UDP, Ip};
use lab::{Capture, Daemon, Direction, Family, Lab, address, interface, mac, wait_until};

use crate::Suites;
use crate::setup::{ECHO, serving};

const ICMP: u8 = 1;
const ICMPV6: u8 = 58;

pub fn add(suites: &mut Suites) {
    for mode in ["native", "generic"] {
        suites.case("icmp", format!("ping_of_the_vip_{mode}"), move || {
            ping(mode)
        });
    }
    suites.case("icmp", "errors_follow_their_flow_v4", || errors(Family::V4));
    suites.case("icmp", "errors_follow_their_flow_v6", || errors(Family::V6));
}

/// A UDP service on the VIP of each family.
fn file(lab: &Lab, mode: &'static str) -> File {
    let services = Family::BOTH.map(|family| {
        let name = format!("echo{}", family.digit());
        let backends = lab.backends().iter().map(|backend| match family {
            Family::V4 => backend.v4(),
            Family::V6 => backend.v6(),
        });
        Service::udp(&name, family.vip_port(ECHO), backends)
    });
    File {
        xdp_mode: mode,
        ..File::new(services.to_vec())
    }
}

/// Nobody in the laboratory but the balancer's data path could answer: no stack there has the VIP.
fn ping(mode: &'static str) -> Result<()> {
    let builder = Lab::builder().backends(1);
    let lab = serving(if mode == "generic" {
        builder.generic_only()
    } else {
        builder
    })?;
    let daemon = Daemon::start(&lab, &file(&lab, mode))?;
    for family in Family::BOTH {
        for size in [0, 1, 56, 1_400] {
            lab.client().ping(family.vip(), size)?;
        }
        // Its own address is the stack's, as before; three fragments there and back.
        lab.client().ping(family.balancer(), 4_000)?;
    }
    let counted = |reason| -> Result<u64> {
        let labels = [("verdict", "reply"), ("reason", reason)];
        Ok(daemon.metrics()?.sum("sluice_packets_total", &labels))
    };
    ensure!(
        counted("icmp-echo")? == 8,
        "8 pings of a VIP, {} answers counted",
        counted("icmp-echo")?
    );
    Ok(())
}

/// A router reports about datagrams of several flows, whose backends differ: each backend gets what is its own.
fn errors(family: Family) -> Result<()> {
    let lab = serving(Lab::builder().backends(2))?;
    let daemon = Daemon::start(&lab, &file(&lab, "native"))?;
    let mut ports = Vec::new();
    for backend in lab.backends() {
        let port = backend.port();
        let capture = Capture::start(lab.router(), &port, Direction::Out, |frame| {
            error_in(frame).is_some()
        })?;
        ports.push((format!("backend{}", backend.number()), capture));
    }
    let vip = family.vip_port(ECHO);
    let mut asked = Vec::new();
    for _ in 0..16 {
        let socket = lab.client().udp_socket(vip)?;
        socket.send(b"who?")?;
        let mut buffer = [0; 64];
        let got = socket.recv(&mut buffer).context("no echo")?;
        let answer = String::from_utf8_lossy(&buffer[..got]).into_owned();
        let backend = answer.split(' ').next().unwrap_or_default().to_owned();
        let client = socket.local_addr()?;
        let error = error(vip, client);
        lab.router().run(|| interface::send_frame("lb0", &error))?;
        asked.push((client.port(), backend));
    }
    let backends: BTreeSet<&str> = asked.iter().map(|(_, backend)| backend.as_str()).collect();
    ensure!(backends.len() == 2, "all flows on {backends:?}");
    let arrived = wait_until("the errors to reach the backends", SETTLE, || {
        let seen: u64 = ports.iter().map(|(_, capture)| capture.seen()).sum();
        Ok(seen == asked.len() as u64)
    });
    let mut got = Vec::new();
    for (backend, capture) in ports {
        for frame in capture.stop()? {
            let client = error_in(&frame.bytes).context("no error after all")?;
            got.push((client, backend.clone()));
        }
    }
    asked.sort();
    got.sort();
    ensure!(
        asked == got,
        "flows (the client's port) and their backends:\n{asked:?}\nerrors about them went to\n{got:?}"
    );
    arrived?;
    // They count as packets of the backends, not as flows, nor as refused.
    let metrics = daemon.metrics()?;
    let packets = metrics.sum("sluice_backend_packets_total", &[]);
    ensure!(
        packets == 2 * asked.len() as u64,
        "{packets} packets counted for the backends"
    );
    ensure!(metrics.sum("sluice_packets_total", &[("reason", "icmp-to-vip")]) == 0);
    Ok(())
}

/// What a router sends that cannot forward a datagram from the VIP to a client: eight bytes of UDP quoted.
fn error(vip: SocketAddr, client: SocketAddr) -> Vec<u8> {
    let datagram = packet::udp(vip, client, b"");
    // "Fragmentation needed" and "packet too big"; the MTU stands in the last bytes of the word.
    let (kind, code) = if vip.is_ipv4() { (3, 4) } else { (2, 0) };
    let message = |quoted: Vec<u8>| [&[kind, code, 0, 0, 0, 0, 0x05, 0x14][..], &quoted].concat();
    match (vip.ip(), client.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let mut message = message(packet::ipv4(from, to, IPPROTO_UDP, &[], &datagram));
            let sum = packet::checksum(&message);
            message[2..4].copy_from_slice(&sum.to_be_bytes());
            let packet = packet::ipv4(address::client_v4(1), from, ICMP, &[], &message);
            packet::ethernet(mac::BALANCER, mac::BRIDGE, ETHERTYPE_IPV4, &packet)
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let mut message = message(packet::ipv6(from, to, IPPROTO_UDP, &datagram));
            let router = address::client_v6(1);
            let mut covered = [router.octets(), from.octets()].concat();
            covered.extend((message.len() as u32).to_be_bytes());
            covered.extend([0, 0, 0, ICMPV6]);
            covered.extend(&message);
            let sum = packet::checksum(&covered);
            message[2..4].copy_from_slice(&sum.to_be_bytes());
            let packet = packet::ipv6(router, from, ICMPV6, &message);
            packet::ethernet(mac::BALANCER, mac::BRIDGE, ETHERTYPE_IPV6, &packet)
        }
        _ => unreachable!("a VIP and its client are of one family"),
    }
}

/// Of a tunnel's packet with an ICMP error inside: the client's port in what it quotes.
fn error_in(frame: &[u8]) -> Option<u16> {
    let inner = Ethernet::parse(frame)?.ip()?.inner()?;
    if !address::is_vip(inner.destination) || !matches!(inner.protocol, ICMP | ICMPV6) {
        return None;
    }
    let (_, client) = Ip::parse(inner.payload.get(8..)?)?.ports()?;
    Some(client)
}
