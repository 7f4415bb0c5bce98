//! What a backend may be used for, from what the operator wants and what probes say, with the timers between.
//!
//! ```text
//!   ACTIVE ◀──▶ DRAINING      operator, weight
//!      │  ▲        │
//!      ▼  │        ▼          probes fail           linger
//!    SUSPECT ──grace──▶ DOWN ──hold-down──▶ GONE ◀───────── removed
//! ```

use std::time::Duration;

use lb_common::track::Status;

use crate::model::{Admin, FlowTimes, Health};

/// How long a backend stays in the statuses that end by themselves, nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timers {
    /// G: a backend whose probes fail keeps its flows for so long, for probes fail sooner than backends.
    pub grace: u64,
    /// D: the flows of a backend that is DOWN are not forgotten for so long.
    pub hold_down: u64,
    /// A removed backend keeps its flows for so long.
    pub linger: u64,
}

impl Timers {
    pub fn of(times: &FlowTimes) -> Self {
        // Bounded by the configuration to far less than 2⁶⁴ ns.
        let nanoseconds = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        Self {
            grace: nanoseconds(times.grace),
            hold_down: nanoseconds(times.hold_down),
            linger: nanoseconds(times.linger),
        }
    }
}

/// What is wanted and known of a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wish {
    pub admin: Admin,
    /// In force: [`Health::Up`] where health is ignored.
    pub health: Health,
    pub weight: u32,
    /// No longer part of the service.
    pub removed: bool,
}

/// A backend's status and what it waits for. GONE is final: a backend that comes back is a new one
/// (see [`super::removal::Removal`]).
#[derive(Clone, Copy, Debug)]
pub struct Standing {
    timers: Timers,
    wish: Wish,
    status: Status,
    /// Since when probes fail, if they do.
    failing: Option<u64>,
    /// Since when it is DOWN, if it is.
    down: Option<u64>,
    /// Since when it is removed, if it is.
    removed: Option<u64>,
}

/// What a change of status means for the slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Turn {
    pub from: Status,
    pub to: Status,
}

impl Turn {
    /// Its flows are learnt anew where it is the incumbent.
    pub fn came_back(self) -> bool {
        self.from == Status::Down && self.to.carries()
    }
}

impl Standing {
    pub fn new(timers: Timers, wish: Wish, now: u64) -> Self {
        let mut standing = Self {
            timers,
            wish,
            status: Status::Draining,
            failing: None,
            down: None,
            removed: None,
        };
        standing.update(wish, now);
        standing
    }

    /// One that an earlier daemon left in this status. How long it was so is not known: its time begins again, on the safe side.
    pub fn left(timers: Timers, status: Status, now: u64) -> Self {
        let since = |yes: bool| yes.then_some(now);
        Self {
            timers,
            wish: Wish {
                admin: Admin::Active,
                health: Health::Unknown,
                weight: 1,
                removed: false,
            },
            status,
            failing: match status {
                // Its grace is over.
                Status::Down => Some(now.saturating_sub(timers.grace)),
                _ => since(status == Status::Suspect),
            },
            down: since(status == Status::Down),
            removed: None,
        }
    }

    pub const fn status(&self) -> Status {
        self.status
    }

    /// Other timers from now on: what has run since its beginning counts.
    pub const fn retime(&mut self, timers: Timers) {
        self.timers = timers;
    }

    /// New wishes, or a timer that ran out. Tells how the status changed, if it did.
    pub fn update(&mut self, wish: Wish, now: u64) -> Option<Turn> {
        let from = self.status;
        if from == Status::Gone {
            return None;
        }
        self.wish = wish;
        self.failing = match wish.health {
            Health::Down => Some(self.failing.unwrap_or(now)),
            // Nobody has looked yet: as it was left.
            Health::Unknown => self.failing,
            Health::Up => None,
        };
        self.removed = wish.removed.then(|| self.removed.unwrap_or(now));
        let failed = self
            .failing
            .is_some_and(|since| now >= since.saturating_add(self.timers.grace));
        let unusable = failed || wish.admin == Admin::Disabled;
        self.down = unusable.then(|| self.down.unwrap_or(now));
        self.status = self.judge(now);
        (self.status != from).then_some(Turn {
            from,
            to: self.status,
        })
    }

    fn judge(&self, now: u64) -> Status {
        let over = |since: Option<u64>, limit: u64| {
            since.is_some_and(|since| now >= since.saturating_add(limit))
        };
        if over(self.removed, self.timers.linger) || over(self.down, self.timers.hold_down) {
            Status::Gone
        } else if self.down.is_some() {
            Status::Down
        } else if self.failing.is_some() {
            Status::Suspect
        } else if self.removed.is_some()
            || self.wish.admin == Admin::Draining
            || self.wish.weight == 0
            // Keeps what it may have from before a restart, and gets nothing new before its first probe.
            || self.wish.health == Health::Unknown
        {
            Status::Draining
        } else {
            Status::Active
        }
    }

    /// It is no longer wanted.
    pub fn remove(&mut self, now: u64) -> Option<Turn> {
        let wish = Wish {
            removed: true,
            ..self.wish
        };
        self.update(wish, now)
    }

    /// When it will be GONE, if nothing else happens.
    pub fn gone_at(&self) -> Option<u64> {
        let after = |since: Option<u64>, limit: u64| since.map(|since| since.saturating_add(limit));
        let removed = after(self.removed, self.timers.linger);
        let down = after(self.down, self.timers.hold_down);
        removed.into_iter().chain(down).min()
    }

