//! The data plane as the control plane sees it: a handful of operations, each of which is atomic for packets.
//!
//! Two implementations: [`kernel::KernelDataPlane`] (maps of the loaded XDP program) and [`memory::MemoryDataPlane`] (the same
//! data path over plain memory, for property tests). Does not own: which operations are needed, in what order (`plan`).

pub mod attach;
pub mod chores;
pub mod decap;
mod found;
pub mod grace;
pub mod kernel;
mod load;
mod mapped;
pub mod memory;
pub mod objects;
pub mod pins;
mod shared;
mod tables;

use anyhow::Result;
use lb_common::abi::{BackendCounters, Route, ServiceEntry};
use lb_common::event::Event;
use lb_common::reason::Reason;
use lb_common::slot::{Mode, SlotWord};
use lb_common::track::{Status, TableWord};

use crate::tracking::Tracking;

pub use found::{Found, FoundBackend, Who};
pub use load::Adoptable;
pub use pins::Pins;

/// One step of a plan. Whatever a slot names is written before it and cleared after it.
#[derive(Clone, Debug, PartialEq)]
pub enum Operation {
    /// Lets packets be redirected to this interface.
    AllowEgress { ifindex: u32 },
    /// Notes who the backend of this id is, for the daemon that comes next. Before its record.
    Describe { id: u32, who: Who },
    /// Writes a backend's whole record: puts the route in force.
    WriteBackend {
        id: u32,
        service: u32,
        status: Status,
        route: Route,
        table: TableWord,
    },
    /// Changes what a backend may be used for.
    SetStatus {
        id: u32,
        service: u32,
        status: Status,
    },
    /// Stores single slots of a range that nothing leads to yet: (index in the map, word). Those in LEARN begin to learn now.
    WriteSlots { slots: Vec<(u32, SlotWord)> },
    /// Gives the slots of a service, from `first`, new primaries, by the rules of [`crate::tracking::change`]. `came_back`: backends
    /// whose flows are to be learnt anew where they are the incumbent, because they were DOWN before this plan, say.
    ChangeSlots {
        service: u32,
        first: u32,
        primaries: Vec<u32>,
        tracking: Tracking,
        came_back: Vec<u32>,
    },
    /// Puts a whole new service table in force.
    SetServices { entries: Vec<ServiceEntry> },
    /// Waits until every packet that may have seen anything older has left the data path.
    Grace,
    /// Clears the flow entries of these backends, which are GONE; grace periods must stand before and after.
    Purge { ids: Vec<u32> },
    /// Clears the record of a backend that nothing names any more.
    ClearBackend { id: u32 },
}

impl Operation {
    /// Whether slots may learn afterwards: then the regular chores have something to do.
    pub fn unsettles(&self) -> bool {
        match self {
            Self::ChangeSlots { .. } => true,
            Self::WriteSlots { slots } => slots.iter().any(|(_, word)| word.mode() == Mode::Learn),
            _ => false,
        }
    }
}

/// Applies operations.
pub trait DataPlane {
    /// # Errors
    /// What the kernel said, with the operation. Operations before it stay applied.
    fn apply(&mut self, operation: &Operation) -> Result<()>;

    /// Packets, bytes and flows of one backend id since the maps were made, summed over CPUs; of id 0 those of all backends that
    /// were cleared.
    fn backend_counters(&self, id: u32) -> BackendCounters;

    /// Packets that were not forwarded, by reason.
    fn reason_counter(&self, reason: Reason) -> u64;

    /// How often this happened to packets since the maps were made, summed over CPUs.
    fn event_counter(&self, event: Event) -> u64;
}
