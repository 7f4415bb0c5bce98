//! What is wished, what the daemon does about it, and time.

use lb_common::track::Kind;
use lb_userspace::model::{Admin, Health};
use lb_userspace::tracking::SECOND;

use super::{CPUS, History, show};
use crate::daemon::{BACKENDS, service_of};
use crate::flows::{LIVE, Phase};
use crate::world::{SLOTS, TICK};

impl History {
    pub(super) fn wish(&mut self) {
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

    pub(super) fn oldest(&self) -> u32 {
        self.cpus
            .iter()
            .flatten()
            .map(|packet| packet.serial)
            .min()
            .unwrap_or(u32::MAX)
    }

    pub(super) fn daemon(&mut self) {
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
            // Packets in flight that saw a slot learn are a danger to the sweep.
            let danger = self.daemon.wants_grace() && self.oldest() != u32::MAX;
            let chores = if danger && self.hasty { 2 } else { 5 };
            match self.random.below(chores) {
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

    pub(super) fn daemon_burst(&mut self, budget: u32) {
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

    /// A tick, with packets in flight; none stays longer than one.
    pub(super) fn advance_little(&mut self) {
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
    pub(super) fn advance(&mut self) {
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
