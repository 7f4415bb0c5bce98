//! Packets for a service that cannot be forwarded: dropped, each by its own reason.

use lb_common::reason::Reason;

use super::{Case, drop, good, through_gue};
use crate::frame::{At, Extension, Frame, QINQ, VLAN};
use crate::world::{ANY4, BROKEN4, BROKEN6, TINY_MTU, WEB4, WEB6, backend_of, broken};

pub fn cases() -> Vec<Case> {
    let mut cases = truncated();
    cases.extend(contradictory());
    cases.extend(fragments());
    cases.extend(extension_headers());
    cases.extend(too_big());
    cases.extend(broken_services());
    cases
}

fn truncated() -> Vec<Case> {
    let mut cases = Vec::new();
    for (name, frame, _) in good() {
        let (ip, transport) = (
            if frame.v6() { 40 } else { 20 },
            frame.clone().payload(0).packet_length(),
        );
        let l4 = transport - ip;
        // The frame ends early.
        for (what, length) in [
            ("behind the IP header", ip),
            ("within the ports", ip + 3),
            ("behind the ports", ip + 4),
            ("within the transport header", ip + l4 - 1),
            ("behind the transport header", transport),
            ("one byte before its end", frame.packet_length() - 1),
        ] {
            let cut = frame.clone().cut(At::Ip, length);
            cases.push(drop(
                format!("{name}, frame cut {what}"),
                cut.bytes(),
                Reason::Truncated,
            ));
            let tagged = frame.clone().tag(QINQ).tag(VLAN).cut(At::Ip, length);
            cases.push(drop(
                format!("{name}, tagged frame cut {what}"),
                tagged.bytes(),
                Reason::Truncated,
            ));
        }
        // The IP header says that the packet ends early; the frame goes on.
        for (what, length) in [
            ("nothing behind the header", 0),
            ("half of the ports", 3),
            ("ports alone", 4),
            ("all but one byte of the transport header", l4 - 1),
        ] {
            let short = with_ip_length(&frame, ip + length);
            cases.push(drop(
                format!("{name}, IP length: {what}"),
                short.bytes(),
                Reason::Truncated,
            ));
        }
        let long = with_ip_length(&frame, frame.packet_length() + 1);
        cases.push(drop(
            format!("{name}, IP length one more than there is"),
            long.bytes(),
            Reason::Truncated,
        ));
        let long = with_ip_length(&frame, 65_535);
        cases.push(drop(
            format!("{name}, IP length 65,535"),
            long.bytes(),
            Reason::Truncated,
        ));
    }
    let options = Frame::tcp(WEB4, 80).options(10);
    cases.push(drop(
        "v4 tcp, cut within the options",
        options.cut(At::Ip, 40).bytes(),
        Reason::Truncated,
    ));
    let chain = Frame::tcp(WEB6, 80).extension(Extension::HopByHop);
    // Payload length 0 is true of this frame, but its next header is not there.
    let bare = with_ip_length(&chain, 40).cut(At::Ip, 40);
    cases.push(drop(
        "v6 tcp, no extension header where one is named",
        bare.bytes(),
        Reason::Truncated,
    ));
    let bare = with_ip_length(&chain, 44).cut(At::Ip, 44);
    cases.push(drop(
        "v6 tcp, half an extension header",
        bare.bytes(),
        Reason::Truncated,
    ));
    // Without ports, the VIP alone says whose packet it is.
    let unknown = with_ip_length(&Frame::tcp(WEB4, 81), 23);
    cases.push(drop(
        "v4 tcp, cut within the ports, another port",
        unknown.bytes(),
        Reason::Truncated,
    ));
    cases
}

/// Writes another length into the IP header, whatever the packet has.
fn with_ip_length(frame: &Frame, length: usize) -> Frame {
    if frame.v6() {
        frame
            .clone()
            .patch(At::Ip, 4, &((length - 40) as u16).to_be_bytes())
    } else {
        frame
            .clone()
            .patch(At::Ip, 2, &(length as u16).to_be_bytes())
    }
}

