//! rtnetlink, reduced to the questions Sluice asks, with answers in its own words.
//!
//! Owns: sockets and message formats. Does not own: what the answers mean (`decide`).

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, anyhow};
use futures::channel::mpsc::UnboundedReceiver;
use futures::{Stream, StreamExt, TryStreamExt, pin_mut};
use rtnetlink::packet_core::{NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage};
use rtnetlink::packet_route::link::{
    InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage,
};
use rtnetlink::packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteMessage, RouteMetric, RouteType, RouteVia,
};
use rtnetlink::sys::{AsyncSocket, SocketAddr};
use rtnetlink::{Error, Handle, MulticastGroup, RouteMessageBuilder};
use tokio_util::task::AbortOnDropHandle;

use super::XdpTransmit;
use super::features::Features;

/// The kernel answers in microseconds; what takes longer than this will not come.
const PATIENCE: Duration = Duration::from_secs(5);
/// Room for bursts of events (a link with thousands of neighbours going down); an overrun costs a full refresh.
const EVENT_BUFFER: usize = 4 << 20;

/// An interface, as far as next hops depend on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    pub name: String,
    /// Administratively up.
    pub up: bool,
    /// The other end is there.
    pub carrier: bool,
    pub loopback: bool,
    pub mtu: u32,
    /// `None` when the interface is not Ethernet.
    pub mac: Option<[u8; 6]>,
    /// By the kind of link, until [`Kernel::links`] asked the kernel.
    pub xdp_transmit: XdpTransmit,
}

/// An entry of the neighbour table is named by interface and address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct NeighbourKey {
    pub ifindex: u32,
    pub address: IpAddr,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Neighbour {
    /// Known only while the entry is valid.
    pub mac: Option<[u8; 6]>,
    /// The kernel asked and nobody answered, and it has not been answered since.
    pub failed: bool,
    /// The entry works, but nothing has confirmed it lately.
    pub stale: bool,
}

/// The kernel's answer to "how would you send to this address?".
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Route {
    Found(Found),
    /// Why there is none, in words that follow the address: `no route to 10.0.0.1`.
    Refused(&'static str),
}

/// A route of any kind, local ones included.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    pub kind: RouteType,
    pub ifindex: u32,
    pub gateway: Option<IpAddr>,
    pub source: Option<IpAddr>,
    pub mtu: Option<u32>,
    /// The kernel would wrap the packet itself (MPLS, segment routing …).
    pub encapsulated: bool,
}

/// A connection for questions.
pub struct Kernel {
    handle: Handle,
    features: Option<Features>,
    _connection: AbortOnDropHandle<()>,
}

impl Kernel {
    /// Opens a netlink socket in the network namespace of the calling thread.
    pub fn open() -> anyhow::Result<Self> {
        let (connection, handle, _) =
            rtnetlink::new_connection().context("cannot open a netlink socket")?;
        Ok(Self {
            handle,
            features: Features::open(),
            _connection: AbortOnDropHandle::new(tokio::spawn(connection)),
        })
    }

    /// All interfaces, by index.
    pub async fn links(&self) -> anyhow::Result<HashMap<u32, Link>> {
        let dump = collect(self.handle.link().get().execute())
            .await
            .context("cannot list interfaces")?;
        let mut links: HashMap<u32, Link> = dump
            .iter()
            .map(|message| (message.header.index, link(message)))
            .collect();
        // Without an answer the kind of link has to do.
        let told = self.features.as_ref().map(Features::all);
        for (ifindex, xdp_transmit) in told.transpose().unwrap_or_default().unwrap_or_default() {
            if let Some(link) = links.get_mut(&ifindex) {
                link.xdp_transmit = xdp_transmit;
            }
        }
        Ok(links)
    }

    /// The whole neighbour table. One dump is cheaper than a question per address from a few dozen addresses on.
    pub async fn neighbours(&self) -> anyhow::Result<HashMap<NeighbourKey, Neighbour>> {
        let dump = collect(self.handle.neighbours().get().execute())
            .await
            .context("cannot list neighbours")?;
        Ok(dump.iter().filter_map(neighbour).collect())
    }

    /// Addresses of all interfaces, with the interface's index.
    pub async fn addresses(&self) -> anyhow::Result<Vec<(u32, IpAddr)>> {
        let dump = collect(self.handle.address().get().execute())
            .await
            .context("cannot list addresses")?;
        Ok(dump
            .iter()
            .filter_map(|message| Some((message.header.index, local_address(message)?)))
            .collect())
    }

