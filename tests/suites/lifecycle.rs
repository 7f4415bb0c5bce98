//! Reloading, stopping, restarting, detaching: what happens to traffic meanwhile.

use std::os::unix::process::CommandExt;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::config::{File, Service};
use lab::daemon::run_cli;
use lab::interface::xdp_mode;
use lab::process::{Process, sluice_binary};
use lab::{Daemon, Lab, wait_until};
use nix::sys::signal::Signal;

use crate::Suites;
use crate::setup::{ECHO, probed_web, serving, web, web_vip};

const RATE: u32 = 200;
const SOON: Duration = Duration::from_secs(5);

pub fn add(suites: &mut Suites) {
    suites.case("lifecycle", "reload_and_sighup_apply_the_file", reload);
    suites.case(
        "lifecycle",
        "bad_reload_leaves_everything_as_it_was",
        bad_reload,
    );
    suites.case(
        "lifecycle",
        "sigterm_forwards_on_and_restart_takes_over",
        || restart(Signal::SIGTERM),
    );
    suites.case(
        "lifecycle",
        "sigkill_forwards_on_and_restart_takes_over",
        || restart(Signal::SIGKILL),
    );
    suites.case(
        "lifecycle",
        "what_an_earlier_daemon_left_makes_room",
        makes_room,
    );
    suites.case("lifecycle", "detach_takes_the_data_path_down", detach);
    suites.case(
        "lifecycle",
        "detach_without_a_daemon",
        detach_without_daemon,
    );
    suites.case(
        "lifecycle",
        "second_daemon_on_the_same_socket_is_refused",
        second_daemon,
    );
    suites.case("lifecycle", "without_privileges_it_says_so", unprivileged);
}

fn reload() -> Result<()> {
    let lab = serving(Lab::builder().backends(3))?;
    let mut two = web(&lab).probed();
    two.backends.truncate(2);
    let daemon = Daemon::start(&lab, &File::new(vec![two.clone()]))?;
    let load = lab.client().start_load(web_vip(), RATE)?;

    // By the command: a third backend comes.
    daemon.write_config(&File::new(vec![web(&lab).probed()]))?;
    ensure!(daemon.reload()?.changed, "the reload changed nothing");
    daemon.wait_eligible("web", lab.backend(3).v4(), true, SOON)?;
    ensure!(
        lab.client()
            .http(web_vip(), 90, 16)?
            .ensure_all_answered()?
            .by_backend()
            .len()
            == 3
    );
    more(&load, 20)?;
    ensure!(
        !daemon.reload()?.changed,
        "the same file again changed something"
    );

    // By the signal: it goes.
    daemon.write_config(&File::new(vec![two]))?;
    daemon.signal(Signal::SIGHUP)?;
    wait_until("SIGHUP to be followed", SOON, || {
        Ok(daemon.watch_backends("web")?.len() == 2)
    })?;
    more(&load, 50)?;
    // Open connections stayed where they were, both times.
    load.stop()?.ensure_all_answered()?;
    ensure!(
        lab.client()
            .http(web_vip(), 90, 16)?
            .ensure_all_answered()?
            .by_backend()
            .len()
            == 2
    );
    Ok(())
}

fn bad_reload() -> Result<()> {
    let lab = serving(Lab::builder().backends(2))?;
    let mut daemon = probed_web(&lab)?;
    let digest = daemon.service("web")?.table_digest;
    let good = daemon.config_text()?;
    let load = lab.client().start_load(web_vip(), RATE)?;

    daemon.write_config_text(&good.replace("forward  =", "foward   ="))?;
    daemon.cli(&["reload"])?.ensure(1, &["foward"])?;
    let error = daemon
        .status()?
        .config_error
        .context("status shows no configuration error")?;
    ensure!(
        error.contains("foward") && error.contains("sluice.toml"),
        "status shows {error:?}"
    );
    daemon.signal(Signal::SIGHUP)?;
    std::thread::sleep(Duration::from_millis(300));
    daemon.ensure_running()?;
    ensure!(
        daemon.service("web")?.table_digest == digest,
        "the table changed"
    );
    load.stop()?.ensure_all_answered()?;

    daemon.write_config_text(&good)?;
    daemon.reload()?;
    ensure!(
        daemon.status()?.config_error.is_none(),
        "the error is still shown after a good reload"
    );
    Ok(())
}

