//! One history: random packets, wishes, failures and time, interleaved at random.

use lb_common::flow::FlowState;
use lb_common::slot::Mode;
use lb_common::track::Kind;
use lb_userspace::model::{Admin, Health};
use lb_userspace::tracking::{SECOND, Tracking};

use crate::daemon::{BACKENDS, Daemon, service_of};
use crate::flows::{Cause, Counts, Flow, LIVE, Phase};
use crate::mutation::Mutation;
use crate::packet::{Outcome, Packet};
use crate::random::Random;
use crate::world::{Broken, Log, SLOTS, TICK, World};

/// CPUs that packets are under way on.
const CPUS: usize = 3;
const EVENTS: u32 = 40;

/// What a history came to.
#[derive(Clone, Copy, Debug, Default)]
pub struct Summary {
    pub broken: Option<Broken>,
    pub lost: Counts,
    pub packets: u32,
    pub accesses: u32,
    /// Slots seen settled, put to rest; openers that could not be pinned; losses.
    pub settled: u32,
    pub rested: u32,
    pub unpinned: u32,
}

pub struct History {
    random: Random,
    world: World,
    daemon: Daemon,
    flows: Vec<Flow>,
    cpus: [Option<Packet>; CPUS],
    spare: Vec<Log>,
    noise: u32,
    summary: Summary,
    /// What happened, if somebody wants to read it.
    trace: Option<Vec<String>>,
    modes: [Mode; SLOTS],
}

macro_rules! trace {
    ($history:expr, $($words:tt)*) => {
        if let Some(trace) = &mut $history.trace {
            trace.push(format!($($words)*));
        }
    };
}

impl History {
    pub fn new(seed: u64, mutation: Mutation, traced: bool) -> Self {
        let mut random = Random::new(seed);
        let world = World::new(mutation, if random.one_in(4) { 2 } else { 1 });
        let present = std::array::from_fn(|index| index == 0 || index == 3 || random.one_in(2));
        let tracking = std::array::from_fn(|_| match random.below(8) {
            0 => Tracking::Always,
            _ => Tracking::Adaptive,
        });
        let daemon = Daemon::new(&world, present, tracking, random.next());
        let mut flows = Vec::new();
        let low = random.next() & 0xffff_fffe;
        for index in 0..3 + random.below(4) {
            // Several flows of one bucket; a flow of the other service may have the same hash.
            let hash = match flows.last() {
                Some(Flow { hash, .. }) if random.one_in(3) => *hash,
                _ => (random.next() << 36) | low | (random.next() & 1),
            };
            let service = index & 1;
            if !flows
                .iter()
                .any(|flow: &Flow| flow.service == service && flow.hash >> 36 == hash >> 36)
            {
                flows.push(Flow::new(service, hash, random.one_in(4)));
            }
        }
        let mut history = Self {
            random,
            world,
            daemon,
            flows,
            cpus: Default::default(),
            spare: Vec::new(),
            noise: 0,
            summary: Summary::default(),
            trace: traced.then(Vec::new),
            modes: [Mode::Steady; SLOTS],
        };
        // Connections that are older than any tracking.
        for index in 0..history.flows.len() {
            if history.random.below(4) > 0 {
                history.client(index);
                history.drain_packets();
                history.client(index);
                history.drain_packets();
            }
        }
        history
    }

    pub fn run(mut self) -> (Summary, Vec<String>) {
        for _ in 0..EVENTS {
            self.event();
            if self.world.broken.get().is_some() {
                break;
            }
        }
        self.summary.broken = self.world.broken.get();
        self.summary.accesses = self.world.serial.get();
        (self.summary, self.trace.unwrap_or_default())
    }

    fn event(&mut self) {
        if self.daemon.delicate() && self.random.one_in(2) {
            self.interfere();
            return;
        }
        match self.random.below(32) {
            0..=8 => {
                let flow = self.random.below(self.flows.len() as u32) as usize;
                self.client(flow);
            }
            9..=12 => self.go_on(),
            13..=14 => self.flood(),
            15..=17 => self.wish(),
            18..=25 => self.daemon(),
            26 => self.forge(),
            27..=29 => self.advance(),
            30 => self.advance_little(),
            _ => {
                if self.random.one_in(3) {
                    trace!(self, "the daemon is killed and started again");
                    self.daemon.killed(&self.world);
                }
            }
        }
    }

