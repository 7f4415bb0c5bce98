//! One round of the regular chores: a sweep, then the settling of what is due, in steps that are short enough to answer somebody
//! between two of them.
//!
//! Owns: the order, and what is left over for the next round. Does not own: the rules ([`super::sweep`], [`super::settle`]), when
//! a round begins, and when it has to be abandoned: whenever a range of slots may have changed hands.

use std::ops::Range;

use super::settle::{Scope, Settle};
use super::sweep::{Sweep, Tally};
use super::{Backends, Book, SharedMemory, Step, stretch};

/// Slots that settle at once, and with them how long a round's last step takes, which cannot be interrupted. More wait for the
/// next rounds: seconds, after minutes or hours of learning.
const MOST_SETTLING: usize = 32_768;

/// What a sweep found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    pub tally: Tally,
    /// For each scope of the round, whether all of its slots were at rest when they were looked at.
    pub at_rest: Vec<bool>,
}

/// A round under way.
#[derive(Clone, Debug)]
pub struct Round {
    scopes: Vec<Scope>,
    phase: Phase,
    /// The next slot to be looked at.
    cursor: Cursor,
    at_rest: Vec<bool>,
    swept: Option<Swept>,
}

#[derive(Clone, Debug)]
enum Phase {
    /// Packets that saw slots learn may have to leave first.
    Fresh,
    Clear,
    Sweeping(Sweep),
    Resting(Sweep),
    Announcing(Settle),
    Settling(Settle),
    Over,
}

impl Round {
    /// Over the whole flow table, and the slots of these services.
    pub fn new(scopes: Vec<Scope>) -> Self {
        Self {
            phase: Phase::Fresh,
            cursor: Cursor::default(),
            at_rest: vec![true; scopes.len()],
            scopes,
            swept: None,
        }
    }

    /// Goes on, after a grace period if the last step asked for one, with at most `most` entries or slots.
    pub fn step<M: SharedMemory, B: Backends>(
        &mut self,
        memory: &M,
        book: &mut Book,
        backends: &B,
        most: u32,
    ) -> Step {
        match std::mem::replace(&mut self.phase, Phase::Over) {
            Phase::Fresh => {
                self.phase = Phase::Clear;
                if book.wants_grace() {
                    return Step::Grace;
                }
            }
            Phase::Clear => self.phase = Phase::Sweeping(Sweep::begin(book)),
            Phase::Sweeping(mut sweep) => {
                let seen = sweep.walk(memory, book, backends, most);
                self.phase = match seen {
                    true => Phase::Resting(sweep),
                    false => Phase::Sweeping(sweep),
                };
            }
            Phase::Resting(sweep) => {
                let Some((at, slots)) = self.cursor.take(&self.scopes, most) else {
                    return self.swept(sweep);
                };
                let rested = sweep.rest(memory, book, slots);
                self.at_rest[at] &= rested.awake == 0;
                self.phase = Phase::Resting(sweep);
            }
            Phase::Announcing(mut settle) => {
                let next = match settle.slots() < MOST_SETTLING {
                    true => self.cursor.take(&self.scopes, most),
                    false => None,
                };
                let Some((at, slots)) = next else {
                    if settle.slots() == 0 {
                        return Step::Done;
                    }
                    self.phase = Phase::Settling(settle);
                    return Step::Grace;
                };
                let scope = Scope {
                    slots,
                    ..self.scopes[at].clone()
                };
                settle.announce(memory, book, backends, &scope);
                self.phase = Phase::Announcing(settle);
            }
            Phase::Settling(mut settle) => {
                let step = settle.step(memory, book, backends, most);
                if step != Step::Done {
                    self.phase = Phase::Settling(settle);
                }
                return step;
            }
            Phase::Over => return Step::Done,
        }
        Step::More
    }

    fn swept(&mut self, sweep: Sweep) -> Step {
        let at_rest = std::mem::take(&mut self.at_rest);
        // Nothing learns where all is at rest.
        let mut rest = at_rest.iter();
        self.scopes
            .retain(|_| !rest.next().copied().unwrap_or_default());
        self.swept = Some(Swept {
            tally: sweep.tally(),
            at_rest,
        });
        self.cursor = Cursor::default();
        self.phase = Phase::Announcing(Settle::new());
        Step::More
    }

    /// What the sweep found, once it is through.
    pub fn take_swept(&mut self) -> Option<Swept> {
        self.swept.take()
    }

    /// Leaves everything as a change may find it.
    pub fn abandon<M: SharedMemory>(self, memory: &M) {
        if let Phase::Announcing(settle) | Phase::Settling(settle) = self.phase {
            settle.abandon(memory);
        }
    }
}

/// A place in a list of scopes.
#[derive(Clone, Copy, Debug, Default)]
struct Cursor {
    scope: usize,
    /// Slots of the scope that are done.
    done: u32,
}

impl Cursor {
    /// The next slots, at most `most`, and the number of their scope; none at the end.
    fn take(&mut self, scopes: &[Scope], most: u32) -> Option<(usize, Range<u32>)> {
        loop {
            let Range { start, end } = scopes.get(self.scope)?.slots;
            let Range {
                start: from,
                end: to,
            } = stretch(&mut self.done, end - start, most);
            if from < to {
                return Some((self.scope, start + from..start + to));
            }
            *self = Self {
                scope: self.scope + 1,
                done: 0,
            };
        }
    }
}

#[cfg(test)]
mod tests;
