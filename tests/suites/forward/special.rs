//! Client packets that are not like most: with options, with a VLAN tag, too big for the way.

use anyhow::{Context, Result, ensure};
use lab::capture::SETTLE;
use lab::packet::{self, ETHERTYPE_IPV4, IPPROTO_IPV4, IPPROTO_UDP};
use lab::{Capture, Direction, address, interface, mac, wait_until};

use super::{Captures, Case, IPIP};
use crate::Suites;
use crate::setup::{ECHO, carries_client_packet, client_packet};

pub fn add(suites: &mut Suites) {
    suites.case("forward", "ipv4_options_stay", ipv4_options);
    suites.case("forward", "too_big_is_never_sent", too_big);
    suites.case("forward", "vlan_tagged_client_packet", vlan_tagged);
    suites.case("forward", "a_connection_goes_on_through_gue", change_to_gue);
}

/// A reload that changes how packets travel is nobody's loss: the same connection, to the same backend, in another header.
fn change_to_gue() -> Result<()> {
    let lab = IPIP.laboratory()?;
    let daemon = IPIP.daemon(&lab)?;
    let mut connection = lab.client().connect(IPIP.client.vip_port(ECHO))?;
    for forward in ["ipip", "gue", "ipip"] {
        daemon.write_config(&Case { forward, ..IPIP }.file())?;
        daemon.reload()?;
        let sent = Capture::start(lab.router(), "b1", Direction::Out, carries_client_packet)?;
        for line in ["first", "second"] {
            connection
                .exchange(line)
                .with_context(|| format!("through {forward}"))?;
        }
        let sent = sent.stop()?;
        ensure!(sent.len() >= 2, "{forward}: {} packets", sent.len());
        let protocol = if forward == "gue" {
            IPPROTO_UDP
        } else {
            IPPROTO_IPV4
        };
        for frame in &sent {
            let outer = frame.ethernet().and_then(|frame| frame.ip());
            let seen = outer.map(|outer| outer.protocol);
            ensure!(seen == Some(protocol), "{forward}: outer protocol {seen:?}");
        }
        let service = daemon.service("echo")?;
        ensure!(
            service.summary.forward.to_string() == forward,
            "the service says {}",
            service.summary.forward
        );
    }
    Ok(())
}

fn ipv4_options() -> Result<()> {
    const NOP: u8 = 1;
    let case = Case {
        protocol: "udp",
        ..IPIP
    };
    let lab = case.laboratory()?;
    let _daemon = case.daemon(&lab)?;
    let captures = Captures::start(&lab)?;
    let datagram = packet::udp(
        "198.51.100.10:4321".parse()?,
        case.client.vip_port(ECHO),
        b"with options",
    );
    let packet = packet::ipv4(
        address::client_v4(0),
        address::vip_v4(0),
        IPPROTO_UDP,
        &[NOP; 8],
        &datagram,
    );
    let frame = packet::ethernet(mac::BALANCER, mac::BRIDGE, ETHERTYPE_IPV4, &packet);
    lab.router().run(|| interface::send_frame("lb0", &frame))?;
    let arrived = wait_until("the packet to reach the backend", SETTLE, || {
        Ok(captures.sent.seen() == 1)
    });
    let (delivered, sent) = captures.stop()?;
    arrived?;
    case.compare(&delivered[0], &sent[0])?;
    let inner = client_packet(&sent[0].bytes).context("no client packet")?;
    ensure!(inner.bytes == packet, "the options were changed");
    Ok(())
}

/// Where the link has no room for the outer header, a full packet is dropped by reason; smaller ones still pass.
fn too_big() -> Result<()> {
    const ETHERNET_MTU: usize = 1_500;
    let case = Case {
        protocol: "udp",
        ..IPIP
    };
    let lab = case.laboratory()?;
    lab.balancer().ip_batch("link set eth0 mtu 1500\n")?;
    let daemon = case.daemon(&lab)?;
    let too_big = |frame: &[u8]| frame.len() > 14 + ETHERNET_MTU;
    let oversized = Capture::count(lab.router(), "lb0", Direction::In, too_big)?;
    let sent = Capture::start(lab.router(), "b1", Direction::Out, carries_client_packet)?;
    let socket = lab.client().udp_socket(case.client.vip_port(ECHO))?;
    // The biggest that fits beside 20 bytes of outer header, 20 of inner and 8 of UDP; one byte more; a full one.
    for length in [ETHERNET_MTU - 48, ETHERNET_MTU - 47, ETHERNET_MTU - 28] {
        socket.send(&vec![b'q'; length])?;
    }
    let mut buffer = [0u8; 2_048];
    socket
        .recv(&mut buffer)
        .context("the one that fits was not answered")?;
    wait_until("both bigger ones to be counted as dropped", SETTLE, || {
        Ok(daemon
            .metrics()?
            .sum("sluice_packets_total", &[("verdict", "drop")])
            == 2)
    })?;
    ensure!(
        sent.stop()?.len() == 1,
        "not exactly the one that fits was sent"
    );
    ensure!(
        oversized.stop_counting()? == 0,
        "a frame over the MTU left the balancer"
    );
    Ok(())
}

/// A tag is the link's affair: the balancer reads past it and answers on the backend's own link, which has none.
fn vlan_tagged() -> Result<()> {
    let case = Case {
        protocol: "udp",
        ..IPIP
    };
    let lab = case.laboratory()?;
    let _daemon = case.daemon(&lab)?;
    let sent = Capture::start(lab.router(), "lb0", Direction::In, carries_client_packet)?;
    let datagram = packet::udp(
        "198.51.100.10:4321".parse()?,
        case.client.vip_port(ECHO),
        b"tagged",
    );
    let packet = packet::ipv4(
        address::client_v4(0),
        address::vip_v4(0),
        IPPROTO_UDP,
        &[],
        &datagram,
    );
    let frame = packet::ethernet(mac::BALANCER, mac::BRIDGE, ETHERTYPE_IPV4, &packet);
    lab.router()
        .run(|| interface::send_frame("lb0", &packet::with_vlan(&frame, 7)))?;
    let arrived = wait_until("the packet to leave the balancer", SETTLE, || {
        Ok(sent.seen() == 1)
    });
    let sent = sent.stop()?;
    arrived?;
    let inner = client_packet(&sent[0].bytes).context("no client packet")?;
    ensure!(inner.bytes == packet, "the inner packet was changed");
    Ok(())
}