fn contradictory() -> Vec<Case> {
    let tcp4 = Frame::tcp(WEB4, 80);
    let tcp6 = Frame::tcp(WEB6, 80);
    let mut cases = Vec::new();
    let mut bad =
        |name: &str, frame: Frame| cases.push(drop(name, frame.bytes(), Reason::BadHeader));
    for ihl in 0..5_u8 {
        bad(
            &format!("v4 tcp, IHL {ihl}"),
            tcp4.clone().patch(At::Ip, 0, &[0x40 + ihl]),
        );
    }
    bad(
        "v4 tcp, IHL beyond the packet",
        tcp4.clone().payload(0).patch(At::Ip, 0, &[0x4f]),
    );
    bad("v4 tcp, total length 19", with_ip_length(&tcp4, 19));
    bad("v4 tcp, total length 0", with_ip_length(&tcp4, 0));
    bad(
        "v4 tcp, total length less than IHL",
        with_ip_length(&tcp4.clone().options(2), 27),
    );
    for version in [0, 5, 6, 15_u8] {
        bad(
            &format!("v4 tcp, version {version}"),
            tcp4.clone().patch(At::Ip, 0, &[(version << 4) | 5]),
        );
    }
    for version in [0, 4, 7_u8] {
        bad(
            &format!("v6 tcp, version {version}"),
            tcp6.clone().patch(At::Ip, 0, &[version << 4]),
        );
    }
    let extension = tcp6.clone().extension(Extension::Destination);
    bad(
        "v6 tcp, extension header beyond the end",
        extension.clone().patch(At::Ip, 41, &[255]),
    );
    bad("v6 tcp, extension header eight bytes beyond the end", {
        extension.clone().payload(0).patch(At::Ip, 41, &[3])
    });
    bad(
        "v6 tcp, payload length 0 with an extension header",
        with_ip_length(&extension, 40),
    );
    for (name, frame) in [("v4", tcp4), ("v6", tcp6)] {
        for offset in 0..5_u8 {
            let frame = frame.clone().patch(At::Transport, 12, &[offset << 4]);
            bad(&format!("{name} tcp, data offset {offset}"), frame);
        }
        let beyond = frame.payload(39).patch(At::Transport, 12, &[0xf0]);
        bad(
            &format!("{name} tcp, data offset one byte beyond the end"),
            beyond,
        );
    }
    for (name, vip) in [("v4", WEB4), ("v6", WEB6)] {
        let udp = Frame::udp(vip, 53).payload(10);
        for length in [0, 7, 19, 0xffff_u16] {
            let frame = udp.clone().patch(At::Transport, 4, &length.to_be_bytes());
            bad(&format!("{name} udp, length {length} of 18"), frame);
        }
        // Ethernet padding does not make up for what the IP packet lacks.
        let padded = udp.patch(At::Transport, 4, &[0, 19]).pad(40);
        bad(
            &format!("{name} udp, length reaches into the padding"),
            padded,
        );
    }
    cases
}

fn fragments() -> Vec<Case> {
    use Extension::{Destination, Fragment, HopByHop};
    let udp4 = Frame::udp(WEB4, 53);
    let tcp4 = Frame::tcp(WEB4, 80);
    let udp6 = Frame::udp(WEB6, 53);
    let tcp6 = Frame::tcp(WEB6, 80);
    let frames = [
        ("v4 udp, first fragment", udp4.clone().fragment(0, true)),
        ("v4 udp, middle fragment", udp4.clone().fragment(185, true)),
        ("v4 udp, last fragment", udp4.clone().fragment(185, false)),
        (
            "v4 udp, last fragment of the largest packet",
            udp4.fragment(0x1fff, false),
        ),
        ("v4 tcp, first fragment", tcp4.clone().fragment(0, true)),
        ("v4 tcp, middle fragment", tcp4.clone().fragment(1, true)),
        (
            "v4 tcp, last fragment, tagged, IHL 15",
            tcp4.clone().tag(VLAN).options(10).fragment(1, false),
        ),
        // Whoever sends the rest of a packet to a port we can't see sends it to the VIP.
        (
            "v4 tcp, middle fragment, to every port",
            Frame::tcp(ANY4, 1).fragment(7, true),
        ),
        (
            "v4 tcp, tiny first fragment",
            tcp4.fragment(0, true).payload(0),
        ),
        (
            "v6 udp, first fragment",
            udp6.clone().extension(Fragment(0, true)),
        ),
        (
            "v6 udp, middle fragment",
            udp6.clone().extension(Fragment(181, true)),
        ),
        (
            "v6 udp, last fragment",
            udp6.clone().extension(Fragment(181, false)),
        ),
        (
            "v6 tcp, first fragment",
            tcp6.clone().extension(Fragment(0, true)),
        ),
        ("v6 tcp, first fragment within a chain", {
            tcp6.clone()
                .extension(HopByHop)
                .extension(Fragment(0, true))
                .extension(Destination)
        }),
        ("v6 tcp, last fragment behind hop-by-hop options", {
            tcp6.clone()
                .extension(HopByHop)
                .extension(Fragment(4, false))
        }),
        // Its first fragment has destination options in front of TCP; in this one they are not there to be followed.
        ("v6 tcp, middle fragment of a packet with options", {
            tcp6.extension(Fragment(181, true)).extension(Destination)
        }),
    ];
    frames
        .into_iter()
        .map(|(name, frame)| drop(name, frame.bytes(), Reason::Fragment))
        .collect()
}

