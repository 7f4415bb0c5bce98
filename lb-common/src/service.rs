//! The service table: address, port and protocol → service, in one cache line.
//!
//! Two-way set-associative: user space tries seeds until no bucket overflows, so the data path looks at exactly one bucket.

use crate::abi::{Node, ServiceBucket, ServiceEntry, service_flags as flags};
use crate::address::Address;
use crate::track::TableWord;

/// What is looked up. `port` as on the wire (no byte swap), 0 = every port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ServiceTuple {
    pub address: Address,
    pub port: u16,
    pub protocol: u8,
}

impl ServiceTuple {
    /// The note "this address is a VIP".
    pub const fn vip(address: Address) -> Self {
        Self {
            address,
            port: 0,
            protocol: 0,
        }
    }

    /// Low half of [`ServiceEntry::id`] of this tuple, without flags that are not part of the key.
    #[inline(always)]
    pub const fn key(&self) -> u32 {
        let family = if self.address.v6 { flags::V6 } else { 0 };
        self.port as u32 | ((self.protocol as u32) << 16) | flags::VALID | family
    }
}

/// A found service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Service {
    /// Its number; the records of its backends name it.
    pub number: u32,
    pub client_affinity: bool,
    pub first_slot: u32,
    /// Number of slots, at most 65,537; 0: no backend.
    pub slots: u32,
    /// How long a flow may be silent, in units of [`crate::flow::Age`].
    pub flow_idle: u16,
}

/// What a VIP's note says: the protocols that have services at this address, and what happens to its echo requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VipNote(pub u64);

impl VipNote {
    /// `protocols`: see [`vip_bit`].
    pub const fn new(protocols: u64, echo: Echo) -> Self {
        Self(protocols | ((echo as u64) << 8))
    }

    #[inline(always)]
    pub const fn serves(self, protocol: u8) -> bool {
        self.0 & vip_bit(protocol) != 0
    }

    #[inline(always)]
    pub const fn echo(self) -> Echo {
        Echo::from_bits(self.0 >> 8)
    }
}

/// What happens to ICMP echo requests to a VIP.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum Echo {
    /// Handed to the host's stack.
    Pass = 0,
    /// Answered.
    #[default]
    Reply = 1,
    Drop = 2,
}

impl Echo {
    pub const ALL: [Self; 3] = [Self::Reply, Self::Pass, Self::Drop];

    /// From the low two bits.
    #[inline(always)]
    pub const fn from_bits(bits: u64) -> Self {
        match bits & 3 {
            1 => Self::Reply,
            2 => Self::Drop,
            // Also in notes of daemons that knew nothing of echo.
            _ => Self::Pass,
        }
    }

    /// As in `sluice.toml`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Reply => "reply",
            Self::Drop => "drop",
        }
    }
}

/// Bit of a protocol in a VIP's note.
#[inline(always)]
pub const fn vip_bit(protocol: u8) -> u64 {
    match protocol {
        6 => 1,
        17 => 2,
        _ => 0,
    }
}

/// The word of map `CONTROL` that says which half of the table is in force.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Directory(pub u64);

impl Directory {
    pub const fn new(half: u32, seed: u32) -> Self {
        Self(((half as u64 & 1) << 63) | seed as u64)
    }

    pub const fn half(self) -> u32 {
        (self.0 >> 63) as u32
    }

    pub const fn seed(self) -> u32 {
        self.0 as u32
    }

    /// Index of the bucket of `tuple` in the map `SERVICES`.
    #[inline(always)]
    pub const fn bucket(self, node: &Node, tuple: &ServiceTuple) -> u32 {
        // The seed goes in first and a multiplication parts one word from the next: were they combined before, tuples whose
        // differences cancel out would share a bucket for every seed, and three of them would make `place` fail.
        let [first, second] = tuple.address.words;
        let mut h = (first ^ self.seed() as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        h = (h ^ (h >> 32) ^ second.rotate_left(32)).wrapping_mul(0xd6e8_feb8_6659_fd93);
        h = (h ^ (h >> 32) ^ tuple.key() as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let index = (h >> 32) as u32 & node.service_mask;
        if self.half() == 0 {
            index
        } else {
            index + node.service_mask + 1
        }
    }
}

/// The entry of `tuple` in its bucket.
#[inline(always)]
pub fn find<'a>(bucket: &'a ServiceBucket, tuple: &ServiceTuple) -> Option<&'a ServiceEntry> {
    let [first, second] = &bucket.ways;
    if matches(first, tuple) {
        Some(first)
    } else if matches(second, tuple) {
        Some(second)
    } else {
        None
    }
}

#[inline(always)]
const fn matches(entry: &ServiceEntry, tuple: &ServiceTuple) -> bool {
    let [a, b] = tuple.address.words;
    let same_key = (entry.id as u32 & flags::KEY) == tuple.key();
    same_key && entry.address[0] == a && entry.address[1] == b
}

impl From<&ServiceEntry> for Service {
    #[inline(always)]
    fn from(entry: &ServiceEntry) -> Self {
        Self {
            number: (entry.id >> 32) as u32,
            client_affinity: entry.id as u32 & flags::CLIENT_AFFINITY != 0,
            first_slot: TableWord(entry.table).first_slot(),
            slots: TableWord(entry.table).slots(),
            flow_idle: TableWord(entry.table).flow_idle(),
        }
    }
}

impl ServiceEntry {
    /// The entry of a service.
    pub fn service(tuple: &ServiceTuple, service: Service) -> Self {
        let affinity = if service.client_affinity {
            flags::CLIENT_AFFINITY
        } else {
            0
        };
        Self {
            address: tuple.address.words,
            id: u64::from(tuple.key() | affinity) | (u64::from(service.number) << 32),
            table: TableWord::new(service.first_slot, service.slots, service.flow_idle).0,
        }
    }

