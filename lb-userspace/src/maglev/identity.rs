//! From an address to numbers: the hashes behind permutations and digests. Fixed for ever, see the parent module.

use std::net::IpAddr;

use super::fill::Permutation;

/// Keys of the three hashes: the first 192 bits of π's fraction, as Blowfish uses them; chosen by nobody.
const OFFSET_KEY: u64 = 0x243f_6a88_85a3_08d3;
const SKIP_KEY: u64 = 0x1319_8a2e_0370_7344;
const FINGERPRINT_KEY: u64 = 0xa409_3822_299f_31d0;

/// The 16 bytes of an address, IPv4 as v4-mapped IPv6 (`::ffff:a.b.c.d`), as one big-endian number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Identity(u128);

impl Identity {
    pub(super) fn of(address: IpAddr) -> Self {
        Self(match address {
            IpAddr::V4(ip) => ip.to_ipv6_mapped().to_bits(),
            IpAddr::V6(ip) => ip.to_bits(),
        })
    }

    /// The paper's (offset, skip) for a table of `size` slots; `size` is at least 2.
    pub(super) fn permutation(self, size: u32) -> Permutation {
        let size = u64::from(size);
        let offset = self.hash(OFFSET_KEY) % size;
        let skip = self.hash(SKIP_KEY) % (size - 1) + 1;
        (offset as u32, skip as u32) // both below size
    }

    /// Stands for the identity in a digest.
    pub(super) fn fingerprint(self) -> u64 {
        self.hash(FINGERPRINT_KEY)
    }

    fn hash(self, key: u64) -> u64 {
        let (high, low) = ((self.0 >> 64) as u64, self.0 as u64);
        // The key enters before both words, so that two keys differ by more than a constant xor of the input.
        mix(mix(mix(key) ^ high).wrapping_add(key) ^ low)
    }
}

/// SplitMix64's output function (Stafford's variant 13): a bijection in which every input bit flips every output bit
/// with a probability close to one half.
pub(super) const fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}
