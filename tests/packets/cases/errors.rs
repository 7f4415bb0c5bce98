//! ICMP errors to a VIP: they follow the flow they are about, or pass. (What passes of other ICMP: `pass`.)

use lb_common::reason::Reason;

use super::{Case, drop, pass, to};
use crate::frame::{At, CLIENT_V4, CLIENT_V6, Extension, Frame, QINQ, VLAN};
use crate::world::{ANY4, ANY6, BROKEN4, BROKEN6, STRANGER4, STRANGER6, WEB4, WEB6, broken};

/// A router on the way, which reports what it cannot forward.
const ROUTER4: &str = "192.0.2.254";
const ROUTER6: &str = "2001:db8:ffff::fe";

pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for vip in [WEB4, WEB6] {
        cases.extend(errors(vip));
        cases.extend(errors_about_nothing(vip));
    }
    cases.extend(families());
    cases.extend(services());
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
