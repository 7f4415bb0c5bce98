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
    if let Some(most) = expect.state_at_most {
        for (what, part, whole) in [
            ("mean", adaptive.mean_entries, always.mean_entries),
            (
                "peak",
                adaptive.peak_entries as f64,
                always.peak_entries as f64,
            ),
        ] {
            must(
                part <= most * whole,
                format!(
                    "adaptive's {what} of entries is {part:.0}, {:.1} % of full tracking's {whole:.0}; at most {:.1} %",
                    100.0 * part / whole,
                    100.0 * most
                ),
            );
        }
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
