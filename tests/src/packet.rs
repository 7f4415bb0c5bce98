//! Reading captured frames and building raw ones.
//!
//! Owns a second, independent reading of Ethernet, IPv4, IPv6, TCP and UDP: the tests must not judge the data path
//! with the data path's own parser.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

pub const ETHERTYPE_IPV4: u16 = 0x0800;
pub const ETHERTYPE_ARP: u16 = 0x0806;
pub const ETHERTYPE_VLAN: u16 = 0x8100;
pub const ETHERTYPE_IPV6: u16 = 0x86dd;

pub const IPPROTO_IPV4: u8 = 4;
pub const IPPROTO_TCP: u8 = 6;
pub const IPPROTO_UDP: u8 = 17;
pub const IPPROTO_IPV6: u8 = 41;

/// The port that GUE has, and the length of its header without extensions.
pub const GUE_PORT: u16 = 6_080;
pub const GUE_HEADER: usize = 4;

/// TCP flag bits.
pub const SYN: u8 = 0x02;
pub const ACK: u8 = 0x10;

/// An Ethernet frame, taken apart. VLAN tags are skipped.
#[derive(Clone, Copy, Debug)]
pub struct Ethernet<'a> {
    pub destination: [u8; 6],
    pub source: [u8; 6],
    pub ethertype: u16,
    pub payload: &'a [u8],
}

impl<'a> Ethernet<'a> {
    pub fn parse(frame: &'a [u8]) -> Option<Self> {
        let mut ethertype = be16(frame, 12)?;
        let mut offset = 14;
        while ethertype == ETHERTYPE_VLAN {
            ethertype = be16(frame, offset + 2)?;
            offset += 4;
        }
        Some(Self {
            destination: frame.get(0..6)?.try_into().ok()?,
            source: frame.get(6..12)?.try_into().ok()?,
            ethertype,
            payload: frame.get(offset..)?,
        })
    }

    /// The IP packet inside, if there is one.
    pub fn ip(&self) -> Option<Ip<'a>> {
        matches!(self.ethertype, ETHERTYPE_IPV4 | ETHERTYPE_IPV6)
            .then(|| Ip::parse(self.payload))?
    }
}

/// An IPv4 or IPv6 packet, cut to the length its header states (Ethernet may have padded it).
#[derive(Clone, Copy, Debug)]
pub struct Ip<'a> {
    pub source: IpAddr,
    pub destination: IpAddr,
    pub protocol: u8,
    /// TOS or traffic class.
    pub tos: u8,
    /// TTL or hop limit.
    pub ttl: u8,
    /// The whole packet.
    pub bytes: &'a [u8],
    /// What follows the header (IPv4 with options; IPv6 without walking extension headers).
    pub payload: &'a [u8],
}

impl<'a> Ip<'a> {
    pub fn parse(bytes: &'a [u8]) -> Option<Self> {
        match bytes.first()? >> 4 {
            4 => {
                let header = usize::from(bytes[0] & 0x0f) * 4;
                let total = usize::from(be16(bytes, 2)?);
                let bytes = bytes.get(..total)?;
                Some(Self {
                    source: Ipv4Addr::from(<[u8; 4]>::try_from(bytes.get(12..16)?).ok()?).into(),
                    destination: Ipv4Addr::from(<[u8; 4]>::try_from(bytes.get(16..20)?).ok()?)
                        .into(),
                    protocol: bytes[9],
                    tos: bytes[1],
                    ttl: bytes[8],
                    payload: bytes.get(header..)?,
                    bytes,
                })
            }
            6 => {
                let total = 40 + usize::from(be16(bytes, 4)?);
                let bytes = bytes.get(..total)?;
                Some(Self {
                    source: Ipv6Addr::from(<[u8; 16]>::try_from(bytes.get(8..24)?).ok()?).into(),
                    destination: Ipv6Addr::from(<[u8; 16]>::try_from(bytes.get(24..40)?).ok()?)
                        .into(),
                    protocol: bytes[6],
                    tos: bytes[0] << 4 | bytes[1] >> 4,
                    ttl: bytes[7],
                    payload: &bytes[40..],
                    bytes,
                })
            }
            _ => None,
        }
    }