    /// While a slot settles or an id is freed: packets that stay in flight across the daemon's steps, in a bucket that is full.
    fn interfere(&mut self) {
        if let (Some(id), true) = (self.daemon.freeing(), self.random.one_in(2)) {
            self.outlive(id);
            return;
        }
        match self.random.below(8) {
            0 => {
                let like = &self.flows[self.random.below(self.flows.len() as u32) as usize];
                let (hash, service) = (like.hash, like.service);
                for _ in 0..8 {
                    self.noise += 1;
                    let hash = noise(hash, self.noise);
                    self.send(None, false, Kind::Other, hash, service);
                }
            }
            1..=3 => {
                let index = self.random.below(self.flows.len() as u32) as usize;
                let flow = &self.flows[index];
                let (hash, service) = (flow.hash, flow.service);
                let kind = match flow.phase {
                    Phase::Idle if !flow.udp => return self.client(index),
                    Phase::Idle if flow.own > 0 => return self.drain_flow(index),
                    Phase::Idle => Kind::Other,
                    _ if self.random.one_in(2) => Kind::Icmp,
                    Phase::Opening => return self.client(index),
                    _ => Kind::Other,
                };
                let cpu = self.start(Some(index), false, kind, hash, service);
                let budget = 1 + self.random.below(30);
                self.burst(cpu, budget);
            }
            4 => {
                let index = self.random.below(BACKENDS as u32) as usize;
                let wish = &mut self.daemon.backends[index].wish;
                if wish.removed {
                    (wish.removed, wish.health, wish.admin) = (false, Health::Up, Admin::Active);
                    self.daemon.dirty = true;
                }
            }
            _ => self.daemon(),
        }
    }

    /// A packet of a flow whose entry names an id that is being freed stays in flight, while somebody waits for the id.
    fn outlive(&mut self, id: u32) {
        let named = |flow: &Flow| {
            self.world.entries.iter().any(|entry| {
                entry.get().backend() == id && entry.get().tag() == lb_common::flow::tag(flow.hash)
            })
        };
        let Some(index) = self
            .flows
            .iter()
            .position(|flow| named(flow) && flow.connected())
        else {
            return self.daemon();
        };
        let (hash, service) = (self.flows[index].hash, self.flows[index].service);
        let cpu = self.start(Some(index), false, Kind::Icmp, hash, service);
        let budget = 2 + self.random.below(12);
        self.burst(cpu, budget);
        for backend in &mut self.daemon.backends {
            if backend.standing.is_none() {
                backend.wish.removed = false;
                backend.wish.health = Health::Up;
                backend.wish.admin = Admin::Active;
                self.daemon.dirty = true;
            }
        }
        for _ in 0..4 {
            self.daemon();
        }
    }

    /// After each burst of accesses: the promises that hold at every moment.
    fn check(&mut self) {
        for (index, flow) in self.flows.iter_mut().enumerate() {
            let before = self.world.broken.get().is_some();
            flow.age(&self.world);
            flow.foretell(&self.world);
            if before {
                break;
            }
            if let (Some(broken), Some(trace)) = (self.world.broken.get(), &mut self.trace) {
                trace.push(format!(
                    "{}: {} (flow {index}: {flow:?})",
                    broken.name, broken.what
                ));
                break;
            }
        }
        for slot in 0..SLOTS {
            let word = self.world.slots[slot].get();
            let mode = word.mode();
            if mode == Mode::Steady {
                self.world.promise(
                    word.primary() == word.incumbent() && !word.settling(),
                    "I3",
                    "a slot at rest has another incumbent than its primary",
                );
                let left = mode != self.modes[slot] && self.entries_of(slot as u32);
                self.world
                    .promise(!left, "I3", "a slot came to rest with live entries");
            }
            match (self.modes[slot], mode) {
                (Mode::Learn, Mode::Residue) => self.summary.settled += 1,
                (Mode::Residue, Mode::Steady) => self.summary.rested += 1,
                _ => {}
            }
            self.modes[slot] = mode;
        }
    }

    fn entries_of(&self, slot: u32) -> bool {
        self.world
            .entries
            .iter()
            .any(|entry| self.world.place(entry.get()) == Some(slot))
    }

    fn free_cpu(&mut self) -> usize {
        let cpu = self.random.below(CPUS as u32) as usize;
        if self.cpus[cpu].is_some() {
            self.burst(cpu, u32::MAX);
        }
        cpu
    }

