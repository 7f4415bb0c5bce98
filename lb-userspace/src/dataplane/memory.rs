//! The data plane in plain memory: the same tables, read by the same data path, without a kernel.

use anyhow::{Result, ensure};
use lb_common::abi::{Backend, BackendCounters, Route};
use lb_common::native::MemoryTables;
use lb_common::reason::Reason;

use super::{DataPlane, Operation};

/// For property tests of the planner.
#[derive(Debug)]
pub struct MemoryDataPlane {
    pub tables: MemoryTables,
}

impl DataPlane for MemoryDataPlane {
    fn apply(&mut self, operation: &Operation) -> Result<()> {
        match operation {
            Operation::AllowEgress { .. } | Operation::Grace => {}
            Operation::WriteBackend { id, service, route } => {
                let backend = &mut self.tables.backends[*id as usize];
                backend.routes[0] = *route;
                backend.head = Backend::head(*service, 0);
            }
            Operation::WriteSlots { slots } => {
                for (index, word) in slots {
                    self.tables.slots[*index as usize] = *word;
                }
            }
            Operation::SetServices { entries } => {
                ensure!(self.tables.set_services(entries), "service table full")
            }
            Operation::ClearBackend { id } => {
                self.tables.backends[*id as usize] = Backend::default();
                self.tables.counters.get_mut()[*id as usize] = BackendCounters::default();
                debug_assert_eq!(self.tables.backends[*id as usize].routes[0], Route::NONE);
            }
        }
        Ok(())
    }

    fn backend_counters(&self, id: u32) -> BackendCounters {
        self.tables.counters.borrow()[id as usize]
    }

    fn reason_counter(&self, _reason: Reason) -> u64 {
        0
    }
}
