//! Drains that end by themselves: under which conditions, and whether they are met. Pure: the time and the counts are passed in.
//!
//! Does not own: counting flows, and what the end of a drain changes (`daemon::drains`).

use std::fmt;
use std::time::Duration;

/// When a drain ends by itself; at least one of the two, whichever comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conditions {
    /// When no flow is left.
    pub until_empty: bool,
    /// After this, counted from when it was asked for. Whole seconds.
    pub timeout: Option<Duration>,
}

impl Conditions {
    /// The longest time-out: a year.
    pub const LONGEST: Duration = Duration::from_secs(365 * 86_400);

    /// # Errors
    /// What is wrong with them.
    pub fn check(&self) -> Result<(), &'static str> {
        match self.timeout {
            None if !self.until_empty => {
                Err("drains until nothing: until empty, for some time, or both")
            }
            Some(timeout) if timeout.is_zero() || timeout > Self::LONGEST => {
                Err("drains for less than a second or for more than a year")
            }
            _ => Ok(()),
        }
    }

    /// What of the time-out is left `now`, both in seconds since the Unix epoch. Clocks are set: one that stands before the
    /// beginning of the drain has told nothing, and the whole time-out is to come.
    pub fn left(&self, at: Option<u64>, now: u64) -> Option<Duration> {
        let timeout = self.timeout?;
        let passed = at.map_or(0, |at| now.saturating_sub(at));
        Some(timeout.saturating_sub(Duration::from_secs(passed)))
    }

    /// Whether the drain is over, and why. `left`: of the time-out, as [`Self::left`] said it.
    pub fn judge(&self, left: Option<Duration>, flows: Flows) -> Option<End> {
        if self.until_empty && flows.is_none_left() {
            Some(End::Empty)
        } else if left == Some(Duration::ZERO) {
            self.timeout.map(|after| End::TimedOut { after, flows })
        } else {
            None
        }
    }
}

impl fmt::Display for Conditions {
    /// `until empty`, `for 10m`, `until empty, for 10m at most`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.until_empty, self.timeout) {
            (true, None) => f.write_str("until empty"),
            (true, Some(timeout)) => write!(f, "until empty, for {} at most", short(timeout)),
            (false, Some(timeout)) => write!(f, "for {}", short(timeout)),
            (false, None) => f.write_str("until activated"),
        }
    }
}

/// What is known of the flows that a backend still has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flows {
    /// Those remembered, by the last whole sweep; ended ones not counted.
    pub remembered: u64,
    /// Slots that send packets of unknown flows to it: it may have more than are remembered.
    pub unknown_slots: u64,
    /// A whole sweep has begun and ended since no slot sent unknown flows to it (or nothing is remembered at all): what a packet
    /// could still have stored has been counted.
    pub counted: bool,
}

impl Flows {
    /// Whether there are as many as are remembered, and not more.
    pub const fn is_complete(&self) -> bool {
        self.unknown_slots == 0
    }

    pub const fn is_none_left(&self) -> bool {
        self.is_complete() && self.counted && self.remembered == 0
    }
}

impl fmt::Display for Flows {
    /// `3 flows`, `at least 3 flows`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.is_complete() {
            f.write_str("at least ")?;
        }
        match self.remembered {
            1 => f.write_str("1 flow"),
            n => write!(f, "{n} flows"),
        }
    }
}

/// Why a drain is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    Empty,
    TimedOut { after: Duration, flows: Flows },
}

impl fmt::Display for End {
    /// The reason that the backend is disabled with.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("drained: no flows left"),
            Self::TimedOut { after, flows } => {
                write!(
                    f,
                    "drain timed out after {} with {flows} left",
                    short(*after)
                )
            }
        }
    }
}

/// `10m`, `1h 30m`
fn short(duration: Duration) -> humantime::FormattedDuration {
    humantime::format_duration(duration)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);
    const EMPTY: Flows = Flows {
        remembered: 0,
        unknown_slots: 0,
        counted: true,
    };
    const UNTIL_EMPTY: Conditions = Conditions {
        until_empty: true,
        timeout: None,
    };
    const FOR_A_MINUTE: Conditions = Conditions {
        until_empty: false,
        timeout: Some(MINUTE),
    };
    const BOTH: Conditions = Conditions {
        until_empty: true,
        ..FOR_A_MINUTE
    };

    #[test]
    fn empty_means_that_nobody_can_be_left() {
        for (flows, over) in [
            (EMPTY, true),
            (
                Flows {
                    remembered: 1,
                    ..EMPTY
                },
                false,
            ),
            (
                Flows {
                    unknown_slots: 1,
                    ..EMPTY
                },
                false,
            ),
            // Settled a moment ago: the last sweep may have passed an entry before it was stored.
            (
                Flows {
                    counted: false,
                    ..EMPTY
                },
                false,
            ),
        ] {
            let end = over.then_some(End::Empty);
            assert_eq!(UNTIL_EMPTY.judge(None, flows), end, "{flows:?}");
            assert_eq!(BOTH.judge(Some(MINUTE), flows), end, "{flows:?}");
            assert_eq!(FOR_A_MINUTE.judge(Some(MINUTE), flows), None, "{flows:?}");
        }
    }

    #[test]
    fn the_time_out_ends_what_is_not_empty() {
        let flows = Flows {
            remembered: 2,
            unknown_slots: 9,
            counted: false,
        };
        for conditions in [FOR_A_MINUTE, BOTH] {
            assert_eq!(conditions.judge(Some(Duration::from_secs(1)), flows), None);
            let end = conditions.judge(Some(Duration::ZERO), flows).unwrap();
            assert_eq!(
                end.to_string(),
                "drain timed out after 1m with at least 2 flows left"
            );
        }
        // Both at the same moment: the better news.
        assert_eq!(BOTH.judge(Some(Duration::ZERO), EMPTY), Some(End::Empty));
        assert_eq!(UNTIL_EMPTY.judge(None, flows), None);
    }

    #[test]
    fn what_is_left_of_the_time_out_bears_clocks_that_are_set() {
        let left = |at, now| FOR_A_MINUTE.left(at, now).map(|left| left.as_secs());
        assert_eq!(left(Some(1_000), 1_000), Some(60));
        assert_eq!(left(Some(1_000), 1_059), Some(1));
        assert_eq!(left(Some(1_000), 5_000), Some(0));
        assert_eq!(
            left(Some(1_000), 10),
            Some(60),
            "never more than was asked for"
        );
        assert_eq!(left(None, 5_000), Some(60));
        assert_eq!(UNTIL_EMPTY.left(Some(1_000), 5_000), None);
    }

    #[test]
    fn it_reads_as_a_sentence() {
        let said = [UNTIL_EMPTY, FOR_A_MINUTE, BOTH].map(|conditions| conditions.to_string());
        assert_eq!(
            said,
            ["until empty", "for 1m", "until empty, for 1m at most"]
        );
        let one = Flows {
            remembered: 1,
            ..EMPTY
        };
        assert_eq!(one.to_string(), "1 flow");
    }
}
