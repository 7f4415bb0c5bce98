//! The memory that packets and the daemon share, with what only an onlooker knows: who is meant by an id, and since when.

use std::cell::Cell;

use lb_common::flow::{Age, FlowEntry};
use lb_common::slot::SlotWord;
use lb_common::track::{Head, Status, TableWord};
use lb_userspace::tracking::SECOND;

use crate::mutation::Mutation;

/// Slots of one service.
pub const TABLE: u32 = 2;
pub const SERVICES: u32 = 2;
pub const SLOTS: usize = (TABLE * SERVICES) as usize;
/// Backend ids are below this.
pub const IDS: usize = 7;
/// Backends that a history can know, counting every new life.
pub const LIVES: usize = 64;
/// Entries of the flow table: at most two buckets.
pub const ENTRIES: usize = 16;
/// `flow_idle`, nanoseconds: long enough to be longer than every fixed time-out.
pub const IDLE: u64 = 300 * SECOND;
/// One unit of an entry's age.
pub const TICK: u64 = 1 << 32;

/// A backend as its connections see it: a process, never two.
pub type Life = u8;
/// No backend.
pub const NOBODY: Life = 0;

pub struct World {
    pub mutation: Mutation,
    pub clock: Cell<u64>,
    /// Counts live accesses.
    pub serial: Cell<u32>,
    pub slots: [Cell<SlotWord>; SLOTS],
    pub loss: [Cell<u64>; SLOTS],
    pub entries: [Cell<FlowEntry>; ENTRIES],
    pub buckets: Cell<u32>,
    /// First words of the backends' records; `None`: nothing is there.
    pub heads: [Cell<Option<Head>>; IDS],
    /// Onlooker: whom the entry means.
    pub entry_life: [Cell<Life>; ENTRIES],
    /// Onlooker: whom the slot's P and I mean.
    pub slot_lives: [Cell<(Life, Life)>; SLOTS],
    /// Onlooker: who has the id.
    pub life_of: [Cell<Life>; IDS],
    pub id_of: [Cell<u32>; LIVES],
    pub service_of: [Cell<u32>; LIVES],
    /// Onlooker: when the backend last stopped carrying, by [`World::serial`].
    pub stopped: [Cell<u32>; LIVES],
    pub lives: Cell<Life>,
    /// The first broken promise.
    pub broken: Cell<Option<Broken>>,
}

#[derive(Clone, Copy, Debug)]
pub struct Broken {
    pub name: &'static str,
    pub what: &'static str,
}

fn cells<T: Copy, const N: usize>(value: T) -> [Cell<T>; N] {
    std::array::from_fn(|_| Cell::new(value))
}

impl World {
    pub fn new(mutation: Mutation, buckets: u32) -> Self {
        Self {
            mutation,
            clock: Cell::new(1_000 * TICK),
            serial: Cell::new(1),
            slots: cells(SlotWord(0)),
            loss: cells(0),
            entries: cells(FlowEntry::EMPTY),
            buckets: Cell::new(buckets),
            heads: cells(None),
            entry_life: cells(NOBODY),
            slot_lives: cells((NOBODY, NOBODY)),
            life_of: cells(NOBODY),
            id_of: cells(0),
            service_of: cells(u32::MAX),
            stopped: cells(0),
            lives: cells::<_, 1>(NOBODY)[0].clone(),
            broken: Cell::new(None),
        }
    }

    pub fn now(&self) -> Age {
        Age::of(self.clock.get())
    }

    pub fn promise(&self, kept: bool, name: &'static str, what: &'static str) {
        if !kept && self.broken.get().is_none() {
            self.broken.set(Some(Broken { name, what }));
        }
    }

    pub fn table(service: u32) -> TableWord {
        TableWord::new(service * TABLE, TABLE, Age::units(IDLE / SECOND))
    }

    /// A new backend for an id.
    pub fn give_birth(&self, id: u32, service: u32) -> Life {
        let life = self.lives.get() + 1;
        self.lives.set(life);
        self.life_of[id as usize].set(life);
        self.id_of[life as usize].set(id);
        self.service_of[life as usize].set(service);
        life
    }

    pub fn head(&self, id: u32) -> Option<Head> {
        self.heads.get(id as usize).and_then(Cell::get)
    }

    pub fn store_head(&self, id: u32, head: Option<Head>) {
        if !head.is_some_and(|head| head.status().carries()) {
            self.stopped[self.life_of[id as usize].get() as usize].set(self.serial.get());
        }
        self.heads[id as usize].set(head);
    }

