//! ICMP: echo requests that are answered, and errors that follow the flow they are about. (What passes of other ICMP: `pass`.)

use lb_common::reason::Reason;

use super::{Case, Expect, drop, pass, to};
use crate::frame::{At, CLIENT_V4, CLIENT_V6, Extension, Frame, QINQ, VLAN, internet_checksum};
use crate::world::{
    ANY4, ANY6, BROKEN4, BROKEN6, MANY4, MANY6, STRANGER4, STRANGER6, WEB4, WEB6, broken,
};

/// A router on the way, which reports what it cannot forward.
const ROUTER4: &str = "192.0.2.254";
const ROUTER6: &str = "2001:db8:ffff::fe";

pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for vip in [WEB4, WEB6] {
        cases.extend(answered(vip));
        cases.extend(not_answered(vip));
        cases.extend(errors(vip));
        cases.extend(errors_about_nothing(vip));
    }
    cases.extend(policies());
    cases.extend(families());
    cases.extend(services());
    cases
}

/// An echo request with `length` bytes of payload.
pub fn echo(vip: &str, id: u16, sequence: u16, length: usize) -> Frame {
    let kind = if vip.contains(':') { 128 } else { 8 };
    let [a, b] = id.to_be_bytes();
    let [c, d] = sequence.to_be_bytes();
    let body: Vec<u8> = (0..length).map(|i| i as u8 ^ 0x5a).collect();
    Frame::icmp(vip, kind, 0, [a, b, c, d], &body)
}

/// What must come back, checksums summed anew. Only for frames whose checksums are right.
fn answer(frame: &Frame) -> Vec<u8> {
    let mut bytes = frame.bytes();
    let at = frame.l2_length();
    let (addresses, length) = if frame.v6() {
        (at + 8, 16)
    } else {
        (at + 12, 4)
    };
    let message = at + if frame.v6() { 40 } else { 20 };
    let end = at + frame.packet_length();
    let (first, second) = bytes.split_at_mut(6);
    first.swap_with_slice(&mut second[..6]);
    let (first, second) = bytes[addresses..].split_at_mut(length);
    first.swap_with_slice(&mut second[..length]);
    bytes[message] = if frame.v6() { 129 } else { 0 };
    bytes[message + 2..message + 4].fill(0);
    let mut covered = bytes[message..end].to_vec();
    if frame.v6() {
        bytes[at + 7] = 64;
        covered.extend(&bytes[at + 8..at + 40]);
        covered.extend([0, 58]);
        covered.extend(((end - message) as u16).to_be_bytes());
    } else {
        bytes[at + 8] = 64;
        bytes[at + 10..at + 12].fill(0);
        let sum = internet_checksum(&bytes[at..message]);
        bytes[at + 10..at + 12].copy_from_slice(&sum.to_be_bytes());
    }
    // Bytes are appended in pairs: an odd message has to be padded first.
    if (end - message) % 2 == 1 {
        covered.insert(end - message, 0);
    }
    let sum = match internet_checksum(&covered) {
        // The same sum, and the only right one for a message of zeros.
        0 if !frame.v6() => 0xffff,
        sum => sum,
    };
    bytes[message + 2..message + 4].copy_from_slice(&sum.to_be_bytes());
    bytes
}

fn reply(name: String, frame: &Frame) -> Case {
    Case {
        name,
        frame: frame.bytes(),
        expect: Expect::Reply(answer(frame)),
    }
}

