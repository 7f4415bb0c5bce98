//! A daemon with another data path takes over from the running one, and back.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use lab::Lab;
use lab::interface::xdp_program;

use super::{CHAT, DATAGRAMS, SOON, Scene, chat};
use crate::Suites;
use crate::setup::serving;

/// Names the balancer's object built once more, with instructions of its own: `cargo xtask test` builds it and sets this.
const OBJECT_VAR: &str = "SLUICE_REBUILT_OBJECT";

/// The rebuilt object, if there is one.
pub fn object() -> Option<PathBuf> {
    std::env::var_os(OBJECT_VAR).map(PathBuf::from)
}

pub fn add(suites: &mut Suites) {
    let object = object();
    let missing = object.is_none().then_some(
        "SLUICE_REBUILT_OBJECT names no rebuilt data path; `cargo xtask rebuilt` builds one and prints its path",
    );
    suites.case_needing(
        "connections",
        "upgrade_to_a_rebuilt_program_and_back",
        missing,
        move || upgrade(&object.context("no object")?),
    );
    suites.case(
        "connections",
        "an_object_of_something_else_is_refused",
        refused,
    );
}

fn upgrade(object: &Path) -> Result<()> {
    let lab = serving(Lab::builder().backends(4).clients(4))?;
    let mut daemon = chat(&lab, 3, "")?;
    let mut scene = Scene::begin(&lab, &daemon, 100, 40)?;
    // Not at rest: there is something to lose.
    let fourth = lab.backend(4).v4();
    for service in [CHAT, DATAGRAMS] {
        daemon.change(&["backend", "add", service, &fourth.to_string()])?;
        daemon.wait_eligible(service, fourth, true, SOON)?;
    }
    scene.after("a backend added", &daemon)?;

    let mut programs = vec![xdp_program(lab.balancer(), "eth0")?];
    for (step, object) in [("upgrade", Some(object)), ("way back", None)] {
        daemon.terminate()?;
        scene.traffic.go_on(3)?;
        daemon.set_object(object);
        daemon.restart()?;
        programs.push(xdp_program(lab.balancer(), "eth0")?);
        scene.after(step, &daemon)?;
        scene.after(&format!("{step}, a little later"), &daemon)?;
    }
    let [first, rebuilt, again] = programs[..] else {
        unreachable!("one and two")
    };
    ensure!(
        first.tag != rebuilt.tag && first.tag == again.tag,
        "tags {:x}, {:x}, {:x}: the second was to be another, the third the first again",
        first.tag,
        rebuilt.tag,
        again.tag
    );
    ensure!(
        first.id != rebuilt.id && rebuilt.id != again.id,
        "a program was not replaced: {programs:?}"
    );
    scene.end()?;
    Ok(())
}

/// The running data path stays as it is.
fn refused() -> Result<()> {
    let lab = serving(Lab::builder().backends(1))?;
    let mut daemon = chat(&lab, 1, "")?;
    daemon.terminate()?;
    let before = xdp_program(lab.balancer(), "eth0")?;
    let config = daemon.config_path().display().to_string();
    let place = lab.temporary_directory().join("other.o");
    let object = place.display().to_string();
    let run = ["run", "--config", &config, "--object", &object];

    daemon.cli(&run)?.ensure(1, &[&object, "No such file"])?;
    std::fs::write(&place, "no object at all")?;
    daemon.cli(&run)?.ensure(1, &[&object, "no BPF object"])?;
    std::fs::write(&place, lb_userspace::dataplane::objects::DECAP)?;
    daemon
        .cli(&run)?
        .ensure(1, &[&object, "no program sluice_balancer"])?;

    let after = xdp_program(lab.balancer(), "eth0")?;
    ensure!(before == after, "{before:?} was replaced by {after:?}");
    lab.client()
        .connect(lab::Family::V4.vip_port(crate::setup::ECHO))?;
    Ok(())
}
