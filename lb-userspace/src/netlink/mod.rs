//! Next hops: which interface and which MAC lead to a backend, kept current through netlink.
//!
//! Owns: every conversation with netlink. [`kernel`] speaks rtnetlink, `features` asks who transmits XDP frames, [`decide`] reads a next hop out of its answers
//! (pure), [`resolver`] keeps a set of addresses current, [`interface`] describes this host's interfaces.
//! Does not own: which addresses matter, or what a next hop looks like in the data plane.

use std::net::IpAddr;

pub mod decide;
mod ethtool;
mod features;
pub mod interface;
pub mod kernel;
pub mod resolver;

pub use interface::{Interface, interface_addresses, interface_by_name};
pub use resolver::{NextHopsHandle, resolve_within, spawn, spawn_refreshing_every};

/// Whether an interface can transmit frames that an XDP program on another one redirects to it, natively. What it cannot
/// transmit is lost without a trace, and counted as forwarded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum XdpTransmit {
    Yes,
    /// Only while an XDP program is attached to it (of a veth pair: to its other end).
    WithProgram,
    /// Its driver cannot, whatever is attached: bridges, VLAN devices and the like.
    No,
    /// The kernel does not tell (before 6.3), and the kind of link says nothing against it.
    #[default]
    Unknown,
}

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
    pub xdp_transmit: XdpTransmit,
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
