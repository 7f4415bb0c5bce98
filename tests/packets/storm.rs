//! Golden packets, cut, padded and mutated: whatever comes in, natively and in the kernel the same comes out, strangers pass, and
//! what leaves is a whole packet of the right service in a valid outer header.

use std::collections::BTreeMap;
use std::net::IpAddr;

use anyhow::{Context as _, Result, ensure};
use lb_common::reason::Reason;
use lb_common::service::Echo;
use libtest_mimic::Trial;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

use crate::cases;
use crate::frame::{ETHERNET, ICMP, ICMPV6, QINQ, TCP, UDP, VLAN, internet_checksum};
use crate::outer::Chosen;
use crate::run::{Action, Kernel, Native, Outcome, Run};
use crate::world::{SERVICES, Service, backend_of, echo_of, is_vip, service_of};
use crate::{kernel, native};

const MUTATIONS: usize = 20_000;

pub fn trials() -> Vec<Trial> {
    vec![
        native("every length from 0 to 200 of every golden frame", || {
            lengths(&mut [&mut Native::new()?])
        }),
        kernel(
            "every length from 14 to 200 of every golden frame, as natively",
            || lengths(&mut [&mut Native::new()?, &mut *Kernel::get()?]),
        ),
        native("20,000 mutated golden frames", || {
            mutations(&mut [&mut Native::new()?])
        }),
        kernel("20,000 mutated golden frames, as natively", || {
            mutations(&mut [&mut Native::new()?, &mut *Kernel::get()?])
        }),
    ]
}

/// Runs a frame everywhere; all must agree, and with the rules.
fn everywhere(runs: &mut [&mut dyn Run], frame: &[u8]) -> Result<Outcome> {
    let mut first = None;
    for run in runs.iter_mut().filter(|run| frame.len() >= run.shortest()) {
        let outcome = run.run(frame)?;
        judge(frame, &outcome).with_context(|| format!("in: {frame:x?}\nout: {outcome:x?}"))?;
        let first = first.get_or_insert_with(|| outcome.clone());
        ensure!(
            *first == outcome,
            "in: {frame:x?}\nnatively: {first:x?}\nthe kernel: {outcome:x?}"
        );
    }
    first.context("nothing runs a frame this short")
}

fn lengths(runs: &mut [&mut dyn Run]) -> Result<()> {
    for case in cases::all() {
        for length in 0..=200 {
            let mut frame = case.frame.clone();
            frame.resize(length, 0);
            everywhere(runs, &frame).with_context(|| format!("{}, {length} bytes", case.name))?;
        }
    }
    Ok(())
}

fn mutations(runs: &mut [&mut dyn Run]) -> Result<()> {
    let mut random = StdRng::seed_from_u64(0x5151_1ce5);
    let golden = cases::all();
    let mut seen = BTreeMap::<&str, usize>::new();
    for i in 0..MUTATIONS {
        let case = &golden[random.random_range(0..golden.len())];
        let frame = mutated(case.frame.clone(), &mut random);
        let outcome =
            everywhere(runs, &frame).with_context(|| format!("mutation {i} of {}", case.name))?;
        let what = outcome
            .reasons
            .first()
            .map_or("forwarded", |(reason, _)| reason.name());
        *seen.entry(what).or_default() += 1;
    }
    // A storm that only ever finds one kind of weather tests nothing.
    for what in [
        "forwarded",
        "not-ours",
        "truncated",
        "bad-header",
        "fragment",
        "not-ip",
        "icmp-to-vip",
        "icmp-echo",
    ] {
        ensure!(
            seen.get(what).is_some_and(|n| *n >= 100),
            "{what} hardly came up: {seen:?}"
        );
    }
    Ok(())
}