fn restart(signal: Signal) -> Result<()> {
    let lab = serving(Lab::builder().backends(3))?;
    let mut daemon = probed_web(&lab)?;
    let digest = daemon.service("web")?.table_digest;
    let load = lab.client().start_load(web_vip(), RATE)?;
    more(&load, 50)?;

    daemon.signal(signal)?;
    let status = daemon.wait_for_end(SOON)?;
    ensure!(
        status.success() || signal == Signal::SIGKILL,
        "{signal} ended the daemon with {status}"
    );
    ensure!(
        xdp_mode(lab.balancer(), "eth0")? == Some("native"),
        "the program went with the daemon"
    );
    more(&load, 100)?;
    daemon.restart()?;
    more(&load, 100)?;

    ensure!(
        daemon.service("web")?.table_digest == digest,
        "the table is another one after the restart"
    );
    let run = load.stop()?;
    run.ensure_all_answered()?;
    // The new program may count from zero, as Prometheus expects of a restart, but it counts what it forwards.
    let flows = daemon.services()?[0].flows;
    ensure!(
        flows >= 100,
        "{flows} flows counted after 100 connections through the new daemon"
    );
    Ok(())
}

/// Waits until `count` more connections are done.
pub fn more(load: &lab::client::Load, count: usize) -> Result<()> {
    let target = load.progress().0 + count;
    wait_until("more connections", SOON * 2, || {
        Ok(load.progress().0 >= target)
    })?;
    Ok(())
}

fn detach() -> Result<()> {
    let lab = serving(Lab::builder().backends(1))?;
    let mut daemon = probed_web(&lab)?;
    lab.client().get(web_vip())?;
    daemon.cli(&["detach"])?.ensure(0, &[])?;
    let status = daemon.wait_for_end(SOON)?;
    ensure!(status.success(), "the detached daemon ended with {status}");
    ensure_nothing_attached(&lab)
}

fn detach_without_daemon() -> Result<()> {
    let lab = serving(Lab::builder().backends(1))?;
    let mut daemon = probed_web(&lab)?;
    daemon.terminate()?;
    lab.client().get(web_vip())?;
    let config = daemon
        .config_path()
        .to_str()
        .context("a path that is no text")?
        .to_owned();
    daemon
        .cli(&["detach", "--config", &config])?
        .ensure(0, &["eth0"])?;
    ensure_nothing_attached(&lab)
}

/// The file names another service than the maps have, and there is no room for both tables.
fn makes_room() -> Result<()> {
    let lab = serving(Lab::builder().backends(2))?;
    let mut large = web(&lab);
    large.extra = "table_size = 65537\n".to_owned();
    let mut elsewhere = large.clone();
    elsewhere.vip.set_port(ECHO);
    let mut daemon = Daemon::start(&lab, &File::new(vec![elsewhere]))?;
    daemon.write_config(&File::new(vec![large]))?;
    let tight = daemon.config_text()?.replace("262144", "65537");
    daemon.write_config_text(&tight)?;
    daemon
        .cli(&["reload"])?
        .ensure(1, &["capacity.slots (262144, now 65537)", "restart"])?;
    daemon.kill()?;
    daemon.restart()?;
    lab.client().http(web_vip(), 50, 8)?.ensure_all_answered()?;
    let status = daemon.status()?;
    let used = |what: &str| {
        let mut capacity = status.capacity.iter();
        capacity.find(|c| c.what == what).map(|c| c.used)
    };
    ensure!(
        (used("services"), used("backends"), used("slots")) == (Some(1), Some(2), Some(65_537)),
        "{:?}",
        status.capacity
    );
    Ok(())
}

