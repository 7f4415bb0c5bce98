//! The end of a backend id: from GONE to the moment when it may name something else.

use lb_common::flow::FlowEntry;

use super::{SharedMemory, Step, stretch};

/// Compare-and-swaps for one entry; after the first grace period no packet writes an entry of a GONE backend, so one does.
const ATTEMPTS: u32 = 4;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Packets that saw the backend before it was GONE are leaving; until then they may still store its id.
    Gone,
    Purging,
    /// Packets that loaded an entry before it was purged are leaving.
    Purged,
}

/// Frees an id. Begin it after the backend was made GONE and a change has taken it out of every slot; what was linger and drain
/// before is [`super::standing`]'s. Steps: grace period, purge, grace period, free.
///
/// A backend that comes back after it was GONE needs this too, even to get the same id again: an entry from its first life
/// would win over what its flow has learnt since.
#[derive(Clone, Debug)]
pub struct Removal {
    id: u32,
    phase: Phase,
    cursor: u32,
    purged: u32,
    resisted: bool,
}

impl Removal {
    /// A grace period must follow before [`Removal::step`].
    pub const fn begin(id: u32) -> Self {
        Self {
            id,
            phase: Phase::Gone,
            cursor: 0,
            purged: 0,
            resisted: false,
        }
    }

    pub const fn id(&self) -> u32 {
        self.id
    }

    /// Entries cleared so far.
    pub const fn purged(&self) -> u32 {
        self.purged
    }

    /// Goes on after a grace period, or with the next `most` entries. [`Step::Done`]: the id is free.
    pub fn step<M: SharedMemory>(&mut self, memory: &M, most: u32) -> Step {
        if self.phase == Phase::Purged {
            return Step::Done;
        }
        self.phase = Phase::Purging;
        for index in stretch(&mut self.cursor, memory.entries(), most) {
            self.purge(memory, index);
        }
        if self.cursor < memory.entries() {
            return Step::More;
        }
        if self.resisted {
            // Cannot happen after a grace period; the id is kept rather than trusted.
            (self.cursor, self.resisted) = (0, false);
            return Step::Grace;
        }
        self.phase = Phase::Purged;
        Step::Grace
    }

    fn purge<M: SharedMemory>(&mut self, memory: &M, index: u32) {
        for _ in 0..ATTEMPTS {
            let entry = memory.entry(index);
            if entry.is_empty() || entry.backend() != self.id {
                return;
            }
            if memory.swap(index, entry, FlowEntry::EMPTY) {
                self.purged += 1;
                return;
            }
        }
        self.resisted = true;
    }
}