    fn start(
        &mut self,
        flow: Option<usize>,
        forged: bool,
        kind: Kind,
        hash: u64,
        service: u32,
    ) -> usize {
        let cpu = self.free_cpu();
        let log = self.spare.pop().unwrap_or_default();
        let mut packet = Packet::new(&self.world, flow, forged, kind, hash, service, log);
        trace!(
            self,
            "cpu {cpu}: {}{kind:?} of {} to service {service}, slot {} {}",
            if forged { "forged " } else { "" },
            flow.map_or_else(|| format!("flood {hash:x}"), |flow| format!("flow {flow}")),
            packet.slot,
            show(&self.world, packet.slot)
        );
        if let Some(flow) = flow {
            packet.homeless = !self.world.status_of(self.flows[flow].home).carries();
            self.flows[flow].in_flight += 1;
            self.flows[flow].own += u8::from(!forged);
        }
        self.cpus[cpu] = Some(packet);
        self.summary.packets += 1;
        cpu
    }

    /// Starts a packet, and lets it come to its end or somewhere.
    fn send(&mut self, flow: Option<usize>, forged: bool, kind: Kind, hash: u64, service: u32) {
        let cpu = self.start(flow, forged, kind, hash, service);
        let budget = self.some_accesses();
        self.burst(cpu, budget);
    }

    fn some_accesses(&mut self) -> u32 {
        if self.random.below(5) < 3 {
            u32::MAX
        } else {
            self.random.below(24)
        }
    }

    fn burst(&mut self, cpu: usize, budget: u32) {
        let Some(mut packet) = self.cpus[cpu].take() else {
            return;
        };
        let outcome = packet.run(&self.world, budget);
        if let (true, Some(index)) = (packet.forged, packet.flow) {
            self.flows[index].forged(&self.world, &packet);
        }
        match outcome {
            None => {
                trace!(self, "cpu {cpu}: … after {} accesses", packet.accesses());
                self.cpus[cpu] = Some(packet);
            }
            Some(outcome) => {
                self.arrived(cpu, &packet, &outcome);
                self.spare.push(packet.into_log());
            }
        }
        self.check();
    }

    fn arrived(&mut self, cpu: usize, packet: &Packet, outcome: &Outcome) {
        trace!(
            self,
            "cpu {cpu}: goes to {:?} (life {}), {}",
            outcome.result,
            outcome.life,
            match packet.notes.stored {
                Some((old, new)) => format!("stored {} in place of {}", entry(new), entry(old)),
                None => format!(
                    "stored nothing; loss {}",
                    self.world.loss[packet.slot as usize].get() / SECOND
                ),
            }
        );
        openers(&self.world, packet, outcome);
        if packet.kind == Kind::Open
            && outcome.word.mode() == Mode::Learn
            && packet.notes.stored.is_none()
            && packet.notes.seen.is_none()
        {
            self.summary.unpinned += 1;
        }
        if let Some(index) = packet.flow {
            let before = self.flows[index].phase;
            self.flows[index].delivered(&self.world, packet, outcome, &mut self.summary.lost);
            let flow = &mut self.flows[index];
            // Between the daemon's last look at `loss` and its store a packet that cannot be learnt goes to I once more. Every live
            // flow is remembered by then and openers are dropped; a UDP flow that begins there moves once.
            let last = outcome.word.settling() && packet.serial > self.daemon.last_look;
            if flow.udp && last && packet.notes.stored.is_none() && flow.connected() {
                flow.may_break_by(Cause::NoOpener);
            }
            if before != flow.phase {
                trace!(
                    self,
                    "flow {index}: {before:?} -> {:?}, at home {}", flow.phase, flow.home
                );
            }
        }
    }

    fn drain_packets(&mut self) {
        for cpu in 0..CPUS {
            self.burst(cpu, u32::MAX);
        }
    }

    fn drain_flow(&mut self, flow: usize) {
        for cpu in 0..CPUS {
            if self.cpus[cpu]
                .as_ref()
                .is_some_and(|p| p.flow == Some(flow))
            {
                self.burst(cpu, u32::MAX);
            }
        }
    }

    /// A client sends what comes next. What answers an answer waits for its own packets; what does not may overtake them.
    fn client(&mut self, index: usize) {
        let flow = &self.flows[index];
        let (hash, service, udp) = (flow.hash, flow.service, flow.udp);
        let dice = self.random.below(16);
        let (kind, alone) = match (flow.phase, udp) {
            (Phase::Idle, false) => (Kind::Open, true),
            (Phase::Idle, true) => (Kind::Other, true),
            (Phase::Opening, _) if dice < 3 => (Kind::Open, true),
            (Phase::Opening, _) => (Kind::Other, true),
            (_, true) => (Kind::Other, false),
            (Phase::Open, _) => match dice {
                0..=11 => (Kind::Other, false),
                12 => (Kind::Icmp, false),
                _ => (Kind::End, false),
            },
            (Phase::Closing, _) => match dice {
                0..=5 => (Kind::Other, false),
                6..=7 => (Kind::End, false),
                _ => (Kind::Open, true),
            },
        };
        if alone && flow.own > 0 {
            self.drain_flow(index);
            return;
        }
        if kind == Kind::Open {
            self.flows[index].phase = Phase::Idle;
        }
        self.send(Some(index), false, kind, hash, service);
        if kind == Kind::End && self.flows[index].phase == Phase::Open {
            self.flows[index].phase = Phase::Closing;
        }
        // Openers go out at once, as a rule: a connection that never opens tells nothing.
        if alone && self.random.below(4) > 0 {
            self.drain_flow(index);
        }
    }

