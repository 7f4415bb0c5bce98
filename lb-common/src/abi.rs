//! The maps' layout, as kernel and user space both see it. Sizes are asserted at compile time.
//!
//! Every map that packets read while the daemon writes is an mmapable array whose values change by single 8-byte stores, so that no
//! packet can see a half-written entry:
//! - a *slot* is one word;
//! - a *backend* is a head word that names one of two routes; a route is rewritten only while the head names the other one, and
//!   only after a grace period, see [`Backend`];
//! - the *service table* exists twice; one word (map `control`) says which half, and with which seed, is in force.

use crate::hash::HashKeys;

/// Version of all that is said here, of the slot words and of the flow entries: part of the path that maps are pinned under. Maps
/// of another layout are never carried on with. To be raised with every change that an older program would read otherwise.
pub const LAYOUT: u32 = 2;

/// Names of maps, programs and globals in the objects.
pub mod names {
    pub const SERVICES: &str = "SERVICES";
    pub const SLOTS: &str = "SLOTS";
    pub const FLOWS: &str = "FLOWS";
    pub const LOSSES: &str = "LOSSES";
    pub const BACKENDS: &str = "BACKENDS";
    pub const CONTROL: &str = "CONTROL";
    pub const BACKEND_COUNTERS: &str = "BACKEND_COUNTERS";
    pub const REASON_COUNTERS: &str = "REASON_COUNTERS";
    pub const EVENT_COUNTERS: &str = "EVENT_COUNTERS";
    pub const EGRESS: &str = "EGRESS";
    pub const IDENTITIES: &str = "IDENTITIES";
    pub const NODE: &str = "NODE";
    pub const BALANCER: &str = "sluice_balancer";

    pub const DECAP: &str = "sluice_decap";
    pub const DECAP_ALLOWED: &str = "DECAP_ALLOWED";
    pub const DECAP_SOURCES: &str = "DECAP_SOURCES";
    pub const DECAP_COUNTERS: &str = "DECAP_COUNTERS";
}

/// Settings that never change while the program is loaded (read-only data of the object).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Node {
    /// From the node's `hash_seed`.
    pub hash_keys: HashKeys,
    /// Buckets of one half of the service table, minus one (a power of two minus one).
    pub service_mask: u32,
    /// Backends a CPU's stretch of the backend counters holds.
    pub backend_capacity: u32,
    /// Buckets of the flow table, minus one (a power of two minus one).
    pub flow_mask: u32,
    pub _pad: u32,
}

impl Node {
    /// As the loader writes it into the object.
    pub fn words(&self) -> [u32; 14] {
        let mut words = [0; 14];
        words[..10].copy_from_slice(&self.hash_keys);
        words[10] = self.service_mask;
        words[11] = self.backend_capacity;
        words[12] = self.flow_mask;
        words
    }
}

/// Key bits and flags of [`ServiceEntry::id`], low 32 bits: port (as on the wire) | protocol << 16 | flags << 24.
pub mod service_flags {
    /// The entry is in use.
    pub const VALID: u32 = 1 << 24;
    /// The address is IPv6.
    pub const V6: u32 = 1 << 25;
    /// The hash is taken over the client's address alone.
    pub const CLIENT_AFFINITY: u32 = 1 << 26;
    /// All bits that a look-up compares.
    pub const KEY: u32 = 0xffff | (0xff << 16) | VALID | V6;
}

/// One service, or the note that an address is a VIP (port 0, protocol 0).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct ServiceEntry {
    /// The VIP, [`crate::address::Address::words`].
    pub address: [u64; 2],
    /// Low half: see [`service_flags`]. High half: the service's number.
    pub id: u64,
    /// [`crate::track::TableWord`]; without slots: no backend.
    /// In a VIP's note: [`crate::service::VipNote`].
    pub table: u64,
}

/// A bucket of the service table: one cache line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, align(64))]
pub struct ServiceBucket {
    pub ways: [ServiceEntry; 2],
}

impl ServiceBucket {
    /// As user space stored it.
    pub const fn from_words(words: [u64; 8]) -> Self {
        let [a, b, c, d, e, f, g, h] = words;
        Self {
            ways: [
                ServiceEntry {
                    address: [a, b],
                    id: c,
                    table: d,
                },
                ServiceEntry {
                    address: [e, f],
                    id: g,
                    table: h,
                },
            ],
        }
    }

    /// As user space stores it.
    pub fn words(&self) -> [u64; 8] {
        let [a, b] = &self.ways;
        [
            a.address[0],
            a.address[1],
            a.id,
            a.table,
            b.address[0],
            b.address[1],
            b.id,
            b.table,
        ]
    }
}

/// Words of the map `CONTROL`.
pub mod control {
    /// Which half of the service table is in force (bit 63) and its seed (low 32 bits).
    pub const SERVICE_TABLE: u32 = 0;
    /// What is left of the hash keys that slots and flow entries were made with ([`crate::hash::fingerprint`]); 0: not set.
    pub const HASH: u32 = 1;
    pub const WORDS: u32 = 8;
}

