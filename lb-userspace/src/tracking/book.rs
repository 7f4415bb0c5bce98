//! What the daemon alone remembers of each slot. Lost with the daemon, and rebuilt on the safe side.

use lb_common::slot::Mode;

use super::SharedMemory;

/// A moment in the daemon's work, taken before a grace period and handed back after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark(u64);

/// Per slot: since when it learns, and whether packets that saw it learn may still be in flight.
#[derive(Clone, Debug)]
pub struct Book {
    /// Start of learning, nanoseconds.
    t0: Vec<u64>,
    /// The work's step in which the slot last stopped learning.
    left_learning: Vec<u64>,
    step: u64,
    /// Every packet that began before this step has left the data path.
    graced: u64,
}

impl Book {
    /// For `slots` slots, none of which has changed yet.
    pub fn new(slots: u32) -> Self {
        Self {
            t0: vec![0; slots as usize],
            left_learning: vec![0; slots as usize],
            step: 1,
            graced: 1,
        }
    }

    /// After a restart: what is learning began to learn now, for nobody knows whether a backend was down meanwhile or when the
    /// last daemon wrote the word; and nothing is known of packets in flight. Settling that was under way is called off.
    pub fn adopt<M: SharedMemory>(slots: u32, memory: &M) -> Self {
        let mut book = Self::new(slots);
        for slot in 0..slots {
            let word = memory.slot(slot);
            match word.mode() {
                Mode::Steady => {}
                Mode::Learn => {
                    if word.settling() {
                        memory.store_slot(slot, super::settle::unsettled(word));
                    }
                    book.begins(slot, memory.clock());
                }
                Mode::Residue => book.leaves(slot),
            }
        }
        book
    }

    /// Number of slots.
    pub(super) fn slots(&self) -> usize {
        self.t0.len()
    }

    /// Since when the slot learns, nanoseconds.
    pub fn t0(&self, slot: u32) -> u64 {
        self.t0[slot as usize]
    }

    /// The slot's learning begins (again). `now` is read after the word was stored: a daemon that is stopped between the two must
    /// not believe that it learnt meanwhile.
    pub(crate) fn begins(&mut self, slot: u32, now: u64) {
        self.t0[slot as usize] = now;
    }

    /// The slot stopped learning: packets in flight may still insert.
    pub(super) fn leaves(&mut self, slot: u32) {
        self.step += 1;
        self.left_learning[slot as usize] = self.step;
    }

    /// To be taken before waiting for a grace period.
    pub fn mark(&self) -> Mark {
        Mark(self.step)
    }

    /// A grace period that began after `mark` was taken is over.
    pub fn passed(&mut self, mark: Mark) {
        self.graced = self.graced.max(mark.0);
    }

    /// The step up to which no packet is in flight.
    pub(super) fn graced(&self) -> u64 {
        self.graced
    }

    /// Whether nobody has inserted into the slot since step `graced`.
    pub(super) fn quiet(&self, slot: u32, graced: u64) -> bool {
        self.left_learning[slot as usize] <= graced
    }

    /// Whether a grace period would let the next sweep put more slots to rest: some slot left learning after the last one.
    pub fn wants_grace(&self) -> bool {
        self.step > self.graced
    }
}
