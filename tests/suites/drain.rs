//! Drains that end by themselves, with connections that are open meanwhile.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lab::client::EchoConnection;
use lab::config::{File, Service};
use lab::{Daemon, Family, Lab, wait_until};
use lb_userspace::api::dto::{BackendAdmin, BackendDetail};

use crate::Suites;
use crate::setup::{ECHO, serving};

const SOON: Duration = Duration::from_secs(10);
/// Between two exchanges of a connection.
const PACE: Duration = Duration::from_millis(200);

pub fn add(suites: &mut Suites) {
    suites.case("drain", "time_out_ends_it", time_out);
    suites.case("drain", "until_empty_waits_for_the_last", until_empty);
    suites.case("drain", "a_restart_does_not_forget_it", restart);
    suites.case("drain", "without_tracking_nobody_is_left", untracked);
    suites.case(
        "drain",
        "removed_backends_are_shown_while_they_linger",
        removed,
    );
}

fn chat<'lab>(lab: &'lab Lab, extra: &str) -> Result<Daemon<'lab>> {
    let service = Service {
        extra: extra.to_owned(),
        ..Service::tcp(
            "chat",
            Family::V4.vip_port(ECHO),
            lab.backends().iter().map(|b| b.v4()),
        )
    };
    Daemon::start(lab, &File::new(vec![service]))
}

/// Connections and the backends that they are on.
type Open = Vec<(EchoConnection, String)>;

fn open(lab: &Lab, count: usize) -> Result<Open> {
    (0..count)
        .map(|i| {
            let mut connection = lab
                .client()
                .connect_from(Family::V4.vip_port(ECHO), i % 4)?;
            let name = connection.exchange("first")?;
            Ok((connection, name))
        })
        .collect()
}

fn ensure_all_stay(open: &mut Open) -> Result<()> {
    for (connection, name) in open {
        let answered = connection.exchange("still here?")?;
        ensure!(answered == *name, "moved from {name} to {answered}");
    }
    Ok(())
}

/// New connections, none of which may go to the first backend.
fn ensure_newcomers_avoid(lab: &Lab) -> Result<()> {
    let new = open(lab, 12)?;
    ensure!(
        new.iter().all(|(_, name)| name != lab.backend(1).name()),
        "a draining backend got new connections"
    );
    Ok(())
}

/// How many of these are the first backend's: some, and not all.
fn theirs(lab: &Lab, open: &Open) -> Result<u64> {
    let theirs = open
        .iter()
        .filter(|(_, name)| name == lab.backend(1).name());
    let theirs = theirs.count();
    ensure!(
        0 < theirs && theirs < open.len(),
        "{theirs} of {} connections are the first backend's",
        open.len()
    );
    Ok(theirs as u64)
}

fn drain(lab: &Lab, daemon: &Daemon, options: &[&str]) -> Result<()> {
    let address = lab.backend(1).v4().to_string();
    let drain = ["backend", "drain", "chat", &address, "--reason", "test"];
    daemon.change(&[&drain[..], options].concat())?;
    Ok(())
}

fn first(lab: &Lab, daemon: &Daemon) -> Result<BackendDetail> {
    daemon.backend("chat", lab.backend(1).v4())
}

/// The daemon has ended the drain: for this reason, to be seen in `diff`, too.
fn ensure_ended(lab: &Lab, daemon: &Daemon, reason: &str) -> Result<()> {
    let shown = first(lab, daemon)?;
    ensure!(
        shown.admin == BackendAdmin::Disabled && shown.admin_by.as_deref() == Some("sluice"),
        "not ended: {shown:?}"
    );
    let said = shown.admin_reason.unwrap_or_default();
    ensure!(said.starts_with(reason), "not {reason:?}: {said:?}");
    ensure!(said.ends_with("(test)"), "not the operator's: {said:?}");
    daemon
        .cli(&["diff"])?
        .ensure(0, &["disabled", "sluice", reason])?;
    Ok(())
}

fn time_out() -> Result<()> {
    let lab = serving(Lab::builder().backends(3).clients(4))?;
    let daemon = chat(&lab, "")?;
    let mut open = open(&lab, 30)?;
    theirs(&lab, &open)?;
    let began = Instant::now();
    drain(&lab, &daemon, &["--timeout", "3s", "--no-wait"])?;
    ensure_newcomers_avoid(&lab)?;
    wait_until("the drain to time out", SOON, || {
        // Looked at first: then it still drained when they were answered, or they were answered all the same.
        let over = first(&lab, &daemon)?.admin != BackendAdmin::Draining;
        if !over && began.elapsed() < Duration::from_secs(2) {
            ensure_all_stay(&mut open)?;
            std::thread::sleep(PACE);
        }
        Ok(over)
    })?;
    ensure!(
        began.elapsed() >= Duration::from_secs(2),
        "over after {:?}",
        began.elapsed()
    );
    ensure_ended(&lab, &daemon, "drain timed out after 3s with at least")?;

    // Whose backend it was is reset elsewhere; all others go on.
    for (mut connection, name) in open {
        let answer = connection.exchange("still here?");
        ensure!(
            answer.is_err() == (name == lab.backend(1).name()),
            "a connection of {name}: {answer:?}"
        );
    }
    ensure_newcomers_avoid(&lab)
}

