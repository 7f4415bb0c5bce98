//! The vocabulary of the control plane: what an operator wants, in resolved form.
//!
//! Owns: the types that configuration, state, API and planner share. Does not own: how they are read (`config`),
//! how they change (`state`), or what the kernel sees of them (`lb_common::abi`).

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use lb_common::service::Echo;
use serde::{Deserialize, Serialize};

/// Transport protocol of a service.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    Hash,
    PartialOrd,
    Ord,
    Serialize,
    Deserialize,
    utoipa::ToSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    Tcp,
    Udp,
}

impl Protocol {
    /// The IANA protocol number, as it stands in an IP header.
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

/// What a service answers for: VIP, port (0 = every port) and protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServiceKey {
    pub vip: IpAddr,
    pub port: u16,
    pub protocol: Protocol,
}

impl fmt::Display for ServiceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.vip {
            IpAddr::V4(ip) => write!(f, "{ip}:")?,
            IpAddr::V6(ip) => write!(f, "[{ip}]:")?,
        }
        match self.port {
            0 => write!(f, "*/{}", self.protocol),
            port => write!(f, "{port}/{}", self.protocol),
        }
    }
}

/// How a packet travels from the balancer to a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Forward {
    /// IP in IP: 4in4, 6in4, 4in6 or 6in6, by the families of client and backend.
    Ipip,
    /// The same outer IP header, then UDP and GUE: routers and network cards spread it by its ports.
    Gue,
    /// Only the Ethernet addresses are rewritten; the backend shares a link with the balancer.
    L2,
}

/// What the hash is taken over.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema,
)]
pub enum Affinity {
    #[default]
    #[serde(rename = "5-tuple")]
    FiveTuple,
    #[serde(rename = "client-ip")]
    ClientIp,
}

/// Which flows of a service are remembered.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Tracking {
    /// Those that a change could break.
    #[default]
    Adaptive,
    /// All: every slot learns, with I = P when nothing changes.
    Always,
    /// None: a changed slot breaks its flows. Coming back from here, a whole sweep must have cleared the service's entries after
    /// its slots were STEADY: an entry that was ignored meanwhile may name a backend its flow has left.
    Off,
}

/// How long what is known of a service's flows and backends holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FlowTimes {
    /// A remembered flow may be silent for so long.
    pub flow_idle: Duration,
    /// G: a backend whose probes fail keeps its flows for so long.
    pub grace: Duration,
    /// D: a backend that is down or disabled is forgotten, and its flows with it, after so long.
    pub hold_down: Duration,
    /// A backend that was removed keeps its flows for so long.
    pub linger: Duration,
}

impl FlowTimes {
    /// What holds where nothing is said. Silence: 2 h 4 min for TCP (RFC 5382 REQ-5), five minutes for UDP (RFC 4787 REQ-5).
    pub const fn usual(protocol: Protocol) -> Self {
        let (flow_idle, grace) = match protocol {
            Protocol::Tcp => (7_440, 30),
            Protocol::Udp => (300, 0),
        };
        Self {
            flow_idle: Duration::from_secs(flow_idle),
            grace: Duration::from_secs(grace),
            hold_down: Duration::from_secs(600),
            linger: Duration::from_secs(60),
        }
    }
}

/// What happens to a service when no backend is eligible any more.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum OnEmpty {
    /// Health is ignored: a failing prober must not take a service down.
    #[default]
    Keep,
    /// Packets are dropped, reason `no-backend`.
    Drop,
}

/// Number of slots of a service's lookup table; always a prime.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum TableSize {
    /// The smallest offered size that is at least 200 × backends when the service is created.
    #[default]
    Auto,
    Fixed(u32),
}

impl TableSize {
    /// The sizes offered (primes).
    pub const OFFERED: [u32; 4] = [1_021, 4_093, 16_381, 65_537];

    /// The table size for a service created with `backends` backends.
    pub fn resolve(self, backends: usize) -> u32 {
        match self {
            Self::Fixed(size) => size,
            Self::Auto => Self::OFFERED
                .into_iter()
                .find(|&size| size as usize >= backends.saturating_mul(200))
                .unwrap_or(Self::OFFERED[3]),
        }
    }
}