fn answered(vip: &str) -> Vec<Case> {
    let plain = echo(vip, 0x5c1c, 1, 56);
    let request = if plain.v6() { 128 } else { 8 };
    let mut cases = vec![
        reply(format!("ping {vip}"), &plain),
        reply(format!("ping {vip}, one tag"), &plain.clone().tag(VLAN)),
        reply(
            format!("ping {vip}, two tags"),
            &plain.clone().tag(QINQ).tag(VLAN),
        ),
        reply(
            format!("ping {vip}, Ethernet padding"),
            &echo(vip, 7, 7, 3).pad(17),
        ),
        reply(
            format!("ping {vip}, traffic class"),
            &plain.clone().tos(0xb9),
        ),
        reply(
            format!("ping {vip}, as big as it gets"),
            &echo(vip, 1, 0xffff, 1_400),
        ),
        reply(
            format!("ping {vip} of zeros"),
            &Frame::icmp(vip, request, 0, [0; 4], &[0; 32]),
        ),
        reply(
            format!("ping {vip}, a code of its own"),
            &Frame::icmp(vip, request, 7, [1; 4], &[1; 32]),
        ),
    ];
    for length in [0, 1, 2, 3, 55, 57] {
        cases.push(reply(
            format!("ping {vip}, {length} bytes"),
            &echo(vip, 0xffff, 0, length),
        ));
    }
    cases
}

/// Requests to a VIP that is answered for, which the host's stack gets nevertheless.
fn not_answered(vip: &str) -> Vec<Case> {
    let plain = echo(vip, 0x5c1c, 1, 56);
    let mut frames = vec![
        ("from itself", plain.clone().from(vip, 0)),
        ("to a group's MAC", plain.clone()),
        ("from a group's MAC", plain.clone()),
        ("seven bytes", plain.clone().payload(7)),
    ];
    if plain.v6() {
        frames.extend([
            ("from a group", plain.clone().from("ff02::1", 0)),
            ("from nobody", plain.clone().from("::", 0)),
            ("from loopback", plain.clone().from("::1", 0)),
            (
                "from an IPv4 address in IPv6 clothes",
                plain.clone().from("::ffff:198.51.100.7", 0),
            ),
            (
                "hop-by-hop options",
                plain.clone().extension(Extension::HopByHop),
            ),
            (
                "an atomic fragment",
                plain.clone().extension(Extension::Fragment(0, false)),
            ),
            (
                "a first fragment",
                plain.clone().extension(Extension::Fragment(0, true)),
            ),
            (
                "a later fragment",
                plain.clone().extension(Extension::Fragment(9, false)),
            ),
        ]);
    } else {
        frames.extend([
            ("from a group", plain.clone().from("224.0.0.1", 0)),
            ("from everybody", plain.clone().from("255.255.255.255", 0)),
            ("from nobody", plain.clone().from("0.0.0.0", 0)),
            ("from loopback", plain.clone().from("127.0.0.1", 0)),
            ("options", plain.clone().options(1)),
            ("a first fragment", plain.clone().fragment(0, true)),
            ("a later fragment", plain.clone().fragment(9, false)),
        ]);
    }
    let cases = frames.into_iter().map(|(name, frame)| {
        let mut bytes = frame.bytes();
        match name {
            "to a group's MAC" => bytes[0] |= 1,
            "from a group's MAC" => bytes[6] |= 1,
            _ => {}
        }
        pass(format!("ping {vip}, {name}"), bytes, Reason::IcmpToVip)
    });
    let mut cases: Vec<_> = cases.collect();
    let answer = if plain.v6() { 129 } else { 0 };
    cases.push(pass(
        format!("an echo reply to {vip}"),
        Frame::icmp(vip, answer, 0, [0, 1, 0, 1], &[1; 56]).bytes(),
        Reason::IcmpToVip,
    ));
    cases
}