    /// The packet inside an IP-in-IP packet, or inside one of GUE.
    pub fn inner(&self) -> Option<Ip<'a>> {
        match self.protocol {
            IPPROTO_IPV4 | IPPROTO_IPV6 => Ip::parse(self.payload),
            IPPROTO_UDP if be16(self.payload, 2)? == GUE_PORT => {
                let (header, inner) = self.payload.get(8..)?.split_at_checked(GUE_HEADER)?;
                matches!(header, [0, IPPROTO_IPV4 | IPPROTO_IPV6, 0, 0])
                    .then(|| Ip::parse(inner))?
            }
            _ => None,
        }
    }

    /// Source and destination port of TCP or UDP.
    pub fn ports(&self) -> Option<(u16, u16)> {
        matches!(self.protocol, IPPROTO_TCP | IPPROTO_UDP)
            .then(|| Some((be16(self.payload, 0)?, be16(self.payload, 2)?)))?
    }

    pub fn tcp_flags(&self) -> Option<u8> {
        (self.protocol == IPPROTO_TCP).then(|| self.payload.get(13).copied())?
    }

    pub fn tcp_sequence(&self) -> Option<u32> {
        let bytes = (self.protocol == IPPROTO_TCP).then(|| self.payload.get(4..8))??;
        Some(u32::from_be_bytes(bytes.try_into().ok()?))
    }

    /// A SYN without ACK: what the data path counts as a new flow.
    pub fn opens_a_flow(&self) -> bool {
        self.tcp_flags()
            .is_some_and(|flags| flags & (SYN | ACK) == SYN)
    }
}

/// The Internet checksum (RFC 1071). Over bytes that hold a right checksum it is 0.
pub fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = bytes
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0)))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// A frame around an IP packet.
pub fn ethernet(destination: [u8; 6], source: [u8; 6], ethertype: u16, payload: &[u8]) -> Vec<u8> {
    [&destination[..], &source, &ethertype.to_be_bytes(), payload].concat()
}

/// Puts an 802.1Q tag into a frame.
pub fn with_vlan(frame: &[u8], vlan: u16) -> Vec<u8> {
    [
        &frame[..12],
        &ETHERTYPE_VLAN.to_be_bytes(),
        &vlan.to_be_bytes(),
        &frame[12..],
    ]
    .concat()
}

/// An IPv4 header with `options` (a multiple of 4 bytes) before `payload`.
pub fn ipv4(
    source: Ipv4Addr,
    destination: Ipv4Addr,
    protocol: u8,
    options: &[u8],
    payload: &[u8],
) -> Vec<u8> {
    assert!(
        options.len().is_multiple_of(4) && options.len() <= 40,
        "IPv4 options come in words"
    );
    let header = 20 + options.len();
    let mut packet = vec![0u8; header];
    packet[0] = 0x40 | (header / 4) as u8;
    packet[2..4].copy_from_slice(&((header + payload.len()) as u16).to_be_bytes());
    packet[4..6].copy_from_slice(&0x1234u16.to_be_bytes());
    packet[8] = 64;
    packet[9] = protocol;
    packet[12..16].copy_from_slice(&source.octets());
    packet[16..20].copy_from_slice(&destination.octets());
    packet[20..].copy_from_slice(options);
    let sum = checksum(&packet);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet.extend_from_slice(payload);
    packet
}

