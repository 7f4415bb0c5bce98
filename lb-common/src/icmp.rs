//! ICMP to a VIP: echo requests are answered, errors go where the flow goes that they are about.
//!
//! Owns: what an ICMP message says, and the answer, made in place. Does not own: whether an address is a VIP, what is wanted of
//! echo requests, and where flows go (`process`).

use core::mem::offset_of;

use network_types::ip::{Ipv4Hdr, Ipv6Hdr};

use crate::address::Address;
use crate::checksum;
use crate::hash::FlowKey;
use crate::packet::Frame;
use crate::parse::{Icmp, Network, PROTOCOL_TCP, PROTOCOL_UDP, Packet, extensions};
use crate::reason::Reason;
use crate::service::Echo;
use crate::track::Kind;

/// Type, code, checksum, and four bytes whose meaning the type decides.
const HEADER: usize = 8;
/// TTL or hop limit of answers, as of all that we send.
const HOPS: u8 = 64;

/// Every offset that has been looked at fits: a frame gives no view beyond it.
const OFFSETS: usize = 0x7fff;

/// What there is to know of an ICMP message in order to judge it; one number, so that it can be an argument in the kernel.
#[derive(Clone, Copy, Debug)]
pub struct Question(pub u64);

/// The same, taken apart.
struct Message {
    l2_length: usize,
    l4: usize,
    end: usize,
    v6: bool,
    /// As in [`Network::fragment`].
    fragment: Option<bool>,
    echo: Echo,
}

impl Question {
    #[inline(always)]
    pub const fn new(icmp: &Icmp, echo: Echo) -> Self {
        let Icmp { l2_length, network } = icmp;
        let fragment = match network.fragment {
            None => 0,
            Some(true) => 1,
            Some(false) => 2,
        };
        Self(
            *l2_length as u64
                | ((network.l4 as u64) << 8)
                | ((network.end as u64) << 24)
                | ((network.destination.v6 as u64) << 44)
                | (fragment << 45)
                | ((echo as u64) << 47),
        )
    }

    #[inline(always)]
    const fn message(self) -> Message {
        Message {
            l2_length: (self.0 & 0xff) as usize,
            l4: (self.0 >> 8) as usize & OFFSETS,
            end: ((self.0 >> 24) & 0xf_ffff) as usize,
            v6: (self.0 >> 44) & 1 != 0,
            fragment: match (self.0 >> 45) & 3 {
                0 => None,
                1 => Some(true),
                _ => Some(false),
            },
            echo: Echo::from_bits(self.0 >> 47),
        }
    }
}

/// What becomes of an ICMP message to a VIP: one of the four below, in the low byte; of a quote also where it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer(pub u64);

impl Answer {
    /// The host's stack may have it.
    const PASS: Self = Self(0);
    /// The frame is the answer now.
    const REPLIED: Self = Self(1);
    const DROP: Self = Self(2);
    /// It is about a packet of this protocol, whose header stands at `start` and whose ports at `l4`.
    const QUOTE: u64 = 3;

    const fn quote(start: usize, network: &Network) -> Self {
        Self(
            Self::QUOTE
                | ((network.protocol as u64) << 8)
                | ((start as u64) << 16)
                | ((network.l4 as u64) << 32),
        )
    }
}