/// `icmp_echo`, and who is no VIP.
fn policies() -> Vec<Case> {
    let mut cases = Vec::new();
    for vip in [ANY4, ANY6] {
        cases.push(pass(
            format!("ping {vip}, which says pass"),
            echo(vip, 1, 1, 56).bytes(),
            Reason::IcmpToVip,
        ));
    }
    for vip in [MANY4, MANY6] {
        cases.push(drop(
            format!("ping {vip}, which says drop"),
            echo(vip, 1, 1, 56).bytes(),
            Reason::IcmpEchoOff,
        ));
    }
    cases.push(drop(
        format!("ping {MANY4}, which says drop, with options"),
        echo(MANY4, 1, 1, 56).options(2).bytes(),
        Reason::IcmpEchoOff,
    ));
    cases.push(drop(
        format!("ping {MANY6}, which says drop, a first fragment"),
        echo(MANY6, 1, 1, 56)
            .extension(Extension::Fragment(0, true))
            .bytes(),
        Reason::IcmpEchoOff,
    ));
    for stranger in [STRANGER4, STRANGER6] {
        cases.push(pass(
            format!("ping {stranger}, a stranger"),
            echo(stranger, 1, 1, 56).bytes(),
            Reason::NotOurs,
        ));
    }
    // The services of these cannot forward, which is no matter to a ping.
    cases.push(reply(
        format!("ping {BROKEN4}, whose services are broken"),
        &echo(BROKEN4, 1, 1, 56),
    ));
    cases
}

/// What a service's backend sent to the client, from the VIP.
fn sent(vip: &str, port: u16, udp: bool) -> Frame {
    let client = if vip.contains(':') {
        CLIENT_V6
    } else {
        CLIENT_V4
    };
    let frame = if udp {
        Frame::udp(client, 40_000)
    } else {
        Frame::tcp(client, 40_000)
    };
    frame.from(vip, port)
}

/// An error about the first `quoted` bytes of a packet, to who sent it.
pub fn error(vip: &str, kind: u8, code: u8, about: &[u8]) -> Frame {
    let router = if vip.contains(':') { ROUTER6 } else { ROUTER4 };
    // Next-hop MTU, pointer, or unused: nobody looks at it here.
    Frame::icmp(vip, kind, code, [0, 0, 0x05, 0x78], about).from(router, 0)
}

/// A type of error, and the length of a quoted header without options.
const fn kind_and_header(v6: bool) -> (u8, usize) {
    if v6 { (2, 40) } else { (3, 20) }
}

fn errors(vip: &str) -> Vec<Case> {
    let tcp = sent(vip, 80, false);
    let udp = sent(vip, 53, true);
    let v6 = tcp.v6();
    let (to_tcp, to_udp) = if v6 { (5, 6) } else { (1, 2) };
    let (kind, header) = kind_and_header(v6);
    let kinds: &[(&str, u8, u8)] = if v6 {
        &[
            ("no route", 1, 0),
            ("port unreachable", 1, 4),
            ("packet too big", 2, 0),
            ("hop limit exceeded", 3, 0),
            ("reassembly time exceeded", 3, 1),
            ("parameter problem", 4, 1),
        ]
    } else {
        &[
            ("network unreachable", 3, 0),
            ("host unreachable", 3, 1),
            ("port unreachable", 3, 3),
            ("fragmentation needed", 3, 4),
            ("prohibited", 3, 13),
            ("time exceeded", 11, 0),
            ("reassembly time exceeded", 11, 1),
            ("parameter problem", 12, 0),
        ]
    };
    let mut cases = Vec::new();
    for (name, kind, code) in kinds {
        cases.push(to(
            format!("{vip}, {name}, about tcp"),
            &error(vip, *kind, *code, &tcp.packet()),
            to_tcp,
        ));
        cases.push(to(
            format!("{vip}, {name}, about udp"),
            &error(vip, *kind, *code, &udp.packet()),
            to_udp,
        ));
    }
    let least = error(vip, kind, 0, &tcp.packet()[..header + 8]);
    let mut frames = vec![
        ("eight bytes quoted", least.clone()),
        ("eight bytes quoted, one tag", least.clone().tag(VLAN)),
        (
            "eight bytes quoted, two tags",
            least.clone().tag(QINQ).tag(VLAN),
        ),
        ("Ethernet padding", least.clone().pad(9)),
        ("traffic class", least.clone().tos(0xc0)),
        (
            "500 bytes quoted",
            error(vip, kind, 0, &tcp.clone().ip_length(500).packet()),
        ),
    ];
    if v6 {
        use Extension::{Destination, Fragment, HopByHop, LongDestination, Routing};
        let about = |chain: &[Extension]| {
            let frame = chain.iter().fold(tcp.clone(), |f, e| f.extension(*e));
            error(vip, kind, 0, &frame.packet())
        };
        frames.extend([
            ("options", least.clone().extension(HopByHop)),
            (
                "a chain of extension headers",
                (0..8).fold(least.clone(), |f, _| f.extension(Destination)),
            ),
            ("a quoted option", about(&[HopByHop])),
            ("a quoted chain", about(&[HopByHop, Routing, Destination])),
            ("eight quoted extension headers", about(&[Destination; 8])),
            ("a long quoted option", about(&[LongDestination(20)])),
            ("a quoted first fragment", about(&[Fragment(0, true)])),
            (
                "chains outside and inside",
                about(&[Routing, Destination])
                    .extension(HopByHop)
                    .extension(Destination),
            ),
        ]);
    } else {
        let about = |frame: Frame| error(vip, kind, 4, &frame.packet());
        frames.extend([
            ("options", least.clone().options(3)),
            ("all options there can be", least.clone().options(10)),
            ("a quoted option", about(tcp.clone().options(1))),
            ("all options quoted", about(tcp.clone().options(10))),
            (
                "options outside and inside",
                about(tcp.clone().options(10)).options(10),
            ),
            (
                "a quoted first fragment",
                about(tcp.clone().fragment(0, true)),
            ),
        ]);
    }
    for (name, frame) in frames {
        cases.push(to(format!("{vip}, an error, {name}"), &frame, to_tcp));
    }
    cases
}

