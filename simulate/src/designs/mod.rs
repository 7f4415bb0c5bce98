//! The designs that are compared.

mod lru;
mod memory;
mod sluice;
mod stateless;

use lb_common::track::{Kind, Status};
use lb_userspace::model::{FlowTimes, Protocol, Tracking};
use lb_userspace::tracking::{MARGIN, SECOND};

use crate::control::Pool;
use crate::outcome::{Break, Cause};
use crate::scenario::Scenario;

/// One balancer of some design.
pub trait Balancer {
    /// Where a packet goes; none: it is dropped.
    fn packet(&mut self, hash: u64, kind: Kind, now: u64) -> Option<u32>;
    /// The backends' statuses or the lookup table changed.
    fn change(&mut self, pool: &Pool, now: u64);
    /// Every [`CHORES`].
    fn chores(&mut self, _now: u64) {}
    fn entries(&self) -> u64;
}

/// Between two sweeps, as in the daemon.
pub const CHORES: u64 = 4 * SECOND;

/// How long a TCP flow may be silent.
const FLOW_IDLE: u64 = FlowTimes::usual(Protocol::Tcp).flow_idle.as_secs() * SECOND;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Design {
    /// The table decides about every packet.
    Stateless,
    /// An entry for every flow, in a bounded LRU of each CPU; openers do not look it up.
    Lru,
    Adaptive,
    Always,
}

impl Design {
    pub const ALL: [Self; 4] = [Self::Stateless, Self::Lru, Self::Adaptive, Self::Always];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Stateless => "stateless",
            Self::Lru => "per-cpu-lru",
            Self::Adaptive => "adaptive",
            Self::Always => "always",
        }
    }

    pub const fn entry_bytes(self) -> u64 {
        match self {
            Self::Stateless => 0,
            // Katran's, as issues and its documents have it: key, value, and the kernel's links of hash and LRU.
            Self::Lru => 120,
            Self::Adaptive | Self::Always => size_of::<lb_common::flow::FlowEntry>() as u64,
        }
    }

    pub fn balancer(self, scenario: &Scenario, pool: &Pool, now: u64) -> Box<dyn Balancer> {
        match self {
            Self::Stateless => Box::new(stateless::Stateless::new(pool)),
            Self::Lru => Box::new(lru::PerCpuLru::new(&scenario.memory, pool)),
            Self::Adaptive => Self::sluice(scenario, pool, now, Tracking::Adaptive),
            Self::Always => Self::sluice(scenario, pool, now, Tracking::Always),
        }
    }

    fn sluice(scenario: &Scenario, pool: &Pool, now: u64, tracking: Tracking) -> Box<dyn Balancer> {
        let entries = scenario.memory.entries;
        Box::new(sluice::Sluice::new(entries, tracking, pool, now))
    }

    /// Why a connection broke.
    pub const fn cause(self, at: &Break) -> Cause {
        match (at.status, self) {
            (Status::Gone, _) => Cause::BackendGone,
            (Status::Down, _) => Cause::BackendDown,
            // All balancers have the same table: which of them it was makes no difference.
            (_, Self::Stateless) => Cause::TableChanged,
            _ if at.other_balancer => Cause::OtherBalancer,
            (_, Self::Lru) => Cause::Evicted,
            _ if at.idle >= FLOW_IDLE - MARGIN => Cause::Idle,
            _ => Cause::Unexplained,
        }
    }
}
