//! What crosses the control socket. The JSON of these types is the stable schema behind every `--json`.
//!
//! Owns: request and response shapes. Does not own: who answers (`daemon`) or how they look on a terminal (`cli`).

use std::fmt;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;
use utoipa::ToSchema;

use crate::model::{Admin, Affinity, Forward, Health, OnEmpty, Protocol, Tracking, XdpMode};

/// `GET /v1/status`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Status {
    pub version: String,
    pub pid: u32,
    pub uptime_seconds: u64,
    /// The configuration file in force.
    pub config: String,
    /// Seconds since the Unix epoch of the last successful load of the file.
    pub config_loaded_at: u64,
    /// Why the last reload was refused, if it was; the older state keeps running.
    pub config_error: Option<String>,
    /// True once the data path is programmed and attached: when every backend has a first verdict, or the wait for them is over.
    pub ready: bool,
    /// Why `ready` is false.
    pub not_ready: Vec<String>,
    pub interfaces: Vec<InterfaceStatus>,
    pub services: Vec<ServiceSummary>,
    pub tracking: TrackingStatus,
    /// Packets by verdict and reason since the maps were made, which a restart keeps; rows that are zero are left out.
    pub packets: Vec<ReasonCount>,
    pub capacity: Vec<CapacityUse>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct InterfaceStatus {
    pub name: String,
    pub ifindex: u32,
    pub asked: XdpMode,
    /// `native` or `generic`, as the kernel granted it; `None` when not attached.
    pub got: Option<XdpMode>,
    /// Why the mode is not the one asked for, or why it is not attached.
    pub note: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ReasonCount {
    /// `forward`, `pass`, `drop` …
    pub verdict: String,
    pub reason: String,
    pub packets: u64,
    pub help: String,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct CapacityUse {
    /// `services`, `backends`, `slots`
    pub what: String,
    pub used: u64,
    pub limit: u64,
}

/// How connections survive change just now.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct TrackingStatus {
    /// Slots of all services.
    pub slots: SlotModes,
    /// Remembered flows, as of the last sweep (every 4 s while there are any).
    pub entries: FlowEntries,
    /// Entries that the flow table has.
    pub capacity: u64,
    /// Openers that could not be pinned, since the maps were made.
    pub pins_failed: u64,
    /// Flows that could not be learnt, or were given up for others, since the maps were made.
    pub learning_lost: u64,
}

/// Slots of lookup tables by mode.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SlotModes {
    /// At rest: nothing is remembered.
    pub steady: u64,
    /// Flows are being remembered.
    pub learn: u64,
    /// Those that were remembered go on being followed.
    pub residue: u64,
}

/// Entries of the flow table by state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FlowEntries {
    pub syn: u64,
    pub learnt: u64,
    pub established: u64,
    pub closed: u64,
}

