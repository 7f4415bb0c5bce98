//! The daemon's view of the shared memory: each access a step, and some of the mutations.

use std::cell::Cell;

use lb_common::flow::{FlowEntry, FlowState};
use lb_common::slot::{Mode, SlotWord};
use lb_common::track::{Head, Status, TableWord};
use lb_userspace::tracking::{Backends, SharedMemory};

use super::Known;
use crate::mutation::Mutation;
use crate::world::{ENTRIES, NOBODY, Turn};

/// The incumbents' statuses as a mutation tells them to a change.
pub(super) struct Told(pub(super) Known, pub(super) Mutation, pub(super) Cell<bool>);

impl Backends for Told {
    fn status(&self, backend: u32) -> Status {
        // Asked first about the incumbent, then about the old primary.
        let second = self.2.replace(!self.2.get());
        match (self.1, self.0.status(backend)) {
            (Mutation::NewIncumbent, _) if second => Status::Gone,
            (Mutation::GoneIncumbent, Status::Gone) if backend != 0 => Status::Down,
            (Mutation::DownIncumbent, Status::Down) => Status::Gone,
            (_, status) => status,
        }
    }

    fn table(&self, backend: u32) -> Option<TableWord> {
        self.0.table(backend)
    }
}

pub(super) struct DaemonMemory<'w> {
    pub(super) turn: Turn<'w>,
    pub(super) started: u64,
    pub(super) phase: Phase,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    Adopt,
    Change,
    Sweep,
    Settle,
    Removal,
}

impl SharedMemory for DaemonMemory<'_> {
    fn slot(&self, slot: u32) -> SlotWord {
        let word = SlotWord(self.turn.access(|world| world.slot(slot).0));
        let sweeps = self.turn.world.mutation == Mutation::SweepsLearning;
        if sweeps && self.phase == Phase::Sweep {
            return SlotWord::steady(word.primary());
        }
        word
    }

    fn store_slot(&self, slot: u32, word: SlotWord) {
        self.turn.access(|world| {
            world.store_slot(slot, word);
            1
        });
    }

    fn loss(&self, slot: u32) -> u64 {
        let loss = self.turn.access(|world| world.loss[slot as usize].get());
        match self.turn.world.mutation {
            Mutation::LossIgnored => 0,
            _ => loss,
        }
    }

    fn entries(&self) -> u32 {
        self.turn.world.buckets.get() * 8
    }

    fn entry(&self, index: u32) -> FlowEntry {
        FlowEntry(
            self.turn
                .access(|world| world.entries[index as usize % ENTRIES].get().0),
        )
    }

    fn swap(&self, index: u32, old: FlowEntry, new: FlowEntry) -> bool {
        if self.turn.world.mutation == Mutation::NoConversion && self.phase == Phase::Settle {
            return true;
        }
        let phase = self.phase;
        self.turn.access(|world| {
            let cell = &world.entries[index as usize % ENTRIES];
            if cell.get() != old {
                return 0;
            }
            let live = old.state() == FlowState::Established;
            if let (true, Some(slot)) = (live && new.is_empty(), world.place(old)) {
                let word = world.slot(slot);
                world.promise(
                    phase == Phase::Removal
                        || word.mode() == Mode::Steady
                        || (word.mode() == Mode::Residue && old.backend() == word.primary()),
                    "I5",
                    "the daemon cleared a live established entry",
                );
            }
            cell.set(new);
            if new.is_empty() {
                world.entry_life[index as usize].set(NOBODY);
            }
            1
        }) != 0
    }

    fn clock(&self) -> u64 {
        match (self.turn.world.mutation, self.phase) {
            (Mutation::StaleStart, Phase::Change) | (Mutation::SweepsByOldClock, Phase::Sweep) => {
                self.started
            }
            (Mutation::AdoptedStart, Phase::Adopt) => 0,
            _ => self.turn.access(|world| world.clock.get()),
        }
    }
}

impl DaemonMemory<'_> {
    pub(super) fn store_head(&self, id: u32, head: Option<Head>) {
        self.turn.access(|world| {
            world.store_head(id, head);
            1
        });
    }
}
