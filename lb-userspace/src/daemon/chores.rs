//! The regular chores of connection tracking: sweep, settle. At rest there are none.
//!
//! They go on in turns of a few milliseconds between everything else that the owner does. Owns: when a round begins, how long a
//! turn is, and what makes a round worthless; and that a service which did not look at its flow entries for a while does not
//! begin to do so before they are cleared. Does not own: the rules ([`crate::tracking`]).

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;

use super::owner::Owner;
use crate::dataplane::Operation;
use crate::dataplane::chores::Maintenance;
use crate::plan::{self, Installed, InstalledService, Plan};
use crate::tracking::round::Round;
use crate::tracking::settle::Scope;
use crate::tracking::{Step, Tracking};

/// Between two walks over the flow table, from start to start.
pub const SWEEP: Duration = Duration::from_secs(4);
/// How long a turn is. Beyond it there may be one grace period (5–50 ms), or the end of settling.
const TURN: Duration = Duration::from_millis(2);
/// Entries or slots between two looks at the clock.
const STRETCH: u32 = 4_096;
/// Between two turns: long enough that other tasks get this thread.
pub const PAUSE: Duration = Duration::from_millis(1);

/// A service's number, never another's, and the slots that it has.
type Holding = (u32, Scope);

/// What is known of the chores between turns.
#[derive(Debug, Default)]
pub struct Chores {
    /// The round under way.
    round: Option<Maintenance>,
    /// Who had which slots when it began.
    holdings: Vec<Holding>,
    /// Number and first slot of services all of whose slots are known to be at rest.
    at_rest: HashSet<(u32, u32)>,
    /// Numbers of services whose slots changed since the round began.
    stirred: HashSet<u32>,
    /// Numbers of services that moved to other slots since the last sweep: entries of the old ones may be left.
    moved: HashSet<u32>,
}

impl Owner {
    /// Begins a round if some slot is not at rest and it is time, and goes on with it for one turn.
    pub(super) fn chores(&mut self) -> Result<()> {
        if self.unsure {
            // Records may place entries by tables that are not in force, and an older program with maps of its own, which this
            // daemon does not see, may still share the flow table: the next plan puts both right.
            self.abandon_round();
            return Ok(());
        }
        let now = Instant::now();
        let due = self.restless && now >= self.next_sweep;
        if self.chores.round.is_none() && !due {
            return Ok(());
        }
        let holdings = holdings(&self.installed);
        if self.chores.round.is_some() && holdings != self.chores.holdings {
            self.abandon_round();
        }
        if self.chores.round.is_none() {
            if !due {
                return Ok(());
            }
            self.next_sweep = now + SWEEP;
            let at_rest = &self.chores.at_rest;
            let awake = holdings.iter().filter(|holding| !rests(at_rest, holding));
            let round = Round::new(awake.map(|(_, scope)| scope.clone()).collect());
            self.chores.round = Some(Maintenance::new(round));
            self.chores.holdings = holdings;
            self.chores.stirred.clear();
        }
        // Grace periods block this thread for some milliseconds.
        let turn = tokio::task::block_in_place(|| self.turn(now + TURN));
        if turn.is_err() {
            self.abandon_round();
        }
        turn
    }

    /// Whether [`Owner::chores`] has to be called again soon.
    pub(super) const fn round_under_way(&self) -> bool {
        self.chores.round.is_some()
    }

    /// When the next round begins, if it is known.
    pub(super) fn next_round(&self) -> Option<Instant> {
        let begins = self.restless && !self.unsure && self.chores.round.is_none();
        begins.then_some(self.next_sweep)
    }

    fn turn(&mut self, end: Instant) -> Result<()> {
        while let Some(round) = &mut self.chores.round {
            let step = round.step(&mut self.plane, STRETCH)?;
            if let Some(swept) = round.round().take_swept() {
                self.tally = swept.tally;
                self.sweeps += 1;
                self.note_rest(&swept.at_rest);
            }
            match step {
                Step::More if Instant::now() < end => {}
                // A grace period comes with the next turn: at most one in each.
                Step::More | Step::Grace => break,
                Step::Done => self.chores.round = None,
            }
        }
        Ok(())
    }

