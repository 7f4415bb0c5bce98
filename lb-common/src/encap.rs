//! Outer headers: made once by the daemon, copied and patched by the data path.
//!
//! - IPv4 in anything: RFC 2003 (IP in IP), IPv6 in IPv4: RFC 4213, anything in IPv6: RFC 2473. Always one fixed-size header:
//!   no options, no tunnel encapsulation limit.
//! - GUE: the same outer IP headers, then UDP and GUE ([`crate::gue`]).
//! - DSCP and ECN are copied to the outer header (RFC 2983 uniform model, RFC 6040 normal mode).
//! - The outer IPv4 header has DF set and identification 0 (RFC 6864: an atomic datagram needs no identification).

#[cfg(not(target_arch = "bpf"))]
use core::net::IpAddr;

use crate::abi::{Encap, Route};
use crate::checksum;
use crate::gue;
use crate::packet::{Frame, ViewMut};
use crate::parse::Packet;
#[cfg(not(target_arch = "bpf"))]
use crate::parse::{PROTOCOL_IPIP, PROTOCOL_IPV6, PROTOCOL_UDP};
use crate::reason::Reason;

const ETHERNET: usize = 14;
const IPV4: usize = 20;
const IPV6: usize = 40;
const GUE4: usize = IPV4 + gue::LENGTH;
const GUE6: usize = IPV6 + gue::LENGTH;

/// Puts the route's header in the place of the packet's Ethernet header.
///
/// `entropy`: the flow's hash; bits of it become the outer IPv6 flow label (RFC 6438) and GUE's UDP source port, so that routers
/// and network cards spread tunnels.
#[inline(always)]
pub fn encapsulate<F: Frame>(
    frame: &mut F,
    packet: &Packet,
    route: &Route,
    entropy: u32,
) -> Result<(), Reason> {
    match route.encap {
        e if e == Encap::Ipv4 as u16 => {
            let mut header = place::<F, { ETHERNET + IPV4 }>(frame, packet, route)?;
            patch_ipv4(&mut header, packet, route, packet.length + IPV4 as u32);
        }
        e if e == Encap::Ipv6 as u16 => {
            let mut header = place::<F, { ETHERNET + IPV6 }>(frame, packet, route)?;
            patch_ipv6(&mut header, packet, packet.length, entropy);
        }
        e if e == Encap::L2 as u16 => {
            place::<F, ETHERNET>(frame, packet, route)?;
        }
        e if e == Encap::Gue4 as u16 => {
            let mut header = place::<F, { ETHERNET + GUE4 }>(frame, packet, route)?;
            let datagram = packet.length + gue::LENGTH as u32;
            patch_ipv4(&mut header, packet, route, datagram + IPV4 as u32);
            header.set::<u16, { ETHERNET + IPV4 }>(gue::source_port(entropy).to_be());
            header.set::<u16, { ETHERNET + IPV4 + 4 }>((datagram as u16).to_be());
        }
        e if e == Encap::Gue6 as u16 => {
            let mut header = place::<F, { ETHERNET + GUE6 }>(frame, packet, route)?;
            let datagram = packet.length + gue::LENGTH as u32;
            patch_ipv6(&mut header, packet, datagram, entropy);
            header.set::<u16, { ETHERNET + IPV6 }>(gue::source_port(entropy).to_be());
            header.set::<u16, { ETHERNET + IPV6 + 4 }>((datagram as u16).to_be());
        }
        _ => return Err(Reason::NoRoute),
    }
    Ok(())
}

/// The first `N` bytes of the route's header, in the place of the packet's Ethernet header, if what comes of it fits the MTU.
#[inline(always)]
fn place<'a, F: Frame, const N: usize>(
    frame: &'a mut F,
    packet: &Packet,
    route: &Route,
) -> Result<ViewMut<'a, N>, Reason> {
    if packet.length + (N - ETHERNET) as u32 > u32::from(route.mtu) {
        return Err(Reason::TooBig);
    }
    let delta = packet.l2_length as i32 - N as i32;
    if delta != 0 && !frame.move_head(delta) {
        return Err(Reason::Headroom);
    }
    // The view is inside the frame by construction; the verifier wants to see the check again after the head moved.
    let mut header = frame.view_mut::<N>(0).ok_or(Reason::Headroom)?;
    header.copy_from(&route.header);
    Ok(header)
}

#[inline(always)]
fn patch_ipv4<const N: usize>(
    header: &mut ViewMut<'_, N>,
    packet: &Packet,
    route: &Route,
    outer_length: u32,
) {
    header.set::<u8, { ETHERNET + 1 }>(packet.tos);
    header.set::<u16, { ETHERNET + 2 }>((outer_length as u16).to_be());
    // RFC 1071: the sum over the constant part is ready; TOS is the low byte of the first word.
    let sum = route.partial_checksum + u32::from(packet.tos) + outer_length;
    header.set::<u16, { ETHERNET + 10 }>(checksum::finish(sum).to_be());
}

