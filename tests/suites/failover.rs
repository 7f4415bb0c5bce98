//! A backend dies under load: its share moves in time, and comes back in time.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lab::client::Load;
use lab::{Lab, Run, wait_until};

use crate::Suites;
use crate::setup::{ensure_failed_only_within, probed_web, serving, web, web_vip};

const RATE: u32 = 200;
/// What the contract allows beyond `fall` (or `rise`) probe intervals.
const GRACE: Duration = Duration::from_secs(1);

pub fn add(suites: &mut Suites) {
    suites.case("failover", "killed_process_is_left_and_returned_to", killed);
    suites.case("failover", "http_503_is_left_and_returned_to", unhealthy);
    suites.case("failover", "pulled_cable_is_left", unreachable);
    suites.case("failover", "all_share_when_all_probes_fail", all_fail);
}

/// Time that `count` probes take at the latest, with the grace.
fn limit(lab: &Lab, count: u32) -> Duration {
    Duration::from_millis(web(lab).interval_ms.into()) * count + GRACE
}

fn killed() -> Result<()> {
    let lab = serving(Lab::builder().backends(3))?;
    let daemon = probed_web(&lab)?;
    let (fall, rise) = (web(&lab).fall, web(&lab).rise);
    let victim = lab.backend(2);
    let load = lab.client().start_load(web_vip(), RATE)?;
    answers_from(&load, victim.name(), Instant::now())?;

    let killed = Instant::now();
    victim.kill();
    daemon.wait_eligible("web", victim.v4(), false, limit(&lab, fall))?;
    let moved = Instant::now();
    let reason = daemon
        .backend("web", victim.v4())?
        .health_reason
        .unwrap_or_default();
    ensure!(reason.contains("refused"), "the reason is {reason:?}");
    wait_for_attempts(&load, 100)?;

    let revived = Instant::now();
    victim.revive()?;
    daemon.wait_eligible("web", victim.v4(), true, limit(&lab, rise))?;
    answers_from(&load, victim.name(), revived)?;

    let run = load.stop()?;
    ensure!(
        run.failures().count() > 0,
        "nothing failed at all: the load did not reach the victim"
    );
    // Not when it comes back: then only slots move.
    ensure_failed_only_within(&run, &[(killed, moved)])?;
    nobody_reached(&run, victim.name(), moved, revived)
}

fn unhealthy() -> Result<()> {
    let lab = serving(Lab::builder().backends(2))?;
    let daemon = probed_web(&lab)?;
    let victim = lab.backend(1);
    let load = lab.client().start_load(web_vip(), RATE)?;
    answers_from(&load, victim.name(), Instant::now())?;

    victim.set_health_status(503);
    daemon.wait_eligible("web", victim.v4(), false, limit(&lab, web(&lab).fall))?;
    let moved = Instant::now();
    let reason = daemon
        .backend("web", victim.v4())?
        .health_reason
        .unwrap_or_default();
    ensure!(reason.contains("503"), "the reason is {reason:?}");
    wait_for_attempts(&load, 100)?;

    let healed = Instant::now();
    victim.set_health_status(200);
    daemon.wait_eligible("web", victim.v4(), true, limit(&lab, web(&lab).rise))?;
    answers_from(&load, victim.name(), healed)?;
    let run = load.stop()?;
    // The server never refused anything, and what was open when its slots moved stayed with it.
    run.ensure_all_answered()?;
    nobody_reached(&run, victim.name(), moved, healed)
}

fn unreachable() -> Result<()> {
    let lab = serving(Lab::builder().backends(2))?;
    let daemon = probed_web(&lab)?;
    let victim = lab.backend(2);
    victim.drop_off_network()?;
    // Each probe may now take its whole timeout, which equals the interval here.
    daemon.wait_eligible("web", victim.v4(), false, limit(&lab, web(&lab).fall * 2))?;
    let answers = lab
        .client()
        .http(web_vip(), 100, 16)?
        .ensure_all_answered()?
        .by_backend();
    ensure!(answers.get("backend1") == Some(&100), "{answers:?}");
    victim.return_to_network()?;
    // The neighbour has to be found again as well, which the kernel tries once a second.
    daemon.wait_eligible(
        "web",
        victim.v4(),
        true,
        limit(&lab, web(&lab).rise) + Duration::from_secs(5),
    )?;
    let answers = lab
        .client()
        .http(web_vip(), 100, 16)?
        .ensure_all_answered()?
        .by_backend();
    ensure!(answers.len() == 2, "{answers:?}");
    Ok(())
}

/// `on_empty = "keep"`, the default: probes that all fail do not take the service down.
fn all_fail() -> Result<()> {
    let lab = serving(Lab::builder().backends(2))?;
    let mut daemon = probed_web(&lab)?;
    for backend in lab.backends() {
        backend.set_health_status(503);
    }
    wait_until("no backend to be up", limit(&lab, web(&lab).fall), || {
        Ok(daemon
            .services()?
            .iter()
            .all(|service| service.eligible == 0))
    })?;
    both_answer(&lab)?;

    // Nor does a restart meanwhile.
    daemon.terminate()?;
    both_answer(&lab)?;
    daemon.restart()?;
    both_answer(&lab)?;
    // The new daemon takes over that both got flows, until it has looked for itself.
    wait_until("no backend to be up", limit(&lab, web(&lab).fall), || {
        Ok(daemon.services()?[0].eligible == 0)
    })?;
    both_answer(&lab)
}

/// 100 connections: none fails, and nobody gets all of them.
fn both_answer(lab: &Lab) -> Result<()> {
    let run = lab.client().http(web_vip(), 100, 16)?;
    let answers = run.ensure_all_answered()?.by_backend();
    ensure!(answers.len() == 2, "{answers:?}");
    Ok(())
}

/// Waits until a connection that began after `since` was answered by `name`.
fn answers_from(load: &Load, name: &str, since: Instant) -> Result<()> {
    wait_until(
        &format!("{name} to answer a connection"),
        Duration::from_secs(5),
        || {
            let run = load.so_far();
            Ok(run
                .attempts
                .iter()
                .any(|attempt| attempt.started >= since && attempt.answer.as_deref() == Ok(name)))
        },
    )?;
    Ok(())
}

fn wait_for_attempts(load: &Load, more: usize) -> Result<()> {
    let target = load.progress().0 + more;
    wait_until("more connections", Duration::from_secs(10), || {
        Ok(load.progress().0 >= target)
    })
    .context("the load stands still")?;
    Ok(())
}

fn nobody_reached(run: &Run, name: &str, from: Instant, to: Instant) -> Result<()> {
    let between = run
        .attempts
        .iter()
        .filter(|attempt| attempt.started > from && attempt.ended < to);
    let (mut all, mut reached) = (0, 0);
    for attempt in between {
        all += 1;
        reached += u32::from(attempt.answer.as_deref() == Ok(name));
    }
    ensure!(all > 0, "no connection was made while {name} was out");
    ensure!(
        reached == 0,
        "{reached} of {all} connections reached {name} while it was out of the table"
    );
    Ok(())
}
