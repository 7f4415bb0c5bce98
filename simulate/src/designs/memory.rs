//! Sluice's shared memory, without anyone it is shared with: what packets and daemon read and write, in plain cells.

use std::cell::Cell;

use lb_common::event::Event;
use lb_common::flow::{FlowEntry, WAYS};
use lb_common::slot::SlotWord;
use lb_common::track::{FlowBucket, FlowMemory, Head, Status, TableWord};
use lb_userspace::tracking::{Backends, SharedMemory};

/// The one service's number.
pub const SERVICE: u32 = 1;

pub struct Memory {
    slots: Vec<Cell<u64>>,
    losses: Vec<Cell<u64>>,
    flows: Vec<[Cell<u64>; WAYS]>,
    /// By id.
    heads: Vec<Head>,
    table: TableWord,
    clock: Cell<u64>,
    /// Entries that are not empty.
    used: Cell<u64>,
}

impl Memory {
    pub fn new(entries: u32, table: TableWord) -> Self {
        let cells = || vec![Cell::new(0); table.slots() as usize];
        Self {
            slots: cells(),
            losses: cells(),
            flows: vec![Default::default(); entries as usize / WAYS],
            heads: Vec::new(),
            table,
            clock: Cell::new(0),
            used: Cell::new(0),
        }
    }

    pub const fn table_word(&self) -> TableWord {
        self.table
    }

    pub fn set_clock(&self, now: u64) {
        self.clock.set(now);
    }

    pub fn set_statuses(&mut self, statuses: &[Status]) {
        let head = |status: &Status| Head::new(SERVICE, *status, 0);
        self.heads = statuses.iter().map(head).collect();
    }

    pub fn used(&self) -> u64 {
        self.used.get()
    }

    pub fn bucket(&self, index: u32) -> Bucket<'_> {
        Bucket {
            entries: &self.flows[index as usize],
            used: &self.used,
        }
    }
}

pub struct Bucket<'a> {
    entries: &'a [Cell<u64>; WAYS],
    used: &'a Cell<u64>,
}

impl FlowBucket for Bucket<'_> {
    fn load(&self, way: usize) -> FlowEntry {
        FlowEntry(self.entries[way].get())
    }

    fn swap(&self, way: usize, old: FlowEntry, new: FlowEntry) -> bool {
        let same = self.entries[way].get() == old.0;
        if same {
            self.entries[way].set(new.0);
            let used = self.used.get() + u64::from(!new.is_empty());
            self.used.set(used - u64::from(!old.is_empty()));
        }
        same
    }
}

impl FlowMemory for Memory {
    type Bucket<'a> = Bucket<'a>;

    fn clock(&self) -> u64 {
        self.clock.get()
    }

    fn flow_mask(&self) -> u32 {
        self.flows.len() as u32 - 1
    }

    fn flow_bucket(&self, index: u32) -> Option<Bucket<'_>> {
        Some(self.bucket(index))
    }

    fn head(&self, backend: u32) -> Option<Head> {
        self.heads.get(backend as usize).copied()
    }

    fn table(&self, backend: u32) -> Option<TableWord> {
        ((backend as usize) < self.heads.len()).then_some(self.table)
    }

    fn stamp_loss(&self, slot: u32, at: u64) {
        self.losses[slot as usize].set(at);
    }

    /// The simulator counts what breaks, not what was tried.
    fn count_event(&self, _: Event) {}
}

impl SharedMemory for Memory {
    fn slot(&self, slot: u32) -> SlotWord {
        SlotWord(self.slots[slot as usize].get())
    }

    fn store_slot(&self, slot: u32, word: SlotWord) {
        self.slots[slot as usize].set(word.0);
    }

    fn loss(&self, slot: u32) -> u64 {
        self.losses[slot as usize].get()
    }

    fn entries(&self) -> u32 {
        (self.flows.len() * WAYS) as u32
    }

    fn entry(&self, index: u32) -> FlowEntry {
        self.bucket(index / WAYS as u32).load(index as usize % WAYS)
    }

    fn swap(&self, index: u32, old: FlowEntry, new: FlowEntry) -> bool {
        let bucket = self.bucket(index / WAYS as u32);
        bucket.swap(index as usize % WAYS, old, new)
    }

    fn clock(&self) -> u64 {
        self.clock.get()
    }
}

impl Backends for Memory {
    fn status(&self, backend: u32) -> Status {
        self.head(backend).map_or(Status::Gone, Head::status)
    }

    fn table(&self, backend: u32) -> Option<TableWord> {
        FlowMemory::table(self, backend)
    }
}
