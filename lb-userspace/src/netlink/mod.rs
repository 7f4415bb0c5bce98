//! Next hops: which interface and which MAC lead to a backend, kept current through netlink.
//!
//! Owns: every conversation with rtnetlink. [`kernel`] speaks it, [`decide`] reads a next hop out of its answers
//! (pure), [`resolver`] keeps a set of addresses current, [`interface`] describes this host's interfaces.
//! Does not own: which addresses matter, or what a next hop looks like in the data plane.

use std::net::IpAddr;

pub mod decide;
mod ethtool;
pub mod interface;
pub mod kernel;
pub mod resolver;

pub use interface::{Interface, interface_addresses, interface_by_name};
pub use resolver::{NextHopsHandle, resolve_within, spawn, spawn_refreshing_every};

/// How packets for a backend's address leave this node.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct NextHop {
    pub ifindex: u32,
    /// Name of the egress interface, for people.
    pub interface: String,
    /// The egress interface's own MAC.
    pub source_mac: [u8; 6],
    /// MAC of the gateway, or of the backend itself when it is on the link.
    pub destination_mac: [u8; 6],
    /// MTU of the egress interface (or of the route, when smaller), bytes at layer 3.
    pub mtu: u32,
    /// The source address the kernel would choose towards it (same family as the backend).
    pub source: IpAddr,
    /// Whether the backend is on the link itself (no gateway): needed by `forward = "l2"`.
    pub on_link: bool,
}

/// What is known of the way to one address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NextHopState {
    Resolved(NextHop),
    /// Why not, in words for an operator, for example `no route to 10.0.0.11`, `10.0.0.1 on eth0 does not answer ARP`.
    Unresolved(String),
}

/// Sent when what is known of an address changes (and once for each newly watched address).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NextHopEvent {
    pub address: IpAddr,
    pub state: NextHopState,
}
