//! The daemon under way: its own rules over the shared memory, one access at a time, and what it keeps between.

mod memory;

use std::cell::Cell;

use lb_common::track::{Head, Status, TableWord};
use lb_userspace::model::{Admin, Health};
use lb_userspace::tracking::removal::Removal;
use lb_userspace::tracking::settle::{Scope, Settle};
use lb_userspace::tracking::standing::{Standing, Timers, Wish};
use lb_userspace::tracking::sweep::Sweep;
use lb_userspace::tracking::{Backends, Book, SECOND, Step, Tracking, change};

use self::memory::{DaemonMemory, Phase, Told};
use crate::mutation::Mutation;
use crate::world::{IDLE, IDS, Log, NOBODY, SERVICES, SLOTS, TABLE, Turn, World};

/// Backends that an operator may have: three of the first service, two of the second.
pub const BACKENDS: usize = 5;

/// The service of an operator's backend.
pub const fn service_of(backend: usize) -> u32 {
    (backend >= 3) as u32
}

const TIMERS: Timers = Timers {
    grace: 30 * SECOND,
    hold_down: 100 * SECOND,
    linger: 20 * SECOND,
};

/// Entries of one stretch of a chore.
const STRETCH: u32 = 5;

/// A backend as the operator and the probes see it.
#[derive(Clone, Copy, Debug)]
pub struct Backend {
    pub wish: Wish,
    /// Its id and what that may be used for; none: it is not in service.
    pub standing: Option<(u32, Standing)>,
}

/// What the daemon knows of ids.
#[derive(Clone, Copy, Debug)]
pub struct Known([Option<(u32, Status)>; IDS]);

impl Backends for Known {
    fn status(&self, backend: u32) -> Status {
        self.0
            .get(backend as usize)
            .copied()
            .flatten()
            .map_or(Status::Gone, |(_, status)| status)
    }

    fn table(&self, backend: u32) -> Option<TableWord> {
        let (service, _) = (*self.0.get(backend as usize)?)?;
        Some(World::table(service))
    }
}

/// Statuses and slots to write.
#[derive(Clone, Debug)]
pub struct Plan {
    heads: Vec<(u32, Option<Head>)>,
    primaries: [u32; SLOTS],
    came_back: u32,
    /// First rebuilds the book: a daemon that has just started.
    adopts: bool,
}

#[derive(Clone, Debug)]
pub enum Chore {
    Change(Plan),
    /// And the slots that were put to rest since the whole table was seen.
    Sweep(Sweep, u32),
    /// And the slots that were looked at; more than there are: all are announced.
    Settle(Settle, u32),
    Removal(Removal),
    Free(u32),
}

/// A chore under way.
#[derive(Clone, Debug)]
struct Work {
    chore: Chore,
    log: Log,
    /// Serial before which packets must have left; none: not waiting.
    waits: Option<u32>,
    /// Grace periods it asked for.
    graces: u32,
    started: u64,
}

pub struct Daemon {
    pub backends: [Backend; BACKENDS],
    pub known: Known,
    primaries: [u32; SLOTS],
    tracking: [Tracking; SERVICES as usize],
    book: Book,
    /// A chore; a change may run while it waits.
    work: Option<Work>,
    change: Option<Work>,
    /// Ids that are GONE.
    leaving: Vec<u32>,
    /// Where the rendezvous order comes from.
    order: u64,
    /// When the last settling slots began to wait for their last look at `loss`, by [`World::serial`].
    pub last_look: u32,
    /// Something is wished that is not done.
    pub dirty: bool,
}

impl Daemon {
    /// All backends of `present` are in service, and every slot is at rest.
    pub fn new(
        world: &World,
        present: [bool; BACKENDS],
        tracking: [Tracking; SERVICES as usize],
        order: u64,
    ) -> Self {
        let absent = Backend {
            wish: Wish {
                admin: Admin::Active,
                health: Health::Up,
                weight: 1,
                removed: true,
            },
            standing: None,
        };
        let mut daemon = Self {
            backends: [absent; BACKENDS],
            known: Known([None; IDS]),
            primaries: [0; SLOTS],
            tracking,
            book: Book::new(SLOTS as u32),
            work: None,
            change: None,
            leaving: Vec::new(),
            order,
            last_look: u32::MAX,
            dirty: false,
        };
        for (backend, &present) in daemon.backends.iter_mut().zip(&present) {
            backend.wish.removed = !present;
        }
        daemon.start_change(world, false);
        daemon.finish(world);
        daemon
    }

