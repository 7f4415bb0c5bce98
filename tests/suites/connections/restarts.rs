//! Daemons that end at any moment, by SIGTERM or SIGKILL, amid changes and amid their own start.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::{Daemon, Lab, wait_until};
use lb_userspace::api::client::{Client, ClientError};
use lb_userspace::api::dto::{AdminChange, BackendAdd, Changed, WeightChange};
use lb_userspace::model::Admin;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

use super::{CHAT, DATAGRAMS, SOON, Scene, chat};
use crate::Suites;
use crate::setup::serving;

const KILLS: u32 = 8;
/// Every moment and every change comes from it, though not what they meet. `SLUICE_SEED` takes another.
const SEED: u64 = 6;
/// The backends that the traffic uses; one more comes and goes.
const BACKENDS: usize = 4;

pub fn add(suites: &mut Suites) {
    suites.case("connections", "sigterm_and_restart_amid_learning", term);
    suites.case("connections", "killed_8_times_amid_changes", killed);
}

fn term() -> Result<()> {
    let lab = serving(Lab::builder().backends(4).clients(4))?;
    let mut daemon = chat(&lab, 3, "")?;
    let mut scene = Scene::begin(&lab, &daemon, 200, 80)?;
    let [first, second, fourth] = [1, 2, 4].map(|n| lab.backend(n).v4());
    for service in [CHAT, DATAGRAMS] {
        daemon.change(&["backend", "add", service, &fourth.to_string()])?;
        daemon.wait_eligible(service, fourth, true, SOON)?;
        daemon.change(&["backend", "drain", service, &first.to_string()])?;
    }
    // Its connections linger for a minute, daemon or no daemon.
    daemon.change(&["backend", "remove", CHAT, &second.to_string()])?;
    scene.after("one backend added, one drained, one removed", &daemon)?;
    let status = daemon.terminate()?;
    ensure!(status.success(), "SIGTERM ended the daemon with {status}");
    scene.traffic.go_on(10)?;
    daemon.restart()?;
    scene.after("SIGTERM and restart", &daemon)?;
    wait_consistent(&daemon)?;
    let new = scene.newcomers()?;
    ensure!(
        new.keys()
            .all(|name| name == "backend3" || name == "backend4"),
        "another table than before: {new:?}"
    );
    scene.after("newcomers", &daemon)?;
    scene.end()?;
    Ok(())
}

fn killed() -> Result<()> {
    let seed = match std::env::var("SLUICE_SEED") {
        Ok(seed) => seed.parse().context("SLUICE_SEED is to be a number")?,
        Err(_) => SEED,
    };
    let mut random = StdRng::seed_from_u64(seed);
    let lab = serving(Lab::builder().backends(BACKENDS + 1).clients(4))?;
    let mut daemon = chat(&lab, BACKENDS, "")?;
    let mut scene = Scene::begin(&lab, &daemon, 200, 80)?;
    let changes = Changes::start(&lab, &daemon, random.random())?;
    for kill in 1..=KILLS {
        let step = format!("kill {kill} of {KILLS}, seed {seed}");
        changes.go_on(3).with_context(|| step.clone())?;
        // Not a multiple of anything in the daemon.
        std::thread::sleep(Duration::from_micros(random.random_range(0..500_000)));
        daemon.kill()?;
        if kill % 2 == 0 {
            // Once more, amid its start.
            daemon.relaunch()?;
            std::thread::sleep(Duration::from_micros(random.random_range(0..600_000)));
            daemon.kill()?;
        }
        scene.traffic.go_on(2)?;
        daemon.restart().with_context(|| step.clone())?;
        scene.after(&step, &daemon)?;
    }
    changes.stop()?;
    wait_consistent(&daemon)?;
    scene.after("the last kill", &daemon)?;
    scene.end()?;

    // A service that goes takes its backends along at once. What is still taken then is nobody's.
    for service in [CHAT, DATAGRAMS] {
        daemon.change(&["service", "remove", service])?;
    }
    wait_until("every id and slot to be free", SOON, || {
        let used = used(&daemon)?;
        ensure!(used == [0, 0], "{used:?} backends and slots are taken");
        Ok(true)
    })?;
    Ok(())
}

/// Ids of backends and slots that are taken.
fn used(daemon: &Daemon<'_>) -> Result<[u64; 2]> {
    let status = daemon.status()?;
    let row = |what: &str| {
        let row = status.capacity.iter().find(|row| row.what == what);
        row.map(|row| row.used)
            .with_context(|| format!("no capacity of {what}"))
    };
    Ok([row("backends")?, row("slots")?])
}