fn until_empty() -> Result<()> {
    let lab = serving(Lab::builder().backends(2).clients(4))?;
    let daemon = chat(&lab, "flow_idle = \"12s\"")?;
    let mut open = open(&lab, 24)?;
    let theirs = theirs(&lab, &open)?;
    drain(&lab, &daemon, &["--until-empty", "--no-wait"])?;
    let unlearnt = first(&lab, &daemon)?.slots_unlearnt;
    ensure!(unlearnt > 0, "nothing is being learnt");
    // Slots settle when nobody can be left who was silent for so long.
    wait_until("every slot to settle", SOON * 6, || {
        ensure_all_stay(&mut open)?;
        std::thread::sleep(PACE);
        let shown = first(&lab, &daemon)?;
        ensure!(
            shown.admin == BackendAdmin::Draining,
            "over with {theirs} connections open: {shown:?}"
        );
        Ok(shown.slots_unlearnt == 0 && shown.flows_remembered == theirs)
    })?;
    daemon
        .cli(&["status"])?
        .ensure(0, &["flows remembered", "failed pins"])?;
    // Two more sweeps, and all of them are still there.
    let settled = Instant::now();
    while settled.elapsed() < Duration::from_secs(9) {
        ensure_all_stay(&mut open)?;
        std::thread::sleep(PACE);
    }
    ensure!(
        first(&lab, &daemon)?.admin == BackendAdmin::Draining,
        "over with {theirs} connections open"
    );

    let gone = lab.backend(1).name().to_owned();
    open.retain(|(_, name)| *name != gone);
    wait_until("the drain to end", SOON * 2, || {
        ensure_all_stay(&mut open)?;
        Ok(first(&lab, &daemon)?.admin != BackendAdmin::Draining)
    })?;
    ensure_ended(&lab, &daemon, "drained: no flows left")?;
    ensure_newcomers_avoid(&lab)
}

fn restart() -> Result<()> {
    let lab = serving(Lab::builder().backends(2))?;
    let mut daemon = chat(&lab, "")?;
    drain(&lab, &daemon, &["--timeout", "12s", "--no-wait"])?;
    daemon.kill()?;
    // Its time goes on while nobody looks.
    std::thread::sleep(Duration::from_secs(2));
    daemon.restart()?;
    let shown = first(&lab, &daemon)?;
    let left = shown.drain.context("it is forgotten")?.ends_in_seconds;
    ensure!(left.is_some_and(|left| left <= 10), "{left:?} s are left");
    wait_until("the drain to time out", SOON * 2, || {
        Ok(first(&lab, &daemon)?.admin != BackendAdmin::Draining)
    })?;
    ensure_ended(&lab, &daemon, "drain timed out after 12s")
}

fn untracked() -> Result<()> {
    let lab = serving(Lab::builder().backends(2))?;
    let daemon = chat(&lab, "tracking = \"off\"")?;
    let address = lab.backend(1).v4().to_string();
    let until_empty = ["backend", "drain", "chat", &address, "--until-empty"];
    daemon
        .cli(&[&until_empty[..], &["--reason", "test"]].concat())?
        .ensure(
            0,
            &["tracking is off", "disabled: drained: no flows left (test)"],
        )?;
    ensure_ended(&lab, &daemon, "drained: no flows left")?;

    // Activated again, it is not drained by what was asked for once.
    daemon.change(&["backend", "activate", "chat", &address])?;
    std::thread::sleep(Duration::from_secs(3));
    ensure!(first(&lab, &daemon)?.admin == BackendAdmin::Active);
    Ok(())
}

fn removed() -> Result<()> {
    let lab = serving(Lab::builder().backends(3).clients(4))?;
    let daemon = chat(&lab, "")?;
    let mut open = open(&lab, 30)?;
    theirs(&lab, &open)?;
    let address = lab.backend(1).v4().to_string();
    let labels = [("service", "chat"), ("backend", address.as_str())];
    let packets = || {
        daemon
            .metrics()?
            .value("sluice_backend_packets_total", &labels)
    };
    daemon.change(&["backend", "remove", "chat", &address])?;
    let shown = first(&lab, &daemon)?;
    ensure!(
        shown.admin == BackendAdmin::Removed && shown.forgotten_in_seconds.is_some_and(|s| s <= 60),
        "not shown as removed: {shown:?}"
    );
    let before = packets()?;
    ensure_all_stay(&mut open)?;
    let after = packets()?;
    ensure!(
        after > before && before > 0,
        "the removed backend's packets: {before}, then {after}"
    );
    ensure!(
        daemon
            .metrics()?
            .value("sluice_backend_weight", &labels)
            .is_err(),
        "a removed backend has a weight"
    );
    Ok(())
}
