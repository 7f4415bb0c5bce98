//! What every scenario must show, and what each says of itself in `[expect]`.

use crate::designs::Design;
use crate::outcome::{Cause, Outcome};
use crate::scenario::Scenario;

/// What a run did not keep; empty: all is well.
pub fn complaints(scenario: &Scenario, outcomes: &[Outcome]) -> Vec<String> {
    let mut found = Vec::new();
    let mut must = |holds: bool, what: String| {
        if !holds {
            found.push(what);
        }
    };
    let of = |design: Design| outcomes.iter().find(|o| o.design == design.name());
    let (Some(stateless), Some(lru), Some(adaptive), Some(always)) = (
        of(Design::Stateless),
        of(Design::Lru),
        of(Design::Adaptive),
        of(Design::Always),
    ) else {
        return vec!["a design is missing".to_owned()];
    };
    let expect = &scenario.expect;
    for ours in [adaptive, always] {
        for cause in Cause::ALL {
            let promised =
                cause.is_promised() || (cause == Cause::OtherBalancer && scenario.balancers > 1);
            let count = ours.by(cause);
            must(
                promised || count == 0,
                format!(
                    "{} broke {count} connections: {}",
                    ours.design,
                    cause.name()
                ),
            );
        }
    }
    must(
        !expect.stateless_breaks || stateless.broken > 0,
        "stateless broke nothing: the traffic is too easy".to_owned(),
    );
    must(
        !expect.lru_breaks || lru.broken > 0,
        "the LRU broke nothing: the traffic is too easy".to_owned(),
    );
    must(
        !expect.adaptive_breaks_none || adaptive.broken == 0,
        format!("adaptive broke {} connections, of 0", adaptive.broken),
    );
    for (what, most, part, whole) in [
        (
            "mean",
            expect.mean_at_most,
            adaptive.mean_entries,
            always.mean_entries,
        ),
        (
            "peak",
            expect.peak_at_most,
            adaptive.peak_entries as f64,
            always.peak_entries as f64,
        ),
    ] {
        let most = most.unwrap_or(f64::INFINITY);
        must(
            part <= most * whole,
            format!(
                "adaptive's {what} of entries is {part:.0}, {:.1} % of full tracking's {whole:.0}; at most {:.1} %",
                100.0 * part / whole,
                100.0 * most
            ),
        );
    }
    if let Some(least) = expect.fill_at_least {
        let fill = adaptive.peak_entries as f64 / f64::from(scenario.memory.entries);
        must(
            fill >= least,
            format!("the flow table was only {:.0} % full", 100.0 * fill),
        );
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenario::{Expect, folder};

    fn outcomes() -> Vec<Outcome> {
        let outcome = |design: Design| Outcome {
            design: design.name(),
            mean_entries: 100.0,
            peak_entries: 100,
            ..Outcome::default()
        };
        Design::ALL.map(outcome).into()
    }

    fn said(change: impl Fn(&mut Scenario, &mut Vec<Outcome>)) -> Vec<String> {
        let mut scenario = Scenario::read(&folder().join("ecmp-at-rest.toml")).unwrap();
        (scenario.balancers, scenario.expect) = (1, Expect::default());
        let mut outcomes = outcomes();
        change(&mut scenario, &mut outcomes);
        complaints(&scenario, &outcomes)
    }

    #[test]
    fn what_is_promised_is_no_complaint() {
        let found = said(|_, outcomes| {
            outcomes[2].breaks(Cause::BackendGone);
            outcomes[2].breaks(Cause::BackendDown);
            outcomes[3].breaks(Cause::Idle);
            outcomes[0].breaks(Cause::TableChanged);
            outcomes[1].breaks(Cause::Evicted);
        });
        assert_eq!(found, [""; 0]);
    }

    #[test]
    fn each_promise_can_be_broken() {
        let broken = [
            said(|_, outcomes| outcomes[2].breaks(Cause::Unexplained)),
            said(|_, outcomes| outcomes[3].breaks(Cause::OtherBalancer)),
            said(|scenario, _| scenario.expect.stateless_breaks = true),
            said(|scenario, _| scenario.expect.lru_breaks = true),
            said(|scenario, outcomes| {
                scenario.expect.adaptive_breaks_none = true;
                outcomes[2].breaks(Cause::Idle);
            }),
            said(|scenario, _| scenario.expect.fill_at_least = Some(0.5)),
            said(|_, outcomes| outcomes.truncate(3)),
        ];
        for found in broken {
            assert_eq!(found.len(), 1, "{found:?}");
        }
        let state = said(|scenario, outcomes| {
            scenario.expect.mean_at_most = Some(0.3);
            scenario.expect.peak_at_most = Some(0.3);
            outcomes[2].mean_entries = 30.0;
            outcomes[2].peak_entries = 31;
        });
        assert_eq!(state.len(), 1, "{state:?}");
        assert!(
            state[0].contains("peak of entries is 31, 31.0 %"),
            "{state:?}"
        );
    }

    #[test]
    fn a_fleet_may_break_what_came_to_another_balancer() {
        let found = said(|scenario, outcomes| {
            scenario.balancers = 4;
            outcomes[2].breaks(Cause::OtherBalancer);
        });
        assert_eq!(found, [""; 0]);
    }
}