    fn tables(&self) -> [u32; SLOTS] {
        std::array::from_fn(|slot| {
            let active = (0..BACKENDS).filter_map(|index| {
                let (id, standing) = self.backends[index].standing?;
                (service_of(index) == slot as u32 / TABLE && standing.status() == Status::Active)
                    .then_some((index, id))
            });
            // Rendezvous: a table that hardly changes when the set does, as Maglev's does.
            let best = active.max_by_key(|&(index, _)| {
                (self.order ^ ((index as u64) << 8) ^ ((slot as u64) << 16))
                    .wrapping_mul(0x9e37_79b9_7f4a_7c15)
                    .rotate_left(23)
                    .wrapping_mul(0xd6e8_feb8_6659_fd93)
            });
            best.map_or(self.primaries[slot], |(_, id)| id)
        })
    }

    /// Whether a timer of a backend ran out.
    pub fn timer_due(&self, now: u64) -> bool {
        self.backends.iter().any(|backend| {
            backend
                .standing
                .is_some_and(|(_, standing)| standing.next().is_some_and(|next| next <= now))
        })
    }

    fn head_of(service: u32, status: Status) -> Option<Head> {
        Some(Head::new(service, status, 0))
    }

    /// Brings statuses and slots in line with what is wished.
    pub fn start_change(&mut self, world: &World, adopts: bool) {
        let now = world.clock.get();
        let mut plan = Plan {
            heads: Vec::new(),
            primaries: [0; SLOTS],
            came_back: 0,
            adopts,
        };
        for index in 0..BACKENDS {
            let service = service_of(index);
            let backend = &mut self.backends[index];
            if let Some((id, standing)) = &mut backend.standing {
                let from = self.known.status(*id);
                standing.update(backend.wish, now);
                let to = standing.status();
                if from == Status::Down && to.carries() {
                    plan.came_back |= 1 << *id;
                }
                if from != to {
                    plan.heads.push((*id, Self::head_of(service, to)));
                    self.known.0[*id as usize] = Some((service, to));
                }
                if to == Status::Gone {
                    self.leaving.push(*id);
                    backend.standing = None;
                }
            } else if !backend.wish.removed
                && backend.wish.health != Health::Down
                && backend.wish.admin != Admin::Disabled
                && let Some(id) = (1..IDS as u32).find(|&id| self.known.0[id as usize].is_none())
                && usize::from(world.lives.get()) + 1 < crate::world::LIVES
            {
                world.give_birth(id, service);
                let standing = Standing::new(TIMERS, backend.wish, now);
                plan.heads
                    .push((id, Self::head_of(service, standing.status())));
                self.known.0[id as usize] = Some((service, standing.status()));
                backend.standing = Some((id, standing));
            }
        }
        self.primaries = self.tables();
        plan.primaries = self.primaries;
        self.dirty = false;
        self.change = Some(Work {
            chore: Chore::Change(plan),
            log: Log::default(),
            waits: None,
            graces: 0,
            started: now,
        });
    }

    pub fn start_sweep(&mut self, world: &World) {
        let mut book = self.book.clone();
        if world.mutation == Mutation::RestsWithoutGrace {
            book.passed(book.mark());
        }
        self.start(world, Chore::Sweep(Sweep::begin(&book), 0), None);
    }

    pub fn start_settle(&mut self, world: &World) {
        self.last_look = u32::MAX;
        self.start(world, Chore::Settle(Settle::new(), 0), None);
    }

    /// Frees an id that is GONE, if there is one that no slot names.
    pub fn start_removal(&mut self, world: &World) {
        let unnamed = |id: u32| {
            (0..SLOTS as u32).all(|slot| {
                let word = world.slot(slot);
                word.primary() != id && word.incumbent() != id
            })
        };
        let Some(at) = self.leaving.iter().position(|&id| unnamed(id)) else {
            return;
        };
        let id = self.leaving.swap_remove(at);
        let (chore, waits) = match world.mutation {
            Mutation::FreedAtOnce => (Chore::Free(id), None),
            Mutation::PurgeBeforeGrace => (Chore::Removal(Removal::begin(id)), None),
            _ => (Chore::Removal(Removal::begin(id)), Some(world.serial.get())),
        };
        self.start(world, chore, waits);
    }

    fn start(&mut self, world: &World, chore: Chore, waits: Option<u32>) {
        self.work = Some(Work {
            chore,
            log: Log::default(),
            waits,
            graces: 0,
            started: world.clock.get(),
        });
    }

    /// The id that is being freed.
    pub fn freeing(&self) -> Option<u32> {
        match self.work.as_ref()?.chore {
            Chore::Removal(ref removal) => Some(removal.id()),
            Chore::Free(id) => Some(id),
            _ => None,
        }
    }