    fn go_on(&mut self) {
        let cpu = self.random.below(CPUS as u32) as usize;
        let budget = 1 + self.random.below(12);
        self.burst(cpu, budget);
    }

    /// Packets that belong to nothing, with new tags in the flows' bucket.
    fn flood(&mut self) {
        let kind = match self.random.below(8) {
            0..=3 => Kind::Other,
            4..=6 => Kind::Open,
            _ => Kind::End,
        };
        for _ in 0..1 + self.random.below(9) {
            let like = &self.flows[self.random.below(self.flows.len() as u32) as usize];
            let (hash, service) = (like.hash, like.service);
            self.noise += 1;
            let hash = noise(hash, self.noise);
            self.send(None, false, kind, hash, service);
            // Some of them are answered, and so become established.
            if self.random.one_in(3) {
                self.send(None, false, Kind::Other, hash, service);
            }
        }
    }

    fn wish(&mut self) {
        let index = self.random.below(BACKENDS as u32) as usize;
        let others = (0..BACKENDS).any(|other| {
            other != index
                && service_of(other) == service_of(index)
                && !self.daemon.backends[other].wish.removed
        });
        let dice = self.random.below(12);
        let wish = &mut self.daemon.backends[index].wish;
        if wish.removed {
            wish.removed = false;
            wish.health = Health::Up;
            wish.admin = Admin::Active;
        } else {
            match dice {
                0..=3 => {
                    wish.health = match wish.health {
                        Health::Down => Health::Up,
                        _ => Health::Down,
                    }
                }
                4..=6 => {
                    wish.admin = match wish.admin {
                        Admin::Active => Admin::Draining,
                        _ => Admin::Active,
                    }
                }
                7 => {
                    wish.admin = match wish.admin {
                        Admin::Disabled => Admin::Active,
                        _ => Admin::Disabled,
                    }
                }
                8 => wish.weight = 1 - wish.weight,
                _ if others => wish.removed = true,
                _ => return,
            }
        }
        trace!(
            self,
            "wish for backend {index}: {:?}", self.daemon.backends[index].wish
        );
        self.daemon.dirty = true;
    }

    fn oldest(&self) -> u32 {
        self.cpus
            .iter()
            .flatten()
            .map(|packet| packet.serial)
            .min()
            .unwrap_or(u32::MAX)
    }

    fn daemon(&mut self) {
        let due = self.daemon.dirty || self.daemon.timer_due(self.world.clock.get());
        if due && self.daemon.may_change() {
            if self.random.one_in(3) {
                // In flight across it: what this packet stores may name a backend that is GONE then.
                let index = self.random.below(self.flows.len() as u32) as usize;
                let flow = &self.flows[index];
                if flow.phase == Phase::Open {
                    let (hash, service) = (flow.hash, flow.service);
                    let cpu = self.start(Some(index), false, Kind::Other, hash, service);
                    let budget = 2 + self.random.below(16);
                    self.burst(cpu, budget);
                }
            }
            trace!(self, "daemon: a change");
            self.daemon.start_change(&self.world, false);
        } else if self.daemon.idle() {
            match self.random.below(5) {
                0..=1 => {
                    trace!(self, "daemon: a sweep");
                    if self.oldest() == u32::MAX && self.daemon.wants_grace() {
                        self.daemon.grace_passed();
                    }
                    self.daemon.start_sweep(&self.world);
                }
                2..=3 => {
                    trace!(self, "daemon: settle");
                    self.daemon.start_settle(&self.world);
                }
                _ => {
                    trace!(self, "daemon: a removal");
                    self.daemon.start_removal(&self.world);
                }
            }
        }
        if self.random.one_in(2) {
            let budget = 1 + self.random.below(12);
            self.daemon_burst(budget);
        } else {
            for _ in 0..1 + self.random.below(16) {
                if self.daemon.idle() {
                    break;
                }
                if self.daemon.waits(self.oldest()) {
                    self.drain_packets();
                }
                self.daemon_burst(u32::MAX);
            }
        }
    }