/// What a probe does.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum ProbeKind {
    /// No probing: a backend counts as up.
    None,
    /// A TCP handshake.
    Tcp,
    /// An HTTP/1.1 GET; up when the status is in `expect`.
    Http {
        /// Request target, for example `/healthz`.
        path: String,
        /// `Host` header; default: the backend's address and port.
        host: Option<String>,
        /// Lowest and highest accepted status, both included; default 200..=399.
        expect: (u16, u16),
    },
}

/// How the backends of a service are probed.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct HealthSpec {
    pub kind: ProbeKind,
    /// Port to probe; 0 = the service's port.
    pub port: u16,
    pub interval: Duration,
    pub timeout: Duration,
    /// Successes in a row that bring a backend up.
    pub rise: u32,
    /// Failures in a row that take a backend down.
    pub fall: u32,
}

impl Default for HealthSpec {
    fn default() -> Self {
        Self {
            kind: ProbeKind::Tcp,
            port: 0,
            interval: Duration::from_secs(2),
            timeout: Duration::from_secs(1),
            rise: 2,
            fall: 3,
        }
    }
}

/// One destination of a service.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct BackendSpec {
    pub address: IpAddr,
    /// Share of new flows relative to the other backends; 0 = none.
    pub weight: u32,
    /// Whose place in the lookup table it has; `None`: its own.
    pub replaces: Option<IpAddr>,
}

impl BackendSpec {
    /// What the lookup table is made from. Unique within the service.
    pub fn identity(&self) -> IpAddr {
        self.replaces.unwrap_or(self.address)
    }

    pub const MAX_WEIGHT: u32 = 1_000;
}

/// A service as the operator wants it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceSpec {
    pub name: String,
    pub key: ServiceKey,
    pub forward: Forward,
    pub affinity: Affinity,
    pub tracking: Tracking,
    pub times: FlowTimes,
    pub table_size: TableSize,
    pub on_empty: OnEmpty,
    pub health: HealthSpec,
    /// Unique by address, and by identity.
    pub backends: Vec<BackendSpec>,
}

/// Which XDP mode is asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum XdpMode {
    /// Native where the driver can, else generic; `status` shows which.
    #[default]
    Auto,
    Native,
    Generic,
}

/// Map sizes, fixed while attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    pub services: u32,
    /// Service × backend.
    pub backends: u32,
    /// Slots of all lookup tables together.
    pub slots: u32,
    /// Entries of the flow table.
    pub flows: u32,
}

impl Default for Capacity {
    fn default() -> Self {
        Self {
            services: 1_024,
            backends: 16_384,
            slots: 4_194_304,
            flows: 1_048_576,
        }
    }
}

/// The node's own settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeSpec {
    /// Interfaces that carry VIP traffic; at least one.
    pub interfaces: Vec<String>,
    pub xdp_mode: XdpMode,
    /// Outer source addresses, at most one per family; default: from the egress interface.
    pub source: Vec<IpAddr>,
    /// Same on every balancer of a fleet; `None`: made at first start, kept in the state directory.
    pub hash_seed: Option<String>,
    /// Directory in bpffs below which everything is pinned.
    pub pin: PathBuf,
    /// Directory for what must survive a restart.
    pub state: PathBuf,
    /// What happens to ICMP echo requests to a VIP.
    pub icmp_echo: Echo,
}

/// A whole, checked `sluice.toml`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    pub node: NodeSpec,
    pub capacity: Capacity,
    /// The control socket.
    pub socket: PathBuf,
    /// Where `/metrics`, `/healthz` and `/readyz` are served; `None`: nowhere.
    pub metrics_listen: Option<std::net::SocketAddr>,
    /// Unique by name and by key.
    pub services: Vec<ServiceSpec>,
}

/// What the operator wants of one backend.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Admin {
    #[default]
    Active,
    /// Gets no new flows.
    Draining,
    /// Gets no packets.
    Disabled,
}

/// What probes say of one backend.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Health {
    /// Not probed yet.
    #[default]
    Unknown,
    Up,
    Down,
}

macro_rules! display_lowercase {
    ($($t:ty),*) => {$(
        impl fmt::Display for $t {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&format!("{self:?}").to_lowercase())
            }
        }
    )*};
}
display_lowercase!(Admin, Health, Forward, OnEmpty, Tracking, XdpMode);

impl fmt::Display for Affinity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::FiveTuple => "5-tuple",
            Self::ClientIp => "client-ip",
        })
    }
}
