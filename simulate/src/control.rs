//! The operator, the probes and the lookup table: what every design is told, at the same moments.
//!
//! Statuses and their timers are the daemon's own ([`lb_userspace::tracking::standing`]), the table is Maglev over the ACTIVE backends.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use lb_common::track::Status;
use lb_userspace::maglev::{self, Member};
use lb_userspace::model::{Admin, FlowTimes, Health, Protocol};
use lb_userspace::tracking::standing::{Standing, Timers, Wish};

use crate::scenario::{Event, Identity, Scenario};

/// What is known of the backends. Ids are never used again.
#[derive(Clone, Debug, Default)]
pub struct Pool {
    /// By id; id 0 is nobody's.
    pub statuses: Vec<Status>,
    /// By id: whether what is sent there is answered.
    pub answers: Vec<bool>,
    /// The lookup table: ids by slot.
    pub slots: Vec<u32>,
    /// Carry again since the last change, after they were DOWN.
    pub came_back: Vec<u32>,
    /// GONE since the last change.
    pub gone: Vec<u32>,
}

impl Pool {
    pub fn status(&self, id: u32) -> Status {
        self.statuses
            .get(id as usize)
            .copied()
            .unwrap_or(Status::Gone)
    }

    pub fn answers(&self, id: u32) -> bool {
        self.answers.get(id as usize).copied().unwrap_or(false)
    }
}

#[derive(Clone, Copy, Debug)]
enum Action {
    /// The next backend joins, under its own identity or an older one's.
    Join {
        identity: Option<u32>,
    },
    /// By id.
    Drain(u32),
    Remove(u32),
    Fail(u32),
    Recover(u32),
    ProbesFail(u32),
    ProbesSucceed(u32),
    LoseBalancer(u32),
}

/// Its place is its id less 1.
#[derive(Clone, Copy, Debug)]
struct Backend {
    identity: u32,
    wish: Wish,
    standing: Standing,
    /// Whether the machine works.
    works: bool,
}

/// The course of events.
#[derive(Debug)]
pub struct Control {
    pub pool: Pool,
    backends: Vec<Backend>,
    agenda: BTreeMap<(u64, u32), Action>,
    members: Vec<u32>,
    slots: u32,
}

const UP: Wish = Wish {
    admin: Admin::Active,
    health: Health::Up,
    weight: 1,
    removed: false,
};

impl Control {
    /// `begin`: when the warm-up is over; events count from there.
    pub fn new(scenario: &Scenario, start: u64, begin: u64) -> Self {
        let mut control = Self {
            pool: Pool::default(),
            backends: Vec::new(),
            agenda: BTreeMap::new(),
            members: Vec::new(),
            slots: scenario.slots(),
        };
        control.pool.statuses.push(Status::Gone);
        control.pool.answers.push(false);
        for _ in 0..scenario.backends {
            control.join(None, start);
        }
        control.settle_table();
        let mut planner = Planner {
            agenda: &mut control.agenda,
            next: scenario.backends + 1,
            oldest: 1,
        };
        for event in &scenario.events {
            planner.plan(event, begin, scenario);
        }
        control
    }

    /// When something happens next.
    pub fn next(&self) -> Option<u64> {
        let timer = self.backends.iter().filter_map(|b| b.standing.next()).min();
        let agenda = self.agenda.keys().next().map(|key| key.0);
        timer.into_iter().chain(agenda).min()
    }

    /// Everything that is due. Returns the balancers that are lost.
    pub fn step(&mut self, now: u64) -> Vec<u32> {
        self.pool.came_back.clear();
        self.pool.gone.clear();
        let mut lost = Vec::new();
        while let Some(entry) = self.agenda.first_entry().filter(|e| e.key().0 <= now) {
            match entry.remove() {
                Action::Join { identity } => self.join(identity, now),
                Action::Drain(id) => self.backend(id).wish.admin = Admin::Draining,
                Action::Remove(id) => self.backend(id).wish.removed = true,
                Action::Fail(id) => self.backend(id).works = false,
                Action::Recover(id) => self.backend(id).works = true,
                Action::ProbesFail(id) => self.backend(id).wish.health = Health::Down,
                Action::ProbesSucceed(id) => self.backend(id).wish.health = Health::Up,
                Action::LoseBalancer(balancer) => lost.push(balancer),
            }
        }
        for (id, backend) in (1..).zip(&mut self.backends) {
            if let Some(turn) = backend.standing.update(backend.wish, now) {
                if turn.came_back() {
                    self.pool.came_back.push(id);
                }
                if turn.to == Status::Gone {
                    self.pool.gone.push(id);
                }
            }
            let status = backend.standing.status();
            self.pool.statuses[id as usize] = status;
            // Who is taken out for good is switched off.
            self.pool.answers[id as usize] = backend.works && status != Status::Gone;
        }
        self.settle_table();
        lost
    }

