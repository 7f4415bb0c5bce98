//! Answers to echo requests, for every id, sequence number and length: what a receiver checks must hold. And errors about flows whose
//! slot is in change: they go where the flow goes, and leave no trace.

use std::net::IpAddr;

use lb_common::abi::{Backend, Route, ServiceEntry};
use lb_common::encap::Way;
use lb_common::native::{MemoryFrame, MemoryTables};
use lb_common::process::{Verdict, process};
use lb_common::reason::Reason;
use lb_common::service::{Echo, Service, ServiceTuple, VipNote, vip_bit};
use lb_common::slot::{Mode, SlotWord};
use lb_common::track::{Head, Status, TableWord};

const VIP4: [u8; 4] = [203, 0, 113, 10];
const CLIENT4: [u8; 4] = [198, 51, 100, 7];
const VIP6: [u8; 16] = [0x20, 1, 0xd, 0xb8, 0, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
const CLIENT6: [u8; 16] = [0x20, 1, 0xd, 0xb8, 0, 0xc, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7];
const ETHERNET: usize = 14;

/// The VIPs, and no service that could forward anything.
fn world() -> MemoryTables {
    let mut tables = MemoryTables::new("icmp", 64, 7, 2);
    let note = VipNote::new(vip_bit(6), Echo::Reply);
    let vips = [IpAddr::from(VIP4), IpAddr::from(VIP6)];
    assert!(tables.set_services(&vips.map(|vip| ServiceEntry::vip(vip.into(), note))));
    tables
}

/// RFC 1071, folded but not complemented: 0xffff where a checksum is right.
fn sum(parts: &[&[u8]]) -> u16 {
    let mut sum = 0_u64;
    for part in parts {
        for word in part.chunks(2) {
            sum += (u64::from(word[0]) << 8) | word.get(1).map_or(0, |low| u64::from(*low));
        }
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

fn message(kind: u8, id: u16, sequence: u16, payload: &[u8]) -> Vec<u8> {
    let [a, b] = id.to_be_bytes();
    let [c, d] = sequence.to_be_bytes();
    [&[kind, 0, 0, 0, a, b, c, d], payload].concat()
}

fn request_v4(ttl: u8, id: u16, sequence: u16, payload: &[u8]) -> Vec<u8> {
    let mut message = message(8, id, sequence, payload);
    let right = (!sum(&[&message])).to_be_bytes();
    message[2..4].copy_from_slice(&right);
    let [high, low] = (20 + message.len() as u16).to_be_bytes();
    let mut ip = vec![0x45, 0, high, low, 0x12, 0x34, 0x40, 0, ttl, 1, 0, 0];
    ip.extend(CLIENT4);
    ip.extend(VIP4);
    let right = (!sum(&[&ip])).to_be_bytes();
    ip[10..12].copy_from_slice(&right);
    let mut frame = [[2; 6], [4; 6]].concat();
    frame.extend([8, 0]);
    [frame, ip, message].concat()
}

/// What ICMPv6's checksum covers of the IP header.
fn pseudo(source: [u8; 16], destination: [u8; 16], length: usize) -> Vec<u8> {
    let mut bytes = [source, destination].concat();
    bytes.extend((length as u32).to_be_bytes());
    bytes.extend([0, 0, 0, 58]);
    bytes
}

fn request_v6(hops: u8, id: u16, sequence: u16, payload: &[u8]) -> Vec<u8> {
    let mut message = message(128, id, sequence, payload);
    let right = !sum(&[&pseudo(CLIENT6, VIP6, message.len()), &message]);
    message[2..4].copy_from_slice(&right.to_be_bytes());
    let [high, low] = (message.len() as u16).to_be_bytes();
    let mut frame = [[2; 6], [4; 6]].concat();
    frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, high, low, 58, hops]);
    frame.extend(CLIENT6);
    frame.extend(VIP6);
    [frame, message].concat()
}

/// The request is answered, and everything in the answer is as it must be.
fn check(tables: &MemoryTables, request: &[u8]) {
    let mut frame = MemoryFrame::new(request, 1);
    let verdict = process(&mut frame, tables);
    assert_eq!(verdict, Verdict::Refuse(Reason::IcmpEcho), "{request:x?}");
    let answer = frame.bytes();
    assert_eq!(answer.len(), request.len());
    assert_eq!(answer[..12], [[4; 6], [2; 6]].concat());
    let v6 = request[12] == 0x86;
    let at = ETHERNET + if v6 { 40 } else { 20 };
    let (ip, message) = answer[ETHERNET..].split_at(at - ETHERNET);
    if v6 {
        assert_eq!(ip[8..], [VIP6, CLIENT6].concat());
        assert_eq!((message[0], ip[7]), (129, 64));
        let covered = pseudo(VIP6, CLIENT6, message.len());
        assert_eq!(sum(&[&covered, message]), 0xffff, "{request:x?}");
    } else {
        assert_eq!(ip[12..], [VIP4, CLIENT4].concat());
        assert_eq!((message[0], ip[8]), (0, 64));
        assert_eq!(sum(&[ip]), 0xffff, "{request:x?}");
        assert_eq!(sum(&[message]), 0xffff, "{request:x?}");
    }
    assert_eq!(message[1], request[at + 1]);
    assert_eq!(message[4..], request[at + 4..]);
}

#[test]
fn every_id() {
    let tables = world();
    let payload: Vec<u8> = (0..56).collect();
    for id in 0..=u16::MAX {
        for payload in [&payload[..0], &payload[..1], &payload] {
            check(&tables, &request_v4(63, id, 0, payload));
            check(&tables, &request_v6(63, id, 0, payload));
        }
    }
}

#[test]
fn every_sequence_number() {
    let tables = world();
    for sequence in 0..=u16::MAX {
        for id in [0, 0x5c1c] {
            check(&tables, &request_v4(1, id, sequence, &[0xff; 9]));
            check(&tables, &request_v6(1, id, sequence, &[0xff; 9]));
        }
    }
}

#[test]
fn every_length_and_every_ttl() {
    let tables = world();
    let payload: Vec<u8> = (0..1_472_u32).map(|i| (i * 7) as u8).collect();
    for length in 0..=payload.len() {
        check(&tables, &request_v4(64, 1, 1, &payload[..length]));
        check(&tables, &request_v6(64, 1, 1, &payload[..length]));
    }
    for ttl in 0..=255 {
        check(&tables, &request_v4(ttl, 1, 1, &payload[..56]));
        check(&tables, &request_v6(ttl, 1, 1, &payload[..56]));
    }
}

/// Nobody's request may become somebody's right answer.
#[test]
fn a_wrong_checksum_stays_wrong() {
    let tables = world();
    for error in 1..=0xfffe_u16 {
        let mut request = request_v4(63, 7, 1, b"payload!");
        let at = ETHERNET + 20 + 2;
        let right = u16::from_be_bytes([request[at], request[at + 1]]);
        request[at..at + 2].copy_from_slice(&right.wrapping_add(error).to_be_bytes());
        if sum(&[&request[ETHERNET + 20..]]) == 0xffff {
            continue;
        }
        let mut frame = MemoryFrame::new(&request, 1);
        process(&mut frame, &tables);
        assert_ne!(sum(&[&frame.bytes()[ETHERNET + 20..]]), 0xffff);
    }
}

/// TCP port 80 on the IPv4 VIP; its slots are in change from backend 1 to backend 2.
fn in_change() -> MemoryTables {
    let mut tables = MemoryTables::new("icmp", 64, 7, 3);
    let tuple = ServiceTuple {
        address: IpAddr::from(VIP4).into(),
        port: 80_u16.to_be(),
        protocol: 6,
    };
    let service = Service {
        number: 1,
        client_affinity: false,
        first_slot: 0,
        slots: 7,
        flow_idle: 70,
    };
    let note = VipNote::new(vip_bit(6), Echo::Reply);
    assert!(tables.set_services(&[
        ServiceEntry::service(&tuple, service),
        ServiceEntry::vip(tuple.address, note),
    ]));
    tables.slots.fill(SlotWord::new(Mode::Learn, 2, 1, false));
    let way = Way {
        ifindex: 1,
        mtu: 1_500,
        source_mac: [2; 6],
        destination_mac: [4; 6],
    };
    for (id, status) in [(1, Status::Draining), (2, Status::Active)] {
        tables.backends[id] = Backend {
            head: Head::new(1, status, 0).0,
            table: TableWord::new(0, 7, 70).0,
            routes: [Route::l2(&way, false), Route::NONE],
        };
    }
    tables
}

fn ip_v4(protocol: u8, source: [u8; 4], destination: [u8; 4], payload: &[u8]) -> Vec<u8> {
    let [high, low] = (20 + payload.len() as u16).to_be_bytes();
    let mut packet = vec![0x45, 0, high, low, 0, 0, 0x40, 0, 63, protocol, 0, 0];
    packet.extend(source);
    packet.extend(destination);
    packet.extend(payload);
    packet
}

fn tcp(from: u16, to: u16, flags: u8) -> Vec<u8> {
    let mut header = [from.to_be_bytes(), to.to_be_bytes()].concat();
    header.extend([0, 0, 0, 1, 0, 0, 0, 1, 0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
    header
}

/// The backend, and whether the packet counts as an opener.
fn sent(tables: &MemoryTables, packet: &[u8]) -> (u32, bool) {
    let mut frame = [[4; 6], [2; 6]].concat();
    frame.extend([8, 0]);
    frame.extend(packet);
    match process(&mut MemoryFrame::new(&frame, 1), tables) {
        Verdict::Forward(forwarded) => (forwarded.backend, forwarded.opener),
        other => panic!("{other:?}"),
    }
}

#[test]
fn errors_read_the_flow_table_and_do_not_write_it() {
    const SYN: u8 = 2;
    const ACK: u8 = 16;
    let tables = in_change();
    let error = |port| {
        let quoted = ip_v4(6, VIP4, CLIENT4, &tcp(80, port, ACK));
        let message = [&[3, 4, 0, 0, 0, 0, 5, 0][..], &quoted[..28]].concat();
        ip_v4(1, [192, 0, 2, 254], VIP4, &message)
    };
    let entries = || -> Vec<u64> {
        let words = tables.flows.iter().flatten();
        words.map(std::cell::Cell::get).collect()
    };
    let empty = entries();
    // Of flows that are not remembered: where those go, and not remembered for it.
    for port in 40_000..40_100 {
        assert_eq!(sent(&tables, &error(port)), (1, false));
    }
    assert_eq!(entries(), empty);
    assert!(tables.losses.iter().all(|loss| loss.get() == 0));
    // A new connection is pinned to the new backend, and an error about it goes there.
    for port in 40_000..40_100 {
        let packet = ip_v4(6, CLIENT4, VIP4, &tcp(port, 80, SYN));
        assert_eq!(sent(&tables, &packet), (2, true));
    }
    let pinned = entries();
    assert_ne!(pinned, empty);
    for port in 40_000..40_100 {
        assert_eq!(sent(&tables, &error(port)), (2, false));
        assert_eq!(sent(&tables, &error(port + 1_000)), (1, false));
    }
    assert_eq!(entries(), pinned);
}
