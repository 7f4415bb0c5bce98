//! The data plane in the kernel: programs the maps of the XDP program, reads its counters. How it begins: `load`.

use std::collections::HashSet;

use anyhow::{Context as _, Result, ensure};
use aya::Ebpf;
use aya::maps::xdp::DevMapHash;
use aya::programs::Xdp;
use lb_common::abi::{
    Backend, BackendCounters, Identity, Node, Route, ServiceBucket, ServiceEntry, control, names,
};
use lb_common::event::{EVENTS, Event};
use lb_common::flow::FlowEntry;
use lb_common::reason::{REASONS, Reason};
use lb_common::service::{Directory, place};
use lb_common::slot::Mode;
use lb_common::track::{Head, Status, TableWord};

use super::shared::{Records, Shared};
use super::tables::Tables;
use super::{DataPlane, Operation, Who, attach, grace};
use crate::tracking::change::change;
use crate::tracking::{Book, SharedMemory as _, Tracking};

/// The loaded program and its maps.
pub struct KernelDataPlane {
    pub(super) ebpf: Ebpf,
    pub(super) node: Node,
    pub(super) cpus: u32,
    pub(super) tables: Tables,
    pub(super) book: Book,
    pub(super) egress: DevMapHash<aya::maps::MapData>,
    pub(super) allowed_egress: HashSet<u32>,
    /// Counts grace periods; what was flipped in the current one must not be rewritten before the next.
    pub(super) epoch: u64,
    /// Epoch of the last flip: of the service table, and of each backend's route.
    pub(super) services_flipped: Option<u64>,
    pub(super) routes_flipped: Vec<Option<u64>>,
}

impl KernelDataPlane {
    /// The XDP program, to attach or to run on test packets.
    pub fn program(&mut self) -> &mut Xdp {
        let program = self
            .ebpf
            .program_mut(names::BALANCER)
            .expect("the object is ours and has this program");
        program.try_into().expect("and it is an XDP program")
    }

    /// The loaded object, for the reader of its log.
    pub fn object(&mut self) -> &mut Ebpf {
        &mut self.ebpf
    }

    /// Instructions the verifier processed to accept the program.
    pub fn verified_instructions(&mut self) -> Result<u32> {
        self.program()
            .info()?
            .verified_instruction_count()
            .context("this kernel does not say (before 5.16)")
    }

    /// The packets' clock, nanoseconds.
    pub fn clock(&self) -> u64 {
        self.shared().clock()
    }

    /// Grace periods waited for so far: those of plans, and those before something is written over.
    pub const fn grace_periods(&self) -> u64 {
        self.epoch
    }

    pub(super) fn grace(&mut self) -> Result<()> {
        let mark = self.book.mark();
        grace::wait()?;
        self.book.passed(mark);
        self.epoch += 1;
        Ok(())
    }

    /// What nobody but the last daemon knew is taken on the safe side.
    pub(super) fn adopt_book(&mut self) {
        self.book = Book::adopt(self.tables.slots.entries(), &self.shared());
    }

    fn write_backend(
        &mut self,
        id: u32,
        head: (u32, Status),
        route: &Route,
        table: TableWord,
    ) -> Result<()> {
        self.check_id(id)?;
        // A packet may still be copying the route that the last flip put out of force.
        if self.routes_flipped[id as usize] == Some(self.epoch) {
            self.grace()?;
        }
        let spare = 1 - Head(self.tables.backends.load(id, 0)).route();
        for (i, word) in route.words().into_iter().enumerate() {
            self.tables
                .backends
                .store(id, Backend::route_word(spare) + i, word);
        }
        self.tables.backends.store(id, Backend::TABLE_WORD, table.0);
        let (service, status) = head;
        self.tables
            .backends
            .store(id, 0, Head::new(service, status, spare).0);
        self.routes_flipped[id as usize] = Some(self.epoch);
        Ok(())
    }

    fn describe(&self, id: u32, who: Who) -> Result<()> {
        self.check_id(id)?;
        for (word, value) in Identity::from(who).words().into_iter().enumerate() {
            self.tables.identities.store(id, word, value);
        }
        Ok(())
    }

    fn set_status(&self, id: u32, service: u32, status: Status) -> Result<()> {
        self.check_id(id)?;
        let route = Head(self.tables.backends.load(id, 0)).route();
        self.tables
            .backends
            .store(id, 0, Head::new(service, status, route).0);
        Ok(())
    }

    fn check_id(&self, id: u32) -> Result<()> {
        ensure!(
            id != 0 && id < self.node.backend_capacity,
            "backend id {id} is out of range"
        );
        Ok(())
    }

