//! Where a packet goes. Read it top to bottom.
//!
//! ```text
//! parse ─▶ service ─▶ slot ─▶ backend ─▶ size check ─▶ encapsulate ─▶ transmit ─▶ count
//! ```
//! An ICMP error goes the way of the packet that it quotes; an echo request is answered at once (`icmp`).
//!
//! The service is looked up before anything is refused: traffic that is not ours always passes untouched.

use crate::abi::{Backend, Node, Route, ServiceBucket, control};
use crate::address::Address;
use crate::encap::encapsulate;
use crate::hash;
use crate::icmp;
use crate::packet::Frame;
use crate::parse::{Packet, Parsed, Refusal, destination_port, parse};
use crate::reason::Reason;
use crate::service::{Directory, Service, ServiceTuple, VipNote, find};
use crate::slot::{Mode, SlotWord};
use crate::track::{self, FlowMemory, Head, Kind, Place};

/// What the daemon has programmed, as one CPU reads it.
pub trait Tables: FlowMemory {
    fn node(&self) -> Node;
    /// One load of a word of the map `CONTROL`.
    fn control(&self, index: u32) -> Option<u64>;
    fn service_bucket(&self, index: u32) -> Option<&ServiceBucket>;
    /// One load of one slot.
    fn slot(&self, index: u32) -> Option<SlotWord>;
    fn backend(&self, id: u32) -> Option<&Backend>;
    /// [`track::choose`], which the kernel has as a function of its own: its verifier then looks at it once, not at each way there.
    #[inline(always)]
    fn track(&self, place: &Place, kind: Kind) -> Result<u32, Reason>
    where
        Self: Sized,
    {
        track::choose(self, place, kind)
    }
    /// Counts a packet for its backend, once it is sure to be transmitted.
    fn count(&self, forwarded: &Forwarded);
}

/// What to do with the frame. After `Forward` it carries its outer header; otherwise it is as it came, but for the reasons
/// `headroom` and `egress`, whose frames are dropped, and `icmp-echo`, when it is the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Forward(Forwarded),
    /// Pass, drop or send back, as the reason says.
    Refuse(Reason),
}

/// A packet on its way to a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Forwarded {
    /// The interface to transmit through.
    pub ifindex: u32,
    pub backend: u32,
    /// Of the client's IP packet.
    pub bytes: u32,
    /// It opens a flow.
    pub opener: bool,
}

/// Decides on one frame, and encapsulates it when it is to be forwarded.
#[inline(always)]
pub fn process<F: Frame, T: Tables>(frame: &mut F, tables: &T) -> Verdict {
    let packet = match parse(frame) {
        Parsed::Packet(packet) => packet,
        Parsed::Icmp(icmp) => {
            let Some(note) = vip(tables, icmp.network.destination) else {
                return Verdict::Refuse(Reason::NotOurs);
            };
            match icmp::follow(frame, &icmp, note.echo()) {
                Ok(packet) => packet,
                Err(reason) => return Verdict::Refuse(reason),
            }
        }
        Parsed::Other(reason) => return Verdict::Refuse(reason),
        Parsed::Refused(refusal) => return Verdict::Refuse(refused(tables, &refusal)),
    };
    // One way for both: the kernel's verifier looks at it once.
    match forward(frame, tables, &packet) {
        Ok(forwarded) => Verdict::Forward(forwarded),
        Err(reason) => Verdict::Refuse(reason),
    }
}

