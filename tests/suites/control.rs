//! Every verb of the command line against a running daemon, with its effect on traffic.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};
use lab::config::File;
use lab::{Daemon, Family, Lab, Run};
use lb_userspace::model::{Admin, XdpMode};

use crate::Suites;
use crate::setup::{HTTP, serving, web, web_vip};

pub fn add(suites: &mut Suites) {
    suites.case("control", "status_and_lists_in_both_forms", reading);
    suites.case("control", "backend_drain_disable_activate", admin_states);
    suites.case("control", "backend_weight", weight);
    suites.case("control", "backend_add_and_remove", backends);
    suites.case("control", "service_add_and_remove", services);
    suites.case("control", "diff_and_reset", diff_and_reset);
    suites.case(
        "control",
        "wrong_names_are_refused_with_the_right_ones",
        wrong_names,
    );
    suites.case("control", "no_daemon_is_exit_code_3", no_daemon);
}

/// The names of the backends that answer 90 connections: one of three is missed by chance about once in 10^15.
fn who_answers(lab: &Lab) -> Result<BTreeSet<String>> {
    let run: Run = lab.client().http(web_vip(), 90, 16)?;
    Ok(run
        .ensure_all_answered()?
        .by_backend()
        .into_keys()
        .collect())
}

fn ensure_answering(lab: &Lab, numbers: &[usize]) -> Result<()> {
    let wanted: BTreeSet<String> = numbers
        .iter()
        .map(|&number| lab.backend(number).name().to_owned())
        .collect();
    let answering = who_answers(lab)?;
    ensure!(
        answering == wanted,
        "{answering:?} answer, {wanted:?} should"
    );
    Ok(())
}

fn started(lab: &Lab) -> Result<Daemon<'_>> {
    Daemon::start(lab, &File::new(vec![web(lab)]))
}

fn reading() -> Result<()> {
    let lab = serving(Lab::builder().backends(2))?;
    let daemon = started(&lab)?;
    ensure_answering(&lab, &[1, 2])?;

    let status = daemon.status()?;
    ensure!(
        status.ready && status.not_ready.is_empty() && status.config_error.is_none(),
        "{status:?}"
    );
    ensure!(
        status.pid == daemon.pid(),
        "status names pid {}",
        status.pid
    );
    ensure!(
        status.interfaces.len() == 1 && status.interfaces[0].got == Some(XdpMode::Native),
        "{status:?}"
    );
    ensure!(
        status
            .packets
            .iter()
            .any(|row| row.verdict == "forward" && row.packets > 0),
        "{status:?}"
    );
    let services = daemon.services()?;
    ensure!(
        services.len() == 1 && services[0].name == "web" && services[0].flows == 90,
        "{services:?}"
    );
    let shown = daemon.service("web")?;
    ensure!(
        shown.backends.len() == 2 && shown.table_digest.is_some(),
        "{shown:?}"
    );
    let slots: u32 = shown.backends.iter().map(|backend| backend.slots).sum();
    ensure!(
        slots == shown.summary.table_size,
        "{slots} of {} slots are filled",
        shown.summary.table_size
    );

    // For people: the same facts are there, and no JSON.
    daemon
        .cli(&["status"])?
        .ensure(0, &["eth0", "native", "web"])?;
    daemon
        .cli(&["service", "list"])?
        .ensure(0, &["web", "203.0.113.10:80"])?;
    daemon
        .cli(&["service", "show", "web"])?
        .ensure(0, &["10.0.0.11", "10.0.0.12", "ipip"])?;
    daemon
        .cli(&["backend", "list"])?
        .ensure(0, &["10.0.0.11", "10.0.0.12"])?;
    Ok(())
}

fn admin_states() -> Result<()> {
    let lab = serving(Lab::builder().backends(3))?;
    let daemon = started(&lab)?;
    let address = lab.backend(2).v4();
    let text = address.to_string();
    ensure_answering(&lab, &[1, 2, 3])?;
    for (verb, admin) in [("drain", Admin::Draining), ("disable", Admin::Disabled)] {
        let changed =
            daemon.change(&["backend", verb, "web", &text, "--reason", "kernel update"])?;
        ensure!(
            changed.changed && changed.slots_moved > 0,
            "{verb}: {changed:?}"
        );
        ensure_answering(&lab, &[1, 3])?;
        let shown = daemon.backend("web", address)?;
        ensure!(
            shown.admin == admin && !shown.eligible && shown.slots == 0,
            "{verb}: {shown:?}"
        );
        ensure!(
            shown.admin_reason.as_deref() == Some("kernel update"),
            "{verb}: {shown:?}"
        );
        ensure!(
            shown.admin_by.is_some() && shown.admin_at.is_some(),
            "{verb}: {shown:?}"
        );
        let again = daemon.change(&["backend", verb, "web", &text, "--reason", "kernel update"])?;
        ensure!(again.slots_moved == 0, "{verb} a second time: {again:?}");

        daemon.change(&["backend", "activate", "web", &text])?;
        ensure_answering(&lab, &[1, 2, 3])?;
        ensure!(daemon.backend("web", address)?.admin == Admin::Active);
    }
    Ok(())
}