/// Waits until what the daemon shows fits together.
fn wait_consistent(daemon: &Daemon<'_>) -> Result<()> {
    wait_until("a consistent status", SOON, || {
        ensure_consistent(daemon)?;
        Ok(true)
    })?;
    Ok(())
}

/// Tables are full, who is eligible is in them, and nothing is taken that nobody has.
fn ensure_consistent(daemon: &Daemon<'_>) -> Result<()> {
    let status = daemon.status()?;
    ensure!(status.ready, "not ready: {:?}", status.not_ready);
    for interface in &status.interfaces {
        ensure!(interface.got.is_some(), "not attached: {interface:?}");
    }
    let (mut declared, mut slots) = (0, 0);
    for service in &status.services {
        let backends = daemon.backends(&service.name)?;
        let named: u32 = backends.iter().map(|b| b.slots).sum();
        ensure!(
            named == service.table_size,
            "{named} of {} slots of {} name a backend: {backends:?}",
            service.table_size,
            service.name
        );
        for backend in &backends {
            ensure!(
                backend.eligible == (backend.slots > 0),
                "slots and eligibility do not agree: {backend:?}"
            );
        }
        declared += backends.len() as u64;
        slots += u64::from(service.table_size);
    }
    let [ids, ranges] = used(daemon)?;
    // The one that comes and goes lingers for a minute after it went.
    ensure!(
        (declared..=declared.max(2 * BACKENDS as u64 + 1)).contains(&ids) && ranges == slots,
        "{declared} backends take {ids} ids, tables of {slots} slots take {ranges}"
    );
    Ok(())
}

/// A stream of changes over the control socket, which goes on whenever there is a daemon to ask.
///
/// The socket itself: a process for each change would leave the daemon idle most of the time.
struct Changes {
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicU64>,
    thread: JoinHandle<Result<()>>,
}

impl Changes {
    fn start(lab: &Lab, daemon: &Daemon<'_>, seed: u64) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let answered = Arc::new(AtomicU64::new(0));
        let addresses = lab.backends().iter().map(|b| b.v4()).collect::<Vec<_>>();
        let socket = daemon.socket_path().to_owned();
        let thread = std::thread::spawn({
            let (stop, answered) = (Arc::clone(&stop), Arc::clone(&answered));
            move || -> Result<()> {
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()?;
                let mut random = StdRng::seed_from_u64(seed);
                let client = Client::new(socket);
                while !stop.load(Ordering::SeqCst) {
                    let change = runtime.block_on(change(&client, &addresses, &mut random));
                    if change.is_ok() {
                        answered.fetch_add(1, Ordering::SeqCst);
                    }
                    std::thread::sleep(Duration::from_millis(random.random_range(0..40)));
                }
                Ok(())
            }
        });
        Ok(Self {
            stop,
            answered,
            thread,
        })
    }

    /// Waits until `count` more have been answered.
    fn go_on(&self, count: u64) -> Result<()> {
        let target = self.answered.load(Ordering::SeqCst) + count;
        wait_until("changes to be answered", SOON, || {
            Ok(self.answered.load(Ordering::SeqCst) >= target)
        })?;
        Ok(())
    }

    fn stop(self) -> Result<()> {
        self.stop.store(true, Ordering::SeqCst);
        self.thread
            .join()
            .ok()
            .context("the changing thread panicked")?
    }
}

/// One change of some kind. The last backend comes and goes, one drains and comes back, all change their weights.
async fn change(
    client: &Client,
    addresses: &[IpAddr],
    random: &mut StdRng,
) -> Result<Changed, ClientError> {
    let service = [CHAT, DATAGRAMS][random.random_range(0..2)];
    let last = addresses[BACKENDS];
    match random.random_range(0..8) {
        0 => {
            let add = BackendAdd {
                address: last,
                weight: Some(3),
                replaces: None,
            };
            client.backend_add(CHAT, &add).await
        }
        1 => client.backend_remove(CHAT, last).await,
        2 | 3 => {
            let admin = [Admin::Draining, Admin::Active][random.random_range(0..2)];
            let change = AdminChange {
                admin,
                reason: None,
                drain: None,
            };
            client.backend_admin(service, addresses[0], &change).await
        }
        _ => {
            let change = WeightChange {
                weight: random.random_range(1..10),
            };
            let backend = addresses[random.random_range(0..BACKENDS)];
            client.backend_weight(service, backend, &change).await
        }
    }
}