/// `payload`: bytes behind the outer header.
#[inline(always)]
fn patch_ipv6<const N: usize>(
    header: &mut ViewMut<'_, N>,
    packet: &Packet,
    payload: u32,
    entropy: u32,
) {
    // RFC 8200: version (4), traffic class (8), flow label (20).
    let word = (6 << 28) | (u32::from(packet.tos) << 20) | (entropy & 0xf_ffff);
    header.set::<u32, ETHERNET>(word.to_be());
    header.set::<u16, { ETHERNET + 4 }>((payload as u16).to_be());
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
    pub fn ipip(way: &Way, inner_v6: bool, source: IpAddr, destination: IpAddr) -> Option<Self> {
        Self::tunnel(way, inner(inner_v6), &[], source, destination)
    }

    /// A route through UDP and GUE; otherwise as [`Self::ipip`].
    pub fn gue(way: &Way, inner_v6: bool, source: IpAddr, destination: IpAddr) -> Option<Self> {
        let behind = gue::header(inner(inner_v6));
        Self::tunnel(way, PROTOCOL_UDP, &behind, source, destination)
    }

    /// An outer IP header that says `protocol`, and what stands `behind` it: nothing, or the headers of GUE.
    fn tunnel(
        way: &Way,
        protocol: u8,
        behind: &[u8],
        source: IpAddr,
        destination: IpAddr,
    ) -> Option<Self> {
        let plain = behind.is_empty();
        match (source, destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let mut ip = [0; IPV4];
                ip[0] = 0x45;
                ip[6] = 0x40; // DF
                ip[8] = HOPS;
                ip[9] = protocol;
                ip[12..16].copy_from_slice(&source.octets());
                ip[16..20].copy_from_slice(&destination.octets());
                let encap = if plain { Encap::Ipv4 } else { Encap::Gue4 };
                let mut route = Self::new(way, encap, ethertype(false), &[&ip, behind]);
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
                let encap = if plain { Encap::Ipv6 } else { Encap::Gue6 };
                Some(Self::new(way, encap, ethertype(true), &[&ip, behind]))
            }
            _ => None,
        }
    }

    fn new(way: &Way, encap: Encap, ethertype: u16, outer: &[&[u8]]) -> Self {
        let mut header = [0; 72];
        header[..6].copy_from_slice(&way.destination_mac);
        header[6..12].copy_from_slice(&way.source_mac);
        header[12..ETHERNET].copy_from_slice(&ethertype.to_be_bytes());
        let outer = outer.iter().copied().flatten();
        for (byte, value) in header[ETHERNET..].iter_mut().zip(outer) {
            *byte = *value;
        }
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

/// How the outer header names the client's packet.
#[cfg(not(target_arch = "bpf"))]
const fn inner(v6: bool) -> u8 {
    if v6 { PROTOCOL_IPV6 } else { PROTOCOL_IPIP }
}

#[cfg(not(target_arch = "bpf"))]
const fn ethertype(v6: bool) -> u16 {
    if v6 {
        crate::parse::ETHERTYPE_IPV6
    } else {
        crate::parse::ETHERTYPE_IPV4
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hash::FlowKey;
    use crate::native::MemoryFrame;
    use crate::track::Kind;

    const WAY: Way = Way {
        ifindex: 7,
        mtu: 1_500,
        source_mac: [2, 0, 0, 0, 0, 1],
        destination_mac: [4, 0, 0, 0, 0, 2],
    };
    /// All bits differ from their neighbours' and halves'.
    const ENTROPY: u32 = 0xa5c3_6e91;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    /// What becomes of 100 bytes of a client's packet behind a VLAN tag.
    fn encapsulated(route: &Route) -> Result<std::vec::Vec<u8>, Reason> {
        let packet = Packet {
            l2_length: 18,
            flow: FlowKey {
                source: ip("198.51.100.7").into(),
                destination: ip("203.0.113.10").into(),
                ports: 0,
                protocol: 6,
            },
            length: 100,
            tos: 0xb9,
            kind: Kind::Other,
        };
        let mut frame = MemoryFrame::new(&[0xee; 118], 1);
        encapsulate(&mut frame, &packet, route, ENTROPY).map(|()| frame.bytes())
    }

    fn be16(bytes: &[u8], at: usize) -> u16 {
        u16::from_be_bytes([bytes[at], bytes[at + 1]])
    }

    #[test]
    fn every_field_of_gue_over_ipv4() {
        let route = Route::gue(&WAY, true, ip("192.0.2.1"), ip("10.0.0.11")).unwrap();
        assert_eq!((route.ifindex, route.mtu), (7, 1_500));
        let bytes = encapsulated(&route).unwrap();
        assert_eq!(bytes.len(), 14 + 20 + 8 + 4 + 100);
        assert_eq!(bytes[..6], WAY.destination_mac);
        assert_eq!(bytes[6..12], WAY.source_mac);
        assert_eq!(be16(&bytes, 12), 0x0800, "EtherType");
        let outer = &bytes[14..];
        assert_eq!(outer[0], 0x45, "version, header length");
        assert_eq!(outer[1], 0xb9, "TOS");
        assert_eq!(be16(outer, 2), 132, "total length");
        assert_eq!(be16(outer, 4), 0, "identification");
        assert_eq!(be16(outer, 6), 0x4000, "DF, no fragment");
        assert_eq!(outer[8], 64, "TTL");
        assert_eq!(outer[9], 17, "UDP");
        assert_eq!(checksum::finish(checksum::sum(&outer[..20])), 0);
        assert_eq!(outer[12..16], [192, 0, 2, 1]);
        assert_eq!(outer[16..20], [10, 0, 0, 11]);
        assert_eq!(
            be16(outer, 20),
            0xc000 | 0xa5c3 >> 2,
            "source port: the top 14 bits"
        );
        assert_eq!(be16(outer, 22), 6_080, "destination port");
        assert_eq!(be16(outer, 24), 112, "length");
        assert_eq!(be16(outer, 26), 0, "checksum");
        assert_eq!(outer[28..32], [0, 41, 0, 0], "GUE");
        assert_eq!(outer[32..], [0xee; 100], "the client's packet");
    }

    #[test]
    fn every_field_of_gue_over_ipv6() {
        let (source, destination) = (ip("2001:db8::1"), ip("2001:db8:b::11"));
        let route = Route::gue(&WAY, false, source, destination).unwrap();
        assert_eq!(route.partial_checksum, 0);
        let bytes = encapsulated(&route).unwrap();
        assert_eq!(bytes.len(), 14 + 40 + 8 + 4 + 100);
        assert_eq!(bytes[..6], WAY.destination_mac);
        assert_eq!(bytes[6..12], WAY.source_mac);
        assert_eq!(be16(&bytes, 12), 0x86dd, "EtherType");
        let outer = &bytes[14..];
        // Version 6, class 0xb9, and the low 20 bits of the hash as the flow label.
        assert_eq!(outer[..4], [0x6b, 0x93, 0x6e, 0x91]);
        assert_eq!(be16(outer, 4), 112, "payload length");
        assert_eq!(outer[6], 17, "UDP");
        assert_eq!(outer[7], 64, "hop limit");
        let [IpAddr::V6(source), IpAddr::V6(destination)] = [source, destination] else {
            unreachable!("both are IPv6")
        };
        assert_eq!(outer[8..24], source.octets());
        assert_eq!(outer[24..40], destination.octets());
        assert_eq!(be16(outer, 40), 0xc000 | 0xa5c3 >> 2, "source port");
        assert_eq!(be16(outer, 42), 6_080, "destination port");
        assert_eq!(be16(outer, 44), 112, "length");
        assert_eq!(be16(outer, 46), 0, "checksum");
        assert_eq!(outer[48..52], [0, 4, 0, 0], "GUE");
        assert_eq!(outer[52..], [0xee; 100], "the client's packet");
    }

    #[test]
    fn gue_counts_into_the_size() {
        for (source, destination, overhead) in [
            ("192.0.2.1", "10.0.0.11", 32),
            ("2001:db8::1", "2001:db8:b::11", 52),
        ] {
            let mut route = Route::gue(&WAY, false, ip(source), ip(destination)).unwrap();
            route.mtu = 100 + overhead;
            assert!(encapsulated(&route).is_ok());
            route.mtu -= 1;
            assert_eq!(encapsulated(&route), Err(Reason::TooBig));
        }
    }

    #[test]
    fn a_tunnel_is_of_one_family() {
        for (source, destination) in [("192.0.2.1", "2001:db8::1"), ("2001:db8::1", "192.0.2.1")] {
            assert_eq!(Route::gue(&WAY, false, ip(source), ip(destination)), None);
            assert_eq!(Route::ipip(&WAY, false, ip(source), ip(destination)), None);
        }
    }

    #[test]
    fn an_unknown_encapsulation_is_no_route() {
        let mut route = Route::gue(&WAY, false, ip("192.0.2.1"), ip("10.0.0.11")).unwrap();
        route.encap = 99;
        assert_eq!(encapsulated(&route), Err(Reason::NoRoute));
    }
}
