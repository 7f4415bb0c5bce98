//! What does break: connections of a backend that dies, and those that `tracking = "off"` gives up. And that what the other cases
//! look for would be found.

use std::time::Duration;

use anyhow::{Result, ensure};
use lab::stack::Stack;
use lab::traffic::Outcome;
use lab::{Family, Lab, Traffic};

use super::{CHAT, DATAGRAMS, SOON, Scene, chat};
use crate::Suites;
use crate::setup::{ECHO, serving};

pub fn add(suites: &mut Suites) {
    suites.case("connections", "a_dead_backend_breaks_its_own_only", dead);
    suites.case("connections", "tracking_off_forgets", off);
    suites.case("connections", "what_is_lost_is_noticed", lost);
}

fn dead() -> Result<()> {
    let lab = serving(Lab::builder().backends(3).clients(4))?;
    let daemon = chat(&lab, 3, "")?;
    // TCP alone: UDP without probes would not notice.
    let traffic = Traffic::start(&lab, Family::V4.vip_port(ECHO), 160, 0)?;
    let victim = lab.backend(2);
    victim.kill();
    daemon.wait_eligible(CHAT, victim.v4(), false, SOON)?;
    traffic.go_on(5)?;
    victim.revive()?;
    daemon.wait_eligible(CHAT, victim.v4(), true, SOON)?;
    traffic.go_on(5)?;
    let outcomes = traffic.stop()?;
    let (theirs, others): (Vec<_>, Vec<_>) =
        outcomes.into_iter().partition(|o| o.name == victim.name());
    ensure!(
        !theirs.is_empty() && theirs.iter().all(|o| o.broken.is_some()),
        "a connection outlived its dead server"
    );
    let broken: Vec<_> = others.iter().filter(|o| o.broken.is_some()).collect();
    ensure!(broken.is_empty(), "not of the dead server: {broken:?}");
    Ok(())
}

/// What `tracking = "off"` costs, and that it is tracking which the other cases show.
fn off() -> Result<()> {
    let lab = serving(Lab::builder().backends(6).clients(4))?;
    let daemon = chat(&lab, 3, "tracking = \"off\"\n")?;
    let traffic = Traffic::start(&lab, Family::V4.vip_port(ECHO), 160, 80)?;
    for n in [4, 5, 6] {
        let address = lab.backend(n).v4().to_string();
        for service in [CHAT, DATAGRAMS] {
            daemon.change(&["backend", "add", service, &address])?;
            daemon.wait_eligible(service, lab.backend(n).v4(), true, SOON)?;
        }
    }
    traffic.go_on(3)?;
    let outcomes = traffic.stop()?;
    for protocol in ["tcp", "udp"] {
        let of = |outcome: &&Outcome| outcome.protocol == protocol;
        let all = outcomes.iter().filter(of).count();
        let broken = outcomes.iter().filter(of).filter(|o| o.broken.is_some());
        let broken = broken.count();
        ensure!(
            broken * 4 > all,
            "{broken} of {all} flows over {protocol} broke: half of the slots moved"
        );
    }
    Ok(())
}

/// A backend that is off the network for half a second: its datagrams are lost, and its connections have to repeat themselves.
fn lost() -> Result<()> {
    let lab = serving(Lab::builder().backends(3).clients(4))?;
    let daemon = chat(&lab, 3, "")?;
    let mut scene = Scene::begin(&lab, &daemon, 60, 60)?;
    scene.after("nothing yet", &daemon)?;
    let victim = lab.backend(2);
    victim.drop_off_network()?;
    std::thread::sleep(Duration::from_millis(500));
    victim.return_to_network()?;
    scene.traffic.go_on(10)?;
    let Scene {
        traffic, ledger, ..
    } = scene;
    let outcomes = traffic.stop()?;
    let books = ledger.agree(&daemon);
    ensure!(books.is_err(), "the books balance: {books:?}");
    let again = Stack::of(lab.client().namespace())?.lost_segments()?;
    ensure!(again > 0, "no lost segment was seen to be sent again");
    for outcome in &outcomes {
        let lost = outcome.protocol == "udp" && outcome.name == victim.name();
        let noticed = outcome.broken.as_deref().unwrap_or_default();
        ensure!(
            noticed.starts_with("no answer to") == lost,
            "{outcome:?} while datagrams of {} were lost",
            victim.name()
        );
    }
    Ok(())
}