    /// The route the kernel would take to `to`.
    pub async fn route(&self, to: IpAddr) -> anyhow::Result<Route> {
        let bits = if to.is_ipv4() { 32 } else { 128 };
        let question = RouteMessageBuilder::<IpAddr>::new()
            .destination_prefix(to, bits)
            .map_err(|e| anyhow!("cannot ask for the route to {to}: {e}"))?
            .build();
        match collect(self.handle.route().get(question).execute()).await {
            Ok(answers) => answers
                .first()
                .map(route)
                .ok_or_else(|| anyhow!("no answer for the route to {to}")),
            Err(Failure::Kernel(errno)) => Ok(Route::Refused(match errno {
                libc::EACCES => "a prohibit route forbids",
                libc::EINVAL => "a blackhole route swallows",
                libc::EHOSTUNREACH => "an unreachable route refuses",
                libc::ENETUNREACH | libc::ESRCH => "no route to",
                _ => "the kernel gives no route to",
            })),
            Err(failure) => {
                Err(anyhow::Error::new(failure)
                    .context(format!("cannot ask for the route to {to}")))
            }
        }
    }

    /// Makes the kernel resolve a neighbour that is unknown, and confirm one that is stale.
    ///
    /// `NTF_USE` means "as if a packet had just been sent through it": it works for ARP and neighbour discovery
    /// alike, changes nothing that is valid, and starts over where resolution had failed.
    pub async fn solicit(&self, key: NeighbourKey) -> Result<(), Failure> {
        let request = self
            .handle
            .neighbours()
            .add(key.ifindex, key.address)
            .state(NeighbourState::None)
            .flags(NeighbourFlags::Use)
            .replace();
        match tokio::time::timeout(PATIENCE, request.execute()).await {
            Ok(result) => result.map_err(Failure::from),
            Err(_) => Err(Failure::Silent),
        }
    }
}

/// Why the kernel did not answer a question.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    #[error("{}", std::io::Error::from_raw_os_error(*.0))]
    Kernel(i32),
    #[error("no answer from the kernel within {}s", PATIENCE.as_secs())]
    Silent,
    #[error("{0}")]
    Connection(Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        match error {
            Error::NetlinkError(message) => Self::Kernel(message.raw_code().abs()),
            other => Self::Connection(other),
        }
    }
}

async fn collect<T>(answers: impl Stream<Item = Result<T, Error>>) -> Result<Vec<T>, Failure> {
    pin_mut!(answers);
    match tokio::time::timeout(PATIENCE, answers.try_collect()).await {
        Ok(result) => result.map_err(Failure::from),
        Err(_) => Err(Failure::Silent),
    }
}

/// What happened to the network of this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    Neighbour(NeighbourKey, Option<Neighbour>),
    Link(u32, Option<Link>),
    /// A route or an address came or went.
    Routes,
    /// Events were lost: anything may have happened.
    Overrun,
}

/// A subscription to changes.
pub struct Changes {
    messages: UnboundedReceiver<(NetlinkMessage<RouteNetlinkMessage>, SocketAddr)>,
    /// The connection ends when nobody could send requests through it any more.
    _handle: Handle,
    _connection: AbortOnDropHandle<()>,
}

impl Changes {
    /// Subscribes in the network namespace of the calling thread.
    pub fn subscribe() -> anyhow::Result<Self> {
        let (mut connection, handle, messages) = rtnetlink::new_multicast_connection(&[
            MulticastGroup::Neigh,
            MulticastGroup::Link,
            MulticastGroup::Ipv4Route,
            MulticastGroup::Ipv6Route,
            MulticastGroup::Ipv4Ifaddr,
            MulticastGroup::Ipv6Ifaddr,
        ])
        .context("cannot subscribe to netlink events")?;
        // As much as net.core.rmem_max allows; less only means overruns come sooner.
        let _ = connection
            .socket_mut()
            .socket_mut()
            .set_rx_buf_sz(EVENT_BUFFER as u32);
        Ok(Self {
            messages,
            _handle: handle,
            _connection: AbortOnDropHandle::new(tokio::spawn(connection)),
        })
    }

    /// The next change that may matter; `None` when the socket is gone. Cancel-safe.
    pub async fn next(&mut self) -> Option<Change> {
        loop {
            let (message, _) = self.messages.next().await?;
            if let Some(change) = change(&message) {
                return Some(change);
            }
        }
    }
}

fn change(message: &NetlinkMessage<RouteNetlinkMessage>) -> Option<Change> {
    use RouteNetlinkMessage as Rt;
    let inner = match &message.payload {
        NetlinkPayload::InnerMessage(inner) => inner,
        NetlinkPayload::Overrun(_) => return Some(Change::Overrun),
        _ => return None,
    };
    Some(match inner {
        Rt::NewNeighbour(message) => {
            let (key, neighbour) = neighbour(message)?;
            Change::Neighbour(key, Some(neighbour))
        }
        Rt::DelNeighbour(message) => Change::Neighbour(neighbour(message)?.0, None),
        Rt::NewLink(message) => Change::Link(message.header.index, Some(link(message))),
        Rt::DelLink(message) => Change::Link(message.header.index, None),
        Rt::NewRoute(_) | Rt::DelRoute(_) | Rt::NewAddress(_) | Rt::DelAddress(_) => Change::Routes,
        _ => return None,
    })
}

