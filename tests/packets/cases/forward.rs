//! Packets that go to a backend.

use super::{Case, good, through_gue, to};
use crate::frame::{ACK, At, Extension, FIN, Frame, PSH, QINQ, RST, SYN, VLAN};
use crate::world::{ANY4, ANY6, BROKEN4, BROKEN6, TINY_MTU, WEB4, WEB6, backend_of, broken};

pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (name, frame, backend) in good().into_iter().chain(through_gue()) {
        cases.extend(each(name, &frame, backend));
    }
    cases.extend(ipv4());
    cases.extend(ipv6());
    cases.extend(transport());
    cases.extend(services());
    cases
}

/// What holds for every family and protocol.
fn each(name: &str, frame: &Frame, backend: u32) -> Vec<Case> {
    let mut cases = vec![
        to(format!("{name}, plain"), frame, backend),
        to(
            format!("{name}, one 802.1Q tag"),
            &frame.clone().tag(VLAN),
            backend,
        ),
        to(
            format!("{name}, one 802.1ad tag"),
            &frame.clone().tag(QINQ),
            backend,
        ),
        to(
            format!("{name}, 802.1ad and 802.1Q tags"),
            &frame.clone().tag(QINQ).tag(VLAN),
            backend,
        ),
        to(
            format!("{name}, two 802.1Q tags"),
            &frame.clone().tag(VLAN).tag(VLAN),
            backend,
        ),
        to(
            format!("{name}, no payload"),
            &frame.clone().payload(0),
            backend,
        ),
        to(
            format!("{name}, one odd byte of payload"),
            &frame.clone().payload(1),
            backend,
        ),
        to(
            format!("{name}, Ethernet padding"),
            &frame.clone().payload(0).pad(18),
            backend,
        ),
        to(
            format!("{name}, much behind the IP packet"),
            &frame.clone().pad(200),
            backend,
        ),
    ];
    // RFC 2474 and RFC 3168: expedited forwarding; ECT(1), ECT(0), CE; everything.
    for tos in [0xb8, 0x01, 0x02, 0x03, 0xff] {
        cases.push(to(
            format!("{name}, traffic class {tos:#04x}"),
            &frame.clone().tos(tos),
            backend,
        ));
    }
    let route = backend_of(backend);
    let biggest = usize::from(route.mtu) - route.overhead();
    cases.push(to(
        format!("{name}, as big as the MTU lets it be"),
        &frame.clone().ip_length(biggest),
        backend,
    ));
    cases
}

fn ipv4() -> Vec<Case> {
    let mut cases = Vec::new();
    let tcp = Frame::tcp(WEB4, 80);
    for words in 1..=10 {
        let ihl = 5 + words;
        cases.push(to(
            format!("v4 tcp, IHL {ihl}"),
            &tcp.clone().options(words),
            1,
        ));
        cases.push(to(
            format!("v4 udp, IHL {ihl}"),
            &Frame::udp(WEB4, 53).options(words),
            2,
        ));
    }
    let everything = tcp
        .clone()
        .tag(QINQ)
        .tag(VLAN)
        .options(10)
        .tcp_options(10)
        .tos(0xb9);
    cases.push(to(
        "v4 tcp, two tags, IHL 15, data offset 15",
        &everything,
        1,
    ));
    cases.push(to(
        "v4 tcp, fragmentation allowed",
        &tcp.clone().fragment(0, false),
        1,
    ));
    cases.push(to(
        "v4 tcp, reserved flag set",
        &tcp.clone().patch(At::Ip, 6, &[0xc0, 0]),
        1,
    ));
    cases.push(to("v4 tcp, TTL 1", &tcp.clone().patch(At::Ip, 8, &[1]), 1));
    cases.push(to("v4 tcp, TTL 0", &tcp.patch(At::Ip, 8, &[0]), 1));
    cases
}

fn ipv6() -> Vec<Case> {
    use Extension::{Destination, Fragment, HopByHop, LongDestination, Routing};
    let tcp = Frame::tcp(WEB6, 80);
    let udp = Frame::udp(WEB6, 53);
    let with = |frame: &Frame, chain: &[Extension]| {
        chain.iter().fold(frame.clone(), |frame, extension| {
            frame.extension(*extension)
        })
    };
    let mut cases = vec![
        to("v6 tcp, hop-by-hop options", &with(&tcp, &[HopByHop]), 5),
        to("v6 tcp, routing header", &with(&tcp, &[Routing]), 5),
        to(
            "v6 tcp, destination options",
            &with(&tcp, &[Destination]),
            5,
        ),
        to("v6 udp, hop-by-hop options", &with(&udp, &[HopByHop]), 6),
        to(
            "v6 udp, 128 bytes of destination options",
            &with(&udp, &[LongDestination(15)]),
            6,
        ),
        to(
            "v6 tcp, 1,024 bytes of destination options",
            &with(&tcp, &[LongDestination(127)]),
            5,
        ),
        to(
            "v6 tcp, an atomic fragment",
            &with(&tcp, &[Fragment(0, false)]),
            5,
        ),
        to(
            "v6 udp, an atomic fragment",
            &with(&udp, &[Fragment(0, false)]),
            6,
        ),
        to(
            "v6 udp, an atomic fragment behind others",
            &with(&udp, &[HopByHop, Routing, Fragment(0, false)]),
            6,
        ),
        to(
            "v6 tcp, every kind of extension header",
            &with(
                &tcp,
                &[
                    HopByHop,
                    Destination,
                    Routing,
                    Fragment(0, false),
                    Destination,
                ],
            ),
            5,
        ),
        to(
            "v6 tcp, two tags and a chain",
            &with(
                &tcp.clone().tag(QINQ).tag(VLAN),
                &[HopByHop, Routing, Destination],
            ),
            5,
        ),
        to(
            "v6 tcp, hop limit 0",
            &tcp.clone().patch(At::Ip, 7, &[0]),
            5,
        ),
    ];
    for n in 2..=8 {
        cases.push(to(
            format!("v6 tcp, {n} extension headers"),
            &with(&tcp, &vec![Destination; n]),
            5,
        ));
        cases.push(to(
            format!("v6 udp, {n} extension headers"),
            &with(&udp, &vec![Routing; n]),
            6,
        ));
    }
    cases
}

