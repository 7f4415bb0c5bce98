//! One history: random packets, wishes, failures and time, interleaved at random.

use lb_common::flow::FlowState;
use lb_common::slot::Mode;
use lb_common::track::Kind;
use lb_userspace::tracking::{SECOND, Tracking};

use self::clients::openers;
use crate::daemon::Daemon;
use crate::flows::{Cause, Counts, Flow};
use crate::mutation::Mutation;
use crate::packet::{Outcome, Packet};
use crate::random::Random;
use crate::world::{Broken, Log, SLOTS, World};

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
    /// In every other history the daemon sweeps whenever packets are in flight that it should beware of.
    hasty: bool,
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

mod clients;
mod operation;

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
            hasty: seed.is_multiple_of(2),
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
            self.world.promise(
                packet.notes.unpinned,
                "counted",
                "an opener without a pin was not counted",
            );
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

    fn go_on(&mut self) {
        let cpu = self.random.below(CPUS as u32) as usize;
        let budget = 1 + self.random.below(12);
        self.burst(cpu, budget);
    }
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