    fn backend(&mut self, id: u32) -> &mut Backend {
        &mut self.backends[id as usize - 1]
    }

    fn join(&mut self, identity: Option<u32>, now: u64) {
        let id = self.backends.len() as u32 + 1;
        // An heir of an heir has the first one's.
        let identity = identity.map_or(id, |other| self.backends[other as usize - 1].identity);
        let standing = Standing::new(Timers::of(&FlowTimes::usual(Protocol::Tcp)), UP, now);
        self.backends.push(Backend {
            identity,
            wish: UP,
            standing,
            works: true,
        });
        self.pool.statuses.push(standing.status());
        self.pool.answers.push(true);
    }

    /// The table of the backends that may get new flows; the last one stays if there are none.
    fn settle_table(&mut self) {
        let members: Vec<u32> = (1..)
            .zip(&self.backends)
            .filter(|(_, backend)| backend.standing.status() == Status::Active)
            .map(|(id, _)| id)
            .collect();
        if members.is_empty() || members == self.members {
            return;
        }
        let shares: Vec<Member> = members
            .iter()
            .map(|&id| Member {
                identity: address(self.backends[id as usize - 1].identity),
                weight: 1,
            })
            .collect();
        self.pool.slots = maglev::build(&shares, self.slots)
            .into_iter()
            .map(|index| members[index as usize])
            .collect();
        self.members = members;
    }
}

fn address(identity: u32) -> IpAddr {
    IpAddr::V4(Ipv4Addr::from(0x0a00_0000 + identity))
}

/// Writes events down as what happens when.
struct Planner<'a> {
    agenda: &'a mut BTreeMap<(u64, u32), Action>,
    /// The id that the next backend to join will have.
    next: u32,
    /// The backend to be replaced next.
    oldest: u32,
}

impl Planner<'_> {
    fn at(&mut self, time: u64, action: Action) {
        let order = self.agenda.len() as u32;
        self.agenda.insert((time, order), action);
    }

    fn plan(&mut self, event: &Event, begin: u64, scenario: &Scenario) {
        match *event {
            Event::Add { at, count } => {
                for _ in 0..count {
                    self.at(begin + at.nanos(), Action::Join { identity: None });
                    self.next += 1;
                }
            }
            Event::Remove { at, count, drain } => {
                for _ in 0..count {
                    self.next -= 1;
                    self.leave(self.next, begin + at.nanos(), drain.nanos());
                }
            }
            Event::Roll {
                at,
                every,
                times,
                overlap,
                drain,
                identity,
            } => {
                for turn in 0..u64::from(times) {
                    let joins = begin + at.nanos() + turn * every.nanos();
                    let leaves = joins + overlap.nanos();
                    let old = self.oldest;
                    match identity {
                        Identity::Own => self.at(joins, Action::Join { identity: None }),
                        Identity::Inherited => {
                            let identity = Some(old);
                            self.at(leaves, Action::Join { identity });
                        }
                    }
                    self.leave(old, leaves, drain.nanos());
                    self.next += 1;
                    self.oldest += 1;
                }
            }
            Event::Flap {
                at,
                backend,
                down,
                every,
                times,
            } => {
                let id = backend + 1;
                let (fall, rise) = (scenario.probes.fall.nanos(), scenario.probes.rise.nanos());
                for turn in 0..u64::from(times) {
                    let fails = begin + at.nanos() + turn * every.nanos();
                    let recovers = fails + down.nanos();
                    self.at(fails, Action::Fail(id));
                    self.at(recovers, Action::Recover(id));
                    if down.nanos() > fall {
                        self.at(fails + fall, Action::ProbesFail(id));
                        self.at(recovers + rise, Action::ProbesSucceed(id));
                    }
                }
            }
            Event::LoseBalancer { at, balancer } => {
                self.at(begin + at.nanos(), Action::LoseBalancer(balancer));
            }
        }
    }

    fn leave(&mut self, id: u32, at: u64, drain: u64) {
        self.at(at, Action::Drain(id));
        self.at(at + drain, Action::Remove(id));
    }
}
