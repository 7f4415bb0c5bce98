//! Changes made at run time: kept over kills, restarts and reloads; dropped, saved, and refused when they cannot be kept.

use std::time::Duration;

use anyhow::{Result, ensure};
use lab::config::File;
use lab::interface::xdp_mode;
use lab::{Daemon, Family, Lab};
use lb_userspace::api::client::Client;
use lb_userspace::api::dto::{Difference, DifferenceKind, OverlayDiff, OverlayReset, WeightChange};
use lb_userspace::model::BackendSpec;
use nix::sys::signal::Signal;

use crate::Suites;
use crate::lifecycle::more;
use crate::setup::{serving, web, web_vip};

const RATE: u32 = 200;
const SOON: Duration = Duration::from_secs(5);

pub fn add(suites: &mut Suites) {
    suites.case("overlay", "survives_sigkill_restart_and_reload", kept);
    suites.case("overlay", "killed_amid_changes", killed_amid_changes);
    suites.case(
        "overlay",
        "unreadable_is_refused_unfitting_is_named",
        unreadable,
    );
    suites.case(
        "overlay",
        "a_change_that_cannot_be_kept_is_undone",
        unwritable,
    );
}

/// The whole of what operators said, but for times that pass and counters that start anew.
fn said(daemon: &Daemon) -> Result<(Vec<Difference>, Vec<String>)> {
    let diff: OverlayDiff = daemon.cli_json(&["diff"])?;
    let mut rows = Vec::new();
    for service in daemon.services()? {
        for b in daemon.backends(&service.name)? {
            rows.push(format!(
                "{} {} {} {} {} {} {:?} {:?} {:?} {} {}",
                service.name,
                service.vip,
                service.origin,
                b.address,
                b.weight,
                b.admin,
                b.admin_reason,
                b.admin_by,
                b.admin_at,
                b.origin,
                b.slots
            ));
        }
    }
    Ok((diff.differences, rows))
}

fn kept() -> Result<()> {
    let lab = serving(Lab::builder().backends(3))?;
    let mut service = web(&lab);
    service.backends.truncate(2);
    let file = File::new(vec![service]);
    let mut daemon = Daemon::start(&lab, &file)?;
    let untouched = said(&daemon)?;
    ensure!(untouched.0.is_empty(), "{untouched:?}");

    let [first, second, third] = [1, 2, 3].map(|n| lab.backend(n).v4().to_string());
    daemon.change(&["backend", "add", "web", &third, "--weight", "2"])?;
    daemon.wait_eligible("web", lab.backend(3).v4(), true, SOON)?;
    daemon.change(&["backend", "drain", "web", &first, "--reason", "disk \"0\""])?;
    daemon.change(&["backend", "weight", "web", &second, "3"])?;
    let vip = Family::V6.vip_port(crate::setup::HTTP);
    let vip_text = format!("{vip}/tcp");
    let backend = lab.backend(2).v6().to_string();
    daemon.change(&[
        "service",
        "add",
        "web6",
        &vip_text,
        "--health",
        "none",
        "--backend",
        &backend,
    ])?;
    daemon.wait_eligible("web6", lab.backend(2).v6(), true, SOON)?;
    let before = said(&daemon)?;
    ensure!(before.0.len() == 4, "{before:?}");
    for difference in &before.0 {
        ensure!(
            difference.by.is_some() && difference.at.is_some(),
            "nobody did {difference:?}"
        );
    }
    let drained = before.0.iter().find(|d| d.kind == DifferenceKind::Admin);
    ensure!(
        drained.is_some_and(|d| d.reason.as_deref() == Some("disk \"0\"")),
        "{before:?}"
    );

    // The drained backend stays without a connection, daemon or no daemon, whichever way it ends.
    let load = lab.client().start_load(web_vip(), RATE)?;
    for signal in [Signal::SIGKILL, Signal::SIGTERM, Signal::SIGHUP] {
        more(&load, 30)?;
        daemon.signal(signal)?;
        if signal == Signal::SIGHUP {
            daemon.reload()?;
        } else {
            daemon.wait_for_end(SOON)?;
            more(&load, 30)?;
            daemon.restart()?;
        }
        more(&load, 30)?;
        let after = said(&daemon)?;
        ensure!(
            after == before,
            "before {signal}: {before:#?}\nafter: {after:#?}"
        );
        lab.client().get(vip)?;
    }
    let run = load.stop()?;
    let served = run.ensure_all_answered()?.by_backend();
    ensure!(
        served.len() == 2 && !served.contains_key(lab.backend(1).name()),
        "{served:?} served while the first was drained"
    );

    // What is saved says the same as what holds, all but the drain.
    let text = daemon.cli(&["save"])?;
    text.ensure(0, &["draining", "Comments are lost"])?;
    let saved = lb_userspace::config::parse(&text.stdout, "saved")?;
    let names: Vec<_> = saved.services.iter().map(|s| s.name.as_str()).collect();
    ensure!(names == ["web", "web6"], "{names:?}");
    let weights: Vec<_> = saved.services[0]
        .backends
        .iter()
        .map(|b| b.weight)
        .collect();
    ensure!(weights == [1, 3, 2], "{weights:?}");
    let digest = daemon.service("web")?.table_digest;
    let config = daemon.config_path().display().to_string();
    daemon
        .cli(&["save", "--to", &config])?
        .ensure(0, &["sluice.toml.old"])?;
    let reloaded = daemon.reload()?;
    ensure!(
        reloaded.slots_moved == 0,
        "the saved file moved slots: {reloaded:?}"
    );
    let left: OverlayDiff = daemon.cli_json(&["diff"])?;
    ensure!(
        left.differences.len() == 1 && left.differences[0].kind == DifferenceKind::Admin,
        "{left:?}"
    );
    ensure!(daemon.service("web")?.table_digest == digest);

    // Back to the first file; then the file alone.
    daemon.write_config(&file)?;
    daemon.reload()?;
    let reset: OverlayReset = daemon.cli_json(&["reset"])?;
    ensure!(
        reset.changed.changed && reset.dropped.len() == 1,
        "{reset:?}"
    );
    let after = said(&daemon)?;
    ensure!(
        after == untouched,
        "{untouched:#?}\nafter reset: {after:#?}"
    );
    daemon.cli(&["diff"])?.ensure(0, &["nothing differs"])?;
    daemon.kill()?;
    daemon.restart()?;
    ensure!(said(&daemon)? == untouched, "the reset did not last");
    Ok(())
}

