//! Decapsulation on a backend: strips the outer IP header of IPIP (4in4, 6in4, 4in6, 6in6) and hands the client's packet to the
//! host's stack, which has the VIP on a loopback interface.

use network_types::ip::{Ipv4Hdr, Ipv6Hdr};

use crate::address::Address;
use crate::packet::Frame;
use crate::parse::{ETHERTYPE_IPV4, ETHERTYPE_IPV6, PROTOCOL_IPIP, PROTOCOL_IPV6, ethernet};

const ETHERNET: usize = 14;

/// What became of a frame on a backend. Its number indexes the counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Decapped {
    /// The outer header is gone: pass.
    Done = 0,
    /// No tunnel packet: pass untouched.
    NotTunnel = 1,
    /// A tunnel packet for an address that is not allowed: pass untouched, the stack will say so.
    NotAllowed = 2,
    /// A tunnel packet whose outer or inner header contradicts itself: drop.
    Bad = 3,
}

impl Decapped {
    pub const ALL: [(Self, &'static str); 4] =
        [(Self::Done, "done"), (Self::NotTunnel, "not-tunnel"), (Self::NotAllowed, "not-allowed"), (Self::Bad, "bad")];
}

/// The outer header, as far as it matters.
struct Outer {
    destination: Address,
    length: usize,
    /// Bytes of the outer packet's payload, as its header says.
    payload: usize,
    inner_v6: bool,
}

/// Strips the outer header when its destination is `allowed`.
#[inline(always)]
pub fn decapsulate<F: Frame>(frame: &mut F, allowed: impl Fn(&Address) -> bool) -> Decapped {
    let Ok((ETHERNET, ethertype)) = ethernet(frame) else { return Decapped::NotTunnel };
    let outer = match ethertype {
        ETHERTYPE_IPV4 => ipv4(frame),
        ETHERTYPE_IPV6 => ipv6(frame),
        _ => return Decapped::NotTunnel,
    };
    let outer = match outer {
        Ok(outer) => outer,
        Err(other) => return other,
    };
    if !allowed(&outer.destination) {
        return Decapped::NotAllowed;
    }
    let inner_offset = ETHERNET + outer.length;
    let Some(version) = frame.read::<u8>(inner_offset) else { return Decapped::Bad };
    let (expected, smallest, ethertype) =
        if outer.inner_v6 { (6, Ipv6Hdr::LEN, ETHERTYPE_IPV6) } else { (4, Ipv4Hdr::LEN, ETHERTYPE_IPV4) };
    if version >> 4 != expected || outer.payload < smallest || inner_offset + outer.payload > frame.length() {
        return Decapped::Bad;
    }
    let Some(macs) = frame.read::<[u8; 12]>(0) else { return Decapped::Bad };
    if !frame.move_head(outer.length as i32) || !frame.write(0, macs) || !frame.write(12, ethertype.to_be()) {
        return Decapped::Bad;
    }
    Decapped::Done
}

#[inline(always)]
fn ipv4<F: Frame>(frame: &F) -> Result<Outer, Decapped> {
    let header: Ipv4Hdr = frame.read(ETHERNET).ok_or(Decapped::NotTunnel)?;
    if header.proto != PROTOCOL_IPIP && header.proto != PROTOCOL_IPV6 {
        return Err(Decapped::NotTunnel);
    }
    // The balancer sends neither options nor fragments; a fragmented tunnel packet is the stack's to reassemble.
    if u16::from_be_bytes(header.frags) & 0x3fff != 0 {
        return Err(Decapped::NotTunnel);
    }
    let total = usize::from(u16::from_be_bytes(header.tot_len));
    if header.vihl != 0x45 || total < Ipv4Hdr::LEN {
        return Err(Decapped::Bad);
    }
    Ok(Outer {
        destination: Address::v4(u32::from_ne_bytes(header.dst_addr)),
        length: Ipv4Hdr::LEN,
        payload: total - Ipv4Hdr::LEN,
        inner_v6: header.proto == PROTOCOL_IPV6,
    })
}

#[inline(always)]
fn ipv6<F: Frame>(frame: &F) -> Result<Outer, Decapped> {
    let header: Ipv6Hdr = frame.read(ETHERNET).ok_or(Decapped::NotTunnel)?;
    if header.next_hdr != PROTOCOL_IPIP && header.next_hdr != PROTOCOL_IPV6 {
        return Err(Decapped::NotTunnel);
    }
    if header.vcf[0] >> 4 != 6 {
        return Err(Decapped::Bad);
    }
    Ok(Outer {
        destination: Address::v6(crate::parse::words(&header.dst_addr)),
        length: Ipv6Hdr::LEN,
        payload: usize::from(u16::from_be_bytes(header.payload_len)),
        inner_v6: header.next_hdr == PROTOCOL_IPV6,
    })
}