/// An ICMP error to a VIP as a packet of the flow that it is about, seen from the client. Otherwise the reason says what became of the
/// message.
#[inline(always)]
pub fn follow<F: Frame>(frame: &mut F, icmp: &Icmp, echo: Echo) -> Result<Packet, Reason> {
    let answer = frame.icmp(Question::new(icmp, echo));
    match answer.0 & 0xff {
        1 => return Err(Reason::IcmpEcho),
        2 => return Err(Reason::IcmpEchoOff),
        Answer::QUOTE => {}
        _ => return Err(Reason::IcmpToVip),
    }
    let network = &icmp.network;
    let start = (answer.0 >> 16) as usize & OFFSETS;
    let client = if network.destination.v6 {
        let header = frame
            .view::<{ Ipv6Hdr::LEN }>(start)
            .ok_or(Reason::IcmpToVip)?;
        Address::v6([
            header.get::<u64, { offset_of!(Ipv6Hdr, dst_addr) }>(),
            header.get::<u64, { offset_of!(Ipv6Hdr, dst_addr) + 8 }>(),
        ])
    } else {
        let header = frame
            .view::<{ Ipv4Hdr::LEN }>(start)
            .ok_or(Reason::IcmpToVip)?;
        Address::v4(header.get::<u32, { offset_of!(Ipv4Hdr, dst_addr) }>())
    };
    let ports = frame
        .view::<4>((answer.0 >> 32) as usize & OFFSETS)
        .ok_or(Reason::IcmpToVip)?
        .get::<u32, 0>();
    Ok(Packet {
        l2_length: icmp.l2_length,
        flow: FlowKey {
            source: client,
            destination: network.destination,
            // It was on its way from the service to the client.
            ports: ports.rotate_left(16),
            protocol: (answer.0 >> 8) as u8,
        },
        length: network.length,
        tos: network.tos,
        kind: Kind::Icmp,
    })
}

/// What the message's type says. Where the type cannot be read (a later fragment, a message that is too short) it is none of ours.
#[inline(always)]
pub fn judge<F: Frame>(frame: &mut F, question: Question) -> Answer {
    let message = question.message();
    if message.fragment == Some(false) || message.l4 + HEADER > message.end {
        return Answer::PASS;
    }
    let Some(header) = frame.view::<HEADER>(message.l4) else {
        return Answer::PASS;
    };
    match (message.v6, header.get::<u8, 0>()) {
        (false, 8) | (true, 128) => match message.echo {
            Echo::Reply if reply(frame, &message) => Answer::REPLIED,
            Echo::Drop => Answer::DROP,
            _ => Answer::PASS,
        },
        // RFC 792: destination unreachable (4 of its codes: fragmentation needed), time exceeded, parameter problem. Source quench is
        // obsolete (RFC 6633), and a redirect is a matter between a router and its neighbour.
        (false, 3 | 11 | 12) => quoted(frame, &message),
        // RFC 4443: destination unreachable, packet too big, time exceeded, parameter problem.
        (true, 1..=4) => quoted(frame, &message),
        _ => Answer::PASS,
    }
}

/// Turns an echo request into its answer: addresses of both layers swapped, TTL or hop limit 64, checksums updated; everything else,
/// VLAN tags, payload and padding too, stays as it is. A checksum that was wrong is wrong in the answer.
///
/// `false`, and the frame is as it came, when the answer takes more than that: fragments (they would have to be put together),
/// IPv4 options (RFC 1122 wants source routes reversed) and IPv6 extension headers; and where there must be no answer: sender and receiver
/// are the same, or one of them is no single host's address.
#[inline(always)]
fn reply<F: Frame>(frame: &mut F, message: &Message) -> bool {
    let offset = message.l2_length;
    let header = if message.v6 {
        Ipv6Hdr::LEN
    } else {
        Ipv4Hdr::LEN
    };
    if message.fragment.is_some() || message.l4 != offset + header {
        return false;
    }
    let Some(ethernet) = frame.view::<12>(0) else {
        return false;
    };
    let receiver = (ethernet.get::<u32, 0>(), ethernet.get::<u16, 4>());
    let sender = (ethernet.get::<u32, 6>(), ethernet.get::<u16, 10>());
    // IEEE 802: the lowest bit of the first byte says that a group is meant.
    if (ethernet.get::<u8, 0>() | ethernet.get::<u8, 6>()) & 1 != 0 {
        return false;
    }
    let answered = if message.v6 {
        reply_v6(frame, offset)
    } else {
        reply_v4(frame, offset)
    };
    if answered && let Some(mut ethernet) = frame.view_mut::<12>(0) {
        ethernet.set::<u32, 0>(sender.0);
        ethernet.set::<u16, 4>(sender.1);
        ethernet.set::<u32, 6>(receiver.0);
        ethernet.set::<u16, 10>(receiver.1);
    }
    answered
}