    /// When the status will change by itself, if nothing else happens.
    pub fn next(&self) -> Option<u64> {
        if self.status == Status::Gone {
            return None;
        }
        let after = |since: Option<u64>, limit: u64| since.map(|since| since.saturating_add(limit));
        let down = after(self.failing, self.timers.grace).filter(|_| self.down.is_none());
        self.gone_at().into_iter().chain(down).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMERS: Timers = Timers {
        grace: 30,
        hold_down: 600,
        linger: 60,
    };
    const UP: Wish = Wish {
        admin: Admin::Active,
        health: Health::Up,
        weight: 1,
        removed: false,
    };
    const FAILS: Wish = Wish {
        health: Health::Down,
        ..UP
    };

    #[test]
    fn a_failing_backend_is_suspect_then_down_then_gone() {
        let mut backend = Standing::new(TIMERS, UP, 0);
        assert_eq!((backend.status(), backend.next()), (Status::Active, None));
        backend.update(FAILS, 100);
        assert_eq!(
            (backend.status(), backend.next()),
            (Status::Suspect, Some(130))
        );
        assert_eq!(backend.update(FAILS, 129), None);
        backend.update(FAILS, 131);
        assert_eq!(
            (backend.status(), backend.next()),
            (Status::Down, Some(731))
        );
        backend.update(FAILS, 731);
        assert_eq!((backend.status(), backend.next()), (Status::Gone, None));
        assert_eq!(backend.update(UP, 800), None, "GONE is final");
    }

    #[test]
    fn one_that_recovers_comes_back_and_its_timers_start_again() {
        let mut backend = Standing::new(TIMERS, UP, 0);
        backend.update(FAILS, 0);
        let turn = backend.update(UP, 29).expect("a turn");
        assert!(!turn.came_back(), "it never was DOWN");
        backend.update(FAILS, 30);
        assert_eq!(backend.status(), Status::Suspect);
        backend.update(FAILS, 60);
        let turn = backend.update(UP, 659).expect("a turn");
        assert!(turn.came_back());
        assert_eq!((backend.status(), backend.next()), (Status::Active, None));
    }

    #[test]
    fn the_operator_is_obeyed() {
        let wish = |admin, weight, removed| Wish {
            admin,
            weight,
            removed,
            ..UP
        };
        for (wish, expected, next) in [
            (wish(Admin::Draining, 1, false), Status::Draining, None),
            (wish(Admin::Active, 0, false), Status::Draining, None),
            (wish(Admin::Disabled, 1, false), Status::Down, Some(600)),
            (wish(Admin::Active, 1, true), Status::Draining, Some(60)),
            (wish(Admin::Disabled, 1, true), Status::Down, Some(60)),
        ] {
            let backend = Standing::new(TIMERS, wish, 0);
            assert_eq!(
                (backend.status(), backend.next()),
                (expected, next),
                "{wish:?}"
            );
        }
    }

    #[test]
    fn removal_waits_for_the_linger_only() {
        let mut backend = Standing::new(TIMERS, UP, 0);
        let removed = Wish {
            removed: true,
            ..FAILS
        };
        backend.update(removed, 0);
        assert_eq!(backend.status(), Status::Suspect);
        backend.update(removed, 60);
        assert_eq!(backend.status(), Status::Gone);
    }

    #[test]
    fn what_an_earlier_daemon_left_stays_until_somebody_looks() {
        let unseen = Wish {
            health: Health::Unknown,
            ..UP
        };
        for (status, later) in [
            (Status::Active, Status::Draining),
            (Status::Draining, Status::Draining),
            (Status::Suspect, Status::Suspect),
            (Status::Down, Status::Down),
        ] {
            let mut backend = Standing::left(TIMERS, status, 1_000);
            assert_eq!(backend.status(), status);
            backend.update(unseen, 1_001);
            assert_eq!(backend.status(), later, "{status:?}");
            backend.update(UP, 1_002);
            assert_eq!(backend.status(), Status::Active, "{status:?}");
        }
        let mut down = Standing::left(TIMERS, Status::Down, 1_000);
        down.update(FAILS, 1_001);
        assert_eq!((down.status(), down.next()), (Status::Down, Some(1_600)));
        let mut suspect = Standing::left(TIMERS, Status::Suspect, 1_000);
        suspect.update(FAILS, 1_001);
        assert_eq!(
            (suspect.status(), suspect.next()),
            (Status::Suspect, Some(1_030))
        );
    }

    #[test]
    fn other_timers_hold_for_what_runs_already() {
        let mut backend = Standing::new(TIMERS, FAILS, 100);
        backend.retime(Timers {
            grace: 90,
            ..TIMERS
        });
        assert_eq!(backend.update(FAILS, 130), None);
        assert_eq!(backend.next(), Some(190));
        backend.retime(Timers {
            grace: 20,
            hold_down: 5,
            ..TIMERS
        });
        backend.update(FAILS, 140);
        assert_eq!(
            (backend.status(), backend.next()),
            (Status::Down, Some(145))
        );
    }

    #[test]
    fn no_grace_means_down_at_once() {
        let mut backend = Standing::new(Timers { grace: 0, ..TIMERS }, UP, 0);
        backend.update(FAILS, 5);
        assert_eq!(
            (backend.status(), backend.next()),
            (Status::Down, Some(605))
        );
    }
}
