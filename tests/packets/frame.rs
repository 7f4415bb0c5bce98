//! Ethernet frames, built by a chain from one good packet: every case mutates as little as it needs to.
//!
//! Owns: input bytes. Written without lb-common, so that an error there cannot hide here.

use std::net::IpAddr;

pub const ETHERNET: usize = 14;
pub const VLAN: u16 = 0x8100;
pub const QINQ: u16 = 0x88a8;

pub const FIN: u8 = 0x01;
pub const SYN: u8 = 0x02;
pub const RST: u8 = 0x04;
pub const PSH: u8 = 0x08;
pub const ACK: u8 = 0x10;

pub const TCP: u8 = 6;
pub const UDP: u8 = 17;
pub const ICMP: u8 = 1;
pub const ICMPV6: u8 = 58;

pub const CLIENT_V4: &str = "198.51.100.7";
pub const CLIENT_V6: &str = "2001:db8:c::7";

/// An IPv6 extension header.
#[derive(Clone, Copy, Debug)]
pub enum Extension {
    HopByHop,
    Routing,
    Destination,
    /// Longer: this many units of eight bytes behind the first eight.
    LongDestination(u8),
    /// Offset in units of eight bytes, and whether more fragments follow.
    Fragment(u16, bool),
}

impl Extension {
    const fn number(self) -> u8 {
        match self {
            Self::HopByHop => 0,
            Self::Routing => 43,
            Self::Fragment(..) => 44,
            Self::Destination | Self::LongDestination(_) => 60,
        }
    }

    fn bytes(self, next: u8) -> Vec<u8> {
        match self {
            // One PadN option fills the header.
            Self::HopByHop | Self::Destination => vec![next, 0, 1, 4, 0, 0, 0, 0],
            Self::LongDestination(units) => {
                // All Pad1 options.
                let mut bytes = vec![0; 8 + 8 * usize::from(units)];
                bytes[..2].copy_from_slice(&[next, units]);
                bytes
            }
            // Type 4 (segment routing), no segments left.
            Self::Routing => vec![next, 0, 4, 0, 0, 0, 0, 0],
            Self::Fragment(offset, more) => {
                let field = ((offset << 3) | u16::from(more)).to_be_bytes();
                vec![next, 0, field[0], field[1], 0, 0, 0x12, 0x34]
            }
        }
    }
}

/// Where a patch's offset counts from.
#[derive(Clone, Copy, Debug)]
pub enum At {
    Ip,
    Transport,
}

/// A frame in the making.
#[derive(Clone, Debug)]
pub struct Frame {
    tags: Vec<u16>,
    source: IpAddr,
    destination: IpAddr,
    source_port: u16,
    destination_port: u16,
    protocol: u8,
    tos: u8,
    flags: u8,
    /// 32-bit words of IPv4 options.
    options: usize,
    /// 32-bit words of TCP options.
    tcp_options: usize,
    /// IPv4: offset in units of eight bytes, more fragments.
    fragment: Option<(u16, bool)>,
    extensions: Vec<Extension>,
    payload: Vec<u8>,
    /// The payload is an ICMP message, which gets its checksum.
    message: bool,
    patches: Vec<(At, usize, Vec<u8>)>,
    cut: Option<(At, usize)>,
    pad: usize,
}

impl Frame {
    fn new(protocol: u8, destination: &str, port: u16) -> Self {
        let destination: IpAddr = destination.parse().expect("an address");
        let source = if destination.is_ipv4() {
            CLIENT_V4
        } else {
            CLIENT_V6
        };
        Self {
            tags: Vec::new(),
            source: source.parse().expect("an address"),
            destination,
            source_port: 40_000,
            destination_port: port,
            protocol,
            tos: 0,
            flags: ACK,
            options: 0,
            tcp_options: 0,
            fragment: None,
            extensions: Vec::new(),
            payload: b"golden payload".to_vec(),
            message: false,
            patches: Vec::new(),
            cut: None,
            pad: 0,
        }
    }

    /// An ACK with some payload.
    pub fn tcp(destination: &str, port: u16) -> Self {
        Self::new(TCP, destination, port)
    }

    pub fn udp(destination: &str, port: u16) -> Self {
        Self::new(UDP, destination, port)
    }

