//! The regular chores on the kernel's slots and flow table, by the rules of [`crate::tracking`].

use std::collections::HashMap;

use anyhow::Result;
use lb_common::slot::{Mode, SlotWord};

use super::kernel::KernelDataPlane;
use super::shared::{Records, Shared};
use crate::tracking::settle::{Scope, Settle};
use crate::tracking::sweep::{Sweep, Tally};
use crate::tracking::{SharedMemory as _, Step};

impl KernelDataPlane {
    /// Sweeps, and settles what is due. Blocks for the grace periods that this takes.
    ///
    /// # Errors
    /// When the kernel refuses a grace period.
    pub fn maintain(&mut self, scopes: &[Scope]) -> Result<Tally> {
        let end = scopes
            .iter()
            .map(|scope| scope.slots.end)
            .max()
            .unwrap_or(0);
        if self.book.wants_grace(0..end) {
            self.grace()?;
        }
        let mut sweep = Sweep::begin(&self.book);
        let records = Records {
            backends: &self.backends,
            service: None,
        };
        sweep.walk(&self.shared(), &self.book, &records, u32::MAX);
        let (tally, _rested) = sweep.finish(&self.shared(), &self.book, 0..end);
        let Some(mut settle) = Settle::begin(&self.shared(), &self.book, &records, scopes) else {
            return Ok(tally);
        };
        self.grace()?;
        loop {
            let records = Records {
                backends: &self.backends,
                service: None,
            };
            let shared = Shared {
                slots: &self.slots,
                losses: &self.losses,
                flows: &self.flows,
            };
            match settle.step(&shared, &mut self.book, &records, u32::MAX) {
                Step::More => {}
                Step::Grace => self.grace()?,
                Step::Done => return Ok(tally),
            }
        }
    }

    /// Entries that the flow table has.
    pub fn flow_entries(&self) -> u64 {
        self.shared().entries().into()
    }

    /// Slots of the range from `first` that send unknown flows to a backend which gets no new ones of them, by its id.
    pub fn unlearnt(&self, first: u32, size: u32) -> HashMap<u32, u64> {
        let mut unlearnt = HashMap::new();
        for slot in first..first + size {
            let word = SlotWord(self.slots.load(slot, 0));
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
            modes[SlotWord(self.slots.load(slot, 0)).mode() as usize] += 1;
        }
        modes
    }
}
