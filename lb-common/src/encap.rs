//! Outer headers: made once by the daemon, copied and patched by the data path.
//!
//! - IPv4 in anything: RFC 2003 (IP in IP), IPv6 in IPv4: RFC 4213, anything in IPv6: RFC 2473. Always one fixed-size header:
//!   no options, no tunnel encapsulation limit.
//! - DSCP and ECN are copied to the outer header (RFC 2983 uniform model, RFC 6040 normal mode).
//! - The outer IPv4 header has DF set and identification 0 (RFC 6864: an atomic datagram needs no identification).

use crate::abi::{Encap, Route};
use crate::checksum;
use crate::packet::Frame;
use crate::parse::Packet;
use crate::reason::Reason;

const ETHERNET: usize = 14;
const IPV4: usize = 20;
const IPV6: usize = 40;

/// Puts the route's header in the place of the packet's Ethernet header.
///
/// `entropy`: the flow's hash; 20 bits of it become the outer IPv6 flow label (RFC 6438), so that routers spread tunnels.
#[inline(always)]
pub fn encapsulate<F: Frame>(
    frame: &mut F,
    packet: &Packet,
    route: &Route,
    entropy: u32,
) -> Result<(), Reason> {
    let (l3_overhead, header_length) = match route.encap {
        e if e == Encap::Ipv4 as u16 => (IPV4, ETHERNET + IPV4),
        e if e == Encap::Ipv6 as u16 => (IPV6, ETHERNET + IPV6),
        e if e == Encap::L2 as u16 => (0, ETHERNET),
        _ => return Err(Reason::NoRoute),
    };
    let outer_length = packet.length + l3_overhead as u32;
    if outer_length > u32::from(route.mtu) {
        return Err(Reason::TooBig);
    }
    let delta = packet.l2_length as i32 - header_length as i32;
    if delta != 0 && !frame.move_head(delta) {
        return Err(Reason::Headroom);
    }
    // The views are inside the frame by construction; the verifier wants to see the check again after the head moved.
    match l3_overhead {
        IPV4 => {
            let mut header = frame
                .view_mut::<{ ETHERNET + IPV4 }>(0)
                .ok_or(Reason::Headroom)?;
            header.copy_from(&route.header);
            header.set::<u8, { ETHERNET + 1 }>(packet.tos);
            header.set::<u16, { ETHERNET + 2 }>((outer_length as u16).to_be());
            // RFC 1071: the sum over the constant part is ready; TOS is the low byte of the first word.
            let sum = route.partial_checksum + u32::from(packet.tos) + outer_length;
            header.set::<u16, { ETHERNET + 10 }>(checksum::finish(sum).to_be());
        }
        IPV6 => {
            let mut header = frame
                .view_mut::<{ ETHERNET + IPV6 }>(0)
                .ok_or(Reason::Headroom)?;
            header.copy_from(&route.header);
            // RFC 8200: version (4), traffic class (8), flow label (20).
            let word = (6 << 28) | (u32::from(packet.tos) << 20) | (entropy & 0xf_ffff);
            header.set::<u32, ETHERNET>(word.to_be());
            header.set::<u16, { ETHERNET + 4 }>((packet.length as u16).to_be());
        }
        _ => frame
            .view_mut::<ETHERNET>(0)
            .ok_or(Reason::Headroom)?
            .copy_from(&route.header),
    }
    Ok(())
}

/// What the daemon knows of the way to a backend.
#[cfg(not(target_arch = "bpf"))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Way {
    pub ifindex: u32,
    pub mtu: u32,
    pub source_mac: [u8; 6],
    pub destination_mac: [u8; 6],
}

#[cfg(not(target_arch = "bpf"))]
impl Route {
    /// A route that rewrites the Ethernet header only; `v6`: the family of the service.
    pub fn l2(way: &Way, v6: bool) -> Self {
        Self::new(way, Encap::L2, ethertype(v6), &[])
    }

    /// A route through an IP tunnel. `inner_v6`: the family of the service. `source` and `destination` are of one family.
    pub fn ipip(
        way: &Way,
        inner_v6: bool,
        source: core::net::IpAddr,
        destination: core::net::IpAddr,
    ) -> Option<Self> {
        use core::net::IpAddr;
        let protocol = if inner_v6 {
            crate::parse::PROTOCOL_IPV6
        } else {
            crate::parse::PROTOCOL_IPIP
        };
        match (source, destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let mut ip = [0; IPV4];
                ip[0] = 0x45;
                ip[6] = 0x40; // DF
                ip[8] = HOPS;
                ip[9] = protocol;
                ip[12..16].copy_from_slice(&source.octets());
                ip[16..20].copy_from_slice(&destination.octets());
                let mut route = Self::new(way, Encap::Ipv4, ethertype(false), &ip);
                route.partial_checksum = checksum::sum(&ip);
                Some(route)
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                let mut ip = [0; IPV6];
                ip[0] = 0x60;
                ip[6] = protocol;
                ip[7] = HOPS;
                ip[8..24].copy_from_slice(&source.octets());
                ip[24..40].copy_from_slice(&destination.octets());
                Some(Self::new(way, Encap::Ipv6, ethertype(true), &ip))
            }
            _ => None,
        }
    }

    fn new(way: &Way, encap: Encap, ethertype: u16, ip: &[u8]) -> Self {
        let mut header = [0; 72];
        header[..6].copy_from_slice(&way.destination_mac);
        header[6..12].copy_from_slice(&way.source_mac);
        header[12..ETHERNET].copy_from_slice(&ethertype.to_be_bytes());
        header[ETHERNET..ETHERNET + ip.len()].copy_from_slice(ip);
        Self {
            ifindex: way.ifindex,
            // An IP packet is at most 65,535 bytes; loopback-like links say 65,536.
            mtu: way.mtu.min(u32::from(u16::MAX)) as u16,
            encap: encap as u16,
            header,
            ..Self::NONE
        }
    }
}

/// TTL or hop limit of the outer header.
#[cfg(not(target_arch = "bpf"))]
const HOPS: u8 = 64;

#[cfg(not(target_arch = "bpf"))]
const fn ethertype(v6: bool) -> u16 {
    if v6 {
        crate::parse::ETHERTYPE_IPV6
    } else {
        crate::parse::ETHERTYPE_IPV4
    }
}
