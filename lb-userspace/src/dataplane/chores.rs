//! The regular chores on the kernel's slots and flow table, by the rules of [`crate::tracking`].

use std::collections::HashMap;

use anyhow::Result;
use lb_common::flow::{FlowEntry, WAYS};
use lb_common::slot::{Mode, SlotWord};

use super::kernel::KernelDataPlane;
use super::shared::{Records, Shared};
use crate::tracking::round::Round;
use crate::tracking::sweep::Sweep;
use crate::tracking::{SharedMemory as _, Step};

/// A round of the chores over the kernel's tables. It outlives changes between its steps, as long as no range of slots changes hands:
/// then it is to be abandoned.
#[derive(Debug)]
pub struct Maintenance {
    round: Round,
    /// The last step asked for a grace period.
    grace: bool,
}

impl Maintenance {
    pub const fn new(round: Round) -> Self {
        Self {
            round,
            grace: false,
        }
    }

    /// Goes on with at most `most` entries or slots; before them it waits for a grace period, if the last step said so.
    ///
    /// # Errors
    /// When the kernel refuses a grace period; the step can be repeated.
    pub fn step(&mut self, plane: &mut KernelDataPlane, most: u32) -> Result<Step> {
        if self.grace {
            plane.grace()?;
            self.grace = false;
        }
        let shared = Shared {
            slots: &plane.tables.slots,
            losses: &plane.tables.losses,
            flows: &plane.tables.flows,
        };
        let records = Records {
            backends: &plane.tables.backends,
            service: None,
        };
        let step = self.round.step(&shared, &mut plane.book, &records, most);
        self.grace = step == Step::Grace;
        Ok(step)
    }

    /// See [`Round::take_swept`].
    pub const fn round(&mut self) -> &mut Round {
        &mut self.round
    }

    /// Ends it at once; the next one begins anew.
    pub fn abandon(self, plane: &KernelDataPlane) {
        self.round.abandon(&plane.shared());
    }
}

impl KernelDataPlane {
    /// Clears all that a sweep clears, in one go, entries of slots that do not look at any among it. Returns how many.
    ///
    /// # Errors
    /// When the kernel refuses a grace period; nothing was cleared then.
    pub fn clear_unneeded(&mut self) -> Result<u32> {
        self.tables.mend_records();
        // Packets that saw these slots learn might insert behind the walk.
        self.grace()?;
        let mut sweep = Sweep::begin(&self.book);
        let records = Records {
            backends: &self.tables.backends,
            service: None,
        };
        sweep.walk(&self.shared(), &self.book, &records, u32::MAX);
        Ok(sweep.tally().cleared)
    }

    /// The words of the range from `first`, as they are now.
    pub fn slot_words(&self, first: u32, size: u32) -> Vec<SlotWord> {
        let words = first..first + size;
        words
            .map(|slot| SlotWord(self.tables.slots.load(slot, 0)))
            .collect()
    }

    /// Puts an entry into the flow table, as a packet would: to measure with.
    pub fn store_flow_entry(&self, index: u32, entry: FlowEntry) {
        let (bucket, way) = (index / WAYS as u32, index as usize % WAYS);
        self.tables.flows.store(bucket, way, entry.0);
    }

    /// Entries that the flow table has.
    pub fn flow_entries(&self) -> u64 {
        self.shared().entries().into()
    }

    /// Slots of the range from `first` that send unknown flows to a backend which gets no new ones of them, by its id.
    pub fn unlearnt(&self, first: u32, size: u32) -> HashMap<u32, u64> {
        let mut unlearnt = HashMap::new();
        for slot in first..first + size {
            let word = SlotWord(self.tables.slots.load(slot, 0));
            if word.mode() == Mode::Learn && word.incumbent() != word.primary() {
                *unlearnt.entry(word.incumbent()).or_default() += 1;
            }
        }
        unlearnt
    }

    /// Slots by mode (steady, learn, residue) of the range from `first`.
    pub fn modes(&self, first: u32, size: u32) -> [u64; 3] {
        let mut modes = [0; 3];
        for slot in first..first + size {
            modes[SlotWord(self.tables.slots.load(slot, 0)).mode() as usize] += 1;
        }
        modes
    }
}
