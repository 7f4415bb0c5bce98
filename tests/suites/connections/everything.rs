//! The one big case: everything that an operator does to a balancer in a year, in a minute, under 700 flows.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use lab::interface::xdp_program;
use lab::{Daemon, Lab};

use super::{CHAT, DATAGRAMS, SOON, Scene, chat, upgrade};
use crate::Suites;
use crate::setup::serving;

const CONNECTIONS: usize = 500;
const FLOWS: usize = 200;
/// How long the health endpoint of a backend is unwell.
const BLIP: Duration = Duration::from_secs(5);
/// How long the tables never come to rest, and how often both change.
const RESTLESS: Duration = Duration::from_secs(30);
const BETWEEN_CHANGES: Duration = Duration::from_millis(500);

pub fn add(suites: &mut Suites) {
    // Without an object to upgrade to, the rest of the story is as good.
    let object = upgrade::object();
    suites.case("connections", "700_flows_survive_everything", move || {
        everything(object)
    });
}

fn everything(object: Option<PathBuf>) -> Result<()> {
    let lab = serving(Lab::builder().backends(6).clients(4))?;
    let mut daemon = chat(&lab, 3, "")?;
    let mut scene = Scene::begin(&lab, &daemon, CONNECTIONS, FLOWS)?;
    scene.after("nothing yet", &daemon)?;

    add_three(&lab, &daemon, &mut scene)?;
    drain_two(&lab, &daemon, &mut scene)?;
    for (n, weight) in [(1, "5"), (2, "1"), (3, "3"), (4, "2"), (5, "4"), (6, "7")] {
        let address = lab.backend(n).v4().to_string();
        for service in [CHAT, DATAGRAMS] {
            daemon.change(&["backend", "weight", service, &address, weight])?;
        }
    }
    scene.after("every weight changed", &daemon)?;
    blip(&lab, &daemon, &mut scene)?;
    daemon.reload()?;
    scene.after("reload", &daemon)?;
    let entries = daemon.metrics()?.sum("sluice_flow_table_entries", &[]);
    ensure!(entries >= 100, "{entries} flows are remembered");

    daemon.kill()?;
    scene.traffic.go_on(10)?;
    daemon.restart()?;
    scene.after("SIGKILL and restart", &daemon)?;
    if let Some(object) = object {
        upgraded(&lab, &mut daemon, &object)?;
        scene.after("upgrade", &daemon)?;
    }
    restless(&lab, &daemon, &scene)?;
    scene.after("two changes a second for half a minute", &daemon)?;

    // What drained goes; its connections linger.
    for n in [1, 2] {
        let address = lab.backend(n).v4().to_string();
        daemon.change(&["backend", "remove", CHAT, &address])?;
    }
    scene.after("the drained backends removed", &daemon)?;
    let outcomes = scene.end()?;
    ensure!(
        outcomes.len() == CONNECTIONS + FLOWS,
        "{} outcomes",
        outcomes.len()
    );
    Ok(())
}

fn add_three(lab: &Lab, daemon: &Daemon<'_>, scene: &mut Scene<'_>) -> Result<()> {
    let before = scene.new_flows()?;
    for n in [4, 5, 6] {
        let address = lab.backend(n).v4();
        for service in [CHAT, DATAGRAMS] {
            daemon.change(&["backend", "add", service, &address.to_string()])?;
            daemon.wait_eligible(service, address, true, SOON)?;
        }
    }
    let new = scene.newcomers()?;
    ensure!(new.len() >= 5, "new connections do not spread: {new:?}");
    // UDP has no opener that could be told from an old flow's packet: until a slot has settled (five minutes) its new flows
    // go where its old ones are.
    let flows = scene.new_flows()?;
    ensure!(
        flows.keys().all(|name| before.contains_key(name)),
        "new flows over UDP went to {flows:?}, before to {before:?}"
    );
    scene.after("three backends added", daemon)
}

fn drain_two(lab: &Lab, daemon: &Daemon<'_>, scene: &mut Scene<'_>) -> Result<()> {
    for n in [1, 2] {
        let address = lab.backend(n).v4().to_string();
        for service in [CHAT, DATAGRAMS] {
            daemon.change(&["backend", "drain", service, &address, "--reason", "test"])?;
        }
    }
    let new = scene.newcomers()?;
    ensure!(
        !new.contains_key("backend1") && !new.contains_key("backend2"),
        "drained backends got new connections: {new:?}"
    );
    scene.after("two backends drained", daemon)
}

/// Probes fail for a while, the service does not.
fn blip(lab: &Lab, daemon: &Daemon<'_>, scene: &mut Scene<'_>) -> Result<()> {
    let ill = lab.backend(3);
    let began = Instant::now();
    ill.set_health_status(503);
    daemon.wait_eligible(CHAT, ill.v4(), false, SOON)?;
    let new = scene.newcomers()?;
    ensure!(
        !new.contains_key(ill.name()),
        "a failing backend got new connections: {new:?}"
    );
    std::thread::sleep(BLIP.saturating_sub(began.elapsed()));
    ill.set_health_status(200);
    daemon.wait_eligible(CHAT, ill.v4(), true, SOON)?;
    scene.after("a blip of backend 3", daemon)
}

/// SIGTERM, and a daemon with another program in its place.
fn upgraded(lab: &Lab, daemon: &mut Daemon<'_>, object: &Path) -> Result<()> {
    let before = xdp_program(lab.balancer(), "eth0")?;
    daemon.terminate()?;
    daemon.set_object(Some(object));
    daemon.restart()?;
    let after = xdp_program(lab.balancer(), "eth0")?;
    ensure!(
        before.id != after.id && before.tag != after.tag,
        "{before:?} was to be replaced by another program, not {after:?}"
    );
    Ok(())
}

fn restless(lab: &Lab, daemon: &Daemon<'_>, scene: &Scene<'_>) -> Result<()> {
    let began = Instant::now();
    let (mut changes, mut moved) = (0, 0);
    while began.elapsed() < RESTLESS {
        // Four that are not drained, each time another weight.
        let backend = lab.backend(3 + changes % 4).v4().to_string();
        let weight = (1 + changes * 7 % 11).to_string();
        for service in [CHAT, DATAGRAMS] {
            let change = daemon.change(&["backend", "weight", service, &backend, &weight])?;
            moved += change.slots_moved;
        }
        changes += 1;
        scene.traffic.ensure_whole()?;
        let next = began + BETWEEN_CHANGES * changes as u32;
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
    }
    // A busy machine may be slower than two a second.
    ensure!(
        changes >= 20 && moved >= 1_000,
        "{changes} changes moved {moved} slots: the tables were all but at rest"
    );
    Ok(())
}
