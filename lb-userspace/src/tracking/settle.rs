//! The end of learning: when every live flow of the incumbent is remembered, the primary takes its place.

use std::collections::BTreeMap;
use std::ops::Range;

use lb_common::flow::{FlowEntry, FlowState, slot_of_tag};
use lb_common::slot::{Mode, SlotWord};

use super::{Backends, Book, MARGIN, SharedMemory, Step, Tracking, stretch};

/// Compare-and-swaps for one learnt entry; packets refresh an entry once in four seconds, so two are plenty.
const ATTEMPTS: u32 = 4;

/// The slots of a service that may settle.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scope {
    pub slots: Range<u32>,
    pub tracking: Tracking,
    /// How long a live flow may be silent: the service's `flow_idle`, nanoseconds.
    pub window: u64,
}

/// One slot that is about to settle.
#[derive(Clone, Copy, Debug)]
struct Candidate {
    /// The word as it was stored, settling.
    word: SlotWord,
    /// The slot's loss stamp when it was found due.
    loss: u64,
    tracking: Tracking,
    /// An entry of it resisted: another time.
    refused: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Packets that do not know that the slot settles are leaving.
    Announced,
    /// Learnt entries are being made established, so that none can be given up any more.
    Converting,
    /// Packets that saw learnt entries are leaving.
    Converted,
}

/// Settles what is due. Steps: announce, grace period, convert, grace period, take over.
#[derive(Clone, Debug)]
pub struct Settle {
    phase: Phase,
    candidates: BTreeMap<u32, Candidate>,
    cursor: u32,
}

impl Default for Settle {
    fn default() -> Self {
        Self::new()
    }
}

/// The same word, no longer settling.
pub(super) fn unsettled(word: SlotWord) -> SlotWord {
    SlotWord::new(word.mode(), word.primary(), word.incumbent(), false)
}

/// Whether a slot has learnt all it can: nothing was lost for as long as a live flow may be silent.
pub fn due<B: Backends>(
    word: SlotWord,
    t0: u64,
    loss: u64,
    now: u64,
    window: u64,
    backends: &B,
) -> bool {
    word.mode() == Mode::Learn
        && word.incumbent() != word.primary()
        && backends.status(word.incumbent()).carries()
        && now.saturating_sub(t0.max(loss)) >= window + MARGIN
}

impl Settle {
    /// With no slot yet.
    pub const fn new() -> Self {
        Self {
            phase: Phase::Announced,
            candidates: BTreeMap::new(),
            cursor: 0,
        }
    }

    /// Announces the slots that are due. Take the services in stretches; a grace period must follow the last before
    /// [`Settle::step`], if there are any slots at all.
    pub fn announce<M: SharedMemory, B: Backends>(
        &mut self,
        memory: &M,
        book: &Book,
        backends: &B,
        scope: &Scope,
    ) {
        for slot in scope.slots.clone() {
            let word = memory.slot(slot);
            if word.mode() != Mode::Learn {
                continue;
            }
            // The clock first: a stamp that comes between only makes the rest longer than it looks.
            let now = memory.clock();
            let loss = memory.loss(slot);
            if due(word, book.t0(slot), loss, now, scope.window, backends) {
                let word = SlotWord::new(Mode::Learn, word.primary(), word.incumbent(), true);
                memory.store_slot(slot, word);
                let candidate = Candidate {
                    word,
                    loss,
                    tracking: scope.tracking,
                    refused: false,
                };
                self.candidates.insert(slot, candidate);
            }
        }
    }

    /// Slots that settle.
    pub fn slots(&self) -> usize {
        self.candidates.len()
    }

    /// Calls it off, at any time: what was announced goes on learning, as after a loss.
    pub fn abandon<M: SharedMemory>(&self, memory: &M) {
        for (&slot, candidate) in &self.candidates {
            if memory.slot(slot) == candidate.word {
                memory.store_slot(slot, unsettled(candidate.word));
            }
        }
    }

    /// Goes on after a grace period, or with the next `most` entries of the table.
    pub fn step<M: SharedMemory, B: Backends>(
        &mut self,
        memory: &M,
        book: &mut Book,
        backends: &B,
        most: u32,
    ) -> Step {
        match self.phase {
            Phase::Announced | Phase::Converting => {
                self.phase = Phase::Converting;
                for index in stretch(&mut self.cursor, memory.entries(), most) {
                    self.convert(memory, backends, index);
                }
                if self.cursor < memory.entries() {
                    return Step::More;
                }
                self.phase = Phase::Converted;
                Step::Grace
            }
            Phase::Converted => {
                self.take_over(memory, book, backends);
                Step::Done
            }
        }
    }

    fn convert<M: SharedMemory, B: Backends>(&mut self, memory: &M, backends: &B, index: u32) {
        for attempt in 1..=ATTEMPTS {
            let entry = memory.entry(index);
            if entry.is_empty() || entry.state() != FlowState::Learnt {
                return;
            }
            let Some(candidate) = self.candidate(entry, backends) else {
                return;
            };
            if memory.swap(
                index,
                entry,
                entry.with(FlowState::Established, entry.age()),
            ) {
                return;
            }
            candidate.refused = attempt == ATTEMPTS;
        }
    }

    fn candidate<B: Backends>(&mut self, entry: FlowEntry, backends: &B) -> Option<&mut Candidate> {
        let table = backends.table(entry.backend())?;
        let slot = table.first_slot() + slot_of_tag(entry.tag(), table.slots());
        self.candidates.get_mut(&slot)
    }

    fn take_over<M: SharedMemory, B: Backends>(&self, memory: &M, book: &mut Book, backends: &B) {
        for (&slot, candidate) in &self.candidates {
            let Candidate { word, loss, .. } = *candidate;
            // A change came between: the slot is not ours any more, and the change has cleared the mark.
            if memory.slot(slot) != word {
                continue;
            }
            let complete = !candidate.refused
                && memory.loss(slot) == loss
                && backends.status(word.incumbent()).carries();
            if !complete {
                memory.store_slot(slot, unsettled(word));
                continue;
            }
            let mode = match candidate.tracking {
                Tracking::Always => Mode::Learn,
                Tracking::Adaptive | Tracking::Off => Mode::Residue,
            };
            memory.store_slot(
                slot,
                SlotWord::new(mode, word.primary(), word.primary(), false),
            );
            if mode == Mode::Learn {
                book.begins(slot, memory.clock());
            } else {
                book.leaves(slot);
            }
        }
    }
}
