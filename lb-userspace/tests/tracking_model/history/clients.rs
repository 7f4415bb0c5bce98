//! Packets: of clients, of floods, forged ones, and those that stay in flight when it matters.

use lb_common::slot::Mode;
use lb_common::track::Kind;
use lb_userspace::model::{Admin, Health};

use super::History;
use crate::daemon::BACKENDS;
use crate::flows::{Flow, Phase};
use crate::packet::{Outcome, Packet};
use crate::world::World;

impl History {
    /// While a slot settles or an id is freed: packets that stay in flight across the daemon's steps, in a bucket that is full.
    pub(super) fn interfere(&mut self) {
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
                    Phase::Opening if flow.own > 0 => return self.drain_flow(index),
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
    pub(super) fn outlive(&mut self, id: u32) {
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

    /// A client sends what comes next. What answers an answer waits for its own packets; what does not may overtake them.
    pub(super) fn client(&mut self, index: usize) {
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

    /// Packets that belong to nothing, with new tags in the flows' bucket.
    pub(super) fn flood(&mut self) {
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

    pub(super) fn forge(&mut self) {
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
}

/// I4: where openers may go.
pub(super) fn openers(world: &World, packet: &Packet, outcome: &Outcome) {
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