fn transport() -> Vec<Case> {
    let tcp = Frame::tcp(WEB4, 80);
    let mut cases = Vec::new();
    let flags: [(&str, u8); 10] = [
        ("SYN", SYN),
        ("SYN+ACK", SYN | ACK),
        ("ACK", ACK),
        ("PSH+ACK", PSH | ACK),
        ("FIN+ACK", FIN | ACK),
        ("RST", RST),
        ("RST+ACK", RST | ACK),
        ("SYN+ECE+CWR", SYN | 0xc0),
        ("no flag", 0),
        ("every flag", 0xff),
    ];
    for (name, flags) in flags {
        cases.push(to(
            format!("v4 tcp, flags: {name}"),
            &tcp.clone().flags(flags),
            1,
        ));
        cases.push(to(
            format!("v6 tcp, flags: {name}"),
            &Frame::tcp(WEB6, 80).flags(flags),
            5,
        ));
    }
    for words in [1, 5, 10] {
        cases.push(to(
            format!("v4 tcp, {words} words of TCP options"),
            &tcp.clone().tcp_options(words),
            1,
        ));
    }
    let bare = Frame::tcp(WEB6, 80).tcp_options(10).payload(0);
    cases.push(to("v6 tcp, options up to the very end", &bare, 5));
    let udp = Frame::udp(WEB4, 53);
    let shorter = udp.clone().patch(At::Transport, 4, &[0, 8]);
    cases.push(to("v4 udp, length shorter than the IP packet", &shorter, 2));
    cases.push(to(
        "v4 udp, no checksum",
        &udp.clone().patch(At::Transport, 6, &[0, 0]),
        2,
    ));
    cases.push(to(
        "v4 udp, wrong checksum",
        &udp.clone().patch(At::Transport, 6, &[0xde, 0xad]),
        2,
    ));
    cases.push(to("v4 udp, source port 0", &udp.from("198.51.100.7", 0), 2));
    cases
}

/// Which service, which way of forwarding.
fn services() -> Vec<Case> {
    let mut cases = Vec::new();
    for port in [0, 1, 80, 8_079, 8_081, 65_535] {
        cases.push(to(
            format!("v4 tcp, every port: {port}"),
            &Frame::tcp(ANY4, port),
            3,
        ));
        cases.push(to(
            format!("v6 udp, every port: {port}"),
            &Frame::udp(ANY6, port),
            7,
        ));
    }
    cases.push(to(
        "v4 tcp, a port of its own comes before every port",
        &Frame::tcp(ANY4, 8_080),
        4,
    ));
    cases.push(to("v4 l2, one tag", &Frame::tcp(ANY4, 443).tag(VLAN), 3));
    cases.push(to(
        "v4 l2, two tags",
        &Frame::tcp(ANY4, 443).tag(QINQ).tag(VLAN),
        3,
    ));
    cases.push(to("v6 l2, one tag", &Frame::udp(ANY6, 443).tag(VLAN), 7));
    cases.push(to(
        "v6 l2, hop-by-hop options",
        &Frame::udp(ANY6, 443).extension(Extension::HopByHop),
        7,
    ));
    let tiny = usize::from(TINY_MTU);
    cases.push(to(
        "v4 in v4, a tiny MTU",
        &Frame::tcp(BROKEN4, broken::TINY_IPIP).ip_length(tiny - 20),
        24,
    ));
    cases.push(to(
        "v6 in v6, a tiny MTU",
        &Frame::udp(BROKEN6, broken::TINY_IPIP).ip_length(tiny - 40),
        30,
    ));
    cases.push(to(
        "v4 l2, a tiny MTU",
        &Frame::tcp(BROKEN4, broken::TINY_L2).ip_length(tiny),
        28,
    ));
    cases.push(to(
        "v4 in gue4, a tiny MTU",
        &Frame::tcp(BROKEN4, broken::TINY_GUE).ip_length(tiny - 32),
        32,
    ));
    cases.push(to(
        "v6 in gue6, a tiny MTU",
        &Frame::udp(BROKEN6, broken::TINY_GUE).ip_length(tiny - 52),
        33,
    ));
    // Padding is no part of the packet that must fit.
    cases.push(to(
        "v4 in v4, a tiny MTU and much padding",
        &Frame::tcp(BROKEN4, broken::TINY_IPIP)
            .ip_length(tiny - 20)
            .pad(300),
        24,
    ));
    cases
}
