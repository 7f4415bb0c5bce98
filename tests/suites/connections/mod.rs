//! Connections survive change: long-lived ones through everything that moves slots.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lab::client::EchoConnection;
use lab::config::{File, Service};
use lab::{Daemon, Family, Lab, wait_until};

use crate::Suites;
use crate::setup::{ECHO, HTTP, serving};

/// Connections of each of the four clients.
const EACH: usize = 125;
/// Between two exchanges of a connection.
const PACE: Duration = Duration::from_millis(100);
const SOON: Duration = Duration::from_secs(10);

pub fn add(suites: &mut Suites) {
    suites.case("connections", "500_survive_every_change", survive);
    suites.case("connections", "two_changes_a_second", restless);
    suites.case("connections", "a_dead_backend_breaks_its_own_only", dead);
    suites.case("connections", "tracking_off_forgets", off);
}

/// The echo service over the first `backends`, probed over HTTP.
fn chat<'lab>(lab: &'lab Lab, backends: usize, extra: &str) -> Result<Daemon<'lab>> {
    let addresses = lab.backends()[..backends].iter().map(|b| b.v4());
    let service = Service {
        probe_port: Some(HTTP),
        interval_ms: 100,
        extra: extra.to_owned(),
        ..Service::tcp("chat", Family::V4.vip_port(ECHO), addresses).probed()
    };
    Daemon::start(lab, &File::new(vec![service]))
}

/// Connections that exchange a line every 100 ms until they are asked to stop.
struct Talk {
    stop: Arc<AtomicBool>,
    rounds: Arc<AtomicUsize>,
    threads: Vec<JoinHandle<Vec<Outcome>>>,
}

/// What became of a connection: whose it is, and why it broke, if it did.
type Outcome = (String, Option<String>);

impl Talk {
    fn start(lab: &Lab, each: usize) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let rounds = Arc::new(AtomicUsize::new(0));
        let mut threads = Vec::new();
        for client in 0..4 {
            let mut connections = Vec::new();
            for _ in 0..each {
                let vip = Family::V4.vip_port(ECHO);
                let mut connection = lab.client().connect_from(vip, client)?;
                let name = connection.exchange("first")?;
                connections.push((connection, (name, None)));
            }
            let (stop, rounds) = (Arc::clone(&stop), Arc::clone(&rounds));
            threads.push(std::thread::spawn(move || {
                talk(connections, &stop, &rounds)
            }));
        }
        Ok(Self {
            stop,
            rounds,
            threads,
        })
    }

    /// Waits until every connection has exchanged `rounds` more lines.
    fn go_on(&self, rounds: usize) -> Result<()> {
        // The slowest of four threads: each counts its own rounds.
        let target = self.rounds.load(Ordering::Relaxed) + 4 * (rounds + 1);
        wait_until("lines to be exchanged", SOON * 3, || {
            Ok(self.rounds.load(Ordering::Relaxed) >= target)
        })?;
        Ok(())
    }

    fn stop(self) -> Result<Vec<Outcome>> {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = Vec::new();
        for thread in self.threads {
            let outcomes = thread.join().ok().context("a talking thread panicked")?;
            all.extend(outcomes);
        }
        Ok(all)
    }
}

fn talk(
    mut connections: Vec<(EchoConnection, Outcome)>,
    stop: &AtomicBool,
    rounds: &AtomicUsize,
) -> Vec<Outcome> {
    let mut round = 0;
    while !stop.load(Ordering::Relaxed) {
        let began = Instant::now();
        for (connection, (name, broken)) in &mut connections {
            if broken.is_some() {
                continue;
            }
            *broken = match connection.exchange(&format!("line {round}")) {
                Ok(answered) if answered == *name => None,
                Ok(answered) => Some(format!("moved from {name} to {answered}")),
                Err(error) => Some(format!("{error:#}")),
            };
        }
        round += 1;
        rounds.fetch_add(1, Ordering::Relaxed);
        std::thread::sleep(PACE.saturating_sub(began.elapsed()));
    }
    connections
        .into_iter()
        .map(|(_, outcome)| outcome)
        .collect()
}

fn ensure_whole(outcomes: &[Outcome]) -> Result<()> {
    let broken: Vec<_> = outcomes
        .iter()
        .filter(|(_, broken)| broken.is_some())
        .collect();
    ensure!(
        broken.is_empty(),
        "{} of {} connections broke: {:?}",
        broken.len(),
        outcomes.len(),
        &broken[..broken.len().min(5)]
    );
    Ok(())
}

/// Where 40 new connections go.
fn newcomers(lab: &Lab) -> Result<BTreeMap<String, usize>> {
    let mut names = BTreeMap::new();
    for i in 0..40 {
        let mut connection = lab
            .client()
            .connect_from(Family::V4.vip_port(ECHO), i % 4)?;
        *names.entry(connection.exchange("new")?).or_default() += 1;
    }
    Ok(names)
}

