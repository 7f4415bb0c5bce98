//! Counts of probes and how long they took, per target, in the shape metrics want.

use std::time::Duration;

use super::ProbeTarget;

/// Upper bounds of the duration histogram, in seconds; a last, unbounded bucket is implied.
///
/// A probe on the same link takes well under a millisecond; the usual timeout is 1 s.
pub const DURATION_BUCKETS: [f64; 12] = [
    0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0, 5.0,
];

/// What has been counted of one target since it is watched.
#[derive(Clone, Debug, PartialEq)]
pub struct ProbeStatistics {
    pub target: ProbeTarget,
    pub successes: u64,
    pub failures: u64,
    /// Probes that this host could not make (no file descriptor, no local port); they say nothing of the target.
    pub not_made: u64,
    /// How long the last probe took, whatever it said.
    pub last_duration: Duration,
    /// Probes per bucket of [`DURATION_BUCKETS`], not cumulative; what took longer than the last bound is only in
    /// `successes + failures`.
    pub buckets: [u64; DURATION_BUCKETS.len()],
    /// Sum of all durations.
    pub sum: Duration,
}

impl ProbeStatistics {
    pub(crate) fn new(target: ProbeTarget) -> Self {
        Self {
            target,
            successes: 0,
            failures: 0,
            not_made: 0,
            last_duration: Duration::ZERO,
            buckets: [0; DURATION_BUCKETS.len()],
            sum: Duration::ZERO,
        }
    }

    /// Counts one probe that reached a result.
    pub(crate) fn count(&mut self, success: bool, duration: Duration) {
        if success {
            self.successes += 1;
        } else {
            self.failures += 1;
        }
        self.last_duration = duration;
        self.sum += duration;
        let seconds = duration.as_secs_f64();
        if let Some(bucket) = DURATION_BUCKETS.iter().position(|&bound| seconds <= bound) {
            self.buckets[bucket] += 1;
        }
    }

    /// Probes in the histogram.
    pub fn count_total(&self) -> u64 {
        self.successes + self.failures
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ProbeKind;

    #[test]
    fn a_duration_falls_into_the_first_bucket_that_holds_it() {
        let mut statistics = ProbeStatistics::new(ProbeTarget {
            address: ([127, 0, 0, 1], 80).into(),
            kind: ProbeKind::Tcp,
            interval: Duration::from_secs(1),
            timeout: Duration::from_secs(1),
            rise: 1,
            fall: 1,
        });
        statistics.count(true, Duration::from_millis(1));
        statistics.count(true, Duration::from_millis(2));
        statistics.count(false, Duration::from_secs(1));
        statistics.count(false, Duration::from_secs(11));
        assert_eq!(statistics.buckets, [0, 0, 1, 1, 0, 0, 0, 0, 0, 0, 1, 0]);
        assert_eq!(
            (
                statistics.successes,
                statistics.failures,
                statistics.count_total()
            ),
            (2, 2, 4)
        );
        assert_eq!(statistics.sum, Duration::from_millis(12_003));
        assert_eq!(statistics.last_duration, Duration::from_secs(11));
    }
}
