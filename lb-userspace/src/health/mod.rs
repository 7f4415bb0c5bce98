//! Health: probing backends, and turning single probe results into up and down.
//!
//! Owns: when a target is probed ([`prober`]), how ([`probe`]) and what the results add up to ([`fsm`]).
//! Does not own: which targets there are, or what a verdict means for a service's table (`state`).

use std::net::SocketAddr;
use std::time::Duration;

use crate::model::{Health, ProbeKind};

pub mod fsm;
pub mod probe;
pub mod prober;
pub mod statistics;

pub use prober::{Prober, ProberHandle};
pub use statistics::{DURATION_BUCKETS, ProbeStatistics};

/// One thing to probe. Identical targets of several services are probed once.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ProbeTarget {
    /// Where the probe goes: the backend's address and the probe's port.
    pub address: SocketAddr,
    pub kind: ProbeKind,
    pub interval: Duration,
    pub timeout: Duration,
    pub rise: u32,
    pub fall: u32,
}

/// Sent on a flip only (and for the first verdict, or the first result that confirms what was presumed).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthEvent {
    pub target: ProbeTarget,
    pub health: Health,
    /// What the deciding probe said, for example `HTTP 503`, `connection refused`, `no answer within 1s`.
    pub reason: String,
}

/// What is known of a target by what is known of the backends behind it: one of the verdicts when all agree.
pub fn agreed(known: impl IntoIterator<Item = (Health, String)>) -> Option<(Health, String)> {
    let mut known = known.into_iter();
    let first = known.next()?;
    known.all(|(health, _)| health == first.0).then_some(first)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backends_that_disagree_say_nothing_of_their_common_target() {
        let verdicts = |healths: &[Health]| {
            agreed(healths.iter().map(|&health| (health, health.to_string())))
                .map(|(health, _)| health)
        };
        assert_eq!(verdicts(&[]), None);
        assert_eq!(verdicts(&[Health::Up, Health::Up]), Some(Health::Up));
        assert_eq!(verdicts(&[Health::Up, Health::Down]), None);
    }
}
