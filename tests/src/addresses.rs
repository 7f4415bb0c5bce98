//! The plan of addresses: who has which MAC, IPv4 and IPv6 address in every laboratory.

use std::net::{IpAddr, SocketAddr};

/// Addresses the backends hold on their loopback.
pub const VIPS: usize = 2;

/// MACs by role, so that tests can state whole frames.
pub mod mac {
    pub const CLIENT: [u8; 6] = [2, 0, 0, 0, 0xc, 1];
    pub const CLIENT_PORT: [u8; 6] = [2, 0, 0, 0, 0xc, 2];
    pub const BRIDGE: [u8; 6] = [2, 0, 0, 0, 0xb, 0];
    /// The balancer's interface towards the backends.
    pub const BALANCER: [u8; 6] = [2, 0, 0, 0, 0xa, 1];
    /// The balancer's interface towards the clients, when it has two.
    pub const BALANCER_FRONT: [u8; 6] = [2, 0, 0, 0, 0xa, 2];
    pub const FRONT_PORT: [u8; 6] = [2, 0, 0, 0, 0xa, 3];

    pub const fn backend(number: usize) -> [u8; 6] {
        [2, 0, 0, 0, 1, number as u8]
    }

    pub fn text(mac: [u8; 6]) -> String {
        mac.map(|byte| format!("{byte:02x}")).join(":")
    }
}

/// Addresses by role.
pub mod address {
    use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

    pub const BALANCER_V4: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);
    pub const BALANCER_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 2);

    pub const fn client_v4(number: usize) -> Ipv4Addr {
        Ipv4Addr::new(198, 51, 100, 10 + number as u8)
    }

    pub const fn client_v6(number: usize) -> Ipv6Addr {
        Ipv6Addr::new(0x2001, 0xdb8, 0xc, 0, 0, 0, 0, 0x10 + number as u16)
    }

    /// Backends are numbered from 1.
    pub const fn backend_v4(number: usize) -> Ipv4Addr {
        Ipv4Addr::new(10, 0, 0, 10 + number as u8)
    }

    pub const fn backend_v6(number: usize) -> Ipv6Addr {
        Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 0x10 + number as u16)
    }

    /// VIPs are numbered from 0.
    pub const fn vip_v4(number: usize) -> Ipv4Addr {
        Ipv4Addr::new(203, 0, 113, 10 + number as u8)
    }

    pub const fn vip_v6(number: usize) -> Ipv6Addr {
        Ipv6Addr::new(0x2001, 0xdb8, 0xffff, 0, 0, 0, 0, 0x10 + number as u16)
    }

    /// Whether an address is one of the laboratory's VIPs.
    pub fn is_vip(address: IpAddr) -> bool {
        match address {
            IpAddr::V4(address) => address.octets()[..3] == [203, 0, 113],
            IpAddr::V6(address) => address.segments()[..4] == [0x2001, 0xdb8, 0xffff, 0],
        }
    }
}

/// Which family a test is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    V4,
    V6,
}

impl Family {
    pub const BOTH: [Self; 2] = [Self::V4, Self::V6];

    pub const fn vip(self) -> IpAddr {
        match self {
            Self::V4 => IpAddr::V4(address::vip_v4(0)),
            Self::V6 => IpAddr::V6(address::vip_v6(0)),
        }
    }

    pub const fn vip_port(self, port: u16) -> SocketAddr {
        SocketAddr::new(self.vip(), port)
    }

    pub const fn backend(self, number: usize) -> IpAddr {
        match self {
            Self::V4 => IpAddr::V4(address::backend_v4(number)),
            Self::V6 => IpAddr::V6(address::backend_v6(number)),
        }
    }

    pub const fn balancer(self) -> IpAddr {
        match self {
            Self::V4 => IpAddr::V4(address::BALANCER_V4),
            Self::V6 => IpAddr::V6(address::BALANCER_V6),
        }
    }

    pub const fn digit(self) -> char {
        match self {
            Self::V4 => '4',
            Self::V6 => '6',
        }
    }
}
