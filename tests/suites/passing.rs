//! Traffic that is not ours: it reaches the balancer's own stack byte for byte, whatever it looks like.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::capture::SETTLE;
use lab::config::{File, Service};
use lab::packet::{self, ETHERTYPE_ARP, ETHERTYPE_IPV4, ETHERTYPE_IPV6, IPPROTO_TCP, IPPROTO_UDP};
use lab::{Capture, Daemon, Direction, Family, Frame, Lab, address, interface, mac, wait_until};

use crate::Suites;
use crate::setup::{HTTP, web};

const TIMEOUT: Duration = Duration::from_secs(5);
const ROUTING: u8 = 43;
const HOP_BY_HOP: u8 = 0;
const DESTINATION_OPTIONS: u8 = 60;
const FRAGMENT: u8 = 44;
const NO_NEXT: u8 = 59;

pub fn add(suites: &mut Suites) {
    // Without a daemon: shows that the laboratory itself changes nothing.
    suites.case(
        "laboratory",
        "own_traffic_arrives_unchanged_without_a_balancer",
        || own_traffic(None),
    );
    suites.case(
        "laboratory",
        "raw_frames_arrive_unchanged_without_a_balancer",
        || raw_frames(None),
    );
    for mode in ["native", "generic"] {
        suites.case(
            "passing",
            format!("ping_udp_and_tcp_of_the_balancer_itself_{mode}"),
            move || own_traffic(Some(mode)),
        );
        suites.case(
            "passing",
            format!("raw_frames_of_every_kind_{mode}"),
            move || raw_frames(Some(mode)),
        );
    }
}

/// A daemon with services of every family and protocol, so that every look-up really happens and misses.
fn daemon<'lab>(lab: &'lab Lab, mode: &'static str) -> Result<Daemon<'lab>> {
    let v6 = lab.backends().iter().map(|backend| backend.v6());
    let mut file = File::new(vec![
        web(lab),
        Service::tcp("web6", Family::V6.vip_port(HTTP), v6.clone()),
        Service::udp("udp6", Family::V6.vip_port(HTTP), v6),
    ]);
    file.xdp_mode = mode;
    Daemon::start(lab, &file)
}

/// What was put on the wire towards the balancer, and what its stack saw.
struct Comparison {
    sent: Capture,
    seen: Capture,
}

impl Comparison {
    fn start(lab: &Lab) -> Result<Self> {
        // The receiving side first and last, so that it cannot miss what the sending side has.
        let seen = Capture::start(lab.balancer(), "eth0", Direction::In, |_| true)?;
        let sent = Capture::start(lab.router(), "lb0", Direction::Out, |_| true)?;
        Ok(Self { sent, seen })
    }

    /// Every sent frame must have been seen, equal in every byte and in the same order. Returns how many.
    fn finish(self) -> Result<usize> {
        let sent = self.sent.stop()?;
        wait_until("the last frames to arrive", SETTLE, || {
            Ok(self.seen.seen() >= sent.len() as u64)
        })
        .with_context(|| format!("{} frames sent, {} seen", sent.len(), self.seen.seen()))?;
        let seen = self.seen.stop()?;
        let mut rest = seen.iter();
        for Frame { bytes, .. } in &sent {
            ensure!(
                rest.any(|frame| frame.bytes == *bytes),
                "this frame did not reach the stack unchanged and in order:\n{bytes:02x?}"
            );
        }
        Ok(sent.len())
    }
}

fn own_traffic(mode: Option<&'static str>) -> Result<()> {
    let lab = Lab::builder().backends(1).build()?;
    let _daemon = mode.map(|mode| daemon(&lab, mode)).transpose()?;
    let comparison = Comparison::start(&lab)?;
    for family in Family::BOTH {
        let own = family.balancer();
        lab.client().ping(own, 56)?;
        lab.client().ping(own, 4_000)?; // three fragments there, and back
        udp_of_the_balancer(&lab, own)?;
        tcp_of_the_balancer(&lab, own)?;
    }
    ensure!(comparison.finish()? > 20, "hardly anything was sent");
    Ok(())
}

