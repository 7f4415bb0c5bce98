//! Devices that are not what they seem: an egress that loses what XDP gives it, an interface that goes and comes back.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::config::{File, Service};
use lab::daemon::run_cli;
use lab::{Daemon, Lab, address, mac, wait_until};

use crate::Suites;
use crate::setup::{serving, web, web_vip};

const SOON: Duration = Duration::from_secs(10);

pub fn add(suites: &mut Suites) {
    suites.case("edges", "bridge_as_egress", bridge_as_egress);
}

/// A two-armed balancer whose backend side is a bridge device above `eth1`.
fn bridged() -> Result<Lab> {
    let lab = serving(Lab::builder().backends(2).two_armed(true))?;
    lab.balancer().ip_batch(&format!(
        "addr flush dev eth1\n\
         link add br0 address {} type bridge mcast_snooping 0 forward_delay 0 stp_state 0\n\
         link set br0 mtu 1600 up\n\
         link set eth1 master br0\n\
         addr add {}/24 dev br0\n\
         route replace default via 10.0.0.1\n",
        mac::text(mac::BALANCER),
        address::BALANCER_V4,
    ))?;
    Ok(lab)
}

/// What XDP redirects to a bridge natively is lost and counted as forwarded: better no backend than that.
fn bridge_as_egress() -> Result<()> {
    let lab = bridged()?;
    let file = |interfaces: &[&'static str], xdp_mode| File {
        interfaces: interfaces.to_vec(),
        xdp_mode,
        services: vec![Service {
            probe: lab::config::Probe::Tcp,
            ..web(&lab)
        }],
    };
    for (interfaces, mode) in [
        (&["eth0"][..], "auto"),
        (&["eth0"], "native"),
        // What used to be the advice.
        (&["eth0", "br0"], "auto"),
    ] {
        let mut daemon = Daemon::start(&lab, &file(interfaces, mode))?;
        let backend = lab.backend(1).v4();
        let mut said = String::new();
        wait_until("the backend to be refused", SOON, || {
            said = daemon
                .backend("web", backend)?
                .not_eligible
                .unwrap_or_default();
            Ok(said.starts_with("br0 cannot transmit XDP frames"))
        })
        .with_context(|| format!("{interfaces:?}, {mode}: not eligible as {said:?}"))?;
        ensure!(said.contains("node.xdp_mode = \"generic\""), "{said}");
        ensure!(daemon.services()?[0].eligible == 0);
        let path = daemon.config_path().to_string_lossy().into_owned();
        let check = run_cli(
            lab.balancer(),
            daemon.socket_path(),
            &["check", "--config", &path],
        )?;
        check.ensure(
            1,
            &["br0 cannot transmit", "set node.xdp_mode = \"generic\""],
        )?;
        daemon.cli(&["detach"])?.ensure(0, &[])?;
        daemon.wait_for_end(SOON)?;
    }

    let daemon = Daemon::start(&lab, &file(&["eth0"], "generic"))?;
    for backend in lab.backends() {
        daemon.wait_eligible("web", backend.v4(), true, SOON)?;
    }
    let answers = lab
        .client()
        .http(web_vip(), 40, 8)?
        .ensure_all_answered()?
        .by_backend();
    ensure!(answers.len() == 2, "{answers:?}");
    Ok(())
}
