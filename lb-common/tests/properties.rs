//! Properties of the data path, over plain memory: whatever comes in.
//!
//! The golden packets (`tests/packets`) say what exactly must come out of known packets; here are the rules that hold for all.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use lb_common::abi::{Backend, Node, Route, ServiceBucket, ServiceEntry};
use lb_common::address::Address;
use lb_common::decap::{Decapped, decapsulate};
use lb_common::encap::Way;
use lb_common::native::{MemoryFrame, MemoryTables};
use lb_common::process::{Tables as _, Verdict, process};
use lb_common::reason::{Fate, Reason};
use lb_common::service::{Echo, Service, ServiceTuple, VipNote, find, place, vip_bit};
use lb_common::slot::SlotWord;
use lb_common::track::{Head, Status};
use proptest::collection::{self, btree_set};
use proptest::prelude::*;
use proptest::test_runner::TestCaseError;

const TCP: u8 = 6;
const UDP: u8 = 17;
const ETHERNET: usize = 14;
const EGRESS: u32 = 7;

const VIP4: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(203, 0, 113, 10));
const VIP6: IpAddr = IpAddr::V6(std::net::Ipv6Addr::new(0x2001, 0xdb8, 0x10, 0, 0, 0, 0, 1));

/// How the backends of a world are reached.
#[derive(Clone, Copy, Debug)]
enum Outer {
    V4,
    V6,
    Gue4,
    Gue6,
    L2,
}

impl Outer {
    const fn overhead(self) -> usize {
        match self {
            Self::V4 => 20,
            Self::V6 => 40,
            Self::Gue4 => 32,
            Self::Gue6 => 52,
            Self::L2 => 0,
        }
    }
}

fn route(outer: Outer, inner_v6: bool) -> Route {
    let way = Way {
        ifindex: EGRESS,
        mtu: 65_535,
        source_mac: [2; 6],
        destination_mac: [4; 6],
    };
    let address = |text: &str| text.parse::<IpAddr>().expect("an address");
    let v4 = (address("192.0.2.1"), address("10.0.0.1"));
    let v6 = (address("2001:db8::1"), address("2001:db8:b::1"));
    let tunnel = match outer {
        Outer::V4 => Route::ipip(&way, inner_v6, v4.0, v4.1),
        Outer::V6 => Route::ipip(&way, inner_v6, v6.0, v6.1),
        Outer::Gue4 => Route::gue(&way, inner_v6, v4.0, v4.1),
        Outer::Gue6 => Route::gue(&way, inner_v6, v6.0, v6.1),
        Outer::L2 => Some(Route::l2(&way, inner_v6)),
    };
    tunnel.expect("one family")
}

/// TCP port 80 and UDP port 53 on both VIPs, one backend each.
fn world(outer: Outer) -> MemoryTables {
    let mut tables = MemoryTables::new("properties", 256, 64, 8);
    let mut entries = Vec::new();
    let services = [
        (VIP4, 80, TCP),
        (VIP4, 53, UDP),
        (VIP6, 80, TCP),
        (VIP6, 53, UDP),
    ];
    for (i, (vip, port, protocol)) in (1_u32..).zip(services) {
        let tuple = ServiceTuple {
            address: vip.into(),
            port: u16::to_be(port),
            protocol,
        };
        let service = Service {
            number: i,
            client_affinity: false,
            first_slot: 7 * i,
            slots: 7,
            flow_idle: 70,
        };
        entries.push(ServiceEntry::service(&tuple, service));
        tables.slots[7 * i as usize..][..7].fill(SlotWord::steady(i));
        tables.backends[i as usize] = Backend {
            head: Head::new(i, Status::Active, 0).0,
            routes: [route(outer, vip.is_ipv6()), Route::NONE],
            ..Backend::default()
        };
    }
    for vip in [VIP4, VIP6] {
        entries.push(ServiceEntry::vip(
            vip.into(),
            VipNote::new(vip_bit(TCP) | vip_bit(UDP), Echo::Reply),
        ));
    }
    assert!(tables.set_services(&entries), "the table has room");
    tables
}

fn outers() -> impl Strategy<Value = Outer> {
    prop_oneof![
        Just(Outer::V4),
        Just(Outer::V6),
        Just(Outer::Gue4),
        Just(Outer::Gue6),
        Just(Outer::L2)
    ]
}

/// Some client's packet to a service: link header, then IP packet.
#[derive(Clone, Debug)]
struct Client {
    link: Vec<u8>,
    packet: Vec<u8>,
    padding: usize,
}

