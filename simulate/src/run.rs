//! One scenario: the clock, the clients' queue, and every design with a world of its own.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use lb_common::hash::{HashKeys, keys_from_seed};
use lb_common::track::Kind;
use lb_userspace::tracking::SECOND;

use crate::control::{Control, Pool};
use crate::designs::{Balancer, CHORES, Design};
use crate::outcome::{Break, Gauge, Outcome};
use crate::random::Random;
use crate::scenario::Scenario;
use crate::traffic::{Connection, Forger, Stage};

/// The clock does not begin at 0: that means "never" to some.
const START: u64 = 10_000 * SECOND;

/// Transmissions of an opener, and of anything else, before a client gives up; the first pause is a second, the longest 32.
const OPENER_TRIES: u32 = 6;
const TRIES: u32 = 15;

/// Runs every design through the scenario.
pub fn simulate(scenario: &Scenario) -> Vec<Outcome> {
    let begin = START + scenario.warm_up.nanos();
    let end = begin + scenario.runs.nanos();
    let mut control = Control::new(scenario, START, begin);
    let mut runs = Design::ALL.map(|design| Run::new(design, scenario, &control.pool));
    let mut measured = false;
    loop {
        let stop = if measured { end } else { begin };
        let next = control.next().map_or(stop, |next| next.min(stop));
        for run in &mut runs {
            run.until(next, &control.pool);
        }
        if next == begin && !measured {
            measured = true;
            runs.iter_mut().for_each(|run| run.gauge.begin(begin));
        }
        if next == end {
            break;
        }
        let lost = control.step(next);
        for run in &mut runs {
            run.change(&control.pool, &lost, next);
        }
    }
    runs.map(|run| run.finish(end)).into()
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Chores,
    Arrival,
    /// By place.
    Packet(u32),
    Forged(u32),
}

/// A design and its clients.
struct Run<'a> {
    design: Design,
    scenario: &'a Scenario,
    keys: HashKeys,
    /// None: lost.
    balancers: Vec<Option<Box<dyn Balancer>>>,
    alive: Vec<u32>,
    /// (time, order, what)
    queue: BinaryHeap<Reverse<(u64, u64, Event)>>,
    order: u64,
    arrivals: Random,
    arrived: u64,
    connections: Vec<Connection>,
    /// Places of connections that are over.
    free: Vec<u32>,
    forgers: Vec<Forger>,
    forged: Vec<(u64, Kind)>,
    entries: u64,
    gauge: Gauge,
    outcome: Outcome,
}

impl<'a> Run<'a> {
    fn new(design: Design, scenario: &'a Scenario, pool: &Pool) -> Self {
        let begin = START + scenario.warm_up.nanos();
        let alive: Vec<u32> = (0..scenario.balancers).collect();
        let balancer = |_: &u32| Some(design.balancer(scenario, pool, START));
        let forgers: Vec<Forger> = (0..)
            .zip(&scenario.floods)
            .map(|(number, flood)| Forger::new(flood, scenario.seed, number, begin))
            .collect();
        let mut run = Self {
            design,
            scenario,
            keys: keys_from_seed(&scenario.name),
            balancers: alive.iter().map(balancer).collect(),
            alive,
            queue: BinaryHeap::new(),
            order: 0,
            arrivals: Random::new(scenario.seed, u64::MAX),
            arrived: 0,
            connections: Vec::new(),
            free: Vec::new(),
            forgers,
            forged: Vec::new(),
            entries: 0,
            gauge: Gauge::default(),
            outcome: Outcome {
                scenario: scenario.name.clone(),
                design: design.name(),
                entry_bytes: design.entry_bytes(),
                reserved_bytes: design.entry_bytes()
                    * u64::from(scenario.memory.entries)
                    * u64::from(scenario.balancers),
                ..Outcome::default()
            },
        };
        run.at(START, Event::Arrival);
        run.at(START + CHORES, Event::Chores);
        for (number, flood) in (0..).zip(&scenario.floods) {
            run.at(begin + flood.at.nanos(), Event::Forged(number));
        }
        run
    }

    fn at(&mut self, time: u64, event: Event) {
        self.order += 1;
        self.queue.push(Reverse((time, self.order, event)));
    }

    /// Everything before `end`.
    fn until(&mut self, end: u64, pool: &Pool) {
        while let Some(Reverse((now, _, event))) = self.queue.peek().copied() {
            if now >= end {
                return;
            }
            self.queue.pop();
            match event {
                Event::Chores => self.chores(now),
                Event::Arrival => self.arrive(now, pool),
                Event::Packet(place) => self.packet(place, now, pool),
                Event::Forged(number) => self.forge(number, now),
            }
        }
    }

    fn change(&mut self, pool: &Pool, lost: &[u32], now: u64) {
        for &balancer in lost {
            self.balancers[balancer as usize] = None;
            self.alive.retain(|&other| other != balancer);
        }
        for balancer in self.balancers.iter_mut().flatten() {
            balancer.change(pool, now);
        }
        self.count(now);
    }

    fn chores(&mut self, now: u64) {
        for balancer in self.balancers.iter_mut().flatten() {
            balancer.chores(now);
        }
        self.count(now);
        self.at(now + CHORES, Event::Chores);
    }

