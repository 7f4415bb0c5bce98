//! The two traits over plain memory: the data path as native tests, property tests and the planner's tests run it.

use std::boxed::Box;
use std::cell::{Cell, RefCell};
use std::vec;
use std::vec::Vec;

use crate::abi::{Backend, BackendCounters, Node, ServiceBucket, ServiceEntry, control};
use crate::event::Event;
use crate::flow::{FlowEntry, WAYS};
use crate::packet::Frame;
use crate::process::{Forwarded, Tables};
use crate::service::place;
use crate::slot::SlotWord;
use crate::track::{FlowBucket, FlowMemory, Head, TableWord};

/// Room in front of a frame, as XDP drivers give it (XDP_PACKET_HEADROOM).
const HEADROOM: usize = 256;

/// A frame in memory of its own.
#[derive(Clone, Debug)]
pub struct MemoryFrame {
    /// Cells: [`Frame`] hands out writable pointers from `&self`.
    memory: Box<[Cell<u8>]>,
    start: usize,
    ingress: u32,
}

impl MemoryFrame {
    pub fn new(bytes: &[u8], ingress: u32) -> Self {
        let memory = std::iter::repeat_n(0, HEADROOM)
            .chain(bytes.iter().copied())
            .map(Cell::new)
            .collect();
        Self {
            memory,
            start: HEADROOM,
            ingress,
        }
    }

    pub fn bytes(&self) -> Vec<u8> {
        self.memory[self.start..].iter().map(Cell::get).collect()
    }
}

// SAFETY: start..end is the live part of the boxed slice of cells.
unsafe impl Frame for MemoryFrame {
    fn start(&self) -> *mut u8 {
        self.memory
            .as_ptr()
            .wrapping_add(self.start)
            .cast_mut()
            .cast()
    }

    fn end(&self) -> *mut u8 {
        self.memory
            .as_ptr()
            .wrapping_add(self.memory.len())
            .cast_mut()
            .cast()
    }

    fn move_head(&mut self, delta: i32) -> bool {
        // As the kernel: an Ethernet header must remain.
        match self.start.checked_add_signed(delta as isize) {
            Some(start) if start + 14 <= self.memory.len() => {
                self.start = start;
                true
            }
            _ => false,
        }
    }

    fn ingress(&self) -> u32 {
        self.ingress
    }
}

/// The maps in memory.
#[derive(Clone, Debug)]
pub struct MemoryTables {
    pub node: Node,
    pub control: [u64; control::WORDS as usize],
    pub services: Vec<ServiceBucket>,
    pub slots: Vec<SlotWord>,
    pub backends: Vec<Backend>,
    pub counters: RefCell<Vec<BackendCounters>>,
    pub flows: Vec<[Cell<u64>; WAYS]>,
    pub losses: Vec<Cell<u64>>,
    /// By [`Event`].
    pub events: [Cell<u64>; Event::ALL.len()],
    /// What the clock says, nanoseconds.
    pub clock: Cell<u64>,
}

impl MemoryTables {
    /// Empty tables; `service_buckets` (of one half) is a power of two.
    pub fn new(hash_seed: &str, service_buckets: u32, slots: u32, backends: u32) -> Self {
        Self {
            node: Node {
                hash_keys: crate::hash::keys_from_seed(hash_seed),
                service_mask: service_buckets - 1,
                backend_capacity: backends,
                flow_mask: FLOW_BUCKETS - 1,
                _pad: 0,
            },
            control: [0; control::WORDS as usize],
            services: vec![ServiceBucket::default(); 2 * service_buckets as usize],
            slots: vec![SlotWord::default(); slots as usize],
            backends: vec![Backend::default(); backends as usize],
            counters: RefCell::new(vec![BackendCounters::default(); backends as usize]),
            flows: (0..FLOW_BUCKETS).map(|_| Default::default()).collect(),
            losses: vec![Cell::new(0); slots as usize],
            events: Default::default(),
            clock: Cell::new(0),
        }
    }

    /// Puts a whole new service table in force. `false`: it does not fit.
    pub fn set_services(&mut self, entries: &[ServiceEntry]) -> bool {
        let half =
            1 - crate::service::Directory(self.control[control::SERVICE_TABLE as usize]).half();
        let buckets = self.node.service_mask as usize + 1;
        let range = if half == 0 {
            0..buckets
        } else {
            buckets..2 * buckets
        };
        let part = &mut self.services[range];
        part.fill(ServiceBucket::default());
        match place(entries, half, &self.node, part) {
            Some(directory) => {
                self.control[control::SERVICE_TABLE as usize] = directory.0;
                true
            }
            None => false,
        }
    }
}

/// Buckets of the flow table.
const FLOW_BUCKETS: u32 = 1_024;

impl FlowBucket for &[Cell<u64>; WAYS] {
    fn load(&self, way: usize) -> FlowEntry {
        FlowEntry(self[way].get())
    }

    fn swap(&self, way: usize, old: FlowEntry, new: FlowEntry) -> bool {
        let same = self[way].get() == old.0;
        if same {
            self[way].set(new.0);
        }
        same
    }
}

impl FlowMemory for MemoryTables {
    type Bucket<'a> = &'a [Cell<u64>; WAYS];

    fn clock(&self) -> u64 {
        self.clock.get()
    }

    fn flow_mask(&self) -> u32 {
        self.node.flow_mask
    }

    fn flow_bucket(&self, index: u32) -> Option<Self::Bucket<'_>> {
        self.flows.get(index as usize)
    }

    fn head(&self, backend: u32) -> Option<Head> {
        self.backends.get(backend as usize).map(|b| Head(b.head))
    }

    fn table(&self, backend: u32) -> Option<TableWord> {
        self.backends
            .get(backend as usize)
            .map(|b| TableWord(b.table))
    }

    fn stamp_loss(&self, slot: u32, at: u64) {
        if let Some(loss) = self.losses.get(slot as usize) {
            loss.set(at);
        }
    }

    fn count_event(&self, event: Event) {
        let counter = &self.events[event as usize];
        counter.set(counter.get() + 1);
    }
}

impl Tables for MemoryTables {
    fn node(&self) -> Node {
        self.node
    }

    fn control(&self, index: u32) -> Option<u64> {
        self.control.get(index as usize).copied()
    }

    fn service_bucket(&self, index: u32) -> Option<&ServiceBucket> {
        self.services.get(index as usize)
    }

    fn slot(&self, index: u32) -> Option<SlotWord> {
        self.slots.get(index as usize).copied()
    }

    fn backend(&self, id: u32) -> Option<&Backend> {
        self.backends.get(id as usize)
    }

    fn count(&self, forwarded: &Forwarded) {
        if let Some(counters) = self
            .counters
            .borrow_mut()
            .get_mut(forwarded.backend as usize)
        {
            counters.packets += 1;
            counters.bytes += u64::from(forwarded.bytes);
            counters.flows += u64::from(forwarded.opener);
        }
    }
}
