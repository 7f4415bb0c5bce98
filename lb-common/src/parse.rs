//! From bytes to what the decision needs: Ethernet (at most two VLAN tags), IPv4 with options or IPv6 with extension headers,
//! TCP or UDP.
//!
//! Parsing never refuses a packet on its own authority: a refusal carries the destination, as far as it could be read, so that
//! `process` can let everything pass that is not ours.

use core::mem::offset_of;

use network_types::eth::EthHdr;
use network_types::ip::{Ipv4Hdr, Ipv6Hdr};
use network_types::tcp::TcpHdr;
use network_types::udp::UdpHdr;

use crate::address::Address;
use crate::hash::FlowKey;
use crate::packet::Frame;
use crate::reason::Reason;
use crate::track::Kind;

pub const ETHERTYPE_IPV4: u16 = 0x0800;
pub const ETHERTYPE_IPV6: u16 = 0x86dd;
const ETHERTYPE_VLAN: u16 = 0x8100;
const ETHERTYPE_QINQ: u16 = 0x88a8;

pub const PROTOCOL_ICMP: u8 = 1;
pub const PROTOCOL_IPIP: u8 = 4;
pub const PROTOCOL_TCP: u8 = 6;
pub const PROTOCOL_UDP: u8 = 17;
pub const PROTOCOL_IPV6: u8 = 41;
pub const PROTOCOL_ICMPV6: u8 = 58;

const EXT_HOP_BY_HOP: u8 = 0;
const EXT_ROUTING: u8 = 43;
const EXT_FRAGMENT: u8 = 44;
const EXT_DESTINATION: u8 = 60;
/// Extension headers followed before giving up; more is not seen outside attacks.
const MAX_EXTENSION_HEADERS: usize = 8;

/// A TCP or UDP packet whose headers are whole and consistent.
#[derive(Clone, Copy, Debug)]
pub struct Packet {
    /// Bytes in front of the IP header: Ethernet and VLAN tags.
    pub l2_length: usize,
    pub flow: FlowKey,
    /// Bytes of the IP packet as its header says (Ethernet padding not included).
    pub length: u32,
    /// IPv4 TOS or IPv6 traffic class.
    pub tos: u8,
    /// TCP: opener (SYN without ACK), end (FIN or RST), or other.
    pub kind: Kind,
}

/// An ICMP message; of the message itself nothing has been looked at.
#[derive(Clone, Copy, Debug)]
pub struct Icmp {
    /// Bytes in front of the IP header: Ethernet and VLAN tags.
    pub l2_length: usize,
    pub network: Network,
}

/// What stands in the packet.
#[derive(Clone, Copy, Debug)]
pub enum Parsed {
    Packet(Packet),
    /// ICMP over IPv4 or ICMPv6 over IPv6.
    Icmp(Icmp),
    /// Neither for a service nor wrong: `Pass` whatever the destination.
    Other(Reason),
    /// To be refused with this reason if its destination is a VIP of this protocol.
    Refused(Refusal),
}

#[derive(Clone, Copy, Debug)]
pub struct Refusal {
    pub reason: Reason,
    pub destination: Address,
    /// `None`: IPv6, not to be found behind the extension headers. (Over IPv4, 0 is a protocol like any other.)
    pub protocol: Option<u8>,
    /// Destination port as on the wire, when it could be read.
    pub port: Option<u16>,
}

/// What the IP header says.
#[derive(Clone, Copy, Debug)]
pub struct Network {
    pub source: Address,
    pub destination: Address,
    pub protocol: u8,
    /// Offset of the transport header in the frame.
    pub l4: usize,
    /// Offset of the first byte after the IP packet.
    pub end: usize,
    /// Bytes of the IP packet.
    pub length: u32,
    pub tos: u8,
    /// A fragment, and whether it is the first one (has the transport header).
    pub fragment: Option<bool>,
}

/// Ethernet: length of the link header and the protocol behind it.
#[inline(always)]
pub fn ethernet<F: Frame>(frame: &F) -> Result<(usize, u16), Reason> {
    let header = frame.view::<{ EthHdr::LEN }>(0).ok_or(Reason::ShortFrame)?;
    let mut ethertype = header.be16::<{ offset_of!(EthHdr, ether_type) }>();
    let mut length = EthHdr::LEN;
    for tag in 0..3 {
        if ethertype != ETHERTYPE_VLAN && ethertype != ETHERTYPE_QINQ {
            break;
        }
        if tag == 2 {
            return Err(Reason::VlanDepth);
        }
        // IEEE 802.1Q: tag control information, then the next EtherType.
        ethertype = frame
            .view::<4>(length)
            .ok_or(Reason::ShortFrame)?
            .be16::<2>();
        length += 4;
    }
    Ok((length, ethertype))
}

