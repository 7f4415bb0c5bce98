//! The regular walk over the flow table: clears what nobody needs, counts the rest, and puts slots to rest.

use std::ops::Range;

use lb_common::flow::{Age, FlowEntry, FlowState, slot_of_tag};
use lb_common::slot::{Mode, SlotWord};
use lb_common::track::{Status, TableWord};

use super::{Backends, Book, SharedMemory, stretch};

/// What one whole sweep saw, without what it cleared.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Entries by slot.
    pub slots: Vec<u32>,
    /// Flows by backend id, closed ones not counted; as long as the greatest id seen.
    pub backends: Vec<u32>,
    /// Entries by state: SYN, LRN, EST, CLO.
    pub states: [u32; 4],
    pub cleared: u32,
}

/// One walk. Take it in stretches: each is short enough not to keep a change waiting.
#[derive(Clone, Debug)]
pub struct Sweep {
    cursor: u32,
    /// Up to where packets had left the data path when the walk began: what they could insert later, it would have missed.
    graced: u64,
    tally: Tally,
}

impl Sweep {
    pub fn begin(book: &Book) -> Self {
        Self {
            cursor: 0,
            graced: book.graced(),
            tally: Tally {
                slots: vec![0; book.slots()],
                ..Tally::default()
            },
        }
    }

    /// Looks at `most` further entries; true when the whole table has been seen.
    pub fn walk<M: SharedMemory, B: Backends>(
        &mut self,
        memory: &M,
        book: &Book,
        backends: &B,
        most: u32,
    ) -> bool {
        for index in stretch(&mut self.cursor, memory.entries(), most) {
            let entry = memory.entry(index);
            if entry.is_empty() {
                continue;
            }
            // After the load: to a clock that was read before, an entry that was used since would look almost a turn old, and a
            // daemon that was stopped between the two would clear live flows.
            let now = Age::of(memory.clock());
            let slot = place(entry, backends);
            let useless = over(entry, backends, now)
                || slot.is_none_or(|slot| {
                    let quiet = book.quiet(slot, self.graced);
                    unneeded(entry, memory.slot(slot), quiet)
                });
            // One that a packet changed meanwhile is in use, however old it looked: its slot must not come to rest. The next sweep
            // will judge it.
            if useless && memory.swap(index, entry, FlowEntry::EMPTY) {
                self.tally.cleared += 1;
            } else {
                self.count(entry, slot);
            }
        }
        self.cursor >= memory.entries()
    }

    fn count(&mut self, entry: FlowEntry, slot: Option<u32>) {
        self.tally.states[entry.state() as usize] += 1;
        if let Some(slot) = slot {
            self.tally.slots[slot as usize] += 1;
        }
        if entry.state() != FlowState::Closed {
            let backend = entry.backend() as usize;
            if self.tally.backends.len() <= backend {
                self.tally.backends.resize(backend + 1, 0);
            }
            self.tally.backends[backend] += 1;
        }
    }

    /// After the whole table was seen: those of these slots whose last entry is gone are STEADY again.
    ///
    /// A slot only comes to rest if every packet that saw it learn had left before the walk began: RESIDUE inserts nothing, so
    /// nothing was put behind the walk's back. A change since then that let it learn shows in the book.
    pub fn rest<M: SharedMemory>(&self, memory: &M, book: &Book, slots: Range<u32>) -> Rested {
        let mut rested = Rested::default();
        for slot in slots {
            let word = memory.slot(slot);
            match word.mode() {
                Mode::Steady => {}
                Mode::Residue
                    if self.tally.slots[slot as usize] == 0 && book.quiet(slot, self.graced) =>
                {
                    memory.store_slot(slot, SlotWord::steady(word.primary()));
                    rested.now += 1;
                }
                Mode::Residue | Mode::Learn => rested.awake += 1,
            }
        }
        rested
    }

    /// What was counted.
    pub fn tally(self) -> Tally {
        self.tally
    }
}

/// What became of some slots.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rested {
    /// Came to rest.
    pub now: u32,
    /// Are still not at rest.
    pub awake: u32,
}

/// The slot of an entry.
fn place<B: Backends>(entry: FlowEntry, backends: &B) -> Option<u32> {
    let table = backends
        .table(entry.backend())
        .filter(|table| table.slots() > 0)?;
    Some(table.first_slot() + slot_of_tag(entry.tag(), table.slots()))
}

/// Whether packets take it for nothing.
fn over<B: Backends>(entry: FlowEntry, backends: &B, now: Age) -> bool {
    let flow_idle = backends
        .table(entry.backend())
        .map_or(0, TableWord::flow_idle);
    backends.status(entry.backend()) == Status::Gone || entry.expired(now, flow_idle)
}

/// Whether its flow would go to the same backend without it. `quiet`: no packet is in flight that saw the slot learn; one that did
/// would take the flow for the former incumbent's, and pin it there.
fn unneeded(entry: FlowEntry, word: SlotWord, quiet: bool) -> bool {
    match word.mode() {
        Mode::Steady => true,
        Mode::Residue => quiet && entry.backend() == word.primary(),
        Mode::Learn => false,
    }
}