impl FlowEntries {
    pub const fn sum(&self) -> u64 {
        self.syn + self.learnt + self.established + self.closed
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ServiceSummary {
    pub name: String,
    /// `203.0.113.10:80`, `[2001:db8::1]:443`, `203.0.113.10:*`
    pub vip: String,
    pub protocol: Protocol,
    pub forward: Forward,
    /// Named apart in JSON: a service's detail has `backends` of its own, the list.
    #[serde(rename = "backend_count")]
    pub backends: u32,
    /// Backends that may get new flows now.
    pub eligible: u32,
    pub table_size: u32,
    pub slot_modes: SlotModes,
    pub packets: u64,
    pub bytes: u64,
    pub flows: u64,
    /// `file` or `runtime`: who declared it.
    pub origin: String,
}

/// `GET /v1/services/{name}`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ServiceDetail {
    #[serde(flatten)]
    pub summary: ServiceSummary,
    pub affinity: Affinity,
    /// Which flows are remembered.
    pub tracking: Tracking,
    /// Seconds that a remembered flow may be silent.
    pub flow_idle_seconds: f64,
    /// Seconds that a backend whose probes fail keeps its flows.
    pub grace_seconds: f64,
    /// Seconds after which a backend that is down or disabled is forgotten.
    pub hold_down_seconds: f64,
    /// Seconds that a backend which was removed keeps its flows.
    pub linger_seconds: f64,
    pub on_empty: OnEmpty,
    /// One line, for example `http GET /healthz port 8080 every 2s, timeout 1s, rise 2, fall 3`.
    pub health: String,
    /// Hex digest of the lookup table: equal on two nodes ⇔ same slots. `None` when the table is empty.
    pub table_digest: Option<String>,
    pub backends: Vec<BackendDetail>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct BackendDetail {
    pub service: String,
    #[schema(value_type = String, example = "10.0.0.11")]
    pub address: IpAddr,
    /// Whose place in the lookup table it has; `None`: its own.
    #[serde(default)]
    #[schema(value_type = Option<String>, example = "10.0.0.12")]
    pub replaces: Option<IpAddr>,
    /// The id in the data plane; unique per (service, backend).
    pub id: u32,
    pub weight: u32,
    pub admin: BackendAdmin,
    /// Reason given with the last drain, disable or activate.
    pub admin_reason: Option<String>,
    /// Who asked for it (user name or uid) and when (seconds since the Unix epoch).
    pub admin_by: Option<String>,
    pub admin_at: Option<u64>,
    /// Of a drain that ends by itself: when.
    pub drain: Option<DrainStatus>,
    /// Of a removed one: after how many seconds its flows are forgotten.
    pub forgotten_in_seconds: Option<u64>,
    pub health: Health,
    /// What the last probe said, for example `connection refused`, `HTTP 503`.
    pub health_reason: Option<String>,
    /// Seconds since the health last flipped.
    pub health_since_seconds: Option<u64>,
    /// May get new flows now.
    pub eligible: bool,
    /// Why it may not, for example `probes fail: connection refused`, `next hop unknown: no route to 10.0.0.11`.
    pub not_eligible: Option<String>,
    /// `eth0 via 02:00:00:00:00:01, mtu 1500`
    pub next_hop: Option<String>,
    /// Slots of the lookup table that name it.
    pub slots: u32,
    /// Flows of it that are remembered, as of the last sweep; ended ones not counted. Flows of slots at rest are not remembered.
    pub flows_remembered: u64,
    /// Slots that send new or unknown flows to it. Once a backend that drains has none, `flows_remembered` are all it has left;
    /// until then it has at least so many.
    pub slots_unlearnt: u64,
    pub packets: u64,
    pub bytes: u64,
    pub flows: u64,
    /// `file` or `runtime`.
    pub origin: String,
}

/// What the operator wants of one backend, those included that he removed and whose flows linger.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum BackendAdmin {
    Active,
    /// Gets no new flows.
    Draining,
    /// Gets no packets.
    Disabled,
    /// Gets no new flows, and is forgotten soon.
    Removed,
}

impl From<Admin> for BackendAdmin {
    fn from(admin: Admin) -> Self {
        match admin {
            Admin::Active => Self::Active,
            Admin::Draining => Self::Draining,
            Admin::Disabled => Self::Disabled,
        }
    }
}

impl PartialEq<Admin> for BackendAdmin {
    fn eq(&self, admin: &Admin) -> bool {
        *self == Self::from(*admin)
    }
}

impl fmt::Display for BackendAdmin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Active => "active",
            Self::Draining => "draining",
            Self::Disabled => "disabled",
            Self::Removed => "removed",
        })
    }
}

/// When a drain ends by itself: the backend is disabled then. Whichever comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DrainStatus {
    /// When no flow is left.
    pub until_empty: bool,
    /// This long after it was asked for …
    pub timeout_seconds: Option<u64>,
    /// … that is in so many seconds.
    pub ends_in_seconds: Option<u64>,
}

/// `POST /v1/services`. The same keys and values as a `[[service]]` of sluice.toml.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ServiceAdd {
    /// A `[[service]]` table as JSON.
    #[schema(value_type = Object)]
    pub service: serde_json::Value,
}

/// `POST /v1/services/{name}/backends`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct BackendAdd {
    #[schema(value_type = String, example = "10.0.0.11")]
    pub address: IpAddr,
    /// Default: 1, or that of the backend it replaces.
    #[serde(default)]
    pub weight: Option<u32>,
    /// A backend of the service whose place in the lookup table it takes, and which is removed thereby.
    #[serde(default)]
    #[schema(value_type = Option<String>, example = "10.0.0.12")]
    pub replaces: Option<IpAddr>,
}

/// `PUT /v1/services/{name}/backends/{address}/admin`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AdminChange {
    pub admin: Admin,
    #[serde(default)]
    pub reason: Option<String>,
    /// With `draining`: when the drain ends by itself. Without it, a drain that is in force goes on as it is.
    #[serde(default)]
    pub drain: Option<DrainUntil>,
}

/// When a drain ends by itself, and the backend is disabled; at least one of the two, whichever comes first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DrainUntil {
    /// When no flow is left.
    #[serde(default)]
    pub until_empty: bool,
    /// This long after now: a second to a year.
    #[serde(default)]
    pub timeout_seconds: Option<u64>,
}