    /// Whether an id is on its way out, or a slot settles: moments at which packets in flight matter most.
    pub fn delicate(&self) -> bool {
        self.work.as_ref().is_some_and(|work| {
            matches!(
                work.chore,
                Chore::Removal(_) | Chore::Free(_) | Chore::Settle(_, u32::MAX)
            )
        })
    }

    pub fn idle(&self) -> bool {
        self.work.is_none() && self.change.is_none()
    }

    /// Whether a change may begin: between the steps of a chore, never within one.
    pub fn may_change(&self) -> bool {
        self.change.is_none() && self.work.as_ref().is_none_or(|work| work.log.0.is_empty())
    }

    /// Whether what it does next waits for packets in flight. `oldest`: serial of the first that is in flight.
    pub fn waits(&self, oldest: u32) -> bool {
        self.change.is_none()
            && self
                .work
                .as_ref()
                .is_some_and(|work| work.waits.is_some_and(|serial| oldest <= serial))
    }

    /// Goes on for at most `budget` accesses.
    pub fn run(&mut self, world: &World, budget: u32) {
        let changing = self.change.is_some();
        let Some(mut work) = self.change.take().or_else(|| self.work.take()) else {
            return;
        };
        // The caller saw to it that the packets have left.
        work.waits = None;
        let mut chore = work.chore.clone();
        let mut book = self.book.clone();
        let memory = DaemonMemory {
            turn: Turn::new(world, &mut work.log, budget),
            started: work.started,
            phase: match &chore {
                Chore::Change(_) => Phase::Change,
                Chore::Sweep(..) => Phase::Sweep,
                Chore::Settle(..) => Phase::Settle,
                Chore::Removal(_) | Chore::Free(_) => Phase::Removal,
            },
        };
        let step = self.step(&mut chore, &mut book, memory, &mut work.log);
        match step {
            None => {}
            Some(step) => {
                work.chore = chore;
                work.log.0.clear();
                self.book = book;
                match step {
                    Step::More => {}
                    Step::Grace => {
                        work.graces += 1;
                        if let (Chore::Settle(..), 2) = (&work.chore, work.graces) {
                            self.last_look = world.serial.get();
                        }
                        work.waits = grace(world, &work);
                    }
                    Step::Done => {
                        self.done(world, work.chore);
                        return;
                    }
                }
            }
        }
        if changing {
            self.change = Some(work);
        } else {
            self.work = Some(work);
        }
    }

    /// How many slots a step looks at: in a quarter of the histories one service's, so that a change may come between two.
    fn some_slots(&self) -> u32 {
        if self.order.is_multiple_of(4) {
            TABLE
        } else {
            SLOTS as u32
        }
    }

    /// One step of a chore; `None` if it ran out of accesses on the way.
    fn step(
        &self,
        chore: &mut Chore,
        book: &mut Book,
        mut memory: DaemonMemory<'_>,
        log: &mut Log,
    ) -> Option<Step> {
        let world = memory.turn.world;
        let step = match chore {
            Chore::Change(plan) => {
                if plan.adopts {
                    memory.phase = Phase::Adopt;
                    *book = Book::adopt(SLOTS as u32, &memory);
                    memory.phase = Phase::Change;
                }
                let late = world.mutation == Mutation::SlotsFirst;
                if !late {
                    for &(id, head) in &plan.heads {
                        memory.store_head(id, head);
                    }
                }
                for service in 0..SERVICES {
                    let first = service * TABLE;
                    let range = first as usize..(first + TABLE) as usize;
                    change::change(
                        &memory,
                        book,
                        &Told(self.known, world.mutation, Cell::new(false)),
                        first,
                        &plan.primaries[range],
                        self.tracking[service as usize],
                        |id| plan.came_back & (1 << id) != 0,
                    );
                }
                if late {
                    for &(id, head) in &plan.heads {
                        memory.store_head(id, head);
                    }
                }
                Step::Done
            }
            Chore::Sweep(sweep, rested) => {
                // A new book knows of no packets in flight.
                let blind = Book::new(SLOTS as u32);
                let shown = match world.mutation {
                    Mutation::SweepsWithoutGrace => &blind,
                    _ => &*book,
                };
                if sweep.walk(&memory, shown, &self.known, STRETCH) {
                    let slots = *rested..*rested + self.some_slots();
                    *rested = slots.end;
                    sweep.rest(&memory, book, slots);
                }
                if *rested == SLOTS as u32 {
                    Step::Done
                } else {
                    Step::More
                }
            }
            Chore::Settle(settle, seen) if *seen <= SLOTS as u32 => {
                let window = match world.mutation {
                    Mutation::SettlesEarly => IDLE / 2,
                    _ => IDLE,
                };
                let end = *seen + self.some_slots();
                while *seen < end.min(SLOTS as u32) {
                    let service = *seen / TABLE;
                    let scope = Scope {
                        slots: service * TABLE..(service + 1) * TABLE,
                        tracking: self.tracking[service as usize],
                        window,
                    };
                    settle.announce(&memory, book, &self.known, &scope);
                    *seen += TABLE;
                }
                if *seen < SLOTS as u32 {
                    Step::More
                } else {
                    // Announced.
                    *seen = u32::MAX;
                    match settle.slots() {
                        0 => Step::Done,
                        _ => Step::Grace,
                    }
                }
            }
            Chore::Settle(settle, _) => settle.step(&memory, book, &self.known, STRETCH),
            Chore::Removal(removal) => removal.step(&memory, STRETCH),
            Chore::Free(id) => {
                memory.store_head(*id, None);
                Step::Done
            }
        };
        memory.turn.end(log).then_some(step)
    }