fn udp_of_the_balancer(lab: &Lab, own: IpAddr) -> Result<()> {
    let server = lab
        .balancer()
        .run(|| UdpSocket::bind(SocketAddr::new(own, 9_999)))?;
    server.set_read_timeout(Some(TIMEOUT))?;
    let client = lab.client().udp_socket(SocketAddr::new(own, 9_999))?;
    for length in [1usize, 1_400, 4_000] {
        let datagram: Vec<u8> = (0..length).map(|position| position as u8).collect();
        client.send(&datagram)?;
        let mut buffer = [0u8; 8_192];
        let got = server
            .recv(&mut buffer)
            .with_context(|| format!("a datagram of {length} bytes was lost"))?;
        ensure!(
            buffer[..got] == datagram,
            "a datagram of {length} bytes was changed"
        );
    }
    Ok(())
}

/// At the port of the balanced service, but at the balancer's own address.
fn tcp_of_the_balancer(lab: &Lab, own: IpAddr) -> Result<()> {
    let address = SocketAddr::new(own, HTTP);
    let listener = lab.balancer().run(|| TcpListener::bind(address))?;
    let mut client = lab
        .client()
        .namespace()
        .run(|| TcpStream::connect_timeout(&address, TIMEOUT))?;
    let (mut server, _) = listener.accept()?;
    server.set_read_timeout(Some(TIMEOUT))?;
    let sent = vec![b'x'; 20_000];
    client.write_all(&sent)?;
    drop(client);
    let mut received = Vec::new();
    server.read_to_end(&mut received)?;
    ensure!(
        received == sent,
        "{} bytes of {} came through",
        received.len(),
        sent.len()
    );
    Ok(())
}

fn raw_frames(mode: Option<&'static str>) -> Result<()> {
    let lab = Lab::builder().backends(1).build()?;
    let daemon = mode.map(|mode| daemon(&lab, mode)).transpose()?;
    let before = daemon.as_ref().map_or(Ok(0), passed)?;
    let comparison = Comparison::start(&lab)?;
    let frames = frames();
    lab.router().run(|| {
        frames
            .iter()
            .try_for_each(|frame| interface::send_frame("lb0", frame))
    })?;
    let compared = comparison.finish()?;
    ensure!(
        compared >= frames.len(),
        "only {compared} of {} frames were sent",
        frames.len()
    );
    if let Some(daemon) = &daemon {
        let passed = passed(daemon)? - before;
        ensure!(
            passed >= frames.len() as u64,
            "{} frames, but {passed} counted as passed",
            frames.len()
        );
    }
    Ok(())
}

fn passed(daemon: &Daemon<'_>) -> Result<u64> {
    Ok(daemon
        .metrics()?
        .sum("sluice_packets_total", &[("verdict", "pass")]))
}