/// An IPv6 header before `payload`.
pub fn ipv6(source: Ipv6Addr, destination: Ipv6Addr, next_header: u8, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0u8; 8];
    packet[0] = 0x60;
    packet[4..6].copy_from_slice(&(payload.len() as u16).to_be_bytes());
    packet[6] = next_header;
    packet[7] = 64;
    packet.extend_from_slice(&source.octets());
    packet.extend_from_slice(&destination.octets());
    packet.extend_from_slice(payload);
    packet
}

/// A UDP datagram with its checksum over the pseudo header.
pub fn udp(source: SocketAddr, destination: SocketAddr, payload: &[u8]) -> Vec<u8> {
    let length = (8 + payload.len()) as u16;
    let mut datagram = Vec::with_capacity(usize::from(length));
    datagram.extend_from_slice(&source.port().to_be_bytes());
    datagram.extend_from_slice(&destination.port().to_be_bytes());
    datagram.extend_from_slice(&length.to_be_bytes());
    datagram.extend_from_slice(&[0, 0]);
    datagram.extend_from_slice(payload);
    let mut pseudo = Vec::new();
    for address in [source.ip(), destination.ip()] {
        match address {
            IpAddr::V4(address) => pseudo.extend_from_slice(&address.octets()),
            IpAddr::V6(address) => pseudo.extend_from_slice(&address.octets()),
        }
    }
    // Only the sum of the 16-bit words counts, so one layout serves the pseudo headers of both families.
    pseudo.extend_from_slice(&[0, IPPROTO_UDP]);
    pseudo.extend_from_slice(&length.to_be_bytes());
    pseudo.extend_from_slice(&datagram);
    // RFC 768: a computed zero is sent as all ones.
    let sum = match checksum(&pseudo) {
        0 => 0xffff,
        sum => sum,
    };
    datagram[6..8].copy_from_slice(&sum.to_be_bytes());
    datagram
}

fn be16(bytes: &[u8], offset: usize) -> Option<u16> {
    Some(u16::from_be_bytes(
        bytes.get(offset..offset + 2)?.try_into().ok()?,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_built_frame_is_read_back() {
        let datagram = udp(
            "192.0.2.1:5000".parse().unwrap(),
            "203.0.113.10:53".parse().unwrap(),
            b"question",
        );
        let packet = ipv4(
            [192, 0, 2, 1].into(),
            [203, 0, 113, 10].into(),
            IPPROTO_UDP,
            &[1, 1, 1, 0],
            &datagram,
        );
        let outer = ipv4(
            [10, 0, 0, 2].into(),
            [10, 0, 0, 11].into(),
            IPPROTO_IPV4,
            &[],
            &packet,
        );
        let mut frame = with_vlan(&ethernet([2; 6], [4; 6], ETHERTYPE_IPV4, &outer), 7);
        frame.extend_from_slice(&[0; 9]); // padding is not part of the packet

        let ip = Ethernet::parse(&frame)
            .and_then(|ethernet| ethernet.ip())
            .unwrap();
        assert_eq!(ip.bytes, outer);
        assert_eq!(checksum(&ip.bytes[..20]), 0);
        let inner = ip.inner().unwrap();
        assert_eq!(inner.bytes, packet);
        assert_eq!(inner.ports(), Some((5000, 53)));
        assert_eq!(&inner.payload[8..], b"question");
        assert!(!inner.opens_a_flow());
    }

    #[test]
    fn nothing_is_read_from_cut_frames() {
        let packet = ipv6(
            Ipv6Addr::LOCALHOST,
            Ipv6Addr::LOCALHOST,
            IPPROTO_UDP,
            &[0; 8],
        );
        let frame = ethernet([2; 6], [4; 6], ETHERTYPE_IPV6, &packet);
        for length in 0..frame.len() {
            assert!(
                Ethernet::parse(&frame[..length])
                    .and_then(|ethernet| ethernet.ip())
                    .is_none(),
                "{length} bytes"
            );
        }
    }

    #[test]
    fn checksum_of_rfc_1071() {
        assert_eq!(
            checksum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]),
            !0xddf2
        );
    }
}