fn link(message: &LinkMessage) -> Link {
    let flags = message.header.flags;
    let mut link = Link {
        name: format!("interface {}", message.header.index),
        up: flags.contains(LinkFlags::Up),
        carrier: flags.contains(LinkFlags::LowerUp),
        loopback: flags.contains(LinkFlags::Loopback),
        mtu: 0,
        mac: None,
        xdp_transmit: XdpTransmit::Unknown,
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::LinkInfo(infos) => link.xdp_transmit = by_kind(infos),
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            LinkAttribute::Address(mac)
                if message.header.link_layer_type == LinkLayerType::Ether =>
            {
                link.mac = mac.as_slice().try_into().ok();
            }
            _ => {}
        }
    }
    link
}

/// What a link's kind says of transmitting XDP frames: devices stacked on others cannot.
fn by_kind(infos: &[LinkInfo]) -> XdpTransmit {
    let stacked = infos.iter().any(|info| {
        matches!(
            info,
            LinkInfo::Kind(
                InfoKind::Bridge
                    | InfoKind::Vlan
                    | InfoKind::MacVlan
                    | InfoKind::MacVtap
                    | InfoKind::IpVlan
                    | InfoKind::Vxlan
                    | InfoKind::Dummy
            )
        )
    });
    if stacked {
        XdpTransmit::No
    } else {
        XdpTransmit::Unknown
    }
}

fn neighbour(message: &NeighbourMessage) -> Option<(NeighbourKey, Neighbour)> {
    let mut address = None;
    let mut mac = None;
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(ip)) => {
                address = Some(IpAddr::V4(*ip))
            }
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(ip)) => {
                address = Some(IpAddr::V6(*ip))
            }
            NeighbourAttribute::LinkLayerAddress(bytes) => mac = bytes.as_slice().try_into().ok(),
            _ => {}
        }
    }
    use NeighbourState as S;
    let state = message.header.state;
    let valid = matches!(
        state,
        S::Reachable | S::Stale | S::Delay | S::Probe | S::Permanent | S::Noarp
    );
    let neighbour = Neighbour {
        mac: mac.filter(|_| valid),
        failed: state == S::Failed,
        stale: state == S::Stale,
    };
    // Proxy entries and bridge entries carry no neighbour of ours.
    if message.header.flags.contains(NeighbourFlags::Proxy) {
        return None;
    }
    Some((
        NeighbourKey {
            ifindex: message.header.ifindex,
            address: address?,
        },
        neighbour,
    ))
}

fn local_address(message: &AddressMessage) -> Option<IpAddr> {
    let find =
        |pick: fn(&AddressAttribute) -> Option<IpAddr>| message.attributes.iter().find_map(pick);
    // On point-to-point interfaces `Address` is the peer's; `Local` is ours where both exist.
    find(|a| {
        if let AddressAttribute::Local(ip) = a {
            Some(*ip)
        } else {
            None
        }
    })
    .or_else(|| {
        find(|a| {
            if let AddressAttribute::Address(ip) = a {
                Some(*ip)
            } else {
                None
            }
        })
    })
}

fn route(message: &RouteMessage) -> Route {
    fn ip(address: &RouteAddress) -> Option<IpAddr> {
        match address {
            RouteAddress::Inet(ip) => Some(IpAddr::V4(*ip)),
            RouteAddress::Inet6(ip) => Some(IpAddr::V6(*ip)),
            _ => None,
        }
    }
    let (mut oif, mut gateway, mut source, mut mtu, mut encapsulated) =
        (0, None, None, None, false);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Oif(index) => oif = *index,
            RouteAttribute::Gateway(address) => gateway = ip(address),
            // An IPv4 route may go through an IPv6 gateway (RFC 5549): the neighbour is then the IPv6 one.
            RouteAttribute::Via(RouteVia::Inet(address)) => gateway = Some(IpAddr::V4(*address)),
            RouteAttribute::Via(RouteVia::Inet6(address)) => gateway = Some(IpAddr::V6(*address)),
            RouteAttribute::PrefSource(address) => source = ip(address),
            RouteAttribute::Metrics(metrics) => {
                mtu = metrics.iter().find_map(|m| {
                    if let RouteMetric::Mtu(mtu) = m {
                        Some(*mtu)
                    } else {
                        None
                    }
                });
            }
            RouteAttribute::EncapType(_) | RouteAttribute::Encap(_) => encapsulated = true,
            _ => {}
        }
    }
    Route::Found(Found {
        kind: message.header.kind,
        ifindex: oif,
        gateway: gateway.filter(|ip| !ip.is_unspecified()),
        source: source.filter(|ip| !ip.is_unspecified()),
        mtu: mtu.filter(|&mtu| mtu > 0),
        encapsulated,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stacked_links_transmit_no_xdp_frames() {
        for kind in [InfoKind::Bridge, InfoKind::Vlan, InfoKind::Dummy] {
            assert_eq!(by_kind(&[LinkInfo::Kind(kind)]), XdpTransmit::No);
        }
        for infos in [vec![], vec![LinkInfo::Kind(InfoKind::Veth)]] {
            assert_eq!(by_kind(&infos), XdpTransmit::Unknown);
        }
    }
}