/// An address that an answer may go to: not a group's, not "this host", not one that never leaves its host.
#[inline(always)]
fn is_one_hosts(address: &Address) -> bool {
    let [first, second] = address.words;
    if address.v6 {
        // ff00::/8 is multicast; below ::/64 are the unspecified address, loopback, and IPv4 in IPv6 clothes.
        u64::from_be(first) >> 56 != 0xff && first != 0
    } else {
        // 0.0.0.0/8, 127.0.0.0/8, and from 224.0.0.0 on multicast, reserved, broadcast.
        let first = (u64::from_be(second) >> 24) as u8;
        first != 0 && first != 127 && first < 224
    }
}

#[inline(always)]
fn reply_v4<F: Frame>(frame: &mut F, offset: usize) -> bool {
    const ICMP: usize = Ipv4Hdr::LEN;
    const TTL: usize = offset_of!(Ipv4Hdr, ttl);
    const SUM: usize = offset_of!(Ipv4Hdr, check);
    const SOURCE: usize = offset_of!(Ipv4Hdr, src_addr);
    const DESTINATION: usize = offset_of!(Ipv4Hdr, dst_addr);
    const ECHO_REPLY: u8 = 0;
    let Some(packet) = frame.view::<{ ICMP + HEADER }>(offset) else {
        return false;
    };
    let (source, destination) = (
        packet.get::<u32, SOURCE>(),
        packet.get::<u32, DESTINATION>(),
    );
    if source == destination || !is_one_hosts(&Address::v4(source)) {
        return false;
    }
    // The word of TTL and protocol. Where addresses stand does not change a sum.
    let old = packet.be16::<TTL>();
    let new = (u16::from(HOPS) << 8) | (old & 0xff);
    let ip_sum = checksum::update(packet.be16::<SUM>(), old, new);
    let old = packet.be16::<ICMP>();
    let new = (u16::from(ECHO_REPLY) << 8) | (old & 0xff);
    let icmp_sum = match checksum::update(packet.be16::<{ ICMP + 2 }>(), old, new) {
        // The answer to a request that was zero but for its type is all zeros: there only this one of the two zeros is right, and
        // elsewhere both are.
        0 => 0xffff,
        sum => sum,
    };
    let Some(mut packet) = frame.view_mut::<{ ICMP + HEADER }>(offset) else {
        return false;
    };
    packet.set::<u32, SOURCE>(destination);
    packet.set::<u32, DESTINATION>(source);
    packet.set::<u8, TTL>(HOPS);
    packet.set::<u16, SUM>(ip_sum.to_be());
    packet.set::<u8, ICMP>(ECHO_REPLY);
    packet.set::<u16, { ICMP + 2 }>(icmp_sum.to_be());
    true
}

#[inline(always)]
fn reply_v6<F: Frame>(frame: &mut F, offset: usize) -> bool {
    const ICMP: usize = Ipv6Hdr::LEN;
    const SOURCE: usize = offset_of!(Ipv6Hdr, src_addr);
    const DESTINATION: usize = offset_of!(Ipv6Hdr, dst_addr);
    const ECHO_REPLY: u8 = 129;
    let Some(packet) = frame.view::<{ ICMP + HEADER }>(offset) else {
        return false;
    };
    let source = [
        packet.get::<u64, SOURCE>(),
        packet.get::<u64, { SOURCE + 8 }>(),
    ];
    let destination = [
        packet.get::<u64, DESTINATION>(),
        packet.get::<u64, { DESTINATION + 8 }>(),
    ];
    if source == destination || !is_one_hosts(&Address::v6(source)) {
        return false;
    }
    // It covers the addresses, too (RFC 4443), in whatever order; the hop limit it does not cover.
    let old = packet.be16::<ICMP>();
    let new = (u16::from(ECHO_REPLY) << 8) | (old & 0xff);
    let sum = checksum::update(packet.be16::<{ ICMP + 2 }>(), old, new);
    let Some(mut packet) = frame.view_mut::<{ ICMP + HEADER }>(offset) else {
        return false;
    };
    packet.set::<u64, SOURCE>(destination[0]);
    packet.set::<u64, { SOURCE + 8 }>(destination[1]);
    packet.set::<u64, DESTINATION>(source[0]);
    packet.set::<u64, { DESTINATION + 8 }>(source[1]);
    packet.set::<u8, { offset_of!(Ipv6Hdr, hop_limit) }>(HOPS);
    packet.set::<u8, ICMP>(ECHO_REPLY);
    packet.set::<u16, { ICMP + 2 }>(sum.to_be());
    true
}