fn mutated(mut frame: Vec<u8>, random: &mut StdRng) -> Vec<u8> {
    for _ in 0..random.random_range(1..=3) {
        // All the headers that are looked at, of ordinary packets.
        let reach = frame.len().min(100);
        let position = if reach == 0 {
            0
        } else {
            random.random_range(0..reach)
        };
        match random.random_range(0..8) {
            0..=2 if reach > 0 => frame[position] ^= 1 << random.random_range(0..8),
            3 if reach > 0 => frame[position] = random.random(),
            4 if reach > 0 => {
                // What length and version fields like least.
                let favourites = [
                    0x00, 0x01, 0x04, 0x06, 0x0f, 0x11, 0x2c, 0x3c, 0x40, 0x45, 0x60, 0x7f, 0xff,
                ];
                frame[position] = favourites[random.random_range(0..favourites.len())];
            }
            5 => frame.truncate(random.random_range(0..=frame.len())),
            6 => frame.resize(frame.len() + random.random_range(1..64), random.random()),
            _ => {
                // A byte more or less in the middle: all behind it is out of place.
                if random.random() && reach > 0 {
                    frame.remove(position);
                } else {
                    frame.insert(position, random.random());
                }
            }
        }
    }
    // Test runs begin here.
    frame.resize(frame.len().clamp(ETHERNET, 1_800), 0);
    frame
}

/// What a frame says about itself, read by another parser than the one under test.
struct Seen {
    l2_length: usize,
    v6: bool,
    destination: IpAddr,
    tos: u8,
    /// Bytes of the IP packet as its header says.
    length: usize,
    /// `None`: IPv6, and not to be found behind its extension headers.
    protocol: Option<u8>,
    port: Option<u16>,
    /// Offset of the transport header in the frame.
    transport: usize,
    /// Behind the IP header is the middle of something.
    later_fragment: bool,
    fragment: bool,
}

fn be16(frame: &[u8], offset: usize) -> Option<usize> {
    Some(usize::from(u16::from_be_bytes(
        frame.get(offset..offset + 2)?.try_into().ok()?,
    )))
}

/// `None`: no IP packet.
fn look(frame: &[u8]) -> Option<Seen> {
    let mut l2_length = ETHERNET;
    let mut ethertype = be16(frame, 12)?;
    while ethertype == usize::from(VLAN) || ethertype == usize::from(QINQ) {
        ethertype = be16(frame, l2_length + 2)?;
        l2_length += 4;
    }
    if l2_length > ETHERNET + 8 {
        return None;
    }
    let ip = &frame[l2_length..];
    let mut seen = match ethertype {
        0x0800 if ip.len() >= 20 => Seen {
            l2_length,
            v6: false,
            destination: <[u8; 4]>::try_from(&ip[16..20]).ok()?.into(),
            tos: ip[1],
            length: be16(ip, 2)?,
            protocol: Some(ip[9]),
            port: None,
            transport: 0,
            later_fragment: be16(ip, 6)? & 0x1fff != 0,
            fragment: be16(ip, 6)? & 0x3fff != 0,
        },
        0x86dd if ip.len() >= 40 => Seen {
            l2_length,
            v6: true,
            destination: <[u8; 16]>::try_from(&ip[24..40]).ok()?.into(),
            tos: (ip[0] << 4) | (ip[1] >> 4),
            length: 40 + be16(ip, 4)?,
            protocol: None,
            port: None,
            transport: 0,
            later_fragment: false,
            fragment: false,
        },
        _ => return None,
    };
    let mut transport = 4 * usize::from(ip[0] & 0xf);
    if seen.v6 {
        let mut next = ip[6];
        transport = 40;
        let mut headers = 0;
        while matches!(next, 0 | 43 | 44 | 60) && !seen.later_fragment {
            headers += 1;
            if headers > 8 {
                return Some(seen);
            }
            let Some(header) = ip.get(transport..transport + 8) else {
                return Some(seen);
            };
            if next == 44 {
                seen.later_fragment = be16(header, 2)? >> 3 != 0;
                seen.fragment |= be16(header, 2)? & 0xfff9 != 0;
            }
            transport += if next == 44 {
                8
            } else {
                8 * (usize::from(header[1]) + 1)
            };
            next = header[0];
        }
        seen.protocol = Some(next);
    }
    seen.transport = l2_length + transport;
    if matches!(seen.protocol, Some(TCP | UDP))
        && !seen.later_fragment
        && transport + 4 <= seen.length
    {
        seen.port = be16(ip, transport + 2).map(|port| port as u16);
    }
    Some(seen)
}