fn ensure_nothing_attached(lab: &Lab) -> Result<()> {
    wait_until("the program to be gone", SOON, || {
        Ok(xdp_mode(lab.balancer(), "eth0")?.is_none())
    })?;
    let pins = lab.pin_directory();
    let left = std::fs::read_dir(&pins).map(Iterator::count).unwrap_or(0);
    ensure!(left == 0, "{left} pins are left in {}", pins.display());
    ensure!(lab.client().get(web_vip()).is_err(), "still balancing");
    Ok(())
}

fn second_daemon() -> Result<()> {
    let lab = serving(Lab::builder().backends(1))?;
    let mut daemon = probed_web(&lab)?;
    // The very same file; then one that shares only the socket.
    let pin = lab.pin_directory();
    let other = daemon.config_text()?.replace(
        &format!("pin        = \"{}\"", pin.display()),
        &format!("pin        = \"{}\"", pin.join("second").display()),
    );
    let second = lab.temporary_directory().join("second.toml");
    std::fs::write(&second, other)?;
    for (config, word) in [
        (daemon.config_path(), "another sluice"),
        (&second, "sluice.sock"),
    ] {
        let config = config.to_str().context("a path that is no text")?;
        daemon
            .cli(&["run", "--config", config])?
            .ensure(1, &[word])?;
    }
    daemon.ensure_running()?;
    daemon.status()?;
    ensure!(
        xdp_mode(lab.balancer(), "eth0")? == Some("native"),
        "the second one took the program down"
    );
    lab.client().get(web_vip())?;
    Ok(())
}

/// As user `nobody`, with a copy of the binary that this user can reach.
fn unprivileged() -> Result<()> {
    const NOBODY: u32 = 65_534;
    let lab = serving(Lab::builder().backends(1))?;
    let daemon = Daemon::start(
        &lab,
        &File::new(vec![Service::tcp("web", web_vip(), [lab.backend(1).v4()])]),
    )?;
    let directory = lab.temporary_directory();
    let binary = directory.join("sluice");
    std::fs::copy(sluice_binary()?, &binary)?;
    let config = directory.join("nobody.toml");
    std::fs::write(
        &config,
        File::new(vec![web(&lab)]).text(&directory.join("nobody"), &lab.pin_directory()),
    )?;

    let log = directory.join("nobody.log");
    let mut run = lab.balancer().run(|| -> Result<Process> {
        let mut command = std::process::Command::new(&binary);
        command
            .arg("run")
            .arg("--config")
            .arg(&config)
            .env("NO_COLOR", "1")
            .uid(NOBODY)
            .gid(NOBODY);
        Process::start("sluice run as nobody", command, &log)
    })?;
    let status = run
        .wait(SOON)?
        .context("`sluice run` goes on without privileges")?;
    let said = run.log_tail();
    ensure!(status.code() == Some(1), "ended with {status}: {said}");
    ensure!(
        ["root", "CAP_", "privilege"]
            .iter()
            .any(|word| said.contains(word)),
        "does not name what lacks: {said}"
    );

    let output = std::process::Command::new(&binary)
        .arg("status")
        .env("SLUICE_SOCKET", daemon.socket_path())
        .uid(NOBODY)
        .gid(NOBODY)
        .output()?;
    let said = String::from_utf8_lossy(&output.stderr).to_lowercase();
    ensure!(
        output.status.code() == Some(3),
        "status as nobody ended with {}: {said}",
        output.status
    );
    ensure!(
        said.contains("permission") || said.contains("not allowed"),
        "does not name permission: {said}"
    );
    run_cli(lab.balancer(), daemon.socket_path(), &["status"])?.ensure(0, &[])?;
    Ok(())
}
