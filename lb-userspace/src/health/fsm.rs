//! What single probe results add up to: the health of one target.
//!
//! Owns: the rules of rise and fall, and how soon the next probe is due. Pure: no clock, no sockets, no randomness.

use std::time::Duration;

use crate::model::Health;

/// Probes of a target whose verdict is in doubt never come closer than this (unless its interval is shorter still).
pub const FASTEST: Duration = Duration::from_millis(100);

/// The health of one target.
///
/// The first result decides at once: a balancer that starts must not wait `fall × interval` to learn that a
/// backend is dead, nor `rise × interval` to learn that it is alive. From then on `fall` failures in a row take it
/// down and `rise` successes in a row bring it up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fsm {
    rise: u32,
    fall: u32,
    health: Health,
    /// Results in a row that contradict `health`.
    doubts: u32,
}

impl Fsm {
    /// Thresholds of 0 count as 1: a verdict needs at least one result.
    pub fn new(rise: u32, fall: u32) -> Self {
        Self {
            rise: rise.max(1),
            fall: fall.max(1),
            health: Health::Unknown,
            doubts: 0,
        }
    }

    /// As [`Fsm::new`], but of a target whose health is known already: rise and fall count from there, and the first result
    /// decides nothing by itself. With [`Health::Unknown`] the same as `new`.
    pub fn starting_from(rise: u32, fall: u32, health: Health) -> Self {
        Self {
            health,
            ..Self::new(rise, fall)
        }
    }

    pub fn health(&self) -> Health {
        self.health
    }

    /// Takes one result; gives the new health when it flips, and only then.
    pub fn record(&mut self, success: bool) -> Option<Health> {
        let (says, needed) = if success {
            (Health::Up, self.rise)
        } else {
            (Health::Down, self.fall)
        };
        if says == self.health {
            self.doubts = 0;
            return None;
        }
        self.doubts += 1;
        if self.health != Health::Unknown && self.doubts < needed {
            return None;
        }
        self.health = says;
        self.doubts = 0;
        Some(says)
    }

    /// Whether the last results contradict the verdict, without having overturned it yet.
    pub fn in_doubt(&self) -> bool {
        self.doubts > 0
    }

    /// Time from the start of the last probe to the start of the next one.
    ///
    /// A target in doubt is asked again after half its interval, but no sooner than [`FASTEST`]. This never
    /// exceeds `interval`, so a target that stops answering is down at most `fall × interval + timeout` later,
    /// as long as `timeout ≤ interval`: the first failing probe starts within one interval, each further one
    /// within another, and the last one needs at most `timeout` to fail.
    pub fn pause(&self, interval: Duration) -> Duration {
        if self.in_doubt() {
            (interval / 2).max(FASTEST).min(interval)
        } else {
            interval
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn first_result_decides_at_once() {
        assert_eq!(Fsm::new(5, 5).record(true), Some(Health::Up));
        assert_eq!(Fsm::new(5, 5).record(false), Some(Health::Down));
    }

    #[test]
    fn what_is_known_is_not_overturned_by_the_first_result() {
        let mut up = Fsm::starting_from(2, 3, Health::Up);
        assert_eq!(
            [false, false, false].map(|result| up.record(result)),
            [None, None, Some(Health::Down)]
        );
        let mut down = Fsm::starting_from(2, 3, Health::Down);
        assert_eq!(
            [true, true].map(|result| down.record(result)),
            [None, Some(Health::Up)]
        );
        assert_eq!(Fsm::starting_from(2, 3, Health::Unknown), Fsm::new(2, 3));
    }

    #[test]
    fn rise_and_fall_count_results_in_a_row() {
        let mut fsm = Fsm::new(2, 3);
        let flips: Vec<_> = [
            true, false, false, true, false, false, false, true, false, true, true,
        ]
        .into_iter()
        .map(|result| fsm.record(result))
        .collect();
        let mut expected = vec![None; 11];
        expected[0] = Some(Health::Up);
        expected[6] = Some(Health::Down);
        expected[10] = Some(Health::Up);
        assert_eq!(flips, expected);
    }

    #[test]
    fn a_target_in_doubt_is_asked_sooner() {
        let second = Duration::from_secs(1);
        let mut fsm = Fsm::new(2, 3);
        assert_eq!(fsm.pause(second), second);
        fsm.record(true);
        assert_eq!(fsm.pause(second), second);
        fsm.record(false);
        assert_eq!(fsm.pause(second), second / 2);
        assert_eq!(fsm.pause(Duration::from_millis(150)), FASTEST);
        assert_eq!(
            fsm.pause(Duration::from_millis(40)),
            Duration::from_millis(40)
        );
        fsm.record(true);
        assert_eq!(fsm.pause(second), second, "the doubt is gone");
    }

    proptest! {
        /// The verdict is a function of the last results alone: up needs `rise` successes at the end of the history or
        /// an earlier up without `fall` failures in a row since.
        #[test]
        fn agrees_with_a_plain_reading_of_the_rules(
            rise in 1u32..6, fall in 1u32..6, results in prop::collection::vec(any::<bool>(), 1..200)
        ) {
            let mut fsm = Fsm::new(rise, fall);
            let mut up = results[0];
            for (i, &result) in results.iter().enumerate() {
                let before = fsm.health();
                let flip = fsm.record(result);
                let run = results[..=i].iter().rev().take_while(|&&r| r == result).count();
                if i > 0 && result != up && run >= if result { rise } else { fall } as usize {
                    up = result;
                }
                let expected = if up { Health::Up } else { Health::Down };
                prop_assert_eq!(fsm.health(), expected);
                prop_assert_eq!(flip, (before != expected).then_some(expected), "reports flips, and only flips");
            }
        }

        /// The promise of `pause`, on a schedule where the target dies right after a probe began to succeed.
        #[test]
        fn a_dead_target_is_down_in_time(
            rise in 1u32..6, fall in 1u32..6, interval_ms in 10u64..5_000, timeout_percent in 1u64..=100, early in 0u64..=10
        ) {
            let interval = Duration::from_millis(interval_ms);
            let timeout = interval * timeout_percent as u32 / 100;
            let mut fsm = Fsm::new(rise, fall);
            fsm.record(true);
            let jitter = |d: Duration| d * (100 - early as u32) / 100;
            let mut start = jitter(fsm.pause(interval));
            let down_at = loop {
                let end = start + timeout;
                if fsm.record(false).is_some() {
                    break end;
                }
                start = (start + jitter(fsm.pause(interval))).max(end);
            };
            prop_assert!(down_at <= interval * fall + timeout, "{down_at:?}");
        }
    }
}
