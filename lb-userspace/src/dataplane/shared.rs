//! Slots, flow table and backends' statuses as the daemon's rules of tracking see them, over the mapped arrays.

use lb_common::abi::{Backend, FlowLine};
use lb_common::flow::{FlowEntry, WAYS};
use lb_common::slot::SlotWord;
use lb_common::track::{Head, Status, TableWord};
use nix::time::{ClockId, clock_gettime};

use super::mapped::Mapped;
use crate::tracking::{Backends, SharedMemory};

/// The maps of the kernel.
pub struct Shared<'a> {
    pub slots: &'a Mapped<SlotWord>,
    pub losses: &'a Mapped<u64>,
    pub flows: &'a Mapped<FlowLine>,
}

impl SharedMemory for Shared<'_> {
    fn slot(&self, slot: u32) -> SlotWord {
        SlotWord(self.slots.load(slot, 0))
    }

    fn store_slot(&self, slot: u32, word: SlotWord) {
        self.slots.store(slot, 0, word.0);
    }

    fn loss(&self, slot: u32) -> u64 {
        self.losses.load(slot, 0)
    }

    fn entries(&self) -> u32 {
        self.flows.entries() * WAYS as u32
    }

    fn entry(&self, index: u32) -> FlowEntry {
        let way = index as usize % WAYS;
        FlowEntry(self.flows.load(index / WAYS as u32, way))
    }

    fn swap(&self, index: u32, old: FlowEntry, new: FlowEntry) -> bool {
        let way = index as usize % WAYS;
        self.flows.swap(index / WAYS as u32, way, old.0, new.0)
    }

    /// What `bpf_ktime_get_coarse_ns` reads.
    fn clock(&self) -> u64 {
        let now = clock_gettime(ClockId::CLOCK_MONOTONIC_COARSE)
            .expect("every Linux has this clock since 2.6.32");
        now.tv_sec() as u64 * 1_000_000_000 + now.tv_nsec() as u64
    }
}

/// The backends' records; of one service alone, if a number is given: others are GONE for it.
pub struct Records<'a> {
    pub backends: &'a Mapped<Backend>,
    pub service: Option<u32>,
}

impl Backends for Records<'_> {
    fn status(&self, backend: u32) -> Status {
        if backend >= self.backends.entries() {
            return Status::Gone;
        }
        let head = Head(self.backends.load(backend, 0));
        match self.service {
            Some(service) if head.service() != service => Status::Gone,
            _ => head.status(),
        }
    }

    fn table(&self, backend: u32) -> Option<TableWord> {
        let known = backend < self.backends.entries()
            && Head(self.backends.load(backend, 0)).service() != 0;
        known.then(|| TableWord(self.backends.load(backend, Backend::TABLE_WORD)))
    }
}