/// Errors to a VIP that no flow of ours can have caused: the host's stack gets them.
fn errors_about_nothing(vip: &str) -> Vec<Case> {
    let tcp = sent(vip, 80, false);
    let v6 = tcp.v6();
    let (kind, header) = kind_and_header(v6);
    let about = |frame: &Frame| error(vip, kind, 0, &frame.packet());
    let (other_protocol, stranger) = if v6 { (1, STRANGER6) } else { (58, STRANGER4) };
    let mut frames = vec![
        ("another port", about(&sent(vip, 81, false))),
        ("udp from a port of tcp", about(&sent(vip, 80, true))),
        (
            "what a stranger sent",
            error(vip, kind, 0, &sent(stranger, 80, false).packet()),
        ),
        (
            "what another VIP sent",
            error(
                vip,
                kind,
                0,
                &sent(if v6 { ANY6 } else { ANY4 }, 53, v6).packet(),
            ),
        ),
        ("what the client sent", {
            error(vip, kind, 0, &Frame::tcp(vip, 80).packet())
        }),
        (
            "a protocol without services",
            about(&Frame::other(132, CLIENT_OF[v6 as usize]).from(vip, 0)),
        ),
        ("nothing", error(vip, kind, 0, &[])),
        (
            "half a header",
            error(vip, kind, 0, &tcp.packet()[..header - 1]),
        ),
        (
            "a header alone",
            error(vip, kind, 0, &tcp.packet()[..header]),
        ),
        (
            "seven bytes",
            error(vip, kind, 0, &tcp.packet()[..header + 7]),
        ),
        ("another version", {
            let mut quoted = tcp.packet();
            quoted[0] ^= 0x20;
            error(vip, kind, 0, &quoted)
        }),
        (
            "an echo",
            error(
                vip,
                kind,
                0,
                &Frame::icmp(CLIENT_OF[v6 as usize], 8, 0, [0; 4], &[])
                    .from(vip, 0)
                    .packet(),
            ),
        ),
        (
            "padding that looks like a quote",
            error(vip, kind, 0, &tcp.packet()[..header]).pad(20),
        ),
    ];
    if v6 {
        use Extension::{Destination, Fragment};
        let nine = (0..9).fold(tcp.clone(), |f, _| f.extension(Destination));
        frames.extend([
            ("nine extension headers", about(&nine)),
            (
                "a later fragment",
                about(&tcp.clone().extension(Fragment(9, true))),
            ),
            ("in a fragment", about(&tcp).extension(Fragment(0, true))),
            (
                "an extension header beyond the end",
                about(
                    &tcp.clone()
                        .extension(Destination)
                        .patch(At::Ip, 41, &[0xff]),
                ),
            ),
        ]);
    } else {
        frames.extend([
            ("a later fragment", about(&tcp.clone().fragment(9, true))),
            ("in a fragment", about(&tcp).fragment(0, true)),
            (
                "a header of 16 bytes",
                about(&tcp.clone().patch(At::Ip, 0, &[0x44])),
            ),
            (
                "options beyond the end",
                error(vip, kind, 0, &{
                    let mut quoted = tcp.packet()[..28].to_vec();
                    quoted[0] = 0x4f;
                    quoted
                }),
            ),
        ]);
    }
    let mut cases: Vec<_> = frames
        .into_iter()
        .map(|(name, frame)| {
            pass(
                format!("{vip}, an error about {name}"),
                frame.bytes(),
                Reason::IcmpToVip,
            )
        })
        .collect();
    let others: &[(&str, u8)] = if v6 {
        &[
            ("router advertisement", 134),
            ("neighbour solicitation", 135),
            ("redirect", 137),
            ("type 0", 0),
            ("type 5", 5),
        ]
    } else {
        &[
            ("source quench", 4),
            ("redirect", 5),
            ("timestamp", 13),
            ("address mask", 17),
        ]
    };
    for (name, kind) in others {
        cases.push(pass(
            format!("{vip}, {name}, quoting a flow"),
            error(vip, *kind, 0, &tcp.packet()).bytes(),
            Reason::IcmpToVip,
        ));
    }
    // The quote is all right, but it is not the VIP that is told.
    cases.push(pass(
        format!("an error to a stranger about what {vip} sent"),
        error(stranger, kind, 0, &tcp.packet()).bytes(),
        Reason::NotOurs,
    ));
    let mut other = about(&tcp);
    other = other.protocol(other_protocol);
    cases.push(pass(
        format!("{vip}, the other family's ICMP"),
        other.bytes(),
        Reason::NotOurs,
    ));
    cases
}

