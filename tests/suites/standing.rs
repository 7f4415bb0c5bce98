//! What stands stays: attachments through refused reloads and removed pins, the way to a backend whose flows linger.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::config::{File, Service};
use lab::interface::xdp_mode;
use lab::{Daemon, Family, Lab, wait_until};

use crate::Suites;
use crate::setup::{ECHO, probed_web, serving, web_vip};

const SOON: Duration = Duration::from_secs(10);

pub fn add(suites: &mut Suites) {
    suites.case(
        "standing",
        "refused_reload_leaves_interfaces_alone",
        refused,
    );
    suites.case("standing", "removed_pin_is_attached_again", removed_pin);
    suites.case("standing", "detach_beside_a_daemon_is_refused", beside);
    suites.case(
        "standing",
        "removed_backend_is_followed_to_another_mac",
        another_mac,
    );
}

/// Files that name other interfaces, and cannot be applied.
fn refused() -> Result<()> {
    let lab = serving(Lab::builder().backends(2).two_armed(true))?;
    let daemon = probed_web(&lab)?;
    let good = daemon.config_text()?;
    let mode = xdp_mode(lab.balancer(), "eth0")?;
    ensure!(mode.is_some(), "not attached at the start");
    let name = "interfaces = [\"eth0\"]";
    ensure!(good.contains(name), "the file does not say {name}:\n{good}");
    let large = |port: u16| {
        format!(
            "\n[[service]]\nname = \"large{port}\"\nvip = \"203.0.113.77:{port}\"\ntable_size = 65537\n\
             [service.health]\nkind = \"none\"\n[[service.backend]]\naddress = \"{}\"\n",
            lab.backend(1).v4()
        )
    };
    daemon.write_config_text(&format!("{good}{}{}", large(1), large(2)))?;
    daemon.reload()?;

    // Two large tables fit, but not two beside the two that they replace.
    let other = good.replace(name, "interfaces = [\"eth1\"]");
    daemon.write_config_text(&format!("{other}{}{}", large(3), large(4)))?;
    daemon
        .cli(&["reload"])?
        .ensure(1, &["capacity.slots", "second step"])?;
    ensure_serving(&lab, mode)?;

    daemon.write_config_text(&good.replace(name, "interfaces = [\"eth1\", \"nowhere\"]"))?;
    daemon.cli(&["reload"])?.ensure(1, &["nowhere"])?;
    ensure_serving(&lab, mode)
}

fn ensure_serving(lab: &Lab, mode: Option<&str>) -> Result<()> {
    ensure!(
        xdp_mode(lab.balancer(), "eth0")? == mode,
        "eth0 lost its program"
    );
    let run = lab.client().http(web_vip(), 20, 4)?;
    run.ensure_all_answered()?;
    Ok(())
}

fn removed_pin() -> Result<()> {
    let lab = serving(Lab::builder().backends(1))?;
    let daemon = probed_web(&lab)?;
    let pins = lb_userspace::dataplane::Pins::new(&lab.pin_directory()).links();
    for pin in std::fs::read_dir(&pins)? {
        std::fs::remove_file(pin?.path())?;
    }
    wait_until("the program to be attached again", SOON, || {
        Ok(std::fs::read_dir(&pins)?.count() == 1 && xdp_mode(lab.balancer(), "eth0")?.is_some())
    })?;
    wait_until("the daemon to be ready", SOON, || {
        Ok(daemon.status()?.ready)
    })?;
    ensure_serving(&lab, Some("native"))
}

fn beside() -> Result<()> {
    let lab = serving(Lab::builder().backends(1))?;
    let mut daemon = probed_web(&lab)?;
    let pin = lab.pin_directory();
    let pin = pin.to_str().context("a path that is no text")?;
    let nobody = lab.temporary_directory().join("nobody.sock");
    let nobody = nobody.to_str().context("a path that is no text")?;
    lab::daemon::run_cli(
        lab.balancer(),
        std::path::Path::new(nobody),
        &["detach", "--pin", pin],
    )?
    .ensure(1, &["another sluice"])?;
    daemon.ensure_running()?;
    ensure_serving(&lab, Some("native"))
}

/// A removed backend keeps its connections for a minute, even if its machine has another address on the wire by then.
fn another_mac() -> Result<()> {
    let lab = serving(Lab::builder().backends(2))?;
    let vip = Family::V4.vip_port(ECHO);
    let chat = Service::tcp("chat", vip, lab.backends().iter().map(|b| b.v4()));
    let daemon = Daemon::start(&lab, &File::new(vec![chat.probed()]))?;
    let moves = lab.backend(2);
    let mut connections = Vec::new();
    for _ in 0..40 {
        let mut connection = lab.client().connect(vip)?;
        if connection.exchange("before")? == moves.name() {
            connections.push(connection);
        }
    }
    ensure!(connections.len() >= 5, "{} reach it", connections.len());

    daemon.change(&["backend", "remove", "chat", &moves.v4().to_string()])?;
    let namespace = moves.namespace();
    // It says so, as a machine that takes over an address does.
    namespace.sysctls(&[("ipv4/conf/eth0/arp_notify", "1")])?;
    namespace.ip_batch("link set dev eth0 address 02:00:00:00:99:02\n")?;
    for connection in &mut connections {
        let name = connection.exchange("after")?;
        ensure!(name == moves.name(), "a connection moved to {name}");
    }
    let newcomer = lab.client().connect(vip)?.exchange("new")?;
    ensure!(newcomer != moves.name(), "it got a new connection");
    Ok(())
}
