//! IP addresses as the data path compares and hashes them: two 64-bit words.

/// Family and address. IPv4 stands as `::ffff:a.b.c.d`; the family is kept apart, so an IPv6 packet can never match an IPv4 service.
///
/// Words hold the address's bytes in network order, read as the machine reads them (no byte swap), because the data path only
/// compares and hashes them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct Address {
    pub words: [u64; 2],
    pub v6: bool,
}

impl Address {
    /// From the four bytes of an IPv4 header's address field, as a `u32` read without byte swap.
    #[inline(always)]
    pub const fn v4(raw: u32) -> Self {
        Self {
            words: [0, (0xffff_u32.to_be() as u64) | ((raw as u64) << 32)],
            v6: false,
        }
    }

    /// From the sixteen bytes of an IPv6 header's address field, as two words read without byte swap.
    #[inline(always)]
    pub const fn v6(words: [u64; 2]) -> Self {
        Self { words, v6: true }
    }
}

impl From<core::net::IpAddr> for Address {
    fn from(address: core::net::IpAddr) -> Self {
        match address {
            core::net::IpAddr::V4(ip) => Self::v4(u32::from_ne_bytes(ip.octets())),
            core::net::IpAddr::V6(ip) => {
                let wide = u128::from_ne_bytes(ip.octets());
                // On a little-endian machine the low half of the wide number is the first eight bytes.
                #[cfg(target_endian = "little")]
                let words = [wide as u64, (wide >> 64) as u64];
                #[cfg(target_endian = "big")]
                let words = [(wide >> 64) as u64, wide as u64];
                Self::v6(words)
            }
        }
    }
}

impl From<Address> for core::net::IpAddr {
    fn from(address: Address) -> Self {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&address.words[0].to_ne_bytes());
        bytes[8..].copy_from_slice(&address.words[1].to_ne_bytes());
        if address.v6 {
            Self::from(bytes)
        } else {
            let [.., a, b, c, d] = bytes;
            Self::from([a, b, c, d])
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::net::IpAddr;

    #[test]
    fn there_and_back() {
        for text in ["192.0.2.1", "::ffff:192.0.2.1", "2001:db8::1", "0.0.0.0"] {
            let ip: IpAddr = text.parse().unwrap();
            assert_eq!(IpAddr::from(Address::from(ip)), ip);
        }
    }

    #[test]
    fn v4_stands_as_mapped_v6_but_of_another_family() {
        let v4 = Address::from("192.0.2.1".parse::<IpAddr>().unwrap());
        let mapped = Address::from("::ffff:192.0.2.1".parse::<IpAddr>().unwrap());
        assert_eq!(v4.words, mapped.words);
        assert_ne!(v4, mapped);
    }
}
