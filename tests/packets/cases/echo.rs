//! Echo requests to a VIP: answered, passed or dropped.

use lb_common::reason::Reason;

use super::{Case, Expect, drop, pass};
use crate::frame::{Extension, Frame, QINQ, VLAN, internet_checksum};
use crate::world::{ANY4, ANY6, BROKEN4, MANY4, MANY6, STRANGER4, STRANGER6, WEB4, WEB6};

pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for vip in [WEB4, WEB6] {
        cases.extend(answered(vip));
        cases.extend(not_answered(vip));
    }
    cases.extend(policies());
    cases
}

/// An echo request with `length` bytes of payload.
fn echo(vip: &str, id: u16, sequence: u16, length: usize) -> Frame {
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