/// Parses a whole frame.
#[inline(always)]
pub fn parse<F: Frame>(frame: &F) -> Parsed {
    let (l2_length, ethertype) = match ethernet(frame) {
        Ok(link) => link,
        Err(reason) => return Parsed::Other(reason),
    };
    let network = match ethertype {
        ETHERTYPE_IPV4 => ipv4(frame, l2_length),
        ETHERTYPE_IPV6 => ipv6(frame, l2_length),
        _ => return Parsed::Other(Reason::NotIp),
    };
    let network = match network {
        Ok(network) => network,
        Err(parsed) => return parsed,
    };
    match network.protocol {
        PROTOCOL_TCP | PROTOCOL_UDP => transport(frame, l2_length, &network),
        PROTOCOL_ICMP if !network.destination.v6 => Parsed::Icmp(Icmp { l2_length, network }),
        PROTOCOL_ICMPV6 if network.destination.v6 => Parsed::Icmp(Icmp { l2_length, network }),
        // IPv6: the transport header, if any, is behind options that went with another fragment.
        protocol
            if network.fragment == Some(false)
                && network.destination.v6
                && is_extension(protocol) =>
        {
            refuse(Reason::Fragment, network.destination, None)
        }
        _ => Parsed::Other(Reason::NotOurs),
    }
}

const fn refuse(reason: Reason, destination: Address, protocol: Option<u8>) -> Parsed {
    Parsed::Refused(Refusal {
        reason,
        destination,
        protocol,
        port: None,
    })
}

#[inline(always)]
fn ipv4<F: Frame>(frame: &F, offset: usize) -> Result<Network, Parsed> {
    let header = frame
        .view::<{ Ipv4Hdr::LEN }>(offset)
        .ok_or(Parsed::Other(Reason::ShortFrame))?;
    let source = Address::v4(header.get::<u32, { offset_of!(Ipv4Hdr, src_addr) }>());
    let destination = Address::v4(header.get::<u32, { offset_of!(Ipv4Hdr, dst_addr) }>());
    let protocol = header.get::<u8, { offset_of!(Ipv4Hdr, proto) }>();
    let version_and_length = header.get::<u8, { offset_of!(Ipv4Hdr, vihl) }>();
    let header_length = usize::from(version_and_length & 0x0f) * 4;
    let length = u32::from(header.be16::<{ offset_of!(Ipv4Hdr, tot_len) }>());
    if version_and_length >> 4 != 4
        || header_length < Ipv4Hdr::LEN
        || (length as usize) < header_length
    {
        return Err(refuse(Reason::BadHeader, destination, Some(protocol)));
    }
    let end = offset + length as usize;
    if end > frame.length() {
        return Err(refuse(Reason::Truncated, destination, Some(protocol)));
    }
    // RFC 791: three flag bits (reserved, DF, MF), then the offset in units of eight bytes.
    let fragment = header.be16::<{ offset_of!(Ipv4Hdr, frags) }>() & 0x3fff;
    let first = fragment & 0x1fff == 0;
    Ok(Network {
        source,
        destination,
        protocol,
        l4: offset + header_length,
        end,
        length,
        tos: header.get::<u8, { offset_of!(Ipv4Hdr, tos) }>(),
        fragment: if fragment == 0 { None } else { Some(first) },
    })
}

#[inline(always)]
fn ipv6<F: Frame>(frame: &F, offset: usize) -> Result<Network, Parsed> {
    let header = frame
        .view::<{ Ipv6Hdr::LEN }>(offset)
        .ok_or(Parsed::Other(Reason::ShortFrame))?;
    let source = Address::v6([
        header.get::<u64, { offset_of!(Ipv6Hdr, src_addr) }>(),
        header.get::<u64, { offset_of!(Ipv6Hdr, src_addr) + 8 }>(),
    ]);
    let destination = Address::v6([
        header.get::<u64, { offset_of!(Ipv6Hdr, dst_addr) }>(),
        header.get::<u64, { offset_of!(Ipv6Hdr, dst_addr) + 8 }>(),
    ]);
    let length =
        Ipv6Hdr::LEN as u32 + u32::from(header.be16::<{ offset_of!(Ipv6Hdr, payload_len) }>());
    // Version (4 bits), traffic class (8), flow label (20).
    let version_and_class = header.be16::<{ offset_of!(Ipv6Hdr, vcf) }>();
    let mut network = Network {
        source,
        destination,
        protocol: header.get::<u8, { offset_of!(Ipv6Hdr, next_hdr) }>(),
        l4: offset + Ipv6Hdr::LEN,
        end: offset + length as usize,
        length,
        tos: (version_and_class >> 4) as u8,
        fragment: None,
    };
    if version_and_class >> 12 != 6 {
        return Err(refuse(Reason::BadHeader, destination, None));
    }
    if network.end > frame.length() {
        return Err(refuse(Reason::Truncated, destination, None));
    }
    match extensions(frame, &mut network) {
        Ok(()) => Ok(network),
        Err(reason) => Err(refuse(reason, destination, None)),
    }
}

