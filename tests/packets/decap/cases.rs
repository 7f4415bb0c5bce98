//! The golden tunnel packets.

mod gue;

use lb_common::decap::Decapped;

use crate::cases::good;
use crate::frame::{ETHERNET, Extension, Frame, QINQ, VLAN};
use crate::outer::{Chosen, Mode};
use crate::world::{Backend, Via};

pub struct Case {
    pub name: String,
    pub frame: Vec<u8>,
    pub expect: Decapped,
}

/// A backend whose addresses are allowed, and one whose are not.
const OURS: u32 = 1;
const NOT_OURS: u32 = 200;
/// No balancer.
const STRANGER: [u8; 4] = [192, 0, 2, 66];

/// A tunnel packet to a backend of this number.
fn tunnel(mode: Mode, id: u32, inner: &Frame) -> Vec<u8> {
    let backend = Backend {
        id,
        service: 1,
        mode,
        via: Via::Ingress,
        mtu: 1_500,
    };
    let mut frame = backend.outer(
        inner.v6(),
        inner.packet_length(),
        inner.type_of_service(),
        Chosen {
            flow_label: 0x54321,
            source_port: 50_000,
        },
    );
    frame.extend(&inner.bytes()[inner.l2_length()..]);
    frame
}

fn patched(mut frame: Vec<u8>, offset: usize, bytes: &[u8]) -> Vec<u8> {
    frame[ETHERNET + offset..ETHERNET + offset + bytes.len()].copy_from_slice(bytes);
    frame
}

pub fn golden() -> Vec<Case> {
    let mut cases = combinations();
    cases.extend(gue::golden());
    let mut add = |name: &str, frame: Vec<u8>, expect| {
        cases.push(Case {
            name: name.into(),
            frame,
            expect,
        })
    };
    let inner4 = Frame::tcp("203.0.113.10", 80);
    let in_v4 = tunnel(Mode::V4, OURS, &inner4);
    let in_v6 = tunnel(Mode::V6, OURS, &inner4);

    // Somebody else's business.
    let passes = Decapped::NotTunnel;
    for (name, protocol) in [
        ("TCP", 6),
        ("UDP", 17),
        ("ICMP", 1),
        ("GRE", 47),
        ("ESP", 50),
    ] {
        add(
            &format!("{name} in v4"),
            patched(in_v4.clone(), 9, &[protocol]),
            passes,
        );
        add(
            &format!("{name} in v6"),
            patched(in_v6.clone(), 6, &[protocol]),
            passes,
        );
    }
    add(
        "outer first fragment",
        patched(in_v4.clone(), 6, &[0x20, 0]),
        passes,
    );
    add(
        "outer middle fragment",
        patched(in_v4.clone(), 6, &[0x20, 9]),
        passes,
    );
    add(
        "outer last fragment",
        patched(in_v4.clone(), 6, &[0, 9]),
        passes,
    );
    add(
        "outer options",
        Frame::other(4, "10.0.0.1").options(1).bytes(),
        passes,
    );
    add(
        "outer IHL 15",
        Frame::other(4, "10.0.0.1").options(10).payload(80).bytes(),
        passes,
    );
    let chain = Frame::other(4, "2001:db8:b::1").extension(Extension::Destination);
    add("outer destination options", chain.bytes(), passes);
    let fragment = Frame::other(41, "2001:db8:b::1").extension(Extension::Fragment(0, true));
    add("outer v6 fragment", fragment.bytes(), passes);
    add(
        "one VLAN tag",
        Frame::other(4, "10.0.0.1").tag(VLAN).bytes(),
        passes,
    );
    add(
        "two VLAN tags",
        Frame::other(4, "10.0.0.1").tag(QINQ).tag(VLAN).bytes(),
        passes,
    );
    add(
        "ARP",
        [&in_v4[..12], &[0x08, 0x06, 0, 1, 8, 0]].concat(),
        passes,
    );
    add(
        "nothing but an Ethernet header",
        in_v4[..ETHERNET].to_vec(),
        passes,
    );
    add(
        "v4, cut within the outer header",
        in_v4[..ETHERNET + 19].to_vec(),
        passes,
    );
    add(
        "v6, cut within the outer header",
        in_v6[..ETHERNET + 39].to_vec(),
        passes,
    );

    // Contradictions in a packet for us.
    let bad = Decapped::Bad;
    add(
        "v4 packet called v6, in v4",
        patched(in_v4.clone(), 9, &[41]),
        bad,
    );
    add(
        "v4 packet called v6, in v6",
        patched(in_v6.clone(), 6, &[41]),
        bad,
    );
    let inner6 = Frame::tcp("2001:db8:10::1", 80);
    add(
        "v6 packet called v4, in v4",
        patched(tunnel(Mode::V4, OURS, &inner6), 9, &[4]),
        bad,
    );
    add(
        "v6 packet called v4, in v6",
        patched(tunnel(Mode::V6, OURS, &inner6), 6, &[4]),
        bad,
    );
    add("inner version 0", patched(in_v4.clone(), 20, &[0x05]), bad);
    add("inner version 15", patched(in_v6.clone(), 40, &[0xf5]), bad);
    add(
        "v4, nothing within",
        patched(in_v4[..ETHERNET + 20].to_vec(), 2, &[0, 20]),
        bad,
    );
    add(
        "v6, nothing within",
        patched(in_v6[..ETHERNET + 40].to_vec(), 4, &[0, 0]),
        bad,
    );
    add(
        "v4, inner packet shorter than a header",
        patched(in_v4.clone(), 2, &[0, 39]),
        bad,
    );
    add(
        "v6, inner packet shorter than a header",
        patched(in_v6.clone(), 4, &[0, 19]),
        bad,
    );
    add(
        "v6 in v4, inner packet shorter than a header",
        patched(tunnel(Mode::V4, OURS, &inner6), 2, &[0, 59]),
        bad,
    );
    add(
        "v4, cut by one byte",
        in_v4[..in_v4.len() - 1].to_vec(),
        bad,
    );
    add(
        "v6, cut by one byte",
        in_v6[..in_v6.len() - 1].to_vec(),
        bad,
    );
    add(
        "v4, total length 19",
        patched(in_v4.clone(), 2, &[0, 19]),
        bad,
    );
    add("v4, IHL 4", patched(in_v4.clone(), 0, &[0x44]), bad);
    add("v4, version 6", patched(in_v4.clone(), 0, &[0x65]), bad);
    add("v6, version 4", patched(in_v6.clone(), 0, &[0x45]), bad);

    // The same for somebody else: not ours to judge.
    let (to_4, to_6) = (
        tunnel(Mode::V4, NOT_OURS, &inner4),
        tunnel(Mode::V6, NOT_OURS, &inner4),
    );
    let other = Decapped::NotAllowed;
    add(
        "wrong destination, v4 packet called v6",
        patched(to_4.clone(), 9, &[41]),
        other,
    );
    add(
        "wrong destination, total length 19",
        patched(to_4.clone(), 2, &[0, 19]),
        other,
    );
    add(
        "wrong destination, IHL 4",
        patched(to_4.clone(), 0, &[0x44]),
        other,
    );
    add(
        "wrong destination, version 6",
        patched(to_4.clone(), 0, &[0x65]),
        other,
    );
    add("wrong destination, cut short", to_4[..40].to_vec(), other);
    add(
        "wrong destination, v6, version 4",
        patched(to_6.clone(), 0, &[0x45]),
        other,
    );
    add(
        "wrong destination, v6, cut short",
        to_6[..60].to_vec(),
        other,
    );

    // The IPv4 address is allowed, but this is an IPv6 one.
    add(
        "wrong destination, v6 with our v4 within",
        patched(in_v6.clone(), 24, &mapped(&in_v4[ETHERNET + 16..])),
        other,
    );
    add(
        "a source of its own",
        patched(in_v4.clone(), 12, &STRANGER),
        Decapped::Done,
    );
    cases
}