    fn daemon_burst(&mut self, budget: u32) {
        if self.daemon.idle() || self.daemon.waits(self.oldest()) {
            return;
        }
        self.daemon.run(&self.world, budget);
        if self.trace.is_some() {
            let words: Vec<_> = (0..SLOTS as u32)
                .map(|slot| show(&self.world, slot))
                .collect();
            trace!(self, "daemon: … slots {}", words.join(" | "));
        }
        self.check();
    }

    fn forge(&mut self) {
        let index = self.random.below(self.flows.len() as u32) as usize;
        let kind = if self.random.one_in(2) {
            Kind::Open
        } else {
            Kind::End
        };
        if self.flows[index].udp {
            return;
        }
        let (hash, service) = (self.flows[index].hash, self.flows[index].service);
        self.send(Some(index), true, kind, hash, service);
    }

    /// A tick, with packets in flight; none stays longer than one.
    fn advance_little(&mut self) {
        let now = self.world.clock.get();
        for cpu in 0..CPUS {
            if self.cpus[cpu]
                .as_ref()
                .is_some_and(|packet| packet.started < now)
            {
                self.burst(cpu, u32::MAX);
            }
        }
        self.world
            .clock
            .set(now + TICK / 2 + self.random.next() % TICK / 2);
        self.check();
    }

    /// A long while: no packet is in flight, and clients that want to stay live send before it is too long for them.
    fn advance(&mut self) {
        self.drain_packets();
        if self.random.one_in(2) {
            // As a rule the daemon has long done what it was doing.
            self.daemon.finish(&self.world);
            self.check();
        }
        let seconds = match self.random.below(8) {
            0 => 5 + self.random.below(10),
            1 => 18 + self.random.below(20),
            2 => 60 + self.random.below(40),
            3 => 100 + self.random.below(150),
            _ => 200 + self.random.below(91),
        };
        let span = u64::from(seconds) * SECOND;
        trace!(self, "{seconds} s pass");
        let until = self.world.clock.get() + span;
        for index in 0..self.flows.len() {
            let flow = &self.flows[index];
            let wants = match flow.phase {
                Phase::Idle => false,
                // Half closed, its client keeps sending or is forgotten.
                Phase::Closing => self.random.one_in(8),
                Phase::Opening => true,
                Phase::Open => until - flow.last > LIVE && self.random.below(16) > 0,
            };
            if wants {
                let (hash, service) = (flow.hash, flow.service);
                self.send(Some(index), false, Kind::Other, hash, service);
                self.drain_packets();
            }
        }
        self.world.clock.set(until);
        self.check();
    }
}

/// I4: where openers may go.
fn openers(world: &World, packet: &Packet, outcome: &Outcome) {
    let word = outcome.word;
    let Ok(id) = outcome.result else {
        world.promise(
            packet.kind == Kind::Open && word.settling(),
            "I4",
            "a packet was dropped that is no opener of a settling slot",
        );
        return;
    };
    let strange = word.mode() != Mode::Learn || word.primary() == word.incumbent();
    if packet.kind != Kind::Open || strange || packet.notes.seen.is_some() {
        return;
    }
    let pinned = packet
        .notes
        .stored
        .is_some_and(|(_, new)| new.backend() == word.primary());
    if id == word.primary() {
        world.promise(
            pinned || packet.notes.incumbent_failed,
            "I4",
            "an opener went to P without a pin, though I carries",
        );
    } else {
        world.promise(
            !pinned,
            "I4",
            "an opener was pinned to P and went elsewhere",
        );
        world.promise(
            !word.settling(),
            "I4",
            "an opener of a settling slot went to the incumbent unlearnt",
        );
    }
}

/// A hash of the same slot and bucket as another: the tag's first bits are that one's.
fn noise(like: u64, number: u32) -> u64 {
    (like & !(0xff_ffff << 36)) | (u64::from(0xab_0000 + number) << 36)
}

fn show(world: &World, slot: u32) -> String {
    let word = world.slot(slot);
    format!(
        "{:?}{} P {} {:?} I {} {:?}, lives {:?}",
        word.mode(),
        if word.settling() { " settling" } else { "" },
        word.primary(),
        world.status(word.primary()),
        word.incumbent(),
        world.status(word.incumbent()),
        world.slot_lives[slot as usize].get(),
    )
}

pub fn entry(entry: lb_common::flow::FlowEntry) -> String {
    if entry.is_empty() {
        return "nothing".to_owned();
    }
    let state = match entry.state() {
        FlowState::Syn => "SYN",
        FlowState::Learnt => "LRN",
        FlowState::Established => "EST",
        FlowState::Closed => "CLO",
    };
    format!("{state} {:x} of backend {}", entry.tag(), entry.backend())
}