    pub fn status(&self, id: u32) -> Status {
        self.head(id).map_or(Status::Gone, Head::status)
    }

    /// What a backend is, whatever has its id now.
    pub fn status_of(&self, life: Life) -> Status {
        let id = self.id_of[life as usize].get();
        if life != NOBODY && self.life_of[id as usize].get() == life {
            self.status(id)
        } else {
            Status::Gone
        }
    }

    pub fn slot(&self, slot: u32) -> SlotWord {
        self.slots[slot as usize].get()
    }

    pub fn store_slot(&self, slot: u32, word: SlotWord) {
        let old = self.slot(slot);
        let (old_p, old_i) = self.slot_lives[slot as usize].get();
        let meant = |id| {
            if id == old.primary() {
                old_p
            } else if id == old.incumbent() {
                old_i
            } else {
                self.life_of[id as usize % IDS].get()
            }
        };
        self.slot_lives[slot as usize].set((meant(word.primary()), meant(word.incumbent())));
        self.slots[slot as usize].set(word);
    }

    /// The slot of an entry that means something to packets.
    pub fn place(&self, entry: FlowEntry) -> Option<u32> {
        let head = self.head(entry.backend())?;
        let table = Self::table(head.service());
        let valid = !entry.is_empty()
            && head.status() != Status::Gone
            && !entry.expired(self.now(), table.flow_idle());
        valid.then(|| table.first_slot() + lb_common::flow::slot_of_tag(entry.tag(), table.slots()))
    }

    /// Valid entries of a flow, in the order in which packets find them, and whom they mean.
    pub fn entries_of(&self, hash: u64, service: u32) -> impl Iterator<Item = (FlowEntry, Life)> {
        let base = lb_common::flow::bucket(hash, self.buckets.get() - 1) as usize * 8;
        let tag = lb_common::flow::tag(hash);
        (base..base + 8).filter_map(move |index| {
            let entry = self.entries[index].get();
            let valid = entry.tag() == tag
                && self.place(entry).is_some()
                && self
                    .head(entry.backend())
                    .is_some_and(|head| head.service() == service);
            valid.then(|| (entry, self.entry_life[index].get()))
        })
    }

    /// The entry that packets of a flow find, as the rules say, and whom it means.
    pub fn find(&self, hash: u64, service: u32) -> Option<(FlowEntry, Life)> {
        self.entries_of(hash, service).next()
    }

    /// Whether a flow has entries that mean different backends.
    pub fn rivals(&self, hash: u64, service: u32) -> bool {
        let mut lives = self.entries_of(hash, service).map(|(_, life)| life);
        let first = lives.next();
        lives.any(|life| Some(life) != first)
    }
}

/// What an actor has seen so far. An actor is run from its beginning each time: what it did before is read from here, then it may
/// do `budget` further accesses, and after those its run leads nowhere and is thrown away.
#[derive(Clone, Debug, Default)]
pub struct Log(pub Vec<u64>);

pub struct Turn<'w> {
    pub world: &'w World,
    log: Cell<Vec<u64>>,
    next: Cell<usize>,
    budget: Cell<u32>,
    starved: Cell<bool>,
}

impl<'w> Turn<'w> {
    pub fn new(world: &'w World, log: &mut Log, budget: u32) -> Self {
        Self {
            world,
            log: Cell::new(std::mem::take(&mut log.0)),
            next: Cell::new(0),
            budget: Cell::new(budget),
            starved: Cell::new(false),
        }
    }

    /// One access to shared memory.
    pub fn access(&self, live: impl FnOnce(&World) -> u64) -> u64 {
        let next = self.next.get();
        self.next.set(next + 1);
        let mut log = self.log.take();
        let value = if next < log.len() {
            log[next]
        } else if self.budget.get() == 0 {
            self.starved.set(true);
            0
        } else {
            self.budget.set(self.budget.get() - 1);
            self.world.serial.set(self.world.serial.get() + 1);
            let value = live(self.world);
            log.push(value);
            value
        };
        self.log.set(log);
        value
    }

    pub fn starved(&self) -> bool {
        self.starved.get()
    }

    /// Gives the log back. False: the actor is not finished.
    pub fn end(self, log: &mut Log) -> bool {
        log.0 = self.log.take();
        !self.starved.get()
    }
}
