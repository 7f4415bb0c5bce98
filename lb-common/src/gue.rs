//! Generic UDP Encapsulation (draft-ietf-intarea-gue), variant 0: what stands between the outer IP header and the client's packet.
//!
//! ```text
//! UDP   source port from the flow's hash | 6080 | length | checksum 0
//! GUE   variant (2 bits) 0 | control 0 | header length (5 bits) 0 | protocol 4 or 41 | flags (16 bits) 0
//! ```
//! Owns: these twelve bytes. Does not own: the outer IP header (`encap`, `decap`).

/// The UDP port assigned to GUE by IANA.
pub const PORT: u16 = 6080;

/// A UDP header.
pub const UDP: usize = 8;
/// UDP and GUE header.
pub const LENGTH: usize = UDP + 4;

/// The two headers, with nothing patched: source port and length are 0. `protocol`: of the client's packet, 4 or 41.
///
/// The checksum stays 0, in IPv6 as well (RFC 6935): one over the whole client's packet is too dear here.
#[cfg(not(target_arch = "bpf"))]
pub const fn header(protocol: u8) -> [u8; LENGTH] {
    let [high, low] = PORT.to_be_bytes();
    [0, 0, high, low, 0, 0, 0, 0, 0, protocol, 0, 0]
}

/// The UDP source port of a flow: one of the dynamic ports (RFC 6335), 49,152 to 65,535.
///
/// It takes the high bits of the hash's half that also gives the IPv6 flow label its low ones: a router that looks at both sees
/// more than one of them twice.
#[inline(always)]
pub const fn source_port(entropy: u32) -> u16 {
    0xc000 | (entropy >> 18) as u16
}

/// The first two bytes of a GUE header of ours, and flags 0: variant 0, data, no extension, this protocol.
/// `None`: something else. `word` is the header as a big-endian number.
#[inline(always)]
pub const fn protocol(word: u32) -> Option<u8> {
    if word & 0xff00_ffff == 0 {
        Some((word >> 16) as u8)
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn the_header_byte_for_byte() {
        for inner in [4, 41] {
            let header = header(inner);
            assert_eq!(header[..2], [0, 0], "source port");
            assert_eq!(header[2..4], [0x17, 0xc0], "6080");
            assert_eq!(header[4..6], [0, 0], "length");
            assert_eq!(header[6..8], [0, 0], "checksum");
            assert_eq!(header[8..], [0, inner, 0, 0]);
            let word = u32::from_be_bytes([header[8], header[9], header[10], header[11]]);
            assert_eq!(protocol(word), Some(inner));
        }
    }

    #[test]
    fn every_other_bit_makes_it_another_header() {
        for bit in (0..16).chain(24..32) {
            assert_eq!(protocol(0x0004_0000 | 1 << bit), None, "bit {bit}");
        }
    }

    #[test]
    fn source_ports_are_all_the_dynamic_ones() {
        let ports: BTreeSet<u16> = (0..=0x3fff_u32).map(|i| source_port(i << 18)).collect();
        assert_eq!(ports.len(), 0x4000);
        assert_eq!(ports.first(), Some(&49_152));
        assert_eq!(ports.last(), Some(&65_535));
        assert_eq!(source_port(u32::MAX), 65_535);
        assert_eq!(
            source_port(0x3_ffff),
            49_152,
            "bits of the flow label alone"
        );
    }
}