/// `PUT /v1/services/{name}/backends/{address}/weight`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct WeightChange {
    pub weight: u32,
}

/// What a change did.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Changed {
    /// One sentence for a person, for example `backend 10.0.0.11 of web is draining`.
    pub message: String,
    /// False when everything already was as asked.
    pub changed: bool,
    /// Slots whose backend changed.
    pub slots_moved: u64,
    /// Of these, slots that moved although neither their old nor their new backend changed (Maglev's excess).
    pub slots_moved_in_excess: u64,
}

/// What `sluice backend drain --json` prints after it has waited; no route answers with it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Drained {
    /// Of the request; `message` says how the drain ended.
    #[serde(flatten)]
    pub changed: Changed,
    /// The backend as it was when the drain had ended.
    pub backend: BackendDetail,
}

/// `GET /v1/overlay`: in what the state that holds differs from the configuration file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct OverlayDiff {
    /// The configuration file.
    pub config: String,
    /// Where run-time changes are kept.
    pub store: String,
    pub differences: Vec<Difference>,
}

/// One thing that was changed at run time.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Difference {
    pub kind: DifferenceKind,
    pub service: String,
    #[schema(value_type = Option<String>, example = "10.0.0.11")]
    pub backend: Option<IpAddr>,
    /// What the file says, for example `weight 1`; `None`: nothing.
    pub file: Option<String>,
    /// What holds, for example `weight 3`, `draining`, `draining until empty, for 10m at most`; `None`: it is gone.
    pub now: Option<String>,
    pub reason: Option<String>,
    /// Who asked for it (user name or uid) and when (seconds since the Unix epoch).
    pub by: Option<String>,
    pub at: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum DifferenceKind {
    ServiceAdded,
    ServiceRemoved,
    BackendAdded,
    BackendRemoved,
    /// Whose place in the lookup table a backend has.
    Place,
    Weight,
    /// Draining or disabled. No key of the file says that, so `sluice save` leaves it out.
    Admin,
}

/// `DELETE /v1/overlay`: what was dropped.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct OverlayReset {
    #[serde(flatten)]
    pub changed: Changed,
    pub dropped: Vec<Difference>,
}

/// Body of every answer with a status of 400 or above.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ErrorBody {
    /// Names the thing, the place and the way out.
    pub error: String,
}

/// Why a request was refused.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum ApiError {
    /// 404
    #[error("{0}")]
    NotFound(String),
    /// 409
    #[error("{0}")]
    Conflict(String),
    /// 422
    #[error("{0}")]
    Invalid(String),
    /// 500: asked for rightly, could not be done; the older state keeps running.
    #[error("{0}")]
    Failed(String),
}

/// Who asks, from the socket's peer credentials.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Caller {
    pub uid: u32,
    pub user: String,
}

/// What the control socket asks of the daemon's owner loop. Each carries where its answer goes.
#[derive(Debug)]
pub enum Command {
    Status(Reply<Status>),
    Services(Reply<Vec<ServiceSummary>>),
    Service {
        name: String,
        reply: Reply<ServiceDetail>,
    },
    ServiceAdd {
        caller: Caller,
        add: ServiceAdd,
        reply: Reply<Changed>,
    },
    ServiceRemove {
        caller: Caller,
        name: String,
        reply: Reply<Changed>,
    },
    /// All backends, or those of one service.
    Backends {
        service: Option<String>,
        reply: Reply<Vec<BackendDetail>>,
    },
    BackendAdd {
        caller: Caller,
        service: String,
        add: BackendAdd,
        reply: Reply<Changed>,
    },
    BackendRemove {
        caller: Caller,
        service: String,
        address: IpAddr,
        reply: Reply<Changed>,
    },
    BackendAdmin {
        caller: Caller,
        service: String,
        address: IpAddr,
        change: AdminChange,
        reply: Reply<Changed>,
    },
    BackendWeight {
        caller: Caller,
        service: String,
        address: IpAddr,
        change: WeightChange,
        reply: Reply<Changed>,
    },
    Overlay(Reply<OverlayDiff>),
    OverlayReset {
        caller: Caller,
        reply: Reply<OverlayReset>,
    },
    /// The merged file, as TOML.
    Config(Reply<String>),
    Reload(Reply<Changed>),
    /// Takes the data path down and ends the daemon.
    Detach(Reply<Changed>),
}

/// Where the answer to a [`Command`] goes.
pub type Reply<T> = oneshot::Sender<Result<T, ApiError>>;