    /// Takes in which of the round's services are at rest.
    fn note_rest(&mut self, found: &[bool]) {
        let chores = &mut self.chores;
        let before = &chores.at_rest;
        let awake: Vec<_> = chores.holdings.iter().map(|h| !rests(before, h)).collect();
        let looked_at = chores
            .holdings
            .iter()
            .zip(awake)
            .filter(|(_, awake)| *awake);
        let resting: Vec<_> = looked_at
            .zip(found)
            .filter(|(((number, _), _), rests)| **rests && !chores.stirred.contains(number))
            .map(|(((number, scope), _), _)| (*number, scope.slots.start))
            .collect();
        chores.at_rest.extend(resting);
        chores.moved.clear();
        let all = chores.holdings.iter().all(|h| rests(&chores.at_rest, h));
        self.restless =
            !all || !chores.stirred.is_empty() || self.tally.states.iter().any(|n| *n > 0);
    }

    fn abandon_round(&mut self) {
        if let Some(round) = self.chores.round.take() {
            round.abandon(&self.plane);
        }
    }

    /// Before a plan is applied: services that are to remember flows must not find what they left behind earlier.
    pub(super) fn before_plan(&mut self, plan: &Plan) -> Result<()> {
        let again = self.restless && looks_again(&self.installed, &self.chores.moved, plan);
        // Nor is it known what an earlier daemon, or an interrupted plan, left.
        if !again && !self.unsure {
            return Ok(());
        }
        let cleared = tokio::task::block_in_place(|| self.plane.clear_unneeded())?;
        self.chores.moved.clear();
        tracing::info!(cleared, "flow entries that nobody looked at were cleared");
        Ok(())
    }

    /// Before an operation that may change slots.
    pub(super) fn before_operation(&mut self, operation: &Operation) {
        if operation.unsettles() && !self.restless {
            self.restless = true;
            self.next_sweep = Instant::now() + SWEEP;
        }
        let Operation::ChangeSlots { service, .. } = operation else {
            return;
        };
        self.chores.stirred.insert(*service);
        self.chores.at_rest.retain(|(number, _)| number != service);
    }

    /// After a plan was applied.
    pub(super) fn after_plan(&mut self, after: &Installed) {
        let chores = &mut self.chores;
        chores.moved.extend(movers(&self.installed, after));
        let there = |number: &u32| after.services.values().any(|s| s.number == *number);
        chores.moved.retain(there);
        chores.at_rest.retain(|(number, _)| there(number));
    }

    /// Slots of a service by mode: steady, learn, residue.
    pub(super) fn modes(&self, service: &InstalledService) -> [u64; 3] {
        let at = (service.number, service.first_slot);
        if self.chores.at_rest.contains(&at) {
            return [service.size.into(), 0, 0];
        }
        self.plane.modes(service.first_slot, service.size)
    }
}

fn holdings(installed: &Installed) -> Vec<Holding> {
    let holding = |service: &Arc<InstalledService>| {
        let scope = Scope {
            slots: service.first_slot..service.first_slot + service.size,
            tracking: service.tracking,
            window: plan::window(service.flow_idle),
        };
        (service.number, scope)
    };
    installed.services.values().map(holding).collect()
}

fn rests(at_rest: &HashSet<(u32, u32)>, (number, scope): &Holding) -> bool {
    at_rest.contains(&(*number, scope.slots.start))
}

/// Whether a plan lets a service learn that did not look at its entries: it was not tracked, or has just moved to other slots.
fn looks_again(before: &Installed, moved: &HashSet<u32>, plan: &Plan) -> bool {
    let ignored = |number: u32| {
        moved.contains(&number)
            || before
                .services
                .values()
                .any(|s| s.number == number && s.tracking == Tracking::Off)
    };
    plan.operations.iter().any(|operation| {
        matches!(operation, Operation::ChangeSlots { service, tracking, .. }
            if *tracking != Tracking::Off && ignored(*service))
    })
}

/// Numbers of services that have other slots afterwards.
fn movers<'a>(before: &'a Installed, after: &'a Installed) -> impl Iterator<Item = u32> + use<'a> {
    before.services.iter().filter_map(|(key, old)| {
        let new = after.services.get(key)?;
        let moved = new.number == old.number && new.first_slot != old.first_slot;
        moved.then_some(new.number)
    })
}

#[cfg(test)]
mod tests;