    fn done(&mut self, world: &World, chore: Chore) {
        match chore {
            Chore::Removal(removal) => self.start(world, Chore::Free(removal.id()), None),
            Chore::Free(id) => {
                self.known.0[id as usize] = None;
                world.life_of[id as usize].set(NOBODY);
                // A backend that waits for an id.
                self.dirty |= self
                    .backends
                    .iter()
                    .any(|b| b.standing.is_none() && !b.wish.removed);
            }
            Chore::Change(plan) => self.same_everywhere(world, &plan),
            Chore::Sweep(..) | Chore::Settle(..) => {}
        }
    }

    /// I8: after a change every slot has the primary that the set of ACTIVE backends gives it.
    fn same_everywhere(&self, world: &World, plan: &Plan) {
        for (slot, &primary) in (0..).zip(&plan.primaries) {
            world.promise(
                world.slot(slot).primary() == primary,
                "I8",
                "a slot has another primary than its table says",
            );
        }
    }

    /// Waits for a grace period now, so that the next sweep may put more to rest.
    pub fn wants_grace(&self) -> bool {
        self.book.wants_grace()
    }

    /// A grace period between sweeps; nothing was in flight when it ended.
    pub fn grace_passed(&mut self) {
        self.book.passed(self.book.mark());
    }

    /// Nothing is in flight: everything under way is finished.
    pub fn finish(&mut self, world: &World) {
        for _ in 0..64 {
            if self.idle() {
                return;
            }
            self.run(world, u32::MAX);
        }
        world.promise(false, "end", "the daemon does not finish");
    }

    /// SIGKILL, and a new daemon: it knows what is in shared memory and what is wished, nothing else.
    pub fn killed(&mut self, world: &World) {
        let now = world.clock.get();
        (self.work, self.change) = (None, None);
        self.leaving.clear();
        self.primaries = std::array::from_fn(|slot| world.slots[slot].get().primary());
        for id in 1..IDS as u32 {
            let head = world.head(id);
            self.known.0[id as usize] = head.map(|head| (head.service(), head.status()));
            if head.is_none() {
                world.life_of[id as usize].set(NOBODY);
            } else if world.status(id) == Status::Gone {
                self.leaving.push(id);
            }
        }
        let known = self.known;
        for backend in &mut self.backends {
            backend.standing = backend
                .standing
                .filter(|&(id, _)| known.status(id) != Status::Gone)
                .map(|(id, _)| (id, Standing::new(TIMERS, backend.wish, now)));
        }
        // What no backend of the wish has is on its way out.
        let mut orphans = Vec::new();
        for id in 1..IDS as u32 {
            let owned = self
                .backends
                .iter()
                .any(|b| b.standing.is_some_and(|(own, _)| own == id));
            if let (false, Some((service, status))) = (owned, known.0[id as usize])
                && status != Status::Gone
            {
                self.known.0[id as usize] = Some((service, Status::Gone));
                self.leaving.push(id);
                orphans.push((id, Self::head_of(service, Status::Gone)));
            }
        }
        self.start_change(world, true);
        if let Some(Work {
            chore: Chore::Change(plan),
            ..
        }) = &mut self.change
        {
            plan.heads.extend(orphans);
        }
    }
}

/// Which packets a grace period waits for, unless a mutation does not.
fn grace(world: &World, work: &Work) -> Option<u32> {
    let skipped = match (world.mutation, &work.chore) {
        (Mutation::NoFirstGrace, Chore::Settle(..)) => work.graces == 1,
        (Mutation::NoSecondGrace, Chore::Settle(..)) => work.graces == 2,
        (Mutation::FreedBeforeGrace, Chore::Removal(_)) => true,
        _ => false,
    };
    (!skipped).then(|| world.serial.get())
}