/// Where only the sources of the tunnels are allowed.
pub fn restricted() -> Vec<Case> {
    let inner = Frame::tcp("203.0.113.10", 80);
    let in_v4 = tunnel(Mode::V4, OURS, &inner);
    let in_v6 = tunnel(Mode::V6, OURS, &inner);
    let other = Decapped::NotAllowed;
    let gue = tunnel(Mode::Gue4, OURS, &inner);
    [
        ("listed source, gue4", gue.clone(), Decapped::Done),
        ("strange source, gue4", patched(gue, 12, &STRANGER), other),
        ("listed source, v4", in_v4.clone(), Decapped::Done),
        ("listed source, v6", in_v6.clone(), Decapped::Done),
        (
            "strange source, v4",
            patched(in_v4.clone(), 12, &STRANGER),
            other,
        ),
        (
            "strange source, v6",
            patched(in_v6.clone(), 8, &[0xfd; 16]),
            other,
        ),
        (
            "strange source, v6 with a listed v4 within",
            patched(in_v6, 8, &mapped(&in_v4[ETHERNET + 12..])),
            other,
        ),
        (
            "listed source, wrong destination",
            tunnel(Mode::V4, NOT_OURS, &inner),
            other,
        ),
        (
            "strange source, total length 19",
            patched(patched(in_v4, 12, &STRANGER), 2, &[0, 19]),
            other,
        ),
    ]
    .map(|(name, frame, expect)| Case {
        name: name.into(),
        frame,
        expect,
    })
    .into()
}

/// `::ffff:` and the IPv4 address at the beginning of `v4`.
fn mapped(v4: &[u8]) -> Vec<u8> {
    [&[0; 10][..], &[0xff; 2], &v4[..4]].concat()
}

/// All four combinations of families, for us and for somebody else.
fn combinations() -> Vec<Case> {
    let mut cases = Vec::new();
    for (outer, mode) in [
        ("v4", Mode::V4),
        ("v6", Mode::V6),
        ("gue4", Mode::Gue4),
        ("gue6", Mode::Gue6),
    ] {
        for (name, inner, _) in good() {
            let mut add = |what: &str, id, inner: &Frame, expect| {
                let name = format!("{name} in {outer}{what}");
                cases.push(Case {
                    name,
                    frame: tunnel(mode, id, inner),
                    expect,
                });
            };
            add("", OURS, &inner, Decapped::Done);
            add(
                ", no payload",
                OURS,
                &inner.clone().payload(0),
                Decapped::Done,
            );
            add(
                ", traffic class 0xff",
                OURS,
                &inner.clone().tos(0xff),
                Decapped::Done,
            );
            add(
                ", padding behind it",
                OURS,
                &inner.clone().pad(30),
                Decapped::Done,
            );
            add(
                ", full size",
                OURS,
                &inner.clone().ip_length(1_460),
                Decapped::Done,
            );
            // A tunnel carries whatever the client sent.
            add(
                ", a protocol of its own",
                OURS,
                &inner_of_family(&inner),
                Decapped::Done,
            );
            add(
                ", wrong destination",
                NOT_OURS,
                &inner,
                Decapped::NotAllowed,
            );
        }
    }
    cases
}

fn inner_of_family(frame: &Frame) -> Frame {
    Frame::other(
        132,
        if frame.v6() {
            "2001:db8:10::1"
        } else {
            "203.0.113.10"
        },
    )
}