impl Seen {
    /// It is for a service, as far as can be told; otherwise it must pass.
    fn may_be_refused(&self, frame: &[u8]) -> bool {
        let served = |protocol| {
            SERVICES
                .iter()
                .any(|s| s.vip.parse::<IpAddr>() == Ok(self.destination) && s.protocol == protocol)
        };
        let whole = self.l2_length + self.length <= frame.len();
        match (self.protocol, self.port) {
            _ if !is_vip(self.destination) => false,
            (Some(protocol), Some(port)) if whole && self.well_formed(frame) => {
                service_of(self.destination, port, protocol).is_some()
            }
            // What comes before the transport header is refused by address and protocol alone.
            (Some(protocol), _) if !self.v6 => served(protocol),
            _ => true,
        }
    }

    /// The type of an ICMP message to a VIP.
    fn icmp(&self, frame: &[u8]) -> Option<u8> {
        let protocol = if self.v6 { ICMPV6 } else { ICMP };
        let end = self.l2_length + self.length;
        (self.protocol == Some(protocol)
            && is_vip(self.destination)
            && self.well_formed(frame)
            && !self.later_fragment
            && self.transport + 8 <= end
            && end <= frame.len())
        .then(|| frame[self.transport])
    }

    /// The service whose packet an ICMP error to a VIP quotes.
    fn quoted(&self, frame: &[u8]) -> Option<&'static Service> {
        let kind = self.icmp(frame)?;
        let error = if self.v6 {
            matches!(kind, 1..=4)
        } else {
            matches!(kind, 3 | 11 | 12)
        };
        let end = self.l2_length + self.length;
        if !error || self.fragment {
            return None;
        }
        // Read as a frame of its own, whose destination is its source: then it is for the service that it came from.
        let mut quote = frame[..end].to_vec();
        quote.drain(ETHERNET..self.transport + 8);
        let family: u16 = if self.v6 { 0x86dd } else { 0x0800 };
        quote[12..ETHERNET].copy_from_slice(&family.to_be_bytes());
        let (source, size) = if self.v6 { (22, 16) } else { (26, 4) };
        if quote.len() < source + 2 * size {
            return None;
        }
        quote.copy_within(source..source + size, source + size);
        let whole = quote.len();
        let inner = look(&quote)?;
        if inner.destination != self.destination
            || !inner.well_formed(&quote)
            || inner.later_fragment
            || inner.transport + 8 > whole
        {
            return None;
        }
        let port = be16(&quote, inner.transport)? as u16;
        service_of(inner.destination, port, inner.protocol?)
    }

    fn well_formed(&self, frame: &[u8]) -> bool {
        let first = frame[self.l2_length];
        if self.v6 {
            first >> 4 == 6
        } else {
            first >> 4 == 4 && first & 0xf >= 5
        }
    }
}