/// Follows the extension headers from `network.l4` on, so that protocol and offset are those of what is behind them.
#[inline(always)]
pub fn extensions<F: Frame>(frame: &F, network: &mut Network) -> Result<(), Reason> {
    // RFC 8200 section 4: each header names the next one; length in units of eight bytes, not counting the first eight.
    for _ in 0..MAX_EXTENSION_HEADERS {
        // Behind a later fragment's header stands the middle of somebody's payload.
        if !is_extension(network.protocol) || network.fragment == Some(false) {
            return Ok(());
        }
        let header = frame.view::<8>(network.l4).ok_or(Reason::Truncated)?;
        let bytes = if network.protocol == EXT_FRAGMENT {
            // RFC 8200 section 4.5: 13 bits offset, two reserved, M. Offset 0 without M is an "atomic" fragment: whole.
            let field = header.be16::<2>() & 0xfff9;
            if field != 0 {
                network.fragment = Some(field & 0xfff8 == 0);
            }
            8
        } else {
            (usize::from(header.get::<u8, 1>()) + 1) * 8
        };
        network.protocol = header.get::<u8, 0>();
        network.l4 += bytes;
        if network.l4 > network.end {
            return Err(Reason::BadHeader);
        }
    }
    if is_extension(network.protocol) {
        Err(Reason::ExtensionHeaders)
    } else {
        Ok(())
    }
}

const fn is_extension(protocol: u8) -> bool {
    matches!(
        protocol,
        EXT_HOP_BY_HOP | EXT_ROUTING | EXT_FRAGMENT | EXT_DESTINATION
    )
}

/// TCP (RFC 9293) and UDP (RFC 768): ports, the opener flag, and what makes a header contradict itself.
#[inline(always)]
fn transport<F: Frame>(frame: &F, l2_length: usize, network: &Network) -> Parsed {
    let Network {
        source,
        destination,
        protocol,
        l4,
        end,
        length,
        tos,
        fragment,
    } = *network;
    let mut refusal = Refusal {
        reason: Reason::Truncated,
        destination,
        protocol: Some(protocol),
        port: None,
    };
    if fragment == Some(false) {
        refusal.reason = Reason::Fragment;
        return Parsed::Refused(refusal);
    }
    if l4 + 4 > end {
        return Parsed::Refused(refusal);
    }
    let Some(ports) = frame.view::<4>(l4) else {
        return Parsed::Refused(refusal);
    };
    let ports = ports.get::<u32, 0>();
    refusal.port = Some(destination_port(ports));
    if fragment.is_some() {
        refusal.reason = Reason::Fragment;
        return Parsed::Refused(refusal);
    }
    let consistent;
    let mut kind = Kind::Other;
    if protocol == PROTOCOL_TCP {
        let Some(header) = frame.view::<{ TcpHdr::LEN }>(l4) else {
            return Parsed::Refused(refusal);
        };
        let tcp_length = usize::from(header.get::<u8, 12>() >> 4) * 4;
        if l4 + TcpHdr::LEN > end {
            return Parsed::Refused(refusal);
        }
        consistent = tcp_length >= TcpHdr::LEN && l4 + tcp_length <= end;
        let flags = header.get::<u8, 13>();
        kind = if flags & (FIN | RST) != 0 {
            Kind::End
        } else if flags & (SYN | ACK) == SYN {
            Kind::Open
        } else {
            Kind::Other
        };
    } else {
        let Some(header) = frame.view::<{ UdpHdr::LEN }>(l4) else {
            return Parsed::Refused(refusal);
        };
        let udp_length = usize::from(header.be16::<{ offset_of!(UdpHdr, len) }>());
        if l4 + UdpHdr::LEN > end {
            return Parsed::Refused(refusal);
        }
        consistent = udp_length >= UdpHdr::LEN && l4 + udp_length <= end;
    }
    if !consistent {
        refusal.reason = Reason::BadHeader;
        return Parsed::Refused(refusal);
    }
    Parsed::Packet(Packet {
        l2_length,
        flow: FlowKey {
            source,
            destination,
            ports,
            protocol,
        },
        length,
        tos,
        kind,
    })
}

const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const ACK: u8 = 0x10;

/// Destination port of a flow, as on the wire.
#[inline(always)]
pub const fn destination_port(ports: u32) -> u16 {
    #[cfg(target_endian = "little")]
    return (ports >> 16) as u16;
    #[cfg(target_endian = "big")]
    return ports as u16;
}
