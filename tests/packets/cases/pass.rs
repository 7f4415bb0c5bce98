//! Packets that are none of our business: untouched to the host's stack, whatever is wrong with them.

use lb_common::reason::Reason;

use super::{Case, good, pass};
use crate::frame::{At, Extension, Frame, QINQ, VLAN};
use crate::world::{ANY4, ANY6, BROKEN4, STRANGER4, STRANGER6, WEB4, WEB6};

pub fn cases() -> Vec<Case> {
    let mut cases = link();
    cases.extend(strangers());
    cases.extend(other_ports_and_protocols());
    cases.extend(icmp());
    cases.extend(malformed_but_not_ours());
    cases
}

fn ethernet(ethertype: u16, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Frame::tcp(WEB4, 80).bytes()[..12].to_vec();
    bytes.extend(ethertype.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// Frames without an IP header, or without all of it.
fn link() -> Vec<Case> {
    let mut cases = vec![
        pass(
            "ARP",
            ethernet(0x0806, &[0, 1, 8, 0, 6, 4, 0, 1].repeat(4)),
            Reason::NotIp,
        ),
        pass(
            "LLDP",
            ethernet(0x88cc, &[2, 7, 4, 0, 0, 0, 0, 0].repeat(6)),
            Reason::NotIp,
        ),
        pass(
            "802.3 length instead of EtherType",
            ethernet(38, &[0x42; 38]),
            Reason::NotIp,
        ),
        pass(
            "MPLS",
            ethernet(0x8847, &Frame::tcp(WEB4, 80).bytes()),
            Reason::NotIp,
        ),
        pass(
            "ARP in a VLAN",
            ethernet(VLAN, &[0, 5, 0x08, 0x06, 0, 1]),
            Reason::NotIp,
        ),
        pass(
            "nothing but an Ethernet header",
            ethernet(0x0800, &[]),
            Reason::ShortFrame,
        ),
        pass(
            "half a VLAN tag",
            ethernet(VLAN, &[0, 5]),
            Reason::ShortFrame,
        ),
        pass(
            "a VLAN tag and nothing more",
            ethernet(VLAN, &[0, 5, 8, 0]),
            Reason::ShortFrame,
        ),
        pass(
            "half a second VLAN tag",
            ethernet(QINQ, &[0, 5, 0x81, 0, 0]),
            Reason::ShortFrame,
        ),
    ];
    for (name, frame, _) in good() {
        let header = if frame.v6() { 40 } else { 20 };
        cases.push(pass(
            format!("{name}, three VLAN tags"),
            frame.clone().tag(QINQ).tag(VLAN).tag(VLAN).bytes(),
            Reason::VlanDepth,
        ));
        cases.push(pass(
            format!("{name}, IP header short by one byte"),
            frame.clone().cut(At::Ip, header - 1).bytes(),
            Reason::ShortFrame,
        ));
    }
    cases
}

/// Nothing at all is refused for an address that is no VIP.
fn strangers() -> Vec<Case> {
    let tcp4 = Frame::tcp(STRANGER4, 80);
    let udp4 = Frame::udp(STRANGER4, 53);
    let tcp6 = Frame::tcp(STRANGER6, 80);
    let udp6 = Frame::udp(STRANGER6, 53);
    let nine = (0..9).fold(tcp6.clone(), |frame, _| {
        frame.extension(Extension::Destination)
    });
    let frames = [
        ("v4 tcp", tcp4.clone()),
        ("v4 udp", udp4.clone()),
        ("v6 tcp", tcp6.clone()),
        ("v6 udp", udp6.clone()),
        ("v4 tcp, two tags", tcp4.clone().tag(QINQ).tag(VLAN)),
        ("v4 tcp, IHL 15", tcp4.clone().options(10)),
        ("v4 udp, first fragment", udp4.clone().fragment(0, true)),
        ("v4 udp, middle fragment", udp4.clone().fragment(185, true)),
        ("v4 udp, last fragment", udp4.clone().fragment(185, false)),
        (
            "v6 udp, first fragment",
            udp6.clone().extension(Extension::Fragment(0, true)),
        ),
        (
            "v6 udp, middle fragment",
            udp6.clone().extension(Extension::Fragment(181, true)),
        ),
        ("v6 tcp, nine extension headers", nine),
        ("v6 tcp, extension header beyond the end", {
            tcp6.clone()
                .extension(Extension::Destination)
                .patch(At::Ip, 41, &[255])
        }),
        ("v4 tcp, IHL 4", tcp4.clone().patch(At::Ip, 0, &[0x44])),
        ("v4 tcp, version 6", tcp4.clone().patch(At::Ip, 0, &[0x65])),
        ("v6 tcp, version 4", tcp6.clone().patch(At::Ip, 0, &[0x40])),
        ("v4 tcp, truncated", tcp4.clone().cut(At::Transport, 10)),
        ("v6 tcp, truncated", tcp6.clone().cut(At::Transport, 10)),
        (
            "v4 tcp, data offset 4",
            tcp4.clone().patch(At::Transport, 12, &[0x40]),
        ),
        ("v4 udp, length 7", udp4.patch(At::Transport, 4, &[0, 7])),
        ("v4 tcp, too big", tcp4.ip_length(1_500)),
        ("v6 tcp, too big", tcp6.ip_length(1_500)),
        (
            "v6 tcp to a v4-mapped VIP",
            Frame::tcp("::ffff:203.0.113.10", 80),
        ),
        ("v6 tcp to a v4-mapped VIP, from a v4-mapped client", {
            Frame::tcp("::ffff:203.0.113.10", 80).from("::ffff:198.51.100.7", 40_000)
        }),
        (
            "v6 tcp to a v4-compatible VIP",
            Frame::tcp("::203.0.113.10", 80),
        ),
        ("v6 udp to a v4-mapped VIP, a fragment", {
            Frame::udp("::ffff:203.0.113.10", 53).extension(Extension::Fragment(9, true))
        }),
        // The VIP is the source: what a backend answers.
        (
            "v4 tcp from a VIP",
            Frame::tcp("198.51.100.7", 40_000).from(WEB4, 80),
        ),
        (
            "v6 udp from a VIP",
            Frame::udp("2001:db8:c::7", 40_000).from(WEB6, 53),
        ),
    ];
    frames
        .into_iter()
        .map(|(name, frame)| pass(format!("stranger, {name}"), frame.bytes(), Reason::NotOurs))
        .collect()
}

fn other_ports_and_protocols() -> Vec<Case> {
    let mut cases = Vec::new();
    let frames = [
        ("v4 tcp, another port", Frame::tcp(WEB4, 81)),
        ("v4 udp, another port", Frame::udp(WEB4, 54)),
        ("v6 tcp, another port", Frame::tcp(WEB6, 81)),
        ("v6 udp, another port", Frame::udp(WEB6, 54)),
        ("v4, tcp to a port of udp", Frame::tcp(WEB4, 53)),
        ("v4, udp to a port of tcp", Frame::udp(WEB4, 80)),
        ("v4, udp to every port of tcp", Frame::udp(ANY4, 80)),
        ("v6, tcp to every port of udp", Frame::tcp(ANY6, 80)),
        ("v4 tcp, port 0 is not every port", Frame::tcp(WEB4, 0)),
        (
            "v4 tcp, the port's bytes swapped",
            Frame::tcp(WEB4, 80_u16.swap_bytes()),
        ),
        (
            "v4 udp, first fragment to another port",
            Frame::udp(WEB4, 54).fragment(0, true),
        ),
        (
            "v4 tcp, data offset 4 to another port",
            Frame::tcp(WEB4, 81).patch(At::Transport, 12, &[0x40]),
        ),
        (
            "v4 udp, length 7 to another port",
            Frame::udp(WEB4, 54).patch(At::Transport, 4, &[0, 7]),
        ),
        (
            "v4 tcp, too big to another port",
            Frame::tcp(WEB4, 81).ip_length(1_500),
        ),
    ];
    for (name, frame) in frames {
        cases.push(pass(format!("VIP, {name}"), frame.bytes(), Reason::NotOurs));
    }
    let protocols = [
        ("IGMP", 2),
        ("IP in IP", 4),
        ("IPv6 in IP", 41),
        ("GRE", 47),
        ("ESP", 50),
        ("AH", 51),
        ("SCTP", 132),
        ("no next header", 59),
        ("UDP-Lite", 136),
    ];
    for (name, protocol) in protocols {
        for vip in [WEB4, WEB6] {
            let frame = Frame::other(protocol, vip);
            cases.push(pass(
                format!("VIP {vip}, {name}"),
                frame.bytes(),
                Reason::NotOurs,
            ));
        }
    }
    cases
}

fn icmp() -> Vec<Case> {
    let (v4, v6) = (1, 58);
    let hop_by_hop = Frame::other(v6, WEB6).extension(Extension::HopByHop);
    vec![
        pass(
            "ICMP to a VIP",
            Frame::other(v4, WEB4).bytes(),
            Reason::IcmpToVip,
        ),
        pass(
            "ICMP to a VIP whose services are broken",
            Frame::other(v4, BROKEN4).bytes(),
            Reason::IcmpToVip,
        ),
        pass(
            "ICMP to a VIP, tagged, with options",
            Frame::other(v4, WEB4).tag(VLAN).options(2).bytes(),
            Reason::IcmpToVip,
        ),
        pass(
            "ICMP to a VIP, a fragment",
            Frame::other(v4, WEB4).fragment(3, true).bytes(),
            Reason::IcmpToVip,
        ),
        pass(
            "ICMPv6 to a VIP",
            Frame::other(v6, WEB6).bytes(),
            Reason::IcmpToVip,
        ),
        pass(
            "ICMPv6 to a VIP, hop-by-hop options",
            hop_by_hop.bytes(),
            Reason::IcmpToVip,
        ),
        pass(
            "ICMP to a stranger",
            Frame::other(v4, STRANGER4).bytes(),
            Reason::NotOurs,
        ),
        pass(
            "ICMPv6 to a stranger",
            Frame::other(v6, STRANGER6).bytes(),
            Reason::NotOurs,
        ),
        pass(
            "ICMPv6 to a v4-mapped VIP",
            Frame::other(v6, "::ffff:203.0.113.10").bytes(),
            Reason::NotOurs,
        ),
        pass(
            "ICMPv6's number over IPv4 to a VIP",
            Frame::other(v6, WEB4).bytes(),
            Reason::NotOurs,
        ),
        pass(
            "ICMP's number over IPv6 to a VIP",
            Frame::other(v4, WEB6).bytes(),
            Reason::NotOurs,
        ),
    ]
}

/// To a VIP, wrong, but of a protocol that has no service there.
fn malformed_but_not_ours() -> Vec<Case> {
    let frames = [
        (
            "udp, IHL 4, where only tcp is served",
            Frame::udp(ANY4, 80).patch(At::Ip, 0, &[0x44]),
        ),
        (
            "udp, truncated, where only tcp is served",
            Frame::udp(ANY4, 80).cut(At::Transport, 6),
        ),
        (
            "udp, middle fragment, where only tcp is served",
            Frame::udp(ANY4, 80).fragment(9, true),
        ),
        ("v6 tcp, middle fragment, where only udp is served", {
            Frame::tcp(ANY6, 80).extension(Extension::Fragment(9, true))
        }),
        (
            "SCTP, truncated",
            Frame::other(132, WEB4).cut(At::Transport, 6),
        ),
        (
            "SCTP, IHL 4",
            Frame::other(132, WEB4).patch(At::Ip, 0, &[0x44]),
        ),
        (
            "ICMP, truncated",
            Frame::other(1, WEB4).cut(At::Transport, 6),
        ),
        // Over IPv4, zero is a protocol like any other.
        (
            "protocol 0, truncated",
            Frame::other(0, WEB4).cut(At::Transport, 6),
        ),
        (
            "SCTP, middle fragment",
            Frame::other(132, WEB4).fragment(9, true),
        ),
        (
            "tcp, cut behind the ports, another port",
            Frame::tcp(WEB4, 81).patch(At::Ip, 2, &[0, 24]),
        ),
    ];
    frames
        .into_iter()
        .map(|(name, frame)| pass(format!("VIP, {name}"), frame.bytes(), Reason::NotOurs))
        .collect()
}
