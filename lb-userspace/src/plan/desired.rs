//! What the data plane should hold: a plan's input.

use std::net::IpAddr;

use lb_common::abi::Route;
use lb_common::service::Echo;
use lb_common::track::Status;

use crate::model::{Affinity, OnEmpty, ServiceKey, TableSize};
use crate::tracking::Tracking;

/// A service as the data plane should hold it.
#[derive(Clone, Debug)]
pub struct DesiredService {
    pub key: ServiceKey,
    pub affinity: Affinity,
    pub tracking: Tracking,
    /// How long flows may be silent: [`idle_units`].
    pub flow_idle: u16,
    pub table_size: TableSize,
    pub on_empty: OnEmpty,
    /// What happens to echo requests to its VIP; the same for all services.
    pub echo: Echo,
    pub backends: Vec<DesiredBackend>,
}

#[derive(Clone, Debug)]
pub struct DesiredBackend {
    pub address: IpAddr,
    /// What the table is made from; among those that may be in it, each has another.
    pub identity: IpAddr,
    pub weight: u32,
    /// May get new flows.
    pub eligible: bool,
    /// What its flows may still use it for.
    pub status: Status,
    /// Would be eligible if it were not for its probes, which fail.
    pub only_down: bool,
    /// May stay in the table when nobody is eligible (`on_empty = "keep"`).
    pub may_keep: bool,
    /// No longer part of the service: there as long as it is installed.
    pub lingers: bool,
    /// `None`: not known now; what is installed stays.
    pub route: Option<Route>,
}
