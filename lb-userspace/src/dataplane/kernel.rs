//! The data plane in the kernel: loads the XDP object, programs its maps, reads its counters.

use std::collections::HashSet;
use std::fmt::Write as _;

use anyhow::{Context as _, Result, anyhow, ensure};
use aya::maps::xdp::DevMapHash;
use aya::programs::Xdp;
use aya::{Ebpf, EbpfLoader};
use lb_common::abi::{
    Backend, BackendCounters, FlowLine, Node, Route, ServiceBucket, ServiceEntry, control, names,
};
use lb_common::event::{EVENTS, Event};
use lb_common::flow::{FlowEntry, WAYS};
use lb_common::reason::{REASONS, Reason};
use lb_common::service::{Directory, place};
use lb_common::slot::{Mode, SlotWord};
use lb_common::track::{Head, Status, TableWord};

use super::mapped::Mapped;
use super::shared::{Records, Shared};
use super::{DataPlane, Operation, grace, objects};
use crate::model::Capacity;
use crate::tracking::change::change;
use crate::tracking::{Book, SharedMemory as _, Tracking};

/// The loaded program and its maps.
pub struct KernelDataPlane {
    ebpf: Ebpf,
    node: Node,
    cpus: u32,
    services: Mapped<ServiceBucket>,
    pub(super) slots: Mapped<SlotWord>,
    pub(super) losses: Mapped<u64>,
    pub(super) flows: Mapped<FlowLine>,
    pub(super) book: Book,
    pub(super) backends: Mapped<Backend>,
    control: Mapped<u64>,
    backend_counters: Mapped<BackendCounters>,
    reason_counters: Mapped<u64>,
    event_counters: Mapped<u64>,
    egress: DevMapHash<aya::maps::MapData>,
    allowed_egress: HashSet<u32>,
    /// Counts grace periods; what was flipped in the current one must not be rewritten before the next.
    epoch: u64,
    /// Epoch of the last flip: of the service table, and of each backend's route.
    services_flipped: Option<u64>,
    routes_flipped: Vec<Option<u64>>,
}

impl KernelDataPlane {
    /// Loads the object with maps of this capacity. Nothing is attached yet.
    pub fn load(hash_seed: &str, capacity: &Capacity) -> Result<Self> {
        let cpus = aya::util::nr_cpus()
            .map_err(|(what, error)| anyhow!("number of CPUs from {what}: {error}"))?
            as u32;
        let node = Node {
            hash_keys: lb_common::hash::keys_from_seed(hash_seed),
            service_mask: service_buckets(capacity) - 1,
            // Ids begin at 1.
            backend_capacity: capacity.backends + 1,
            flow_mask: flow_buckets(capacity) - 1,
            _pad: 0,
        };
        let mut ebpf = EbpfLoader::new()
            .map_max_entries(names::SERVICES, 2 * service_buckets(capacity))
            .map_max_entries(names::SLOTS, capacity.slots)
            .map_max_entries(names::LOSSES, capacity.slots)
            .map_max_entries(names::FLOWS, flow_buckets(capacity))
            .map_max_entries(names::BACKENDS, node.backend_capacity)
            .map_max_entries(names::BACKEND_COUNTERS, cpus * node.backend_capacity)
            .map_max_entries(names::REASON_COUNTERS, cpus * REASONS)
            .map_max_entries(names::EVENT_COUNTERS, cpus * EVENTS)
            .override_global(names::NODE, &node.words(), true)
            .load(objects::BALANCER)
            .map_err(explain_load)?;
        let mut take = |name: &str| {
            ebpf.take_map(name)
                .with_context(|| format!("the object has no map {name}"))
        };
        let services = Mapped::new(take(names::SERVICES)?, names::SERVICES)?;
        let slots = Mapped::new(take(names::SLOTS)?, names::SLOTS)?;
        let losses = Mapped::new(take(names::LOSSES)?, names::LOSSES)?;
        let flows = Mapped::new(take(names::FLOWS)?, names::FLOWS)?;
        let backends = Mapped::new(take(names::BACKENDS)?, names::BACKENDS)?;
        let control = Mapped::new(take(names::CONTROL)?, names::CONTROL)?;
        let backend_counters =
            Mapped::new(take(names::BACKEND_COUNTERS)?, names::BACKEND_COUNTERS)?;
        let reason_counters = Mapped::new(take(names::REASON_COUNTERS)?, names::REASON_COUNTERS)?;
        let event_counters = Mapped::new(take(names::EVENT_COUNTERS)?, names::EVENT_COUNTERS)?;
        let egress = DevMapHash::try_from(take(names::EGRESS)?)?;
        let mut plane = Self {
            ebpf,
            node,
            cpus,
            services,
            book: Book::new(slots.entries()),
            slots,
            losses,
            flows,
            backends,
            control,
            backend_counters,
            reason_counters,
            event_counters,
            egress,
            allowed_egress: HashSet::new(),
            epoch: 0,
            services_flipped: None,
            routes_flipped: vec![None; node.backend_capacity as usize],
        };
        plane.program().load().map_err(explain_verifier)?;
        // Better no start than a daemon that cannot change a table: without grace periods nothing can be.
        plane.grace()?;
        Ok(plane)
    }

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
        let spare = 1 - Head(self.backends.load(id, 0)).route();
        for (i, word) in route.words().into_iter().enumerate() {
            self.backends
                .store(id, Backend::route_word(spare) + i, word);
        }
        self.backends.store(id, Backend::TABLE_WORD, table.0);
        let (service, status) = head;
        self.backends
            .store(id, 0, Head::new(service, status, spare).0);
        self.routes_flipped[id as usize] = Some(self.epoch);
        Ok(())
    }

    fn set_status(&self, id: u32, service: u32, status: Status) -> Result<()> {
        self.check_id(id)?;
        let route = Head(self.backends.load(id, 0)).route();
        self.backends
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
            slots: &self.slots,
            losses: &self.losses,
            flows: &self.flows,
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
            u64::from(first) + primaries.len() as u64 <= u64::from(self.slots.entries()),
            "slots from {first} are out of range"
        );
        let records = Records {
            backends: &self.backends,
            service: Some(service),
        };
        let shared = Shared {
            slots: &self.slots,
            losses: &self.losses,
            flows: &self.flows,
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

    fn set_services(&mut self, entries: &[ServiceEntry]) -> Result<()> {
        if self.services_flipped == Some(self.epoch) {
            self.grace()?;
        }
        let current = Directory(self.control.load(control::SERVICE_TABLE, 0));
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
                if self.services.load(i, word) != value {
                    self.services.store(i, word, value);
                }
            }
        }
        self.control.store(control::SERVICE_TABLE, 0, directory.0);
        self.services_flipped = Some(self.epoch);
        Ok(())
    }

    fn allow_egress(&mut self, ifindex: u32) -> Result<()> {
        if self.allowed_egress.contains(&ifindex) {
            return Ok(());
        }
        self.egress
            .insert(ifindex, ifindex, None, 0)
            .with_context(|| format!("packets cannot be redirected to interface {ifindex}"))?;
        self.allowed_egress.insert(ifindex);
        Ok(())
    }
}