fn clients() -> impl Strategy<Value = Client> {
    let family = prop::bool::ANY;
    let protocol = prop_oneof![Just(TCP), Just(UDP)];
    let source = any::<u128>();
    let rest = (
        any::<u16>(),
        any::<u8>(),
        any::<u8>(),
        0..=10_usize,
        collection::vec(any::<u8>(), 0..600),
    );
    (family, protocol, source, 0..=2_usize, rest, 0..60_usize).prop_map(
        |(v6, protocol, source, tags, (port, tos, flags, words, payload), padding)| {
            let mut link = vec![0x42; 12];
            for _ in 0..tags {
                link.extend([0x81, 0, 0, 5]);
            }
            link.extend(if v6 { [0x86, 0xdd] } else { [0x08, 0x00] });
            let transport = transport(protocol, port, flags, words, &payload);
            let packet = if v6 {
                ipv6(protocol, source, tos, words, &transport)
            } else {
                ipv4(protocol, source, tos, words, &transport)
            };
            Client {
                link,
                packet,
                padding,
            }
        },
    )
}

fn transport(protocol: u8, port: u16, flags: u8, words: usize, payload: &[u8]) -> Vec<u8> {
    let mut bytes = port.to_be_bytes().to_vec();
    if protocol == TCP {
        bytes.extend([0, 80, 1, 2, 3, 4, 5, 6, 7, 8]);
        bytes.extend([(5 + words as u8) << 4, flags, 0, 1, 0, 0, 0, 0]);
        bytes.extend(std::iter::repeat_n(1, 4 * words));
    } else {
        bytes.extend([0, 53]);
        bytes.extend((8 + payload.len() as u16).to_be_bytes());
        bytes.extend([0, 0]);
    }
    bytes.extend(payload);
    bytes
}

fn ipv4(protocol: u8, source: u128, tos: u8, words: usize, transport: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0x45 + words as u8, tos];
    bytes.extend((20 + 4 * words as u16 + transport.len() as u16).to_be_bytes());
    bytes.extend([0, 0, 0x40, 0, 64, protocol, 0, 0]);
    bytes.extend((source as u32).to_be_bytes());
    bytes.extend([203, 0, 113, 10]);
    bytes.extend(std::iter::repeat_n(1, 4 * words));
    bytes.extend(transport);
    bytes
}

fn ipv6(protocol: u8, source: u128, tos: u8, headers: usize, transport: &[u8]) -> Vec<u8> {
    let headers = headers.min(8);
    let mut bytes = ((6 << 28) | (u32::from(tos) << 20)).to_be_bytes().to_vec();
    bytes.extend((8 * headers as u16 + transport.len() as u16).to_be_bytes());
    bytes.extend([if headers > 0 { 60 } else { protocol }, 64]);
    bytes.extend(source.to_be_bytes());
    let IpAddr::V6(vip) = VIP6 else {
        unreachable!("VIP6 is IPv6")
    };
    bytes.extend(vip.octets());
    for left in (0..headers).rev() {
        bytes.extend([if left > 0 { 60 } else { protocol }, 0, 1, 4, 0, 0, 0, 0]);
    }
    bytes.extend(transport);
    bytes
}

impl Client {
    fn frame(&self) -> Vec<u8> {
        let padding = std::iter::repeat_n(0, self.padding);
        self.link
            .iter()
            .chain(&self.packet)
            .copied()
            .chain(padding)
            .collect()
    }
}

/// The first `at` bytes of it, or with one byte changed, or from some byte on everything else.
fn bent(frame: Vec<u8>) -> impl Strategy<Value = Vec<u8>> {
    let length = frame.len();
    (
        any::<prop::sample::Index>(),
        any::<u8>(),
        0..4_u8,
        collection::vec(any::<u8>(), 0..64),
    )
        .prop_map(move |(at, value, how, tail)| {
            let mut frame = frame.clone();
            let at = at.index(length);
            match how {
                0 => frame.truncate(at),
                1 => frame[at] = value,
                // Headers are where it matters.
                2 => frame[at % 80 % length] = value,
                _ => {
                    frame.truncate(at);
                    frame.extend(tail);
                }
            }
            frame
        })
}

/// Whether the destination that stands in the frame's IP header, if it has one, is a VIP.
fn to_a_vip(frame: &[u8]) -> bool {
    let mut l2 = ETHERNET;
    loop {
        match frame.get(l2 - 2..l2) {
            Some([0x81, 0x00] | [0x88, 0xa8]) => l2 += 4,
            Some([0x08, 0x00]) => return frame.get(l2 + 16..l2 + 20) == Some(&[203, 0, 113, 10]),
            Some([0x86, 0xdd]) => {
                let IpAddr::V6(vip) = VIP6 else {
                    unreachable!("VIP6 is IPv6")
                };
                return frame.get(l2 + 24..l2 + 40) == Some(&vip.octets());
            }
            _ => return false,
        }
    }
}