/// Finds the packet that an error quotes, if it is one that a service of this VIP can have sent, and enough of it: of TCP or UDP at least
/// the eight bytes that RFC 792 promises.
#[inline(always)]
fn quoted<F: Frame>(frame: &F, message: &Message) -> Answer {
    // Errors are short: in pieces comes what wants to be overlooked.
    if message.fragment.is_some() {
        return Answer::PASS;
    }
    let start = message.l4 + HEADER;
    let found = if message.v6 {
        quoted_v6(frame, message.l2_length, start, message.end)
    } else {
        quoted_v4(frame, message.l2_length, start, message.end)
    };
    match found {
        Some(quote)
            if matches!(quote.protocol, PROTOCOL_TCP | PROTOCOL_UDP)
                && quote.fragment != Some(false)
                && quote.l4 + 8 <= message.end
                && frame.view::<8>(quote.l4).is_some() =>
        {
            Answer::quote(start, &quote)
        }
        _ => Answer::PASS,
    }
}

/// A quoted IPv4 packet, which ends where the quote ends: the length it names was that of a whole packet. `None`: it is none, or from
/// somebody else than the VIP that is told of it, so somebody made it up.
#[inline(always)]
fn quoted_v4<F: Frame>(frame: &F, outer: usize, start: usize, end: usize) -> Option<Network> {
    let told = frame
        .view::<{ Ipv4Hdr::LEN }>(outer)?
        .get::<u32, { offset_of!(Ipv4Hdr, dst_addr) }>();
    let header = frame.view::<{ Ipv4Hdr::LEN }>(start)?;
    let version_and_length = header.get::<u8, { offset_of!(Ipv4Hdr, vihl) }>();
    let bytes = usize::from(version_and_length & 0x0f) * 4;
    let source = header.get::<u32, { offset_of!(Ipv4Hdr, src_addr) }>();
    if version_and_length >> 4 != 4 || bytes < Ipv4Hdr::LEN || source != told {
        return None;
    }
    let later = header.be16::<{ offset_of!(Ipv4Hdr, frags) }>() & 0x1fff != 0;
    Some(Network {
        source: Address::v4(source),
        destination: Address::v4(header.get::<u32, { offset_of!(Ipv4Hdr, dst_addr) }>()),
        protocol: header.get::<u8, { offset_of!(Ipv4Hdr, proto) }>(),
        l4: start + bytes,
        end,
        length: 0,
        tos: 0,
        fragment: if later { Some(false) } else { None },
    })
}

/// The same of IPv6.
#[inline(always)]
fn quoted_v6<F: Frame>(frame: &F, outer: usize, start: usize, end: usize) -> Option<Network> {
    let told = frame.view::<{ Ipv6Hdr::LEN }>(outer)?;
    let told = [
        told.get::<u64, { offset_of!(Ipv6Hdr, dst_addr) }>(),
        told.get::<u64, { offset_of!(Ipv6Hdr, dst_addr) + 8 }>(),
    ];
    let header = frame.view::<{ Ipv6Hdr::LEN }>(start)?;
    let source = [
        header.get::<u64, { offset_of!(Ipv6Hdr, src_addr) }>(),
        header.get::<u64, { offset_of!(Ipv6Hdr, src_addr) + 8 }>(),
    ];
    if header.get::<u8, { offset_of!(Ipv6Hdr, vcf) }>() >> 4 != 6 || source != told {
        return None;
    }
    let mut network = Network {
        source: Address::v6(source),
        destination: Address::v6([
            header.get::<u64, { offset_of!(Ipv6Hdr, dst_addr) }>(),
            header.get::<u64, { offset_of!(Ipv6Hdr, dst_addr) + 8 }>(),
        ]),
        protocol: header.get::<u8, { offset_of!(Ipv6Hdr, next_hdr) }>(),
        l4: start + Ipv6Hdr::LEN,
        end,
        length: 0,
        tos: 0,
        fragment: None,
    };
    extensions(frame, &mut network).ok()?;
    Some(network)
}