    pub(super) const fn shared(&self) -> Shared<'_> {
        Shared {
            slots: &self.tables.slots,
            losses: &self.tables.losses,
            flows: &self.tables.flows,
        }
    }

    fn change_slots(
        &mut self,
        service: u32,
        first: u32,
        primaries: &[u32],
        tracking: Tracking,
        came_back: &[u32],
    ) -> Result<()> {
        ensure!(
            u64::from(first) + primaries.len() as u64 <= u64::from(self.tables.slots.entries()),
            "slots from {first} are out of range"
        );
        let records = Records {
            backends: &self.tables.backends,
            service: Some(service),
        };
        let shared = Shared {
            slots: &self.tables.slots,
            losses: &self.tables.losses,
            flows: &self.tables.flows,
        };
        let back = |id| came_back.contains(&id);
        change(
            &shared,
            &mut self.book,
            &records,
            first,
            primaries,
            tracking,
            back,
        );
        Ok(())
    }

    /// Clears the entries of backends that are GONE; grace periods stand before and after it in the plan.
    fn purge(&self, ids: &[u32]) {
        let ids: HashSet<u32> = ids.iter().copied().collect();
        let shared = self.shared();
        for index in 0..shared.entries() {
            loop {
                let entry = shared.entry(index);
                let named = !entry.is_empty() && ids.contains(&entry.backend());
                // No packet writes an entry of a GONE backend after the grace period: at most one repetition.
                if !named || shared.swap(index, entry, FlowEntry::EMPTY) {
                    break;
                }
            }
        }
    }

    /// Adds what a backend that is being cleared had to id 0, which no packet is counted for: sums go on, also in the next daemon.
    fn retire_counters(&self, id: u32) {
        let counters = &self.tables.backend_counters;
        for cpu in 0..self.cpus {
            let index = cpu * self.node.backend_capacity + id;
            for word in 0..size_of::<BackendCounters>() / 8 {
                let last = counters.load(index, word);
                counters.store(0, word, counters.load(0, word).wrapping_add(last));
                counters.store(index, word, 0);
            }
        }
    }

    pub(super) fn set_services(&mut self, entries: &[ServiceEntry]) -> Result<()> {
        if self.services_flipped == Some(self.epoch) {
            self.grace()?;
        }
        let current = Directory(self.tables.control.load(control::SERVICE_TABLE, 0));
        let half = 1 - current.half();
        let buckets = self.node.service_mask + 1;
        let mut table = vec![ServiceBucket::default(); buckets as usize];
        let directory = place(entries, half, &self.node, &mut table).with_context(|| {
            format!(
                "{} entries do not fit the service table: raise capacity.services",
                entries.len()
            )
        })?;
        for (i, bucket) in (half * buckets..).zip(&table) {
            for (word, value) in bucket.words().into_iter().enumerate() {
                // Most of the table is empty and stays so.
                if self.tables.services.load(i, word) != value {
                    self.tables.services.store(i, word, value);
                }
            }
        }
        self.tables
            .control
            .store(control::SERVICE_TABLE, 0, directory.0);
        self.services_flipped = Some(self.epoch);
        Ok(())
    }

    /// An interface that is gone holds up nothing: a route through it stays installed while no other is known (a full plan names
    /// it again), and its packets are dropped, with or without an entry (reason `egress`).
    pub(super) fn allow_egress(&mut self, ifindex: u32) -> Result<()> {
        if self.allowed_egress.contains(&ifindex) {
            return Ok(());
        }
        match self.egress.insert(ifindex, ifindex, None, 0) {
            Ok(()) => {
                self.allowed_egress.insert(ifindex);
                Ok(())
            }
            Err(error) if !attach::exists(ifindex) => {
                tracing::warn!(
                    "interface {ifindex} is gone, and backends have routes through it: {error}"
                );
                Ok(())
            }
            Err(error) => Err(error)
                .with_context(|| format!("packets cannot be redirected to interface {ifindex}")),
        }
    }
}

impl DataPlane for KernelDataPlane {
    fn apply(&mut self, operation: &Operation) -> Result<()> {
        match operation {
            Operation::AllowEgress { ifindex } => self.allow_egress(*ifindex),
            Operation::Describe { id, who } => self.describe(*id, *who),
            Operation::WriteBackend {
                id,
                service,
                status,
                route,
                table,
            } => self.write_backend(*id, (*service, *status), route, *table),
            Operation::SetStatus {
                id,
                service,
                status,
            } => self.set_status(*id, *service, *status),
            Operation::ChangeSlots {
                service,
                first,
                primaries,
                tracking,
                came_back,
            } => self.change_slots(*service, *first, primaries, *tracking, came_back),
            Operation::Purge { ids } => {
                self.purge(ids);
                Ok(())
            }
            Operation::WriteSlots { slots } => {
                for (index, word) in slots {
                    ensure!(
                        *index < self.tables.slots.entries(),
                        "slot {index} is out of range"
                    );
                    self.tables.slots.store(*index, 0, word.0);
                    if word.mode() == Mode::Learn {
                        let now = self.clock();
                        self.book.begins(*index, now);
                    }
                }
                Ok(())
            }
            Operation::SetServices { entries } => self.set_services(entries),
            Operation::Grace => self.grace(),
            Operation::ClearBackend { id } => {
                // While the id is still in use: were it free, a daemon that dies between the two would leave its counts to the next
                // backend of this id.
                self.retire_counters(*id);
                self.write_backend(*id, (0, Status::Gone), &Route::NONE, TableWord::default())
            }
        }
    }

    fn backend_counters(&self, id: u32) -> BackendCounters {
        let mut sum = BackendCounters::default();
        for cpu in 0..self.cpus {
            let index = cpu * self.node.backend_capacity + id;
            sum.packets += self.tables.backend_counters.load(index, 0);
            sum.bytes += self.tables.backend_counters.load(index, 1);
            sum.flows += self.tables.backend_counters.load(index, 2);
        }
        sum
    }

    fn reason_counter(&self, reason: Reason) -> u64 {
        (0..self.cpus)
            .map(|cpu| {
                self.tables
                    .reason_counters
                    .load(cpu * REASONS + reason as u32, 0)
            })
            .sum()
    }

    fn event_counter(&self, event: Event) -> u64 {
        (0..self.cpus)
            .map(|cpu| {
                self.tables
                    .event_counters
                    .load(cpu * EVENTS + event as u32, 0)
            })
            .sum()
    }
}

impl std::fmt::Debug for KernelDataPlane {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KernelDataPlane")
            .field("node", &self.node)
            .field("cpus", &self.cpus)
            .finish_non_exhaustive()
    }
}
