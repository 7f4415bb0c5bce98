//! Ours: packets by [`lb_common::track`], the daemon by [`lb_userspace::tracking`], over plain memory. No rule is written here,
//! only what `lb_common::process` and the daemon do around them.

use lb_common::hash;
use lb_common::slot::Mode;
use lb_common::track::{self, Kind, Place, TableWord};
use lb_userspace::model::{FlowTimes, Protocol, Tracking};
use lb_userspace::plan::{idle_units, window};
use lb_userspace::tracking::change::change;
use lb_userspace::tracking::removal::Removal;
use lb_userspace::tracking::round::Round;
use lb_userspace::tracking::settle::Scope;
use lb_userspace::tracking::{Book, SharedMemory, Step};

use super::Balancer;
use super::memory::{Memory, SERVICE};
use crate::control::Pool;

pub struct Sluice {
    memory: Memory,
    book: Book,
    tracking: Tracking,
    /// Some slot is not at rest, or some entry is left: only then there are chores.
    restless: bool,
}

impl Sluice {
    pub fn new(entries: u32, tracking: Tracking, pool: &Pool, now: u64) -> Self {
        let idle = idle_units(FlowTimes::usual(Protocol::Tcp).flow_idle);
        let slots = pool.slots.len() as u32;
        let mut sluice = Self {
            memory: Memory::new(entries, TableWord::new(0, slots, idle)),
            book: Book::new(slots),
            tracking,
            restless: false,
        };
        sluice.change(pool, now);
        sluice
    }

    /// Nothing runs beside us: every packet has left the data path.
    fn grace(&mut self) {
        let mark = self.book.mark();
        self.book.passed(mark);
    }

    fn remove(&mut self, id: u32) {
        let mut removal = Removal::begin(id);
        loop {
            self.grace();
            if removal.step(&self.memory, u32::MAX) == Step::Done {
                return;
            }
        }
    }

    fn slots(&self) -> std::ops::Range<u32> {
        0..self.memory.table_word().slots()
    }
}

impl Balancer for Sluice {
    fn packet(&mut self, hash: u64, kind: Kind, now: u64) -> Option<u32> {
        let table = self.memory.table_word();
        let slot = hash::slot(hash, table.slots());
        let word = self.memory.slot(slot);
        if word.mode() == Mode::Steady {
            return Some(word.primary());
        }
        self.memory.set_clock(now);
        let place = Place {
            hash,
            service: SERVICE,
            flow_idle: table.flow_idle(),
            slot,
            word,
        };
        track::choose(&self.memory, &place, kind).ok()
    }

    fn change(&mut self, pool: &Pool, now: u64) {
        self.memory.set_clock(now);
        self.memory.set_statuses(&pool.statuses);
        let came_back = |id| pool.came_back.contains(&id);
        change(
            &self.memory,
            &mut self.book,
            &self.memory,
            0,
            &pool.slots,
            self.tracking,
            came_back,
        );
        for &id in &pool.gone {
            self.remove(id);
        }
        self.restless = true;
    }

    fn chores(&mut self, now: u64) {
        if !self.restless {
            return;
        }
        self.memory.set_clock(now);
        let mut round = Round::new(vec![Scope {
            slots: self.slots(),
            tracking: self.tracking,
            window: window(self.memory.table_word().flow_idle()),
        }]);
        loop {
            match round.step(&self.memory, &mut self.book, &self.memory, u32::MAX) {
                Step::More => {}
                Step::Grace => self.grace(),
                Step::Done => break,
            }
        }
        let mut modes = self.slots().map(|slot| self.memory.slot(slot).mode());
        self.restless = self.memory.used() > 0 || modes.any(|mode| mode != Mode::Steady);
    }

    fn entries(&self) -> u64 {
        self.memory.used()
    }
}
