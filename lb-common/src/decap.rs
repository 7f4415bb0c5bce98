//! Decapsulation on a backend: strips the outer headers of IPIP (4in4, 6in4, 4in6, 6in6) and of GUE and hands the client's packet to
//! the host's stack, which has the VIP on a loopback interface.

use core::mem::offset_of;

use network_types::ip::{Ipv4Hdr, Ipv6Hdr};

use crate::address::Address;
use crate::gue;
use crate::packet::Frame;
use crate::parse::{
    ETHERTYPE_IPV4, ETHERTYPE_IPV6, PROTOCOL_IPIP, PROTOCOL_IPV6, PROTOCOL_UDP, ethernet,
};

const ETHERNET: usize = 14;

/// What became of a frame on a backend. Its number indexes the counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Decapped {
    /// The outer header is gone: pass.
    Done = 0,
    /// No tunnel packet: pass untouched.
    NotTunnel = 1,
    /// A tunnel packet for or from an address that is not allowed: pass untouched, the stack will say so.
    NotAllowed = 2,
    /// A tunnel packet whose outer or inner header contradicts itself: drop.
    Bad = 3,
}

impl Decapped {
    pub const ALL: [(Self, &'static str); 4] = [
        (Self::Done, "done"),
        (Self::NotTunnel, "not-tunnel"),
        (Self::NotAllowed, "not-allowed"),
        (Self::Bad, "bad"),
    ];
}

/// An outer address as the lists of allowed ones name it: its words, and 1 for IPv6. Without the family an IPv6 packet to
/// `::ffff:192.0.2.1` would pass for one to the IPv4 address.
pub type Key = [u64; 3];

/// In the list of sources: every source is allowed. No address has this key.
pub const EVERY: Key = [0; 3];

#[inline(always)]
pub const fn key(address: &Address) -> Key {
    [address.words[0], address.words[1], address.v6 as u64]
}

/// The outer headers, as far as they matter.
struct Outer {
    source: Address,
    destination: Address,
    /// Bytes in front of the client's packet, Ethernet excluded.
    length: usize,
    /// Bytes of the client's packet, as the outer headers say.
    payload: usize,
    inner_v6: bool,
    /// The headers do not contradict themselves.
    consistent: bool,
}

/// What stands behind the outer IP header.
struct Behind {
    /// Bytes of headers.
    length: usize,
    /// Bytes of the client's packet.
    payload: usize,
    inner_v6: bool,
    consistent: bool,
}

/// Strips the outer headers when the lists of outer destinations and of outer sources have its addresses.
#[inline(always)]
pub fn decapsulate<F: Frame>(
    frame: &mut F,
    destinations: impl Fn(&Key) -> bool,
    sources: impl Fn(&Key) -> bool,
) -> Decapped {
    let Ok((ETHERNET, ethertype)) = ethernet(frame) else {
        return Decapped::NotTunnel;
    };
    let outer = match ethertype {
        ETHERTYPE_IPV4 => ipv4(frame),
        ETHERTYPE_IPV6 => ipv6(frame),
        _ => return Decapped::NotTunnel,
    };
    let outer = match outer {
        Ok(outer) => outer,
        Err(other) => return other,
    };
    if !destinations(&key(&outer.destination)) {
        return Decapped::NotAllowed;
    }
    if !sources(&EVERY) && !sources(&key(&outer.source)) {
        return Decapped::NotAllowed;
    }
    // Only now: what is wrong with packets for others is not ours to judge.
    if !outer.consistent {
        return Decapped::Bad;
    }
    let inner_offset = ETHERNET + outer.length;
    let Some(version) = frame.view::<1>(inner_offset) else {
        return Decapped::Bad;
    };
    let version = version.get::<u8, 0>() >> 4;
    let (expected, smallest, ethertype) = if outer.inner_v6 {
        (6, Ipv6Hdr::LEN, ETHERTYPE_IPV6)
    } else {
        (4, Ipv4Hdr::LEN, ETHERTYPE_IPV4)
    };
    if version != expected
        || outer.payload < smallest
        || inner_offset + outer.payload > frame.length()
    {
        return Decapped::Bad;
    }
    let Some(ethernet) = frame.view::<ETHERNET>(0) else {
        return Decapped::Bad;
    };
    let macs = (ethernet.get::<u64, 0>(), ethernet.get::<u32, 8>());
    if !frame.move_head(outer.length as i32) {
        return Decapped::Bad;
    }
    let Some(mut ethernet) = frame.view_mut::<ETHERNET>(0) else {
        return Decapped::Bad;
    };
    ethernet.set::<u64, 0>(macs.0);
    ethernet.set::<u32, 8>(macs.1);
    ethernet.set::<u16, 12>(ethertype.to_be());
    Decapped::Done
}

#[inline(always)]
fn ipv4<F: Frame>(frame: &F) -> Result<Outer, Decapped> {
    let header = frame
        .view::<{ Ipv4Hdr::LEN }>(ETHERNET)
        .ok_or(Decapped::NotTunnel)?;
    let protocol = header.get::<u8, { offset_of!(Ipv4Hdr, proto) }>();
    if !is_tunnel(protocol) {
        return Err(Decapped::NotTunnel);
    }
    // The balancer sends neither options nor fragments; such tunnel packets are the stack's to digest.
    let version_and_length = header.get::<u8, { offset_of!(Ipv4Hdr, vihl) }>();
    let options = matches!(version_and_length, 0x46..=0x4f);
    if options || header.be16::<{ offset_of!(Ipv4Hdr, frags) }>() & 0x3fff != 0 {
        return Err(Decapped::NotTunnel);
    }
    let total = usize::from(header.be16::<{ offset_of!(Ipv4Hdr, tot_len) }>());
    let behind = behind(
        frame,
        ETHERNET + Ipv4Hdr::LEN,
        protocol,
        total.saturating_sub(Ipv4Hdr::LEN),
    )?;
    Ok(Outer {
        source: Address::v4(header.get::<u32, { offset_of!(Ipv4Hdr, src_addr) }>()),
        destination: Address::v4(header.get::<u32, { offset_of!(Ipv4Hdr, dst_addr) }>()),
        length: Ipv4Hdr::LEN + behind.length,
        payload: behind.payload,
        inner_v6: behind.inner_v6,
        consistent: behind.consistent && version_and_length == 0x45 && total >= Ipv4Hdr::LEN,
    })
}

#[inline(always)]
fn ipv6<F: Frame>(frame: &F) -> Result<Outer, Decapped> {
    let header = frame
        .view::<{ Ipv6Hdr::LEN }>(ETHERNET)
        .ok_or(Decapped::NotTunnel)?;
    let protocol = header.get::<u8, { offset_of!(Ipv6Hdr, next_hdr) }>();
    if !is_tunnel(protocol) {
        return Err(Decapped::NotTunnel);
    }
    let behind = behind(
        frame,
        ETHERNET + Ipv6Hdr::LEN,
        protocol,
        usize::from(header.be16::<{ offset_of!(Ipv6Hdr, payload_len) }>()),
    )?;
    Ok(Outer {
        source: Address::v6([
            header.get::<u64, { offset_of!(Ipv6Hdr, src_addr) }>(),
            header.get::<u64, { offset_of!(Ipv6Hdr, src_addr) + 8 }>(),
        ]),
        destination: Address::v6([
            header.get::<u64, { offset_of!(Ipv6Hdr, dst_addr) }>(),
            header.get::<u64, { offset_of!(Ipv6Hdr, dst_addr) + 8 }>(),
        ]),
        length: Ipv6Hdr::LEN + behind.length,
        payload: behind.payload,
        inner_v6: behind.inner_v6,
        consistent: behind.consistent && header.get::<u8, { offset_of!(Ipv6Hdr, vcf) }>() >> 4 == 6,
    })
}

/// Whether what stands behind an outer IP header may be a tunnel's.
const fn is_tunnel(protocol: u8) -> bool {
    matches!(protocol, PROTOCOL_IPIP | PROTOCOL_IPV6 | PROTOCOL_UDP)
}

/// At `offset`, in an outer IP packet with `payload` bytes.
#[inline(always)]
fn behind<F: Frame>(
    frame: &F,
    offset: usize,
    protocol: u8,
    payload: usize,
) -> Result<Behind, Decapped> {
    if protocol != PROTOCOL_UDP {
        return Ok(Behind {
            length: 0,
            payload,
            inner_v6: protocol == PROTOCOL_IPV6,
            consistent: true,
        });
    }
    // A datagram too short for a GUE header is somebody else's.
    let header = frame
        .view::<{ gue::LENGTH }>(offset)
        .ok_or(Decapped::NotTunnel)?;
    let datagram = usize::from(header.be16::<4>());
    if header.be16::<2>() != gue::PORT || datagram < gue::LENGTH || payload < gue::LENGTH {
        return Err(Decapped::NotTunnel);
    }
    // Who made a checksum wants it verified (RFC 768), and only the stack looks at every byte; the balancer makes none.
    if header.get::<u16, 6>() != 0 {
        return Err(Decapped::NotTunnel);
    }
    let inner = gue::protocol(u32::from_be(header.get::<u32, { gue::UDP }>()));
    let Some(PROTOCOL_IPIP | PROTOCOL_IPV6) = inner else {
        return Err(Decapped::NotTunnel);
    };
    Ok(Behind {
        length: gue::LENGTH,
        payload: datagram - gue::LENGTH,
        inner_v6: inner == Some(PROTOCOL_IPV6),
        // `payload` is not looked at any more: that the frame holds all of it has to be seen here.
        consistent: datagram <= payload && offset + payload <= frame.length(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::net::IpAddr;

    #[test]
    fn no_address_has_the_key_of_another_or_of_all() {
        let of = |text: &str| key(&Address::from(text.parse::<IpAddr>().unwrap()));
        assert_ne!(of("192.0.2.1"), of("::ffff:192.0.2.1"));
        for text in ["0.0.0.0", "::"] {
            assert_ne!(of(text), EVERY);
        }
    }
}
