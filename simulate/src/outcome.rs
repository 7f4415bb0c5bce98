//! What a run came to: connections, breaks by cause, and how much was remembered.

use std::collections::BTreeMap;

use lb_common::track::Status;
use serde::Serialize;

/// Why a connection broke.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cause {
    /// Its backend was taken out of service for good.
    BackendGone,
    /// Its backend was DOWN when it sent.
    BackendDown,
    /// It had been silent for longer than `flow_idle` − 8 s, while its slot changed.
    Idle,
    /// It came to a balancer that had not seen its beginning.
    OtherBalancer,
    /// Its slot has another backend now, and nothing is remembered.
    TableChanged,
    /// Its slot has another backend now, and what was remembered of it had been given up.
    Evicted,
    /// None that we know of. Ours must never show this.
    Unexplained,
}

impl Cause {
    pub const ALL: [Self; 7] = [
        Self::BackendGone,
        Self::BackendDown,
        Self::Idle,
        Self::OtherBalancer,
        Self::TableChanged,
        Self::Evicted,
        Self::Unexplained,
    ];

    pub const fn name(self) -> &'static str {
        match self {
            Self::BackendGone => "backend-gone",
            Self::BackendDown => "backend-down",
            Self::Idle => "idle",
            Self::OtherBalancer => "other-balancer",
            Self::TableChanged => "table-changed",
            Self::Evicted => "evicted",
            Self::Unexplained => "unexplained",
        }
    }

    /// Whether Sluice on one balancer promises no more.
    pub const fn is_promised(self) -> bool {
        matches!(self, Self::BackendGone | Self::BackendDown | Self::Idle)
    }
}

/// What is known of a connection when one of its packets came to the wrong backend.
#[derive(Clone, Copy, Debug)]
pub struct Break {
    /// Of its own backend.
    pub status: Status,
    pub idle: u64,
    pub other_balancer: bool,
}

/// One design in one scenario.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Outcome {
    pub scenario: String,
    pub design: &'static str,
    /// Established, those before the events included.
    pub connections: u64,
    pub broken: u64,
    /// Broken, by cause; those that are 0 are left out.
    pub causes: BTreeMap<&'static str, u64>,
    /// Connections that no backend answered.
    pub refused: u64,
    /// Openers that were dropped while their slot settled; their clients sent them again.
    pub dropped: u64,
    /// Connections that hung: they were sent to their backend until their client gave up, minutes later, for it did not answer.
    pub abandoned: u64,
    /// Of clients.
    pub packets: u64,
    /// Of floods.
    pub forged: u64,
    /// Of all balancers together, after the warm-up.
    pub peak_entries: u64,
    pub mean_entries: f64,
    pub entry_bytes: u64,
    pub peak_bytes: u64,
    pub mean_bytes: f64,
    /// What is taken from the start, however little of it is used: the flow table or LRU, without lookup tables.
    pub reserved_bytes: u64,
}

impl Outcome {
    pub fn breaks(&mut self, cause: Cause) {
        self.broken += 1;
        *self.causes.entry(cause.name()).or_default() += 1;
    }

    pub fn by(&self, cause: Cause) -> u64 {
        self.causes.get(cause.name()).copied().unwrap_or(0)
    }
}

/// Entries over time: peak and time-weighted mean.
#[derive(Clone, Copy, Debug, Default)]
pub struct Gauge {
    value: u64,
    peak: u64,
    /// Entries × nanoseconds.
    area: u128,
    since: u64,
    began: u64,
}

impl Gauge {
    pub fn set(&mut self, value: u64, now: u64) {
        self.area += u128::from(self.value) * u128::from(now - self.since);
        self.since = now;
        self.value = value;
        self.peak = self.peak.max(value);
    }

    /// Forgets all but the present.
    pub fn begin(&mut self, now: u64) {
        (self.peak, self.area, self.since, self.began) = (self.value, 0, now, now);
    }

    pub const fn peak(&self) -> u64 {
        self.peak
    }

    pub fn mean(&mut self, now: u64) -> f64 {
        self.set(self.value, now);
        let span = (now - self.began).max(1);
        self.area as f64 / span as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mean_is_weighted_by_time() {
        let mut gauge = Gauge::default();
        gauge.set(100, 5);
        gauge.begin(10);
        gauge.set(10, 20);
        assert_eq!((gauge.mean(40), gauge.peak()), (40.0, 100));
    }
}