/// What holds for every frame.
fn rules(outer: Outer, bytes: &[u8]) -> Result<(), TestCaseError> {
    let tables = world(outer);
    let mut frame = MemoryFrame::new(bytes, 1);
    let verdict = process(&mut frame, &tables);
    if let Verdict::Forward(forwarded) = &verdict {
        tables.count(forwarded);
    }
    let counted: u64 = tables
        .counters
        .borrow()
        .iter()
        .map(|counters| counters.packets)
        .sum();
    match verdict {
        Verdict::Forward(forwarded) => {
            prop_assert!(to_a_vip(bytes), "forwarded, but for no service");
            prop_assert_eq!(forwarded.ifindex, EGRESS);
            prop_assert_eq!(counted, 1);
        }
        Verdict::Refuse(reason) => {
            prop_assert!(
                reason.fate() == Fate::Pass || to_a_vip(bytes),
                "{reason:?}, but for no service"
            );
            if reason.fate() != Fate::Reply {
                prop_assert_eq!(frame.bytes(), bytes);
            }
            prop_assert_eq!(counted, 0);
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]

    /// The client's packet arrives as it was sent, whatever the families, tags, options and extension headers.
    #[test]
    fn decapsulation_undoes_encapsulation(outer in outers(), client in clients()) {
        let tables = world(outer);
        let bytes = client.frame();
        let mut frame = MemoryFrame::new(&bytes, 1);
        let verdict = process(&mut frame, &tables);
        let Verdict::Forward(forwarded) = verdict else { return Err(TestCaseError::fail(format!("{verdict:?}"))) };
        prop_assert_eq!(forwarded.ifindex, EGRESS);
        let sent = frame.bytes();
        prop_assert_eq!(sent.len(), ETHERNET + outer.overhead() + client.packet.len() + client.padding);
        if !matches!(outer, Outer::L2) {
            let result = decapsulate(&mut frame, |_| true, |_| true);
            prop_assert_eq!(result, Decapped::Done);
        }
        let mut expected = [[4; 6], [2; 6]].concat();
        expected.extend(&client.link[client.link.len() - 2..]);
        expected.extend(&bytes[client.link.len()..]);
        prop_assert_eq!(frame.bytes(), expected);
        prop_assert_eq!(forwarded.bytes as usize, client.packet.len());
    }

    /// One byte more than the MTU is refused, the MTU itself is not.
    #[test]
    fn nothing_exceeds_the_mtu(outer in outers(), client in clients(), over in prop::bool::ANY) {
        let mut tables = world(outer);
        let length = client.packet.len() + outer.overhead();
        for backend in &mut tables.backends {
            backend.routes[0].mtu = (length - usize::from(over)) as u16;
        }
        let mut frame = MemoryFrame::new(&client.frame(), 1);
        match process(&mut frame, &tables) {
            Verdict::Forward(_) => prop_assert!(!over),
            Verdict::Refuse(reason) => prop_assert_eq!((reason, over), (Reason::TooBig, true)),
        }
    }

    /// Bytes at random: no panic, nothing touched that is not ours.
    #[test]
    fn noise_is_harmless(outer in outers(), bytes in collection::vec(any::<u8>(), 0..400)) {
        rules(outer, &bytes)?;
    }

    /// Good packets, bent: these get further in.
    #[test]
    fn bent_packets_are_harmless(
        outer in outers(),
        bytes in clients().prop_flat_map(|client| bent(client.frame())),
    ) {
        rules(outer, &bytes)?;
    }

    /// The decapsulator touches nothing that is not allowed, and never grows a frame.
    #[test]
    fn decapsulating_noise_is_harmless(
        outer in outers(),
        allowed in prop::bool::ANY,
        bytes in clients()
            .prop_flat_map(|client| bent(client.frame()))
            .prop_flat_map(|inner| (Just(inner), any::<u8>(), any::<prop::sample::Index>())),
    ) {
        let (inner, value, at) = bytes;
        let mut tunnel = route(outer, inner[..].get(14).is_some_and(|first| first >> 4 == 6)).header.to_vec();
        tunnel.truncate(ETHERNET + outer.overhead());
        let header = tunnel.len();
        let length = outer.overhead() + inner.len();
        match outer {
            Outer::V4 => tunnel[16..18].copy_from_slice(&(length as u16).to_be_bytes()),
            Outer::V6 => tunnel[18..20].copy_from_slice(&(inner.len() as u16).to_be_bytes()),
            Outer::Gue4 => {
                tunnel[16..18].copy_from_slice(&(length as u16).to_be_bytes());
                tunnel[38..40].copy_from_slice(&((length - 20) as u16).to_be_bytes());
            }
            Outer::Gue6 => {
                tunnel[18..20].copy_from_slice(&((length - 40) as u16).to_be_bytes());
                tunnel[58..60].copy_from_slice(&((length - 40) as u16).to_be_bytes());
            }
            Outer::L2 => {}
        }
        tunnel.extend(&inner);
        tunnel[at.index(header)] ^= value;
        let mut frame = MemoryFrame::new(&tunnel, 1);
        let result = decapsulate(&mut frame, |_| allowed, |_| true);
        if result == Decapped::Done {
            prop_assert!(allowed);
            prop_assert!([20, 40, 32, 52].contains(&(tunnel.len() - frame.bytes().len())));
        } else {
            prop_assert!(allowed || result != Decapped::Bad, "judged, but not ours");
            prop_assert_eq!(frame.bytes(), tunnel);
        }
    }
}

/// Few addresses, ports and protocols, so that tuples differ in one part alone.
fn tuples() -> impl Strategy<Value = (IpAddr, u16, u8)> {
    let v4 = (0..=255_u8).prop_map(|last| IpAddr::from([203, 0, 113, last]));
    let v6 = (0..=255_u16).prop_map(|last| IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, last]));
    let mapped = (0..=255_u8)
        .prop_map(|last| IpAddr::V6(std::net::Ipv4Addr::new(203, 0, 113, last).to_ipv6_mapped()));
    let port = prop_oneof![Just(0), Just(80), Just(0x5000), any::<u16>()];
    (
        prop_oneof![v4, v6, mapped],
        port,
        prop_oneof![Just(TCP), Just(UDP)],
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    /// Whatever is put into the table is found there, as what it is; nothing else is.
    #[test]
    fn services_are_found_and_nothing_else(
        present in btree_set(tuples(), 1..400),
        absent in btree_set(tuples(), 0..400),
        half in 0..=1_u32,
    ) {
        // The daemon's proportion: sixteen buckets for each entry.
        let node = Node { service_mask: 8_191, ..Node::default() };
        let key = |(ip, port, protocol): &(IpAddr, u16, u8)| {
            ServiceTuple { address: Address::from(*ip), port: port.to_be(), protocol: *protocol }
        };
        let expected: BTreeMap<_, _> = (0_u32..).zip(&present).map(|(i, tuple)| {
            let slots = [0, 7, 1_021, 65_537][i as usize % 4];
            (tuple, Service { number: i, client_affinity: i % 3 == 0, first_slot: 31 * i, slots, flow_idle: 1 })
        }).collect();
        let mut entries: Vec<_> =
            expected.iter().map(|(tuple, service)| ServiceEntry::service(&key(tuple), *service)).collect();
        let vips: BTreeSet<IpAddr> = present.iter().map(|(ip, ..)| *ip).collect();
        entries.extend(vips.iter().map(|vip| ServiceEntry::vip(Address::from(*vip), VipNote(1))));
        let mut buckets = vec![ServiceBucket::default(); 8_192];
        let directory = place(&entries, half, &node, &mut buckets).expect("a seed for a table this empty");
        prop_assert_eq!(directory.half(), half);
        let look = |tuple: &ServiceTuple| {
            let index = directory.bucket(&node, tuple) - half * 8_192;
            find(&buckets[index as usize], tuple)
        };
        for tuple in &present {
            prop_assert_eq!(look(&key(tuple)).map(Service::from), Some(expected[tuple]));
            prop_assert_eq!(look(&key(tuple)).and_then(ServiceEntry::tuple), Some(key(tuple)));
        }
        for tuple in absent.difference(&present) {
            prop_assert!(look(&key(tuple)).is_none(), "{:?} is not there", tuple);
        }
        for address in (0..=255).map(|last| IpAddr::from([203, 0, 113, last])) {
            let found = look(&ServiceTuple::vip(Address::from(address))).is_some();
            prop_assert_eq!(found, vips.contains(&address), "the note on {}", address);
        }
        let used = buckets.iter().flat_map(|bucket| &bucket.ways).filter(|way| way.id != 0).count();
        prop_assert_eq!(used, entries.len());
    }
}
