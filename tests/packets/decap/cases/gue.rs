//! Golden datagrams to the port of GUE, and to others.

use lb_common::decap::Decapped;

use super::{Case, NOT_OURS, OURS, mapped, patched, tunnel};
use crate::frame::{ETHERNET, Extension, Frame};
use crate::outer::Mode;

/// Where the UDP header stands behind Ethernet.
const UDP4: usize = 20;
const UDP6: usize = 40;

/// The fields of the UDP and GUE headers, from the beginning of the UDP header.
const SOURCE_PORT: usize = 0;
const PORT: usize = 2;
const LENGTH: usize = 4;
const CHECKSUM: usize = 6;
const GUE: usize = 8;

pub fn golden() -> Vec<Case> {
    let mut cases = Vec::new();
    for (family, mode, udp) in [("gue4", Mode::Gue4, UDP4), ("gue6", Mode::Gue6, UDP6)] {
        let inner4 = Frame::tcp("203.0.113.10", 80);
        let inner6 = Frame::udp("2001:db8:10::1", 53);
        let good = tunnel(mode, OURS, &inner4);
        let with6 = tunnel(mode, OURS, &inner6);
        let datagram = (12 + inner4.packet_length()) as u16;
        let patch = |offset: usize, bytes: &[u8]| patched(good.clone(), udp + offset, bytes);
        let ends = |length: usize| good[..ETHERNET + udp + length].to_vec();
        // The outer packet says that it ends here, too.
        let says = |frame: Vec<u8>, payload: u16| match mode {
            Mode::Gue4 => patched(frame, 2, &(payload + 20).to_be_bytes()),
            _ => patched(frame, 4, &payload.to_be_bytes()),
        };
        let mut add = |name: &str, frame: Vec<u8>, expect| {
            cases.push(Case {
                name: format!("{family}, {name}"),
                frame,
                expect,
            });
        };

        // Somebody else's datagrams.
        let passes = Decapped::NotTunnel;
        for port in [6_079_u16, 6_081, 53, 0xc017] {
            let name = format!("to port {port}");
            add(&name, patch(PORT, &port.to_be_bytes()), passes);
        }
        add(
            "from its port only",
            patch(SOURCE_PORT, &[0x17, 0xc0, 0, 53]),
            passes,
        );
        add("with a checksum", patch(CHECKSUM, &[0xbe, 0xef]), passes);
        add("checksum 1", patch(CHECKSUM, &[0, 1]), passes);
        add("variant 1: IPv4", patch(GUE, &[0x45]), passes);
        add("variant 1: IPv6", patch(GUE, &[0x60]), passes);
        add("variant 2", patch(GUE, &[0x80]), passes);
        add("variant 3", patch(GUE, &[0xc0]), passes);
        add("a control message", patch(GUE, &[0x20]), passes);
        add("an extension", patch(GUE, &[0x01]), passes);
        add("the longest extension", patch(GUE, &[0x1f]), passes);
        for protocol in [0, 6, 17, 47, 59, 0xff] {
            let name = format!("protocol {protocol}");
            add(&name, patch(GUE + 1, &[protocol]), passes);
        }
        add("a flag", patch(GUE + 2, &[0x80]), passes);
        add("the last flag", patch(GUE + 3, &[0x01]), passes);
        add("datagram of 11 bytes", patch(LENGTH, &[0, 11]), passes);
        add("datagram of 8 bytes", patch(LENGTH, &[0, 8]), passes);
        add("datagram of 7 bytes", patch(LENGTH, &[0, 7]), passes);
        add("datagram of 0 bytes", patch(LENGTH, &[0, 0]), passes);
        add("outer packet of 11 bytes", says(good.clone(), 11), passes);
        add("cut within the GUE header", ends(11), passes);
        add("cut behind the UDP header", ends(8), passes);
        add("cut within the UDP header", ends(7), passes);
        // The first fragment has the headers, and yet not the packet.
        if mode == Mode::Gue4 {
            add(
                "first fragment",
                patched(good.clone(), 6, &[0x20, 0]),
                passes,
            );
            add(
                "middle fragment",
                patched(good.clone(), 6, &[0x20, 9]),
                passes,
            );
            add("last fragment", patched(good.clone(), 6, &[0, 9]), passes);
            let options = Frame::udp("10.0.0.1", 6_080).options(1).bytes();
            add("outer options", options, passes);
        } else {
            let fragment = Frame::udp("2001:db8:b::1", 6_080);
            let fragment = fragment.extension(Extension::Fragment(0, true));
            add("first fragment", fragment.bytes(), passes);
        }

        // Ours, and wrong.
        let bad = Decapped::Bad;
        add("v4 packet called v6", patch(GUE + 1, &[41]), bad);
        let called_v4 = patched(with6.clone(), udp + GUE + 1, &[4]);
        add("v6 packet called v4", called_v4, bad);
        add("inner version 0", patch(GUE + 4, &[0x05]), bad);
        add("nothing within", says(patch(LENGTH, &[0, 12]), 12), bad);
        add("inner packet of 19 bytes", patch(LENGTH, &[0, 31]), bad);
        let short6 = patched(with6.clone(), udp + LENGTH, &[0, 51]);
        add("inner v6 packet of 39 bytes", short6, bad);
        let long = patch(LENGTH, &(datagram + 1).to_be_bytes());
        add("datagram longer than the packet", long, bad);
        add("outer packet of 12 bytes", says(good.clone(), 12), bad);
        add("cut by one byte", good[..good.len() - 1].to_vec(), bad);
        add("cut behind the GUE header", ends(12), bad);

        // Unusual, but right.
        let done = Decapped::Done;
        add("source port 0", patch(SOURCE_PORT, &[0, 0]), done);
        let shorter = patch(LENGTH, &(datagram - 1).to_be_bytes());
        add("datagram shorter than the packet", shorter, done);

        // For somebody else: not ours to judge.
        let other = Decapped::NotAllowed;
        let foreign = tunnel(mode, NOT_OURS, &inner4);
        let called_v6 = patched(foreign.clone(), udp + GUE + 1, &[41]);
        add("wrong destination, v4 packet called v6", called_v6, other);
        let cut = foreign[..foreign.len() - 1].to_vec();
        add("wrong destination, cut by one byte", cut, other);
        if mode == Mode::Gue6 {
            let v4 = tunnel(Mode::Gue4, OURS, &inner4);
            let disguised = patched(good.clone(), 24, &mapped(&v4[ETHERNET + 16..]));
            add("our v4 destination within a v6 one", disguised, other);
        }
    }
    cases
}