/// A whole TCP or UDP packet, or an ICMP error about one.
#[inline(always)]
fn forward<F: Frame, T: Tables>(
    frame: &mut F,
    tables: &T,
    packet: &Packet,
) -> Result<Forwarded, Reason> {
    let node = tables.node();
    let flow = &packet.flow;
    let service = service(
        tables,
        &node,
        flow.destination,
        destination_port(flow.ports),
        flow.protocol,
    )
    .map_err(|reason| match (reason, packet.kind) {
        // Its destination is a VIP, that much is known.
        (Reason::NotOurs, Kind::Icmp) => Reason::IcmpToVip,
        _ => reason,
    })?;
    if service.slots == 0 {
        return Err(Reason::NoBackend);
    }
    let hash = if service.client_affinity {
        hash::client(&node.hash_keys, flow)
    } else {
        hash::five_tuple(&node.hash_keys, flow)
    };
    let index = service
        .first_slot
        .wrapping_add(hash::slot(hash, service.slots));
    let word = tables.slot(index).ok_or(Reason::ServiceTable)?;
    let id = if word.mode() == Mode::Steady {
        word.primary()
    } else {
        let place = Place {
            hash,
            service: service.number,
            flow_idle: service.flow_idle,
            slot: index,
            word,
        };
        // A client's entry stands for all of its connections: one that opens or ends says nothing of the others.
        let kind = match packet.kind {
            Kind::Open | Kind::End if service.client_affinity => Kind::Other,
            kind => kind,
        };
        tables.track(&place, kind)?
    };
    let (backend, route) = backend(tables, id, service.number)?;
    encapsulate(frame, packet, route, hash as u32)?;
    Ok(Forwarded {
        ifindex: route.ifindex,
        backend,
        bytes: packet.length,
        opener: packet.kind == Kind::Open,
    })
}

/// The service of (address, port, protocol), else of (address, every port, protocol).
#[inline(always)]
fn service<T: Tables>(
    tables: &T,
    node: &Node,
    address: Address,
    port: u16,
    protocol: u8,
) -> Result<Service, Reason> {
    // Read once: both look-ups see the same half.
    let directory = Directory(
        tables
            .control(control::SERVICE_TABLE)
            .ok_or(Reason::ServiceTable)?,
    );
    for port in [port, 0] {
        let tuple = ServiceTuple {
            address,
            port,
            protocol,
        };
        let bucket = tables
            .service_bucket(directory.bucket(node, &tuple))
            .ok_or(Reason::ServiceTable)?;
        if let Some(entry) = find(bucket, &tuple) {
            return Ok(entry.into());
        }
    }
    Err(Reason::NotOurs)
}

/// The backend that a slot names, and its route in force.
#[inline(always)]
fn backend<T: Tables>(tables: &T, id: u32, service: u32) -> Result<(u32, &Route), Reason> {
    if id == 0 {
        return Err(Reason::NoBackend);
    }
    let backend = tables.backend(id).ok_or(Reason::BackendGone)?;
    // SAFETY: a reference is a valid pointer. Volatile: one load; the daemon may store this word at any time.
    let head = Head(unsafe { (&raw const backend.head).read_volatile() });
    if head.service() != service {
        return Err(Reason::BackendGone);
    }
    let [first, second] = &backend.routes;
    Ok((id, if head.route() == 0 { first } else { second }))
}

/// A packet that cannot be forwarded: dropped if it is for a service of ours, else none of our business.
#[inline(always)]
fn refused<T: Tables>(tables: &T, refusal: &Refusal) -> Reason {
    let ours = match (refusal.protocol, refusal.port) {
        (Some(protocol), Some(port)) => {
            service(tables, &tables.node(), refusal.destination, port, protocol).is_ok()
        }
        // Without a port, the whole VIP is taken for the service; without a protocol, any of its protocols.
        (Some(protocol), None) => {
            vip(tables, refusal.destination).is_some_and(|note| note.serves(protocol))
        }
        (None, _) => vip(tables, refusal.destination).is_some(),
    };
    if ours {
        refusal.reason
    } else {
        Reason::NotOurs
    }
}

/// What is noted of this address; `None`: it is no VIP.
#[inline(always)]
fn vip<T: Tables>(tables: &T, address: Address) -> Option<VipNote> {
    let directory = Directory(tables.control(control::SERVICE_TABLE)?);
    let tuple = ServiceTuple::vip(address);
    let bucket = tables.service_bucket(directory.bucket(&tables.node(), &tuple))?;
    find(bucket, &tuple).map(|entry| VipNote(entry.table))
}