/// Everything odd that a wire may carry, none of it for one of our services.
fn frames() -> Vec<Vec<u8>> {
    const CLIENT: Ipv4Addr = address::client_v4(0);
    const CLIENT6: Ipv6Addr = address::client_v6(0);
    let v4 = |packet: &[u8]| packet::ethernet(mac::BALANCER, mac::BRIDGE, ETHERTYPE_IPV4, packet);
    let v6 = |packet: &[u8]| packet::ethernet(mac::BALANCER, mac::BRIDGE, ETHERTYPE_IPV6, packet);
    let own = SocketAddr::new(Family::V4.balancer(), HTTP);
    let datagram = packet::udp(
        SocketAddr::new(CLIENT.into(), 5_000),
        own,
        b"to the balancer itself",
    );
    let own6 = SocketAddr::new(Family::V6.balancer(), HTTP);
    let datagram6 = packet::udp(
        SocketAddr::new(CLIENT6.into(), 5_000),
        own6,
        b"to the balancer itself",
    );
    let plain = packet::ipv4(CLIENT, address::BALANCER_V4, IPPROTO_UDP, &[], &datagram);
    let plain6 = packet::ipv6(CLIENT6, address::BALANCER_V6, IPPROTO_UDP, &datagram6);

    let mut frames = vec![
        // Not IP at all: LLDP, an unknown type, a 802.3 length, ARP, nothing behind the header.
        packet::ethernet([1, 0x80, 0xc2, 0, 0, 0xe], mac::BRIDGE, 0x88cc, &[0; 46]),
        packet::ethernet(mac::BALANCER, mac::BRIDGE, 0xfefe, &[0xaa; 100]),
        packet::ethernet(mac::BALANCER, mac::BRIDGE, 46, &[0x42; 46]),
        packet::ethernet(
            [0xff; 6],
            mac::BRIDGE,
            ETHERTYPE_ARP,
            &[0, 1, 8, 0, 6, 4, 0, 1],
        ),
        packet::ethernet(mac::BALANCER, mac::BRIDGE, ETHERTYPE_IPV4, &[]),
        packet::ethernet(mac::BALANCER, mac::BRIDGE, ETHERTYPE_IPV6, &[]),
        // Somebody else's MAC.
        packet::ethernet(mac::backend(9), mac::BRIDGE, ETHERTYPE_IPV4, &plain),
        // Options, every protocol without ports, odd versions and lengths.
        v4(&packet::ipv4(
            CLIENT,
            address::BALANCER_V4,
            IPPROTO_UDP,
            &[1; 40],
            &datagram,
        )),
        v4(&packet::ipv4(
            CLIENT,
            address::BALANCER_V4,
            47,
            &[],
            &[0; 40],
        )),
        v4(&packet::ipv4(
            CLIENT,
            address::BALANCER_V4,
            50,
            &[],
            &[7; 40],
        )),
        v4(&packet::ipv4(
            CLIENT,
            address::BALANCER_V4,
            packet::IPPROTO_IPV4,
            &[],
            &plain,
        )),
        v4(&packet::ipv4(
            CLIENT,
            address::BALANCER_V4,
            IPPROTO_TCP,
            &[],
            &[0; 3],
        )),
        v4(&[0x41; 60]),
        v4(&[0xf5; 60]),
        // A VIP of ours, but a port and a protocol that no service has.
        v4(&packet::ipv4(
            CLIENT,
            address::vip_v4(0),
            IPPROTO_UDP,
            &[],
            &datagram,
        )),
        v4(&packet::ipv4(
            CLIENT,
            address::vip_v4(1),
            IPPROTO_UDP,
            &[1; 4],
            &datagram,
        )),
        v6(&packet::ipv6(
            CLIENT6,
            address::vip_v6(1),
            IPPROTO_UDP,
            &datagram6,
        )),
        // Extension headers before UDP, a chain longer than any parser walks, and none at all.
        v6(&packet::ipv6(
            CLIENT6,
            address::BALANCER_V6,
            HOP_BY_HOP,
            &extended(IPPROTO_UDP, &datagram6),
        )),
        v6(&packet::ipv6(
            CLIENT6,
            address::BALANCER_V6,
            ROUTING,
            &extended(IPPROTO_UDP, &datagram6),
        )),
        v6(&packet::ipv6(
            CLIENT6,
            address::BALANCER_V6,
            FRAGMENT,
            &extended(IPPROTO_UDP, &datagram6),
        )),
        v6(&packet::ipv6(CLIENT6, address::BALANCER_V6, NO_NEXT, &[])),
        v6(&packet::ipv6(
            CLIENT6,
            address::BALANCER_V6,
            DESTINATION_OPTIONS,
            &chain(20, &datagram6),
        )),
        // Tags of networks nobody here is in: one, two, and three.
        packet::with_vlan(&v4(&plain), 7),
        packet::with_vlan(&packet::with_vlan(&v4(&plain), 7), 8),
        packet::with_vlan(
            &packet::with_vlan(&packet::with_vlan(&v6(&plain6), 7), 8),
            9,
        ),
    ];
    // Fragments: the first, a middle one, the last.
    for offset in [0x2000u16, 0x2000 | 100, 200] {
        let mut fragment = plain.clone();
        fragment[6..8].copy_from_slice(&offset.to_be_bytes());
        fragment[10..12].copy_from_slice(&[0, 0]);
        let sum = packet::checksum(&fragment[..20]);
        fragment[10..12].copy_from_slice(&sum.to_be_bytes());
        frames.push(v4(&fragment));
    }
    // Cut anywhere.
    for whole in [v4(&plain), v6(&plain6)] {
        frames.extend((14..whole.len()).map(|length| whole[..length].to_vec()));
    }
    frames
}

/// One empty extension header (8 bytes of padding options) before `payload`.
fn extended(next: u8, payload: &[u8]) -> Vec<u8> {
    [&[next, 0, 1, 4, 0, 0, 0, 0], payload].concat()
}

fn chain(count: usize, payload: &[u8]) -> Vec<u8> {
    (0..count).fold(payload.to_vec(), |payload, number| {
        let next = if number == 0 {
            IPPROTO_UDP
        } else {
            DESTINATION_OPTIONS
        };
        extended(next, &payload)
    })
}
