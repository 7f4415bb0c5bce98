//! The data plane in plain memory: the same tables, read by the same data path, without a kernel.

use anyhow::{Context as _, Result, ensure};
use lb_common::abi::{BackendCounters, Route};
use lb_common::native::MemoryTables;
use lb_common::reason::Reason;

use super::{DataPlane, Operation, status};
use lb_common::track::{Head, TableWord};

/// For property tests of the planner. Nothing runs beside it, so a grace period has nothing to wait for.
#[derive(Debug)]
pub struct MemoryDataPlane {
    pub tables: MemoryTables,
}

impl MemoryDataPlane {
    /// As in the kernel: the route that is not in force is written, then the head names it.
    fn write_backend(
        &mut self,
        id: u32,
        service: u32,
        route: &Route,
        table: TableWord,
    ) -> Result<()> {
        let backend = self
            .tables
            .backends
            .get_mut(id as usize)
            .filter(|_| id != 0)
            .with_context(|| format!("backend id {id} is out of range"))?;
        let spare = 1 - (backend.head & 1) as usize;
        backend.routes[spare] = *route;
        backend.table = table.0;
        backend.head = Head::new(service, status(service), spare).0;
        Ok(())
    }
}

impl DataPlane for MemoryDataPlane {
    fn apply(&mut self, operation: &Operation) -> Result<()> {
        match operation {
            Operation::AllowEgress { .. } | Operation::Grace => {}
            Operation::WriteBackend {
                id,
                service,
                route,
                table,
            } => {
                self.write_backend(*id, *service, route, *table)?;
            }
            Operation::WriteSlots { slots } => {
                for (index, word) in slots {
                    *self
                        .tables
                        .slots
                        .get_mut(*index as usize)
                        .with_context(|| format!("slot {index} is out of range"))? = *word;
                }
            }
            Operation::SetServices { entries } => ensure!(
                self.tables.set_services(entries),
                "{} entries do not fit the service table",
                entries.len()
            ),
            Operation::ClearBackend { id } => {
                self.write_backend(*id, 0, &Route::NONE, TableWord::default())?;
                self.tables.counters.get_mut()[*id as usize] = BackendCounters::default();
            }
        }
        Ok(())
    }

    fn backend_counters(&self, id: u32) -> BackendCounters {
        self.tables.counters.borrow()[id as usize]
    }

    /// Nobody counts them here: the caller of `process` has the verdict.
    fn reason_counter(&self, _reason: Reason) -> u64 {
        0
    }
}
