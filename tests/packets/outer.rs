//! The outer headers that each backend's packets must carry, made by etherparse, not by lb-common.

use etherparse::{
    EtherType, Ethernet2Header, IpNumber, Ipv4Header, Ipv6FlowLabel, Ipv6Header, UdpHeader,
};

use crate::frame::ETHERNET;
use crate::world::{Backend, SOURCE_MAC, SOURCE4, SOURCE6};

/// What goes in front of the client's packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    V4,
    V6,
    /// UDP and GUE behind the outer IPv4 header.
    Gue4,
    Gue6,
    L2,
    /// No next hop.
    Nowhere,
}

/// What the data path takes from the flow's hash, read from where it must stand.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Chosen {
    /// Outer IPv6.
    pub flow_label: u32,
    /// GUE.
    pub source_port: u16,
}

impl Chosen {
    /// Of a frame that was sent, as far as its header goes. A port that is no dynamic one is not taken over: the comparison with
    /// what must be there then fails.
    pub fn of(mode: Mode, frame: &[u8]) -> Self {
        let be16 = |at: usize| {
            frame
                .get(at..at + 2)
                .map_or(0, |bytes| u16::from_be_bytes([bytes[0], bytes[1]]))
        };
        let flow_label = u32::from(be16(15) & 0x0fff) << 8 | u32::from(be16(17) >> 8);
        let port = |at| be16(at).max(49_152);
        match mode {
            Mode::V6 => Self {
                flow_label,
                source_port: 0,
            },
            Mode::Gue4 => Self {
                flow_label: 0,
                source_port: port(ETHERNET + 20),
            },
            Mode::Gue6 => Self {
                flow_label,
                source_port: port(ETHERNET + 40),
            },
            Mode::V4 | Mode::L2 | Mode::Nowhere => Self::default(),
        }
    }
}

impl Mode {
    /// Where the outer IPv4 header stands in a frame.
    pub const fn outer_ipv4(self) -> Option<std::ops::Range<usize>> {
        match self {
            Self::V4 | Self::Gue4 => Some(ETHERNET..ETHERNET + 20),
            _ => None,
        }
    }
}

impl Backend {
    /// Bytes its outer headers take, Ethernet excluded.
    pub const fn overhead(&self) -> usize {
        match self.mode {
            Mode::V4 => 20,
            Mode::V6 => 40,
            Mode::Gue4 => 32,
            Mode::Gue6 => 52,
            Mode::L2 | Mode::Nowhere => 0,
        }
    }

    /// What must stand in front of the client's IP packet.
    pub fn outer(&self, inner_v6: bool, inner_length: usize, tos: u8, chosen: Chosen) -> Vec<u8> {
        let inner = if inner_v6 {
            IpNumber::IPV6
        } else {
            IpNumber::IPV4
        };
        let (protocol, behind) = match self.mode {
            Mode::Gue4 | Mode::Gue6 => {
                let udp = UdpHeader {
                    source_port: chosen.source_port,
                    destination_port: 6_080,
                    length: 12 + inner_length as u16,
                    checksum: 0,
                };
                // GUE, variant 0: no control, no extensions, the protocol, no flags.
                let gue = [0, inner.0, 0, 0];
                (IpNumber::UDP, [&udp.to_bytes()[..], &gue].concat())
            }
            Mode::V4 | Mode::V6 | Mode::L2 | Mode::Nowhere => (inner, Vec::new()),
        };
        let payload = (behind.len() + inner_length) as u16;
        let v6 = match self.mode {
            Mode::V4 | Mode::Gue4 => false,
            Mode::V6 | Mode::Gue6 => true,
            Mode::L2 | Mode::Nowhere => inner_v6,
        };
        let ethernet = Ethernet2Header {
            source: SOURCE_MAC,
            destination: self.mac(),
            ether_type: if v6 { EtherType::IPV6 } else { EtherType::IPV4 },
        };
        let mut bytes = ethernet.to_bytes().to_vec();
        match self.mode {
            Mode::V4 | Mode::Gue4 => {
                let mut header =
                    Ipv4Header::new(payload, 64, protocol, SOURCE4.octets(), self.v4().octets())
                        .expect("fits");
                header.dscp = (tos >> 2).try_into().expect("six bits");
                header.ecn = (tos & 3).try_into().expect("two bits");
                header.identification = 0;
                header.dont_fragment = true;
                header.header_checksum = header.calc_header_checksum();
                bytes.extend(header.to_bytes());
            }
            Mode::V6 | Mode::Gue6 => {
                let header = Ipv6Header {
                    traffic_class: tos,
                    flow_label: Ipv6FlowLabel::try_new(chosen.flow_label).expect("twenty bits"),
                    payload_length: payload,
                    next_header: protocol,
                    hop_limit: 64,
                    source: SOURCE6.octets(),
                    destination: self.v6().octets(),
                };
                bytes.extend(header.to_bytes());
            }
            Mode::L2 | Mode::Nowhere => {}
        }
        bytes.extend(behind);
        bytes
    }
}