    /// Another protocol, whose header is all payload.
    pub fn other(protocol: u8, destination: &str) -> Self {
        Self::new(protocol, destination, 0)
    }

    /// An ICMP or, to an IPv6 address, ICMPv6 message: type, code, the word behind the checksum, and what follows it.
    pub fn icmp(destination: &str, kind: u8, code: u8, word: [u8; 4], body: &[u8]) -> Self {
        let protocol = if destination.contains(':') {
            ICMPV6
        } else {
            ICMP
        };
        let mut frame = Self::other(protocol, destination);
        frame.payload = [&[kind, code, 0, 0][..], &word, body].concat();
        frame.message = true;
        frame
    }

    /// The IP packet alone.
    pub fn packet(&self) -> Vec<u8> {
        self.bytes()[self.l2_length()..].to_vec()
    }

    pub fn from(mut self, source: &str, port: u16) -> Self {
        self.source = source.parse().expect("an address");
        self.source_port = port;
        self
    }

    /// Another protocol in front of the same bytes.
    pub const fn protocol(mut self, protocol: u8) -> Self {
        self.protocol = protocol;
        self
    }

    pub fn tag(mut self, ethertype: u16) -> Self {
        self.tags.push(ethertype);
        self
    }

    pub const fn tos(mut self, tos: u8) -> Self {
        self.tos = tos;
        self
    }

    pub const fn flags(mut self, flags: u8) -> Self {
        self.flags = flags;
        self
    }

    pub const fn options(mut self, words: usize) -> Self {
        self.options = words;
        self
    }

    pub const fn tcp_options(mut self, words: usize) -> Self {
        self.tcp_options = words;
        self
    }

    pub const fn fragment(mut self, offset: u16, more: bool) -> Self {
        self.fragment = Some((offset, more));
        self
    }

    pub fn extension(mut self, extension: Extension) -> Self {
        self.extensions.push(extension);
        self
    }

    pub fn payload(mut self, length: usize) -> Self {
        self.payload = (0..length).map(|i| i as u8).collect();
        self
    }

    /// The payload, so that the IP packet has this length.
    pub fn ip_length(self, length: usize) -> Self {
        let without = self.clone().payload(0).packet_length();
        self.payload(length - without)
    }

    /// Overwrites bytes after everything else is done (checksums are not made right again).
    pub fn patch(mut self, at: At, offset: usize, bytes: &[u8]) -> Self {
        self.patches.push((at, offset, bytes.to_vec()));
        self
    }

    /// Cuts the frame off this many bytes behind `at`.
    pub const fn cut(mut self, at: At, offset: usize) -> Self {
        self.cut = Some((at, offset));
        self
    }

    /// Bytes behind the IP packet, as Ethernet pads short frames.
    pub const fn pad(mut self, bytes: usize) -> Self {
        self.pad = bytes;
        self
    }

    pub const fn v6(&self) -> bool {
        self.destination.is_ipv6()
    }

    pub const fn type_of_service(&self) -> u8 {
        self.tos
    }

    /// SYN without ACK.
    pub const fn is_opener(&self) -> bool {
        self.protocol == TCP && self.flags & (SYN | ACK) == SYN
    }

    /// Bytes in front of the IP header.
    pub const fn l2_length(&self) -> usize {
        ETHERNET + 4 * self.tags.len()
    }

    fn extensions_length(&self) -> usize {
        self.extensions.iter().map(|e| e.bytes(0).len()).sum()
    }

    fn transport_offset(&self) -> usize {
        let ip = if self.v6() {
            40 + self.extensions_length()
        } else {
            20 + 4 * self.options
        };
        self.l2_length() + ip
    }

    /// Bytes of the IP packet.
    pub fn packet_length(&self) -> usize {
        self.transport_offset() - self.l2_length() + self.transport().len()
    }

