//! The data plane as the control plane sees it: a handful of operations, each of which is atomic for packets.
//!
//! Two implementations: [`kernel::KernelDataPlane`] (maps of the loaded XDP program) and [`memory::MemoryDataPlane`] (the same
//! data path over plain memory, for property tests). Does not own: which operations are needed, in what order (`plan`).

pub mod attach;
pub mod decap;
pub mod grace;
pub mod kernel;
mod mapped;
pub mod memory;
pub mod objects;

use std::path::{Path, PathBuf};

use anyhow::Result;
use lb_common::abi::{BackendCounters, Route, ServiceEntry};
use lb_common::reason::Reason;
use lb_common::slot::SlotWord;
use lb_common::track::{Status, TableWord};

pub use attach::detach;

/// One step of a plan. Whatever a slot names is written before it and cleared after it.
#[derive(Clone, Debug, PartialEq)]
pub enum Operation {
    /// Lets packets be redirected to this interface.
    AllowEgress { ifindex: u32 },
    /// Puts a route in force for a backend of a service.
    WriteBackend {
        id: u32,
        service: u32,
        route: Route,
        table: TableWord,
    },
    /// Stores single slots: (index in the map, word).
    WriteSlots { slots: Vec<(u32, SlotWord)> },
    /// Puts a whole new service table in force.
    SetServices { entries: Vec<ServiceEntry> },
    /// Waits until every packet that may have seen anything older has left the data path.
    Grace,
    /// Clears the record of a backend that nothing names any more.
    ClearBackend { id: u32 },
}

/// Applies operations.
pub trait DataPlane {
    /// # Errors
    /// What the kernel said, with the operation. Operations before it stay applied.
    fn apply(&mut self, operation: &Operation) -> Result<()>;

    /// Packets, bytes and flows of one backend id since the maps were made, summed over CPUs.
    fn backend_counters(&self, id: u32) -> BackendCounters;

    /// Packets that were not forwarded, by reason.
    fn reason_counter(&self, reason: Reason) -> u64;
}

/// Status of a record that has just been written; service 0 stands in cleared ones.
const fn status(service: u32) -> Status {
    if service == 0 {
        Status::Gone
    } else {
        Status::Active
    }
}

/// The directory in bpffs that holds the XDP links. Not versioned: whatever the layout of its maps, a new program takes the place
/// of an old one in the same link.
pub fn pin_directory(pin: &Path) -> PathBuf {
    pin.join("links")
}