    /// Counts all entries anew.
    fn count(&mut self, now: u64) {
        let balancers = self.balancers.iter().flatten();
        self.entries = balancers.map(|balancer| balancer.entries()).sum();
        self.gauge.set(self.entries, now);
    }

    fn arrive(&mut self, now: u64, pool: &Pool) {
        let pause = self.arrivals.exponential() / self.scenario.arrivals;
        self.at(now + (pause * SECOND as f64) as u64, Event::Arrival);
        let (seed, mix) = (self.scenario.seed, &self.scenario.mix);
        let connection = Connection::new(seed, self.arrived, &self.keys, mix, now);
        self.arrived += 1;
        let place = self.free.pop().unwrap_or(self.connections.len() as u32);
        if place as usize == self.connections.len() {
            self.connections.push(connection);
        } else {
            self.connections[place as usize] = connection;
        }
        self.packet(place, now, pool);
    }

    /// The router's choice, by bits of its own.
    fn balancer(&self, hash: u64) -> Option<u32> {
        let alive = self.alive.len() as u64;
        let at = Random::new(hash, 0).word().checked_rem(alive)?;
        Some(self.alive[at as usize])
    }

    /// Sends a packet through a balancer.
    fn send(&mut self, balancer: u32, hash: u64, kind: Kind, now: u64) -> Option<u32> {
        let balancer = self.balancers[balancer as usize].as_mut()?;
        let before = balancer.entries();
        let backend = balancer.packet(hash, kind, now);
        let after = balancer.entries();
        if after != before {
            self.entries = self.entries + after - before;
            self.gauge.set(self.entries, now);
        }
        backend
    }

    fn forge(&mut self, number: u32, now: u64) {
        let mut packets = std::mem::take(&mut self.forged);
        let forger = &mut self.forgers[number as usize];
        forger.send(&self.keys, now, &mut packets);
        let next = now + forger.pace;
        if next < forger.ends {
            self.at(next, Event::Forged(number));
        }
        for &(hash, kind) in &packets {
            self.outcome.forged += 1;
            if let Some(balancer) = self.balancer(hash) {
                self.send(balancer, hash, kind, now);
            }
        }
        self.forged = packets;
    }

    /// A client's turn to send.
    fn packet(&mut self, place: u32, now: u64, pool: &Pool) {
        let connection = &mut self.connections[place as usize];
        let (hash, stage, own) = (connection.hash, connection.stage, connection.own);
        let ends = stage == Stage::Open && now >= connection.ends;
        if ends && connection.vanishes {
            self.free.push(place);
            return;
        }
        let Some(balancer) = self.balancer(hash) else {
            self.free.push(place);
            return;
        };
        let connection = &mut self.connections[place as usize];
        connection.other_balancer |= connection.balancer.is_some_and(|other| other != balancer);
        connection.balancer = Some(balancer);
        let idle = now - std::mem::replace(&mut connection.last, now);
        let other_balancer = connection.other_balancer;
        let kind = match stage {
            Stage::Opening => Kind::Open,
            Stage::Open if ends => Kind::End,
            Stage::Open | Stage::Closing => Kind::Other,
        };
        let target = self.send(balancer, hash, kind, now);
        self.outcome.packets += 1;
        if stage == Stage::Closing {
            // The last word of a connection that is over.
            self.free.push(place);
            return;
        }
        let Some(target) = target else {
            self.outcome.dropped += 1;
            return self.again(place, now);
        };
        if stage == Stage::Open && target != own {
            let status = pool.status(own);
            self.outcome.breaks(self.design.cause(&Break {
                status,
                idle,
                other_balancer,
            }));
            self.free.push(place);
        } else if pool.answers(target) {
            self.answered(place, target, ends, now);
        } else {
            self.again(place, now);
        }
    }

    fn answered(&mut self, place: u32, backend: u32, ends: bool, now: u64) {
        let connection = &mut self.connections[place as usize];
        connection.tries = 0;
        let round_trip = now + self.scenario.mix.round_trip.nanos();
        let next = match connection.stage {
            Stage::Opening => {
                connection.stage = Stage::Open;
                connection.own = backend;
                self.outcome.connections += 1;
                round_trip
            }
            Stage::Open if ends => {
                connection.stage = Stage::Closing;
                round_trip
            }
            Stage::Open | Stage::Closing => connection.next(&self.scenario.mix.classes, now),
        };
        self.at(next, Event::Packet(place));
    }

    /// No answer came: the client sends it again, or gives up.
    fn again(&mut self, place: u32, now: u64) {
        let connection = &mut self.connections[place as usize];
        let pause = SECOND << connection.tries.min(5);
        connection.tries += 1;
        let opening = connection.stage == Stage::Opening;
        if connection.tries < if opening { OPENER_TRIES } else { TRIES } {
            return self.at(now + pause, Event::Packet(place));
        }
        if opening {
            self.outcome.refused += 1;
        } else {
            self.outcome.abandoned += 1;
        }
        self.free.push(place);
    }

    fn finish(mut self, end: u64) -> Outcome {
        let mean = self.gauge.mean(end);
        let bytes = self.outcome.entry_bytes;
        Outcome {
            peak_entries: self.gauge.peak(),
            mean_entries: mean,
            peak_bytes: self.gauge.peak() * bytes,
            mean_bytes: mean * bytes as f64,
            ..self.outcome
        }
    }
}
