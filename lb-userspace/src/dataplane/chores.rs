//! The regular chores on the kernel's slots and flow table, by the rules of [`crate::tracking`].

use anyhow::Result;
use lb_common::slot::SlotWord;

use super::kernel::KernelDataPlane;
use super::shared::{Records, Shared};
use crate::tracking::Step;
use crate::tracking::settle::{Scope, Settle};
use crate::tracking::sweep::{Sweep, Tally};

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
            backends: &self.tables.backends,
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
                backends: &self.tables.backends,
                service: None,
            };
            let shared = Shared {
                slots: &self.tables.slots,
                losses: &self.tables.losses,
                flows: &self.tables.flows,
            };
            match settle.step(&shared, &mut self.book, &records, u32::MAX) {
                Step::More => {}
                Step::Grace => self.grace()?,
                Step::Done => return Ok(tally),
            }
        }
    }

    /// The words of the range from `first`, as they are now.
    pub fn slot_words(&self, first: u32, size: u32) -> Vec<SlotWord> {
        let words = first..first + size;
        words
            .map(|slot| SlotWord(self.tables.slots.load(slot, 0)))
            .collect()
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