/// How a packet for a backend leaves: what to put in front of it, and where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Route {
    /// Egress interface.
    pub ifindex: u32,
    /// Largest layer-3 packet the egress interface takes, bytes.
    pub mtu: u16,
    /// [`Encap`] as a number.
    pub encap: u16,
    /// Outer IPv4: one's complement sum of the header with length, TOS and checksum zero. Else 0.
    pub partial_checksum: u32,
    pub _pad: u32,
    /// Ethernet + outer IP [+ UDP + GUE]; the data path patches lengths, TOS, flow label, checksum and UDP source port.
    pub header: [u8; 72],
}

impl Route {
    pub const NONE: Self = Self {
        ifindex: 0,
        mtu: 0,
        encap: Encap::None as u16,
        partial_checksum: 0,
        _pad: 0,
        header: [0; 72],
    };
}

impl Route {
    /// As user space stores it.
    pub fn words(&self) -> [u64; ROUTE_WORDS] {
        // SAFETY: a `repr(C)` struct of integers without padding, exactly as large (asserted below).
        unsafe { core::mem::transmute::<Self, [u64; ROUTE_WORDS]>(*self) }
    }

    /// As user space stored it.
    pub fn from_words(words: [u64; ROUTE_WORDS]) -> Self {
        // SAFETY: as in `words`; every bit pattern is a valid integer.
        unsafe { core::mem::transmute::<[u64; ROUTE_WORDS], Self>(words) }
    }
}

/// 64-bit words of a [`Route`].
pub const ROUTE_WORDS: usize = size_of::<Route>() / 8;

impl Default for Route {
    fn default() -> Self {
        Self::NONE
    }
}

/// What goes in front of the client's IP packet.
///
/// Numbers may be added without a new [`LAYOUT`]: a program that does not know one cannot misread its route, it drops
/// (`no-route`), and a daemon of its age refuses the configuration that asks for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Encap {
    /// Nothing can be sent: drop, reason `no-route`.
    None = 0,
    /// A new Ethernet header only.
    L2 = 1,
    /// Ethernet and an outer IPv4 header.
    Ipv4 = 2,
    /// Ethernet and an outer IPv6 header.
    Ipv6 = 3,
    /// Ethernet, an outer IPv4 header, UDP and GUE.
    Gue4 = 4,
    /// Ethernet, an outer IPv6 header, UDP and GUE.
    Gue6 = 5,
}

/// One backend of one service.
///
/// To change a route: wait until the last change is a grace period ago, write the route that the head does not name, then store
/// the head. A packet loads the head once and uses only the route it names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, align(64))]
pub struct Backend {
    /// [`crate::track::Head`]: which route is in force, status, the service's number.
    pub head: u64,
    pub routes: [Route; 2],
    /// [`crate::track::TableWord`] of the service.
    pub table: u64,
}

impl Backend {
    /// Index of the first word of a route in the record.
    pub const fn route_word(route: usize) -> usize {
        1 + route * ROUTE_WORDS
    }

    /// Index of the word [`Self::table`] in the record.
    pub const TABLE_WORD: usize = 1 + 2 * ROUTE_WORDS;
}

/// Who a backend is: not for packets, but for a daemon that finds the maps of another one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Identity {
    /// [`crate::address::Address::words`]
    pub address: [u64; 2],
    /// What its slots are computed from, in the same form.
    pub maglev: [u64; 2],
    /// Bit 0: the address is IPv6; bit 1: the Maglev identity is. High half: weight.
    pub rest: u64,
}

impl Identity {
    /// 64-bit words of an identity.
    pub const WORDS: usize = size_of::<Self>() / 8;

    /// As user space stores it.
    pub const fn words(&self) -> [u64; Self::WORDS] {
        [
            self.address[0],
            self.address[1],
            self.maglev[0],
            self.maglev[1],
            self.rest,
        ]
    }

    /// As user space stored it.
    pub const fn from_words(words: [u64; Self::WORDS]) -> Self {
        Self {
            address: [words[0], words[1]],
            maglev: [words[2], words[3]],
            rest: words[4],
        }
    }
}

/// One bucket of the flow table: a cache line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, align(64))]
pub struct FlowLine {
    pub entries: [u64; crate::flow::WAYS],
}

/// What one CPU counted for one backend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct BackendCounters {
    pub packets: u64,
    /// Bytes of the clients' IP packets, IP header included, outer headers and Ethernet excluded.
    pub bytes: u64,
    /// TCP openers (SYN without ACK).
    pub flows: u64,
    pub _pad: u64,
}

const _: () = {
    assert!(size_of::<Node>() == 56);
    assert!(size_of::<ServiceEntry>() == 32);
    assert!(size_of::<ServiceBucket>() == 64);
    assert!(size_of::<Route>() == 88);
    assert!(size_of::<Backend>() == 192);
    assert!(size_of::<BackendCounters>() == 32);
    assert!(size_of::<Identity>() == 40);
};
