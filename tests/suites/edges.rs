//! Devices that are not what they seem: an egress that loses what XDP gives it, an interface that goes and comes back.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lab::config::{File, Service};
use lab::daemon::run_cli;
use lab::interface::{disable_offloads, xdp_mode};
use lab::process::{Process, sluice_binary};
use lab::{Daemon, Lab, address, mac, wait_until};

use crate::Suites;
use crate::setup::{HTTP, serving, web, web_vip};

const SOON: Duration = Duration::from_secs(10);

pub fn add(suites: &mut Suites) {
    suites.case("edges", "bridge_as_egress", bridge_as_egress);
    suites.case(
        "edges",
        "changed_probe_goes_on_from_what_is_known",
        changed_probe,
    );
    suites.case(
        "edges",
        "decapsulator_takes_from_listed_sources",
        listed_sources,
    );
    suites.case(
        "edges",
        "decapsulator_follows_a_replaced_interface",
        replaced_interface,
    );
    suites.case(
        "edges",
        "decapsulator_ends_when_its_interface_stays_away",
        vanished_interface,
    );
}

/// `sluice decap --from`: packets of the listed balancer are taken apart, those of another are not.
fn listed_sources() -> Result<()> {
    let lab = Lab::builder().backends(1).build()?;
    let backend = lab.backend(1);
    backend.serve_http(HTTP)?;
    let _daemon = Daemon::start(&lab, &File::new(vec![web(&lab)]))?;
    let start = |from: &str| {
        let mut command = backend.namespace().command(sluice_binary()?);
        command.args(["decap", "--interface", "eth0", "--from", from]);
        let log = lab.temporary_directory().join("decap.log");
        let process = Process::start("sluice decap", command, &log)?;
        wait_until("the decapsulator to be attached", SOON, || {
            Ok(xdp_mode(backend.namespace(), "eth0")?.is_some())
        })?;
        anyhow::Ok(process)
    };
    let mut process = start("192.0.2.66")?;
    ensure!(
        lab.client().get(web_vip()).is_err(),
        "a strange balancer's packet was taken apart"
    );
    process.terminate()?;
    let said = process.log_tail();
    ensure!(
        said.contains("from 192.0.2.66") && !said.contains("not-allowed: 0 packets"),
        "{said}"
    );
    let _process = start(&address::BALANCER_V4.to_string())?;
    lab.client().http(web_vip(), 10, 2)?.ensure_all_answered()?;
    Ok(())
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

/// A reload that changes a probe's settings: a backend known to be up is not taken out by the new probe's first failure.
fn changed_probe() -> Result<()> {
    let lab = serving(Lab::builder().backends(1))?;
    let file = |fall| {
        File::new(vec![Service {
            fall,
            ..web(&lab).probed()
        }])
    };
    // In doubt it is probed every 100 ms: these are two seconds and more.
    let daemon = Daemon::start(&lab, &file(20))?;
    let backend = lab.backend(1);
    daemon.wait_eligible("web", backend.v4(), true, SOON)?;
    daemon.write_config(&file(21))?;
    backend.set_health_status(503);
    daemon.reload()?;
    let reloaded = Instant::now();
    while reloaded.elapsed() < Duration::from_secs(1) {
        let now = daemon.backend("web", backend.v4())?;
        ensure!(
            now.eligible,
            "out after {:?}: {:?}",
            reloaded.elapsed(),
            now.not_eligible
        );
        std::thread::sleep(Duration::from_millis(20));
    }
    // What is known is no reason to look away.
    wait_until("the failures to count", SOON, || {
        Ok(!daemon.backend("web", backend.v4())?.eligible)
    })?;
    Ok(())
}

/// `eth0` of backend 1 is deleted and made again: tunnel packets are taken apart again by themselves.
fn replaced_interface() -> Result<()> {
    let lab = serving(Lab::builder().backends(1))?;
    let _daemon = Daemon::start(&lab, &File::new(vec![web(&lab)]))?;
    lab.client().http(web_vip(), 5, 1)?.ensure_all_answered()?;

    let backend = lab.backend(1);
    backend.namespace().ip_batch("link delete eth0\n")?;
    lab.router().ip_batch(&format!(
        "link add b1 mtu 1600 type veth peer name eth0 mtu 1600 address {} netns {}\nlink set b1 master lan up\n",
        mac::text(mac::backend(1)),
        backend.namespace().name(),
    ))?;
    lab.router().run(|| disable_offloads("b1"))?;
    backend.namespace().run(|| disable_offloads("eth0"))?;
    backend.namespace().ip_batch(&format!(
        "link set eth0 up\naddr add {}/24 dev eth0\nroute add default via 10.0.0.1\n",
        backend.v4()
    ))?;
    wait_until("the decapsulator to be attached again", SOON, || {
        Ok(xdp_mode(backend.namespace(), "eth0")?.is_some())
    })?;
    wait_until("connections to succeed again", SOON, || {
        Ok(lab.client().get(web_vip()).is_ok())
    })?;
    lab.client().http(web_vip(), 20, 4)?.ensure_all_answered()?;
    Ok(())
}

/// A backend whose decapsulator has nothing to sit on must not look like one that works.
fn vanished_interface() -> Result<()> {
    let lab = Lab::builder().backends(1).build()?;
    let namespace = lab.backend(1).namespace();
    let mut command = namespace.command(sluice_binary()?);
    command.args(["decap", "--interface", "eth0"]);
    let log = lab.temporary_directory().join("decap.log");
    let mut process = Process::start("sluice decap", command, &log)?;
    wait_until("the decapsulator to be attached", SOON, || {
        Ok(xdp_mode(namespace, "eth0")?.is_some())
    })?;
    namespace.ip_batch("link delete eth0\n")?;
    let status = process
        .wait(Duration::from_secs(45))?
        .context("`sluice decap` runs on without an interface")?;
    let said = process.log_tail();
    ensure!(status.code() == Some(1), "ended with {status}: {said}");
    ensure!(
        said.contains("nothing has been decapsulated on eth0 for 30s")
            && said.contains("interface \"eth0\" does not exist here"),
        "{said}"
    );
    Ok(())
}