fn weight() -> Result<()> {
    let lab = serving(Lab::builder().backends(2))?;
    let daemon = started(&lab)?;
    let address = lab.backend(1).v4();
    daemon.change(&["backend", "weight", "web", &address.to_string(), "3"])?;
    let [heavy, light] = &daemon.backends("web")?[..] else {
        anyhow::bail!("not two backends")
    };
    let (heavy, light) = if heavy.address == address {
        (heavy, light)
    } else {
        (light, heavy)
    };
    ensure!(
        heavy.weight == 3 && light.weight == 1,
        "{heavy:?} {light:?}"
    );
    // Shares follow weights within one entry per unit of weight.
    ensure!(
        heavy.slots.abs_diff(light.slots * 3) <= 4,
        "{} and {} slots for weights 3 and 1",
        heavy.slots,
        light.slots
    );
    daemon.change(&["backend", "weight", "web", &address.to_string(), "0"])?;
    ensure_answering(&lab, &[2])
}

fn backends() -> Result<()> {
    let lab = serving(Lab::builder().backends(3))?;
    let mut service = web(&lab);
    service.backends.truncate(2);
    let daemon = Daemon::start(&lab, &File::new(vec![service]))?;
    ensure_answering(&lab, &[1, 2])?;
    let third = lab.backend(3).v4().to_string();
    daemon.change(&["backend", "add", "web", &third])?;
    daemon.wait_eligible("web", lab.backend(3).v4(), true, lab::capture::SETTLE)?;
    ensure_answering(&lab, &[1, 2, 3])?;
    ensure!(daemon.backend("web", lab.backend(3).v4())?.origin == "runtime");

    let first = lab.backend(1).v4().to_string();
    daemon.change(&["backend", "remove", "web", &first])?;
    ensure_answering(&lab, &[2, 3])?;
    daemon
        .cli(&["backend", "remove", "web", &first])?
        .ensure(1, &[&first])?;

    // The last backend gone, the service is empty at once: nothing may reach the backend it had.
    daemon.change(&["backend", "remove", "web", &third])?;
    daemon.change(&["backend", "remove", "web", &lab.backend(2).v4().to_string()])?;
    ensure!(daemon.backends("web")?.is_empty());
    ensure!(
        lab.client().get(web_vip()).is_err(),
        "a service without backends answered"
    );
    Ok(())
}

fn services() -> Result<()> {
    let lab = serving(Lab::builder().backends(2))?;
    let daemon = started(&lab)?;
    let vip = Family::V6.vip_port(HTTP);
    let with_protocol = format!("{vip}/tcp");
    ensure!(
        lab.client().get(vip).is_err(),
        "answered before it was added"
    );
    let mut arguments = vec!["service", "add", "web6", &with_protocol, "--health", "none"];
    let addresses: Vec<String> = lab
        .backends()
        .iter()
        .map(|backend| backend.v6().to_string())
        .collect();
    for address in &addresses {
        arguments.extend(["--backend", address]);
    }
    daemon.change(&arguments)?;
    let address = lab.backend(1).v6();
    daemon.wait_eligible("web6", address, true, lab::capture::SETTLE)?;
    daemon.wait_eligible("web6", lab.backend(2).v6(), true, lab::capture::SETTLE)?;
    let answers = lab
        .client()
        .http(vip, 90, 16)?
        .ensure_all_answered()?
        .by_backend();
    ensure!(answers.len() == 2, "{answers:?}");
    ensure!(daemon.services()?.len() == 2);
    // A name, and a VIP, can be had once.
    daemon.cli(&arguments)?.ensure(1, &["web6"])?;

    daemon.change(&["service", "remove", "web6"])?;
    ensure!(daemon.services()?.len() == 1);
    ensure!(lab.client().get(vip).is_err(), "a removed service answers");
    ensure_answering(&lab, &[1, 2])
}

fn diff_and_reset() -> Result<()> {
    let lab = serving(Lab::builder().backends(2))?;
    let daemon = started(&lab)?;
    daemon.cli(&["diff"])?.ensure(0, &["nothing differs"])?;
    ensure!(
        !daemon.change(&["reset"])?.changed,
        "there was nothing to drop"
    );
    let [first, second] = [1, 2].map(|n| lab.backend(n).v4().to_string());
    daemon.change(&["backend", "remove", "web", &second])?;
    daemon.change(&["backend", "weight", "web", &first, "7"])?;
    ensure_answering(&lab, &[1])?;
    daemon
        .cli(&["diff"])?
        .ensure(0, &["backend removed", &second, "weight 7", "weight 1"])?;
    daemon
        .cli(&["reset"])?
        .ensure(0, &["2 run-time changes are dropped", &second])?;
    daemon.wait_eligible("web", lab.backend(2).v4(), true, lab::capture::SETTLE)?;
    ensure_answering(&lab, &[1, 2])?;
    daemon.cli(&["diff"])?.ensure(0, &["nothing differs"])?;
    Ok(())
}

fn wrong_names() -> Result<()> {
    let lab = serving(Lab::builder().backends(1))?;
    let daemon = started(&lab)?;
    daemon
        .cli(&["service", "show", "wbe"])?
        .ensure(1, &["wbe"])?;
    daemon
        .cli(&["backend", "drain", "web", "10.9.9.9"])?
        .ensure(1, &["10.9.9.9", "web"])?;
    daemon
        .cli(&["backend", "drain", "web", "not-an-address"])?
        .ensure(2, &["not-an-address"])?;
    daemon
        .cli(&["no-such-verb"])?
        .ensure(2, &["no-such-verb"])?;
    ensure_answering(&lab, &[1])
}

fn no_daemon() -> Result<()> {
    let lab = Lab::builder().backends(1).build()?;
    let socket = lab.temporary_directory().join("nobody.sock");
    for arguments in [
        &["status"][..],
        &["backend", "list"],
        &["diff"],
        &["save"],
        &["reload"],
    ] {
        lab::daemon::run_cli(lab.balancer(), &socket, arguments)?
            .ensure(3, &["nobody.sock", "sluice run"])?;
    }
    Ok(())
}