/// Killed amid a stream of changes: what was answered holds, what was asked last may.
fn killed_amid_changes() -> Result<()> {
    const ROUNDS: u64 = 8;
    let lab = serving(Lab::builder().backends(2))?;
    let mut daemon = Daemon::start(&lab, &File::new(vec![web(&lab)]))?;
    let address = lab.backend(1).v4();
    let mut weight = 1_u32;
    for round in 0..ROUNDS {
        let socket = daemon.socket_path().to_owned();
        let from = weight;
        let changing = std::thread::spawn(move || {
            // The control socket itself: a process for each change would leave the daemon idle most of the time.
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            let client = Client::new(socket);
            runtime.block_on(async {
                let mut answered = from;
                while answered < BackendSpec::MAX_WEIGHT {
                    let change = WeightChange {
                        weight: answered + 1,
                    };
                    if client
                        .backend_weight("web", address, &change)
                        .await
                        .is_err()
                    {
                        break;
                    }
                    answered += 1;
                }
                anyhow::Ok(answered)
            })
        });
        // Not a multiple of anything in the daemon.
        std::thread::sleep(Duration::from_micros(60_000 + round * 7_919));
        daemon.kill()?;
        let answered = changing
            .join()
            .map_err(|_| anyhow::anyhow!("the client panicked"))??;
        ensure!(answered > from, "nothing was answered before the kill");
        daemon.restart()?;
        weight = daemon.backend("web", address)?.weight;
        ensure!(
            weight == answered || weight == answered + 1,
            "weight {weight} after {answered} was answered"
        );
        ensure!(
            weight < BackendSpec::MAX_WEIGHT,
            "no weights are left to set"
        );
    }
    Ok(())
}

fn unreadable() -> Result<()> {
    let lab = serving(Lab::builder().backends(2))?;
    let mut daemon = Daemon::start(&lab, &File::new(vec![web(&lab)]))?;
    let first = lab.backend(1).v4();
    daemon.change(&["backend", "drain", "web", &first.to_string()])?;
    let document = lab.temporary_directory().join("state/overlay.json");
    let good = std::fs::read_to_string(&document)?;
    daemon.kill()?;
    std::fs::write(&document, good.replace("draining", "drainign"))?;
    let config = daemon.config_path().display().to_string();
    daemon.cli(&["run", "--config", &config])?.ensure(
        1,
        &[
            "overlay.json",
            "line ",
            "drainign",
            "mv ",
            "overlay.json.bad",
        ],
    )?;
    // The data path of before goes on.
    ensure!(xdp_mode(lab.balancer(), "eth0")? == Some("native"));
    lab.client().get(web_vip())?;

    // What no longer fits keeps nobody from starting, and is said so.
    std::fs::write(&document, good)?;
    let mut other = web(&lab);
    other.backends.remove(0);
    daemon.write_config(&File::new(vec![other]))?;
    daemon.restart()?;
    let log = daemon.log();
    let loss =
        format!("backend {first} of \"web\", draining at run time: the file does not have it");
    for part in [loss.as_str(), "overlay.json.old"] {
        ensure!(log.contains(part), "{part:?} is not in the log:\n{log}");
    }
    let diff: OverlayDiff = daemon.cli_json(&["diff"])?;
    ensure!(diff.differences.is_empty(), "{diff:?}");
    Ok(())
}

fn unwritable() -> Result<()> {
    let lab = serving(Lab::builder().backends(2))?;
    let mut daemon = Daemon::start(&lab, &File::new(vec![web(&lab)]))?;
    let first = lab.backend(1).v4().to_string();
    daemon.change(&["backend", "weight", "web", &first, "2"])?;
    let before = said(&daemon)?;
    // In the way of the temporary file: shows before anything is applied. In the way of the document: after.
    let state = lab.temporary_directory().join("state");
    for name in ["overlay.json.new", "overlay.json"] {
        let place = state.join(name);
        let aside = state.join("aside");
        if place.exists() {
            std::fs::rename(&place, &aside)?;
        }
        std::fs::create_dir_all(place.join("x"))?;
        daemon
            .cli(&["backend", "drain", "web", &first])?
            .ensure(1, &["overlay.json", "nothing was changed", "try again"])?;
        let after = said(&daemon)?;
        ensure!(after == before, "{name}: {before:#?}\nafter: {after:#?}");
        std::fs::remove_dir_all(&place)?;
        if aside.exists() {
            std::fs::rename(&aside, &place)?;
        }
    }
    daemon.change(&["backend", "drain", "web", &first])?;
    ensure!(said(&daemon)?.0.len() == 2);
    daemon.kill()?;
    daemon.restart()?;
    ensure!(said(&daemon)?.0.len() == 2);
    Ok(())
}