    /// The note that `address` is a VIP.
    pub fn vip(address: Address, note: VipNote) -> Self {
        Self {
            address: address.words,
            id: u64::from(ServiceTuple::vip(address).key()),
            table: note.0,
        }
    }

    /// The tuple this entry answers; `None` for an empty one.
    pub fn tuple(&self) -> Option<ServiceTuple> {
        let key = self.id as u32;
        (key & flags::VALID != 0).then_some(ServiceTuple {
            address: Address {
                words: self.address,
                v6: key & flags::V6 != 0,
            },
            port: key as u16,
            protocol: (key >> 16) as u8,
        })
    }
}

/// Fills one half of the table: finds a seed with which no bucket overflows.
///
/// `buckets` must be all-zero and a power of two long (`node.service_mask + 1`). Returns the directory word to store.
/// `None` when no seed of 4,096 works: the table is too small for its entries.
#[cfg(not(target_arch = "bpf"))]
pub fn place(
    entries: &[ServiceEntry],
    half: u32,
    node: &Node,
    buckets: &mut [ServiceBucket],
) -> Option<Directory> {
    let offset = if half == 0 {
        0
    } else {
        node.service_mask as usize + 1
    };
    'seeds: for seed in 0..4_096 {
        let directory = Directory::new(half, seed);
        for entry in entries {
            let index = directory.bucket(node, &entry.tuple()?) as usize - offset;
            let free = buckets[index].ways.iter_mut().find(|way| way.id == 0);
            match free {
                Some(way) => *way = *entry,
                None => {
                    buckets.fill(ServiceBucket::default());
                    continue 'seeds;
                }
            }
        }
        return Some(directory);
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::net::IpAddr;
    use std::vec;
    use std::vec::Vec;

    #[test]
    fn a_full_table_is_placed_and_found_in_either_half() {
        let node = Node {
            service_mask: 16_383,
            ..Node::default()
        };
        for half in [0, 1] {
            let tuples: Vec<_> = (0..1_024_u32)
                .map(|i| ServiceTuple {
                    address: Address::from(IpAddr::from([203, 0, (i >> 8) as u8, i as u8])),
                    port: (80 + i as u16 % 3).to_be(),
                    protocol: 6,
                })
                .collect();
            let entries: Vec<_> = tuples
                .iter()
                .enumerate()
                .map(|(i, t)| {
                    let service = Service {
                        number: i as u32,
                        client_affinity: i % 2 == 0,
                        first_slot: 7 * i as u32,
                        slots: 1_021,
                        flow_idle: 1_734,
                    };
                    ServiceEntry::service(t, service)
                })
                .collect();
            let mut buckets = vec![ServiceBucket::default(); 16_384];
            let directory = place(&entries, half, &node, &mut buckets).expect("a seed");
            assert_eq!(directory.half(), half);
            let base = if half == 0 { 0 } else { 16_384 };
            for (i, tuple) in tuples.iter().enumerate() {
                let bucket = &buckets[directory.bucket(&node, tuple) as usize - base];
                let service = Service::from(find(bucket, tuple).expect("found"));
                assert_eq!(
                    service,
                    Service {
                        number: i as u32,
                        client_affinity: i % 2 == 0,
                        first_slot: 7 * i as u32,
                        slots: 1_021,
                        flow_idle: 1_734,
                    }
                );
                let other = ServiceTuple { port: 1, ..*tuple };
                let bucket = &buckets[directory.bucket(&node, &other) as usize - base];
                assert!(find(bucket, &other).is_none());
            }
        }
    }

    /// Address, port and protocol may not be able to make up for each other: three such tuples would share a bucket for every seed.
    #[test]
    fn regular_services_find_a_seed() {
        let node = Node {
            service_mask: 32_767,
            ..Node::default()
        };
        for (third, step) in [(49, 64), (113, 1), (0, 128)] {
            let mut entries = Vec::new();
            for (network, host) in
                (0..2).flat_map(|n| (0..=255).map(move |host| (third + n * step, host)))
            {
                let address = Address::from(IpAddr::from([203, 0, network as u8, host as u8]));
                entries.push(ServiceEntry::vip(address, VipNote(3)));
                for protocol in [6, 17] {
                    let tuple = ServiceTuple {
                        address,
                        port: 80_u16.to_be(),
                        protocol,
                    };
                    let service = Service {
                        number: 1,
                        client_affinity: false,
                        first_slot: 0,
                        slots: 7,
                        flow_idle: 70,
                    };
                    entries.push(ServiceEntry::service(&tuple, service));
                }
            }
            let mut buckets = vec![ServiceBucket::default(); 32_768];
            let directory = place(&entries, 0, &node, &mut buckets).expect("a seed");
            // With 1,536 entries in 32,768 buckets, more than half of all seeds should do.
            assert!(
                directory.seed() < 40,
                "seed {} was the first",
                directory.seed()
            );
        }
    }

    #[test]
    fn an_overfull_table_is_refused() {
        let node = Node {
            service_mask: 0,
            ..Node::default()
        };
        let entries: Vec<_> = (0..3_u8)
            .map(|i| ServiceEntry::vip(Address::from(IpAddr::from([192, 0, 2, i])), VipNote(1)))
            .collect();
        let mut buckets = [ServiceBucket::default(); 1];
        assert!(place(&entries, 0, &node, &mut buckets).is_none());
    }
}