impl DataPlane for KernelDataPlane {
    fn apply(&mut self, operation: &Operation) -> Result<()> {
        match operation {
            Operation::AllowEgress { ifindex } => self.allow_egress(*ifindex),
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
                        *index < self.slots.entries(),
                        "slot {index} is out of range"
                    );
                    self.slots.store(*index, 0, word.0);
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
                self.write_backend(*id, (0, Status::Gone), &Route::NONE, TableWord::default())?;
                for cpu in 0..self.cpus {
                    for word in 0..size_of::<BackendCounters>() / 8 {
                        self.backend_counters
                            .store(cpu * self.node.backend_capacity + id, word, 0);
                    }
                }
                Ok(())
            }
        }
    }

    fn backend_counters(&self, id: u32) -> BackendCounters {
        let mut sum = BackendCounters::default();
        for cpu in 0..self.cpus {
            let index = cpu * self.node.backend_capacity + id;
            sum.packets += self.backend_counters.load(index, 0);
            sum.bytes += self.backend_counters.load(index, 1);
            sum.flows += self.backend_counters.load(index, 2);
        }
        sum
    }

    fn reason_counter(&self, reason: Reason) -> u64 {
        (0..self.cpus)
            .map(|cpu| self.reason_counters.load(cpu * REASONS + reason as u32, 0))
            .sum()
    }

    fn event_counter(&self, event: Event) -> u64 {
        (0..self.cpus)
            .map(|cpu| self.event_counters.load(cpu * EVENTS + event as u32, 0))
            .sum()
    }
}

/// Buckets of the flow table: a power of two that holds at least the entries asked for.
fn flow_buckets(capacity: &Capacity) -> u32 {
    capacity.flows.div_ceil(WAYS as u32).next_power_of_two()
}

/// Buckets of one half of the service table: sixteen for each entry (a service, a VIP's note), so that a seed without overflow
/// is found within a few tries: one bucket in 25,000 would hold three.
fn service_buckets(capacity: &Capacity) -> u32 {
    capacity.services.max(16).next_power_of_two() * 32
}

fn explain_load(error: aya::EbpfError) -> anyhow::Error {
    let mut text = format!("the BPF object could not be loaded: {error}");
    let mut source = std::error::Error::source(&error);
    while let Some(cause) = source {
        let _ = write!(text, ": {cause}");
        if let Some(io) = cause.downcast_ref::<std::io::Error>() {
            match io.raw_os_error() {
                Some(libc::EPERM) => {
                    text.push_str(" (run as root, or with CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON)")
                }
                Some(libc::ENOMEM | libc::E2BIG) => {
                    text.push_str(" (lower the sizes in [capacity])")
                }
                _ => {}
            }
        }
        source = cause.source();
    }
    anyhow!(text)
}

fn explain_verifier(error: aya::programs::ProgramError) -> anyhow::Error {
    match error {
        aya::programs::ProgramError::LoadError {
            io_error,
            verifier_log,
        } => {
            let log = verifier_log.to_string();
            let tail: Vec<_> = log.lines().rev().take(25).collect();
            let tail: Vec<_> = tail.into_iter().rev().collect();
            anyhow!(
                "the kernel refuses the XDP program: {io_error}\nthe verifier's last words:\n{}",
                tail.join("\n")
            )
        }
        other => anyhow!("the XDP program could not be loaded: {other}"),
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