fn extension_headers() -> Vec<Case> {
    [9, 10, 16]
        .into_iter()
        .flat_map(|n| {
            let chain = |frame: Frame| {
                (0..n).fold(frame, |frame, _| frame.extension(Extension::Destination))
            };
            let name = |family| format!("v6 {family}, {n} extension headers");
            [
                drop(
                    name("tcp"),
                    chain(Frame::tcp(WEB6, 80)).bytes(),
                    Reason::ExtensionHeaders,
                ),
                drop(
                    name("udp"),
                    chain(Frame::udp(WEB6, 53)).bytes(),
                    Reason::ExtensionHeaders,
                ),
            ]
        })
        .collect()
}

fn too_big() -> Vec<Case> {
    let mut cases = Vec::new();
    for (name, frame, backend) in good().into_iter().chain(through_gue()) {
        let backend = backend_of(backend);
        let length = usize::from(backend.mtu) - backend.overhead() + 1;
        let frame = frame.ip_length(length);
        cases.push(drop(
            format!("{name}, one byte more than the MTU"),
            frame.bytes(),
            Reason::TooBig,
        ));
        let tagged = frame.tag(VLAN);
        cases.push(drop(
            format!("{name}, tagged, one byte more than the MTU"),
            tagged.bytes(),
            Reason::TooBig,
        ));
    }
    let tiny = usize::from(TINY_MTU) + 1;
    let v4 = Frame::tcp(BROKEN4, broken::TINY_IPIP).ip_length(tiny - 20);
    let v6 = Frame::udp(BROKEN6, broken::TINY_IPIP).ip_length(tiny - 40);
    let l2 = Frame::tcp(BROKEN4, broken::TINY_L2).ip_length(tiny);
    let gue4 = Frame::tcp(BROKEN4, broken::TINY_GUE).ip_length(tiny - 32);
    let gue6 = Frame::udp(BROKEN6, broken::TINY_GUE).ip_length(tiny - 52);
    cases.push(drop(
        "v4 in v4, one byte more than a tiny MTU",
        v4.bytes(),
        Reason::TooBig,
    ));
    cases.push(drop(
        "v6 in v6, one byte more than a tiny MTU",
        v6.bytes(),
        Reason::TooBig,
    ));
    cases.push(drop(
        "v4 in gue4, one byte more than a tiny MTU",
        gue4.bytes(),
        Reason::TooBig,
    ));
    cases.push(drop(
        "v6 in gue6, one byte more than a tiny MTU",
        gue6.bytes(),
        Reason::TooBig,
    ));
    cases.push(drop(
        "v4 l2, one byte more than a tiny MTU",
        l2.bytes(),
        Reason::TooBig,
    ));
    cases
}

fn broken_services() -> Vec<Case> {
    let tcp = |port| Frame::tcp(BROKEN4, port).bytes();
    let udp = |port| Frame::udp(BROKEN6, port).bytes();
    vec![
        drop(
            "v4, a service without slots",
            tcp(broken::EMPTY),
            Reason::NoBackend,
        ),
        drop(
            "v6, a service without slots",
            udp(broken::EMPTY),
            Reason::NoBackend,
        ),
        drop(
            "a slot that was never filled",
            tcp(broken::NEVER_FILLED),
            Reason::NoBackend,
        ),
        drop(
            "a slot that names another service's backend",
            tcp(broken::STALE_SLOT),
            Reason::BackendGone,
        ),
        drop(
            "a slot that names no backend of the map",
            tcp(broken::BACKEND_OUT_OF_BOUNDS),
            Reason::BackendGone,
        ),
        drop(
            "v4, a backend without next hop",
            tcp(broken::NO_ROUTE),
            Reason::NoRoute,
        ),
        drop(
            "v6, a backend without next hop",
            udp(broken::NO_ROUTE),
            Reason::NoRoute,
        ),
        drop(
            "an egress interface that is not allowed",
            tcp(broken::NO_EGRESS),
            Reason::Egress,
        ),
        drop(
            "slots beyond the end of the map",
            tcp(broken::SLOTS_OUT_OF_BOUNDS),
            Reason::ServiceTable,
        ),
    ]
}