fn survive() -> Result<()> {
    let lab = serving(Lab::builder().backends(6).clients(4))?;
    let daemon = chat(&lab, 3, "")?;
    let talk = Talk::start(&lab, EACH)?;
    let address = |n: usize| lab.backend(n).v4().to_string();

    for n in [4, 5, 6] {
        daemon.change(&["backend", "add", "chat", &address(n)])?;
        daemon.wait_eligible("chat", lab.backend(n).v4(), true, SOON)?;
    }
    ensure!(newcomers(&lab)?.len() >= 5, "newcomers do not spread");
    talk.go_on(3)?;

    for (n, weight) in [(1, "5"), (2, "1"), (3, "3"), (4, "2"), (5, "4"), (6, "7")] {
        daemon.change(&["backend", "weight", "chat", &address(n), weight])?;
    }
    talk.go_on(3)?;

    daemon.change(&["backend", "drain", "chat", &address(1), "--reason", "test"])?;
    daemon.change(&["backend", "drain", "chat", &address(2), "--reason", "test"])?;
    let new = newcomers(&lab)?;
    ensure!(
        !new.contains_key("backend1") && !new.contains_key("backend2"),
        "drained backends got new connections: {new:?}"
    );
    talk.go_on(3)?;

    // A blip: probes fail for a while, connections do not.
    lab.backend(3).set_health_status(503);
    daemon.wait_eligible("chat", lab.backend(3).v4(), false, SOON)?;
    ensure!(
        !newcomers(&lab)?.contains_key("backend3"),
        "a failing backend got new connections"
    );
    talk.go_on(10)?;
    lab.backend(3).set_health_status(200);
    daemon.wait_eligible("chat", lab.backend(3).v4(), true, SOON)?;
    talk.go_on(3)?;

    daemon.change(&["backend", "activate", "chat", &address(1)])?;
    // Removed: its connections linger.
    daemon.change(&["backend", "remove", "chat", &address(2)])?;
    daemon.reload()?;
    talk.go_on(3)?;
    let new = newcomers(&lab)?;
    ensure!(
        !new.contains_key("backend2"),
        "a removed backend got new connections: {new:?}"
    );

    // A sweep passes over it all, and sees what is remembered.
    talk.go_on(50)?;
    let remembered = daemon.metrics()?.sum("sluice_flow_table_entries", &[]);
    ensure!(remembered >= 100, "{remembered} flows are remembered");
    let outcomes = talk.stop()?;
    ensure!(outcomes.len() == 4 * EACH, "{} outcomes", outcomes.len());
    ensure_whole(&outcomes)
}

fn restless() -> Result<()> {
    let lab = serving(Lab::builder().backends(4).clients(4))?;
    let daemon = chat(&lab, 4, "")?;
    let talk = Talk::start(&lab, 50)?;
    let began = Instant::now();
    for change in 0_usize.. {
        if began.elapsed() > Duration::from_secs(10) {
            break;
        }
        let backend = lab.backend(1 + change % 4).v4().to_string();
        let weight = (1 + change * 7 % 11).to_string();
        daemon.change(&["backend", "weight", "chat", &backend, &weight])?;
        std::thread::sleep(Duration::from_millis(450));
    }
    talk.go_on(2)?;
    ensure_whole(&talk.stop()?)
}

fn dead() -> Result<()> {
    let lab = serving(Lab::builder().backends(3).clients(4))?;
    let daemon = chat(&lab, 3, "")?;
    let talk = Talk::start(&lab, 40)?;
    let victim = lab.backend(2);
    victim.kill();
    daemon.wait_eligible("chat", victim.v4(), false, SOON)?;
    talk.go_on(5)?;
    victim.revive()?;
    daemon.wait_eligible("chat", victim.v4(), true, SOON)?;
    talk.go_on(5)?;
    let outcomes = talk.stop()?;
    let (theirs, others): (Vec<_>, Vec<_>) = outcomes
        .into_iter()
        .partition(|(name, _)| name == victim.name());
    ensure!(
        !theirs.is_empty() && theirs.iter().all(|(_, broken)| broken.is_some()),
        "a connection outlived its dead server"
    );
    ensure_whole(&others)
}

/// What `tracking = "off"` costs, and that it is tracking which the other cases show.
fn off() -> Result<()> {
    let lab = serving(Lab::builder().backends(6).clients(4))?;
    let daemon = chat(&lab, 3, "tracking = \"off\"\n")?;
    let talk = Talk::start(&lab, 40)?;
    for n in [4, 5, 6] {
        let address = lab.backend(n).v4().to_string();
        daemon.change(&["backend", "add", "chat", &address])?;
        daemon.wait_eligible("chat", lab.backend(n).v4(), true, SOON)?;
    }
    talk.go_on(3)?;
    let outcomes = talk.stop()?;
    let broken = outcomes
        .iter()
        .filter(|(_, broken)| broken.is_some())
        .count();
    ensure!(
        broken * 4 > outcomes.len(),
        "{broken} of {} connections broke: half of the slots moved",
        outcomes.len()
    );
    Ok(())
}