const CLIENT_OF: [&str; 2] = [CLIENT_V4, CLIENT_V6];

/// A quote of one family in an error of the other.
fn families() -> Vec<Case> {
    vec![
        pass(
            "an ICMP error that quotes IPv6",
            error(WEB4, 3, 0, &sent(WEB6, 80, false).packet()).bytes(),
            Reason::IcmpToVip,
        ),
        pass(
            "an ICMPv6 error that quotes IPv4",
            error(WEB6, 1, 0, &sent(WEB4, 80, false).packet()).bytes(),
            Reason::IcmpToVip,
        ),
    ]
}

/// Which service, and what happens to errors where its packets cannot be forwarded.
fn services() -> Vec<Case> {
    let about = |vip: &str, port, udp| {
        let (kind, _) = kind_and_header(vip.contains(':'));
        error(vip, kind, 0, &sent(vip, port, udp).packet())
    };
    vec![
        to("an error, every port", &about(ANY4, 443, false), 3),
        to("an error, a port of its own", &about(ANY4, 8_080, false), 4),
        to("an error, every port, l2", &about(ANY6, 443, true), 7),
        drop(
            "an error, no backend",
            about(BROKEN4, broken::EMPTY, false).bytes(),
            Reason::NoBackend,
        ),
        drop(
            "an error, no next hop",
            about(BROKEN6, broken::NO_ROUTE, true).bytes(),
            Reason::NoRoute,
        ),
        drop(
            "an error, too big",
            error(
                BROKEN4,
                3,
                4,
                &sent(BROKEN4, broken::TINY_IPIP, false)
                    .ip_length(500)
                    .packet(),
            )
            .bytes(),
            Reason::TooBig,
        ),
    ]
}