    fn transport(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(self.source_port.to_be_bytes());
        bytes.extend(self.destination_port.to_be_bytes());
        match self.protocol {
            TCP => {
                bytes.extend(0x1020_3040_u32.to_be_bytes());
                bytes.extend(0x5060_7080_u32.to_be_bytes());
                bytes.extend([
                    (5 + self.tcp_options as u8) << 4,
                    self.flags,
                    0xfa,
                    0xf0,
                    0,
                    0,
                    0,
                    0,
                ]);
                bytes.extend(std::iter::repeat_n(1, 4 * self.tcp_options)); // no-operation options
            }
            UDP => {
                bytes.extend((8 + self.payload.len() as u16).to_be_bytes());
                bytes.extend([0, 0]);
            }
            _ => bytes.clear(),
        }
        bytes.extend(&self.payload);
        let field = match self.protocol {
            TCP => 16,
            UDP => 6,
            _ if self.message => 2,
            _ => return bytes,
        };
        // RFC 9293, RFC 768, RFC 8200 8.1: the sum covers addresses, protocol and length as well. Their order is irrelevant.
        let mut covered = Vec::new();
        for address in [self.source, self.destination] {
            match address {
                IpAddr::V4(ip) => covered.extend(ip.octets()),
                IpAddr::V6(ip) => covered.extend(ip.octets()),
            }
        }
        covered.extend([0, self.protocol]);
        covered.extend((bytes.len() as u16).to_be_bytes());
        if self.protocol == ICMP {
            covered.clear();
        }
        covered.extend(&bytes);
        let sum = internet_checksum(&covered);
        bytes[field..field + 2].copy_from_slice(&sum.to_be_bytes());
        bytes
    }

    fn ipv4(&self, bytes: &mut Vec<u8>) {
        let mut header = vec![0x45 + self.options as u8, self.tos];
        header.extend((self.packet_length() as u16).to_be_bytes());
        header.extend([0x12, 0x34]);
        let fragment = match self.fragment {
            Some((offset, more)) => offset | if more { 0x2000 } else { 0 },
            None => 0x4000, // DF
        };
        header.extend(fragment.to_be_bytes());
        header.extend([63, self.protocol, 0, 0]);
        for address in [self.source, self.destination] {
            let IpAddr::V4(ip) = address else {
                panic!("{address} is not IPv4")
            };
            header.extend(ip.octets());
        }
        header.extend(std::iter::repeat_n(1, 4 * self.options)); // no-operation options
        let sum = internet_checksum(&header);
        header[10..12].copy_from_slice(&sum.to_be_bytes());
        bytes.extend(header);
    }

    fn ipv6(&self, bytes: &mut Vec<u8>) {
        // Flow label 0xabcde: ours must not be taken from it.
        bytes.extend(((6 << 28) | (u32::from(self.tos) << 20) | 0xabcde).to_be_bytes());
        bytes.extend(((self.packet_length() - 40) as u16).to_be_bytes());
        bytes.extend([
            self.extensions
                .first()
                .map_or(self.protocol, |e| e.number()),
            63,
        ]);
        for address in [self.source, self.destination] {
            let IpAddr::V6(ip) = address else {
                panic!("{address} is not IPv6")
            };
            bytes.extend(ip.octets());
        }
        for (i, extension) in self.extensions.iter().enumerate() {
            let next = self
                .extensions
                .get(i + 1)
                .map_or(self.protocol, |e| e.number());
            bytes.extend(extension.bytes(next));
        }
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0x02, 0, 0, 0, 0, 0x01, 0x02, 0, 0, 0, 0, 0x02];
        for (i, tag) in self.tags.iter().enumerate() {
            bytes.extend(tag.to_be_bytes());
            bytes.extend((100 + i as u16).to_be_bytes());
        }
        bytes.extend(if self.v6() {
            [0x86, 0xdd]
        } else {
            [0x08, 0x00]
        });
        if self.v6() {
            self.ipv6(&mut bytes)
        } else {
            self.ipv4(&mut bytes)
        }
        bytes.extend(self.transport());
        for (at, offset, patch) in &self.patches {
            let start = self.offset(*at) + offset;
            bytes[start..start + patch.len()].copy_from_slice(patch);
        }
        bytes.extend(std::iter::repeat_n(0, self.pad));
        if let Some((at, offset)) = self.cut {
            bytes.truncate(self.offset(at) + offset);
        }
        bytes
    }

    fn offset(&self, at: At) -> usize {
        match at {
            At::Ip => self.l2_length(),
            At::Transport => self.transport_offset(),
        }
    }
}

/// RFC 1071, over everything at once.
pub fn internet_checksum(bytes: &[u8]) -> u16 {
    let mut sum: u64 = bytes
        .chunks(2)
        .map(|word| (u64::from(word[0]) << 8) | word.get(1).map_or(0, |low| u64::from(*low)))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}