fn judge(frame: &[u8], outcome: &Outcome) -> Result<()> {
    let seen = look(frame);
    let echo = seen.as_ref().is_some_and(|seen| {
        let request = if seen.v6 { 128 } else { 8 };
        seen.icmp(frame) == Some(request)
    });
    let quoted = seen.as_ref().and_then(|seen| seen.quoted(frame));
    let ours =
        echo || quoted.is_some() || seen.as_ref().is_some_and(|seen| seen.may_be_refused(frame));
    if !ours {
        ensure!(
            outcome.action == Action::Pass,
            "for nobody here, and yet not passed"
        );
    }
    let reason = outcome.reasons.first().map(|(reason, _)| *reason);
    if matches!(reason, Some(Reason::IcmpEcho | Reason::IcmpEchoOff)) {
        let seen = seen.as_ref().context("an echo, but no IP packet")?;
        let wanted = echo_of(&seen.destination.to_string());
        let wanted = (wanted == Echo::Reply, wanted == Echo::Drop);
        let got = (
            reason == Some(Reason::IcmpEcho),
            reason == Some(Reason::IcmpEchoOff),
        );
        ensure!(echo && wanted == got, "{reason:?}, but the VIP wants other");
        if reason == Some(Reason::IcmpEcho) {
            ensure!(outcome.action == Action::Tx && outcome.backends.is_empty());
            return answer(frame, seen, &outcome.bytes);
        }
    }
    if !outcome.forwarded() {
        ensure!(
            outcome.reasons.len() == 1 && outcome.reasons[0].1 == 1,
            "one packet, one reason"
        );
        ensure!(outcome.backends.is_empty(), "counted, but not forwarded");
        if outcome.reasons[0].0 != Reason::Egress {
            ensure!(outcome.bytes == frame, "changed, but not forwarded");
        }
        return Ok(());
    }
    let seen = seen.context("forwarded, but no IP packet")?;
    let end = seen.l2_length + seen.length;
    ensure!(end <= frame.len(), "forwarded, but not whole");
    let service = match (quoted, seen.protocol, seen.port) {
        (Some(service), _, _) => Some(service),
        (None, Some(protocol), Some(port)) => service_of(seen.destination, port, protocol),
        _ => None,
    };
    let service = service.context("forwarded, but for no service")?;
    ensure!(
        outcome.reasons.is_empty() && outcome.backends.len() == 1,
        "one packet, one backend"
    );
    let (id, counters) = outcome.backends[0];
    let backend = backend_of(id);
    ensure!(
        backend.service == service.number,
        "backend {id} is not of service {}",
        service.number
    );
    ensure!(
        counters.packets == 1 && counters.bytes == seen.length as u64,
        "counted {counters:?}"
    );
    let chosen = Chosen::of(backend.mode, &outcome.bytes);
    let mut expected = backend.outer(seen.v6, seen.length, seen.tos, chosen);
    expected.extend(&frame[seen.l2_length..]);
    ensure!(outcome.bytes == expected, "{expected:x?} expected");
    if let Some(header) = backend.mode.outer_ipv4() {
        ensure!(
            internet_checksum(&outcome.bytes[header]) == 0,
            "outer checksum"
        );
    }
    Ok(())
}

/// The answer to an echo request: both pairs of addresses swapped, type, TTL and checksums new, nothing else; and the checksums as
/// right as they were before.
fn answer(request: &[u8], seen: &Seen, answer: &[u8]) -> Result<()> {
    let ip = seen.l2_length;
    let (addresses, size, ttl) = if seen.v6 {
        (ip + 8, 16, ip + 7)
    } else {
        (ip + 12, 4, ip + 8)
    };
    let message = seen.transport;
    let end = ip + seen.length;
    ensure!(
        message == addresses + 2 * size,
        "an option, and yet answered"
    );
    ensure!(!seen.fragment, "a fragment, and yet answered");
    let mut expected = request.to_vec();
    for (at, size) in [(0, 6), (addresses, size)] {
        let (first, second) = expected[at..].split_at_mut(size);
        first.swap_with_slice(&mut second[..size]);
    }
    expected[message] = if seen.v6 { 129 } else { 0 };
    expected[ttl] = 64;
    let mut sums = vec![message + 2];
    if !seen.v6 {
        sums.push(ip + 10);
    }
    for at in sums {
        expected[at..at + 2].copy_from_slice(&answer[at..at + 2]);
    }
    ensure!(answer == expected, "{expected:x?} expected");
    // 0 and 0xffff are the same sum.
    let residue =
        |frame: &[u8], range: std::ops::Range<usize>| internet_checksum(&frame[range]) % 0xffff;
    if !seen.v6 {
        ensure!(
            residue(request, ip..message) == residue(answer, ip..message),
            "the IP header's checksum"
        );
    }
    ensure!(
        residue(request, message..end) == residue(answer, message..end),
        "the message's checksum"
    );
    Ok(())
}
