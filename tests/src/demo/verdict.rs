//! The end of the demo: do the balancer's counters, the servers and the captures agree?

use std::sync::atomic::Ordering;
use std::time::Instant;

use anyhow::{Context, Result};
use lb_userspace::api::dto::BackendDetail;
use serde_json::json;

use super::screen::Screen;
use crate::{Backend, Run};

/// When what happened.
pub struct Events {
    pub killed: Instant,
    /// The first look at the daemon that showed the victim without slots had been answered.
    pub moved: Instant,
    /// The victim's server was about to be started again.
    pub revived: Instant,
    /// The number of the backend that was killed.
    pub victim: usize,
}

/// One backend, counted three times.
#[derive(Clone, Debug)]
pub struct Counted {
    name: String,
    number: usize,
    /// By the HTTP server.
    served: u64,
    /// By the balancer.
    flows: u64,
    packets: u64,
    /// By the capture in front of the backend.
    received: u64,
}

impl Counted {
    pub fn new(backend: &Backend, shown: &[BackendDetail], received: u64) -> Result<Self> {
        let detail = shown
            .iter()
            .find(|detail| detail.address == backend.v4())
            .with_context(|| format!("the daemon does not list {}", backend.name()))?;
        Ok(Self {
            name: backend.name().to_owned(),
            number: backend.number(),
            served: backend.counters().served.load(Ordering::Relaxed),
            flows: detail.flows,
            packets: detail.packets,
            received,
        })
    }
}

/// Connections that failed, by when.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Failures {
    before_kill: u64,
    /// Between the kill and the change of the table.
    during: u64,
    after_failover: u64,
    /// Of those, since the victim came back.
    since_return: u64,
    /// Not failed, but asked for twice: SYNs that the dying backend no longer answered.
    repeated: u64,
}

impl Failures {
    fn of(run: &Run, events: &Events, repeated: u64) -> Self {
        let mut failures = Self {
            repeated,
            ..Self::default()
        };
        for attempt in run.failures() {
            if attempt.ended < events.killed {
                failures.before_kill += 1;
            } else if attempt.started > events.moved {
                failures.after_failover += 1;
                failures.since_return += u64::from(attempt.ended > events.revived);
            } else {
                failures.during += 1;
            }
        }
        failures
    }
}

/// Shows the result, prints the JSON object if asked for, and says whether all agrees.
pub fn give(
    screen: &mut Screen,
    run: &Run,
    events: &Events,
    counted: &[Counted],
    repeated: u64,
) -> bool {
    let connections = run.attempts.len() as u64;
    let failures = Failures::of(run, events, repeated);
    let failover = events.moved - events.killed;
    screen.title("Do the numbers agree?");
    screen.say(&format!(
        "  {:<10}{:>12}{:>16}{:>18}{:>18}",
        "BACKEND", "SERVED", "COUNTED FLOWS", "COUNTED PACKETS", "RECEIVED PACKETS"
    ));
    for row in counted {
        screen.say(&format!(
            "  {:<10}{:>12}{:>16}{:>18}{:>18}",
            row.name, row.served, row.flows, row.packets, row.received
        ));
    }
    screen.say(&format!(
        "  (served: by the HTTP server; counted: by the balancer; received: captured in front of the backend)\n\n\
         \x20 {connections} connections from several addresses\n\
         \x20 {} failed before the kill, {} between the kill and the change of the table, {} after it\n\
         \x20 {} failed since its server came back, under load\n\
         \x20 time to fail over: {:.3} s\n",
        failures.before_kill,
        failures.during,
        failures.after_failover,
        failures.since_return,
        failover.as_secs_f64()
    ));
    if failures.during > 0 {
        screen.say(
            "  A failed connection is a flow that the balancer has counted and sent to the dead backend, and nobody served.\n",
        );
    }
    if failures.repeated > 0 {
        screen.say(&format!(
            "  {} SYNs were not answered by the dying backend and sent again by the client: each counts as one more flow\n",
            failures.repeated
        ));
    }
    let wrong = disagreements(connections, failures, events.victim, counted);
    for line in &wrong {
        screen.say(&format!("  WRONG: {line}"));
    }
    if wrong.is_empty() {
        screen.say(
            "All agrees: every connection is accounted for, and none failed but on the way to the dead backend.",
        );
    }
    screen.json(&json!({
        "connections": connections,
        "failed_before_kill": failures.before_kill,
        "failed_during_failover": failures.during,
        "failed_after_failover": failures.after_failover,
        "failed_since_return": failures.since_return,
        "repeated_syns": failures.repeated,
        "failover_seconds": failover.as_secs_f64(),
        "backends": counted.iter().map(|row| json!({
            "name": row.name,
            "served": row.served,
            "counted_flows": row.flows,
            "counted_packets": row.packets,
            "received_packets": row.received,
        })).collect::<Vec<_>>(),
    }));
    wrong.is_empty()
}

/// What does not add up. A connection to the dead backend is a flow that nobody served, and nothing else may be.
fn disagreements(
    connections: u64,
    failures: Failures,
    victim: usize,
    counted: &[Counted],
) -> Vec<String> {
    let mut wrong = Vec::new();
    for (count, when) in [
        (failures.before_kill, "before the kill"),
        (failures.after_failover, "after the failover"),
    ] {
        if count > 0 {
            wrong.push(format!("{count} connections failed {when}"));
        }
    }
    for row in counted {
        let unserved = if row.number == victim {
            failures.during + failures.repeated
        } else {
            0
        };
        if row.served + unserved != row.flows {
            wrong.push(format!(
                "{}: {} flows counted, but {} served and {unserved} lost",
                row.name, row.flows, row.served
            ));
        }
        if row.packets != row.received {
            wrong.push(format!(
                "{}: {} packets counted, {} received",
                row.name, row.packets, row.received
            ));
        }
        if row.served == 0 {
            wrong.push(format!("{} served nothing", row.name));
        }
    }
    let flows: u64 = counted.iter().map(|row| row.flows).sum();
    if flows != connections + failures.repeated {
        wrong.push(format!(
            "{connections} connections were made and {} SYNs repeated, but {flows} flows counted",
            failures.repeated
        ));
    }
    wrong
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(number: usize, served: u64, flows: u64) -> Counted {
        Counted {
            name: format!("backend{number}"),
            number,
            served,
            flows,
            packets: flows * 6,
            received: flows * 6,
        }
    }

    #[test]
    fn failures_belong_to_the_victim_only() {
        let failures = Failures {
            during: 5,
            ..Failures::default()
        };
        let good = [row(1, 100, 100), row(2, 50, 55)];
        assert_eq!(disagreements(155, failures, 2, &good), [""; 0]);
        assert_eq!(disagreements(155, failures, 1, &good).len(), 2);
        assert_eq!(disagreements(156, failures, 2, &good).len(), 1);
        let repeated = Failures {
            during: 4,
            repeated: 1,
            ..failures
        };
        assert_eq!(disagreements(154, repeated, 2, &good), [""; 0]);
        let late = Failures {
            after_failover: 1,
            ..failures
        };
        assert_eq!(disagreements(155, late, 2, &good).len(), 1);
    }

    #[test]
    fn a_lost_packet_is_seen() {
        let mut rows = [row(1, 10, 10), row(2, 10, 10)];
        rows[0].received -= 1;
        assert_eq!(disagreements(20, Failures::default(), 2, &rows).len(), 1);
    }
}
