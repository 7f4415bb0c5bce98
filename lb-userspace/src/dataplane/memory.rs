//! The data plane in plain memory: the same tables, read by the same data path, without a kernel.

use std::cell::{Cell, RefCell};

use anyhow::{Context as _, Result, ensure};
use lb_common::abi::{Backend, BackendCounters, Identity, Route, control};
use lb_common::event::Event;
use lb_common::flow::{FlowEntry, WAYS};
use lb_common::native::MemoryTables;
use lb_common::reason::Reason;
use lb_common::service::Directory;
use lb_common::slot::{Mode, SlotWord};
use lb_common::track::{FlowBucket, Head, Status, TableWord};

use super::{DataPlane, Found, Operation};
use crate::tracking::change::change;
use crate::tracking::{Backends, Book, SharedMemory};

/// For property tests of the planner. Nothing runs beside it, so a grace period has nothing to wait for.
#[derive(Debug)]
pub struct MemoryDataPlane {
    pub tables: MemoryTables,
    identities: Vec<Identity>,
    book: Book,
}

impl MemoryDataPlane {
    pub fn new(tables: MemoryTables) -> Self {
        let book = Book::new(tables.slots.len() as u32);
        Self {
            identities: vec![Identity::default(); tables.backends.len()],
            tables,
            book,
        }
    }

    /// As after the daemon's death: what it alone knew is lost. Returns what the next one finds.
    pub fn adopt(&mut self) -> Found {
        let slots = self.tables.slots.len() as u32;
        let (shared, _, _) = self.shared(None);
        self.book = Book::adopt(slots, &shared);
        let tables = &self.tables;
        let half = Directory(tables.control[control::SERVICE_TABLE as usize]).half() as usize;
        let buckets = tables.services.len() / 2;
        let entries = tables.services[half * buckets..][..buckets]
            .iter()
            .flat_map(|bucket| bucket.ways)
            .filter(|entry| entry.tuple().is_some());
        Found::read(
            entries.collect(),
            tables.backends.len() as u32,
            |id| (tables.backends[id as usize], self.identities[id as usize]),
            |slot| tables.slots[slot as usize],
        )
    }

    /// Since when a slot learns, nanoseconds.
    pub fn learns_since(&self, slot: u32) -> u64 {
        self.book.t0(slot)
    }

    fn record(&mut self, id: u32) -> Result<&mut Backend> {
        self.tables
            .backends
            .get_mut(id as usize)
            .filter(|_| id != 0)
            .with_context(|| format!("backend id {id} is out of range"))
    }

    /// As in the kernel: the route that is not in force is written, then the head names it.
    fn write_backend(
        &mut self,
        id: u32,
        (service, status): (u32, Status),
        route: &Route,
        table: TableWord,
    ) -> Result<()> {
        let backend = self.record(id)?;
        let spare = 1 - Head(backend.head).route();
        backend.routes[spare] = *route;
        backend.table = table.0;
        backend.head = Head::new(service, status, spare).0;
        Ok(())
    }

    /// The tables as the rules of tracking see them; `service`: whose backends are known.
    fn shared(&mut self, service: Option<u32>) -> (Shared<'_>, Records<'_>, &mut Book) {
        let tables = &mut self.tables;
        let shared = Shared {
            slots: RefCell::new(&mut tables.slots),
            losses: &tables.losses,
            flows: &tables.flows,
            clock: tables.clock.get(),
        };
        let records = Records {
            backends: &tables.backends,
            service,
        };
        (shared, records, &mut self.book)
    }
}

struct Shared<'a> {
    slots: RefCell<&'a mut Vec<SlotWord>>,
    losses: &'a [Cell<u64>],
    flows: &'a [[Cell<u64>; WAYS]],
    clock: u64,
}

impl SharedMemory for Shared<'_> {
    fn slot(&self, slot: u32) -> SlotWord {
        self.slots.borrow()[slot as usize]
    }
    fn store_slot(&self, slot: u32, word: SlotWord) {
        self.slots.borrow_mut()[slot as usize] = word;
    }
    fn loss(&self, slot: u32) -> u64 {
        self.losses[slot as usize].get()
    }
    fn entries(&self) -> u32 {
        (self.flows.len() * WAYS) as u32
    }
    fn entry(&self, index: u32) -> FlowEntry {
        FlowEntry(self.flows[index as usize / WAYS][index as usize % WAYS].get())
    }
    fn swap(&self, index: u32, old: FlowEntry, new: FlowEntry) -> bool {
        let line = &self.flows[index as usize / WAYS];
        FlowBucket::swap(&line, index as usize % WAYS, old, new)
    }
    fn clock(&self) -> u64 {
        self.clock
    }
}

struct Records<'a> {
    backends: &'a [Backend],
    service: Option<u32>,
}

impl Backends for Records<'_> {
    fn status(&self, backend: u32) -> Status {
        let head = self.backends.get(backend as usize).map(|b| Head(b.head));
        match head {
            Some(head) if self.service.is_none_or(|s| s == head.service()) => head.status(),
            _ => Status::Gone,
        }
    }
    fn table(&self, backend: u32) -> Option<TableWord> {
        let record = self.backends.get(backend as usize)?;
        (Head(record.head).service() != 0).then_some(TableWord(record.table))
    }
}

impl DataPlane for MemoryDataPlane {
    fn apply(&mut self, operation: &Operation) -> Result<()> {
        match operation {
            Operation::AllowEgress { .. } => {}
            Operation::Grace => {
                let mark = self.book.mark();
                self.book.passed(mark);
            }
            Operation::Describe { id, who } => {
                self.record(*id)?;
                self.identities[*id as usize] = (*who).into();
            }
            Operation::WriteBackend {
                id,
                service,
                status,
                route,
                table,
            } => self.write_backend(*id, (*service, *status), route, *table)?,
            Operation::SetStatus {
                id,
                service,
                status,
            } => {
                let record = self.record(*id)?;
                record.head = Head::new(*service, *status, Head(record.head).route()).0;
            }
            Operation::ChangeSlots {
                service,
                first,
                primaries,
                tracking,
                came_back,
            } => {
                let (shared, records, book) = self.shared(Some(*service));
                let back = |id| came_back.contains(&id);
                change(&shared, book, &records, *first, primaries, *tracking, back);
            }
            Operation::Purge { ids } => {
                for entry in self.tables.flows.iter().flatten() {
                    if ids.contains(&FlowEntry(entry.get()).backend()) {
                        entry.set(0);
                    }
                }
            }
            Operation::WriteSlots { slots } => {
                for (index, word) in slots {
                    *self
                        .tables
                        .slots
                        .get_mut(*index as usize)
                        .with_context(|| format!("slot {index} is out of range"))? = *word;
                    if word.mode() == Mode::Learn {
                        self.book.begins(*index, self.tables.clock.get());
                    }
                }
            }
            Operation::SetServices { entries } => ensure!(
                self.tables.set_services(entries),
                "{} entries do not fit the service table",
                entries.len()
            ),
            Operation::ClearBackend { id } => {
                self.write_backend(*id, (0, Status::Gone), &Route::NONE, TableWord::default())?;
                let counters = self.tables.counters.get_mut();
                let last = std::mem::take(&mut counters[*id as usize]);
                let retired = &mut counters[0];
                retired.packets += last.packets;
                retired.bytes += last.bytes;
                retired.flows += last.flows;
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

    fn event_counter(&self, event: Event) -> u64 {
        self.tables.events[event as usize].get()
    }
}
