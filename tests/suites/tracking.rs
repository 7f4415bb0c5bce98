//! The settings of tracking, and backends in the place of others, on real connections.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use lab::client::EchoConnection;
use lab::config::{File, Service};
use lab::{Daemon, Family, Lab, wait_until};
use lb_userspace::model::Tracking;
use nix::sys::signal::Signal;

use crate::Suites;
use crate::setup::{ECHO, HTTP, serving};

const SOON: Duration = Duration::from_secs(10);
/// A sweep comes every four seconds.
const SWEPT: Duration = Duration::from_secs(15);
const CONNECTIONS: usize = 60;

pub fn add(suites: &mut Suites) {
    suites.case("tracking", "always_remembers_without_a_change", always);
    suites.case("tracking", "a_replacement_moves_its_own_only", replaces);
}

/// The echo service over the first `backends`, probed over HTTP.
fn chat(lab: &Lab, backends: usize, extra: &str) -> File {
    let addresses = lab.backends()[..backends].iter().map(|b| b.v4());
    File::new(vec![Service {
        probe_port: Some(HTTP),
        interval_ms: 100,
        extra: extra.to_owned(),
        ..Service::tcp("chat", Family::V4.vip_port(ECHO), addresses).probed()
    }])
}

/// Connections, each with the name of the backend that answers it.
struct Talk(Vec<(EchoConnection, String)>);

impl Talk {
    fn start(lab: &Lab, number: usize) -> Result<Self> {
        let mut all = Vec::new();
        for i in 0..number {
            let vip = Family::V4.vip_port(ECHO);
            let mut connection = lab.client().connect_from(vip, i % 4)?;
            let name = connection.exchange("first")?;
            all.push((connection, name));
        }
        Ok(Self(all))
    }

    /// Each says something, and hears from the backend it always heard from.
    fn go_on(&mut self) -> Result<()> {
        for (i, (connection, name)) in self.0.iter_mut().enumerate() {
            let answered = connection.exchange("more")?;
            ensure!(answered == *name, "{i} moved from {name} to {answered}");
        }
        Ok(())
    }

    fn by_backend(&self) -> BTreeMap<&str, usize> {
        let mut names = BTreeMap::new();
        for (_, name) in &self.0 {
            *names.entry(name.as_str()).or_default() += 1;
        }
        names
    }
}

/// Slots in the modes steady, learn and residue.
fn modes(daemon: &Daemon) -> Result<[u64; 3]> {
    let metrics = daemon.metrics()?;
    Ok(["steady", "learn", "residue"]
        .map(|mode| metrics.sum("sluice_slots", &[("service", "chat"), ("mode", mode)])))
}

fn always() -> Result<()> {
    const ALWAYS: &str = "tracking = \"always\"\nflow_idle = \"8s\"\n";
    let lab = serving(Lab::builder().backends(3).clients(4))?;
    let daemon = Daemon::start(&lab, &chat(&lab, 3, ALWAYS))?;
    let size = u64::from(daemon.service("chat")?.summary.table_size);
    wait_until("every slot to learn", SOON, || {
        Ok(modes(&daemon)? == [0, size, 0])
    })?;
    let detail = daemon.service("chat")?;
    ensure!(detail.tracking == Tracking::Always, "{detail:?}");
    ensure!(detail.flow_idle_seconds == 8.0, "{detail:?}");
    daemon
        .cli(&["service", "show", "chat"])?
        .ensure(0, &["always; flows may be silent for 8s"])?;

    // Nothing has changed, and every connection is remembered.
    let mut talk = Talk::start(&lab, CONNECTIONS)?;
    wait_until("the connections to be remembered", SWEPT, || {
        talk.go_on()?;
        let state = [("state", "established")];
        let known = daemon.metrics()?.sum("sluice_flow_table_entries", &state);
        Ok(known >= CONNECTIONS as u64)
    })?;

    // A change settles after flow_idle + 8 s and a sweep; slots only ever learn.
    let address = lab.backend(1).v4().to_string();
    let moved = daemon.change(&["backend", "weight", "chat", &address, "5"])?;
    ensure!(moved.slots_moved > 0, "{moved:?}");
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(30) {
        talk.go_on()?;
        ensure!(modes(&daemon)? == [0, size, 0], "{:?}", modes(&daemon)?);
        std::thread::sleep(Duration::from_millis(500));
    }

    // What is remembered is followed when only changes are to be, and the other way round.
    daemon.write_config(&chat(&lab, 3, "flow_idle = \"20s\"\n"))?;
    daemon.reload()?;
    talk.go_on()?;
    let [steady, learn, residue] = modes(&daemon)?;
    ensure!(residue > 0 && steady + learn + residue == size);
    ensure!(learn == 0, "{learn} slots had not settled");
    let shown = daemon.service("chat")?;
    ensure!(shown.tracking == Tracking::Adaptive && shown.flow_idle_seconds == 20.0);
    talk.go_on()?;
    daemon.write_config(&chat(&lab, 3, ALWAYS))?;
    daemon.reload()?;
    talk.go_on()?;
    ensure!(modes(&daemon)? == [0, size, 0], "{:?}", modes(&daemon)?);
    std::thread::sleep(Duration::from_secs(5));
    talk.go_on()
}

fn replaces() -> Result<()> {
    let lab = serving(Lab::builder().backends(4).clients(4))?;
    let mut daemon = Daemon::start(&lab, &chat(&lab, 3, ""))?;
    let mut talk = Talk::start(&lab, CONNECTIONS)?;
    ensure!(talk.by_backend().len() == 3, "{:?}", talk.by_backend());
    let [old, second, third, new] = [1, 2, 3, 4].map(|n| lab.backend(n).v4());
    let slots = |daemon: &Daemon, of| Ok::<_, anyhow::Error>(daemon.backend("chat", of)?.slots);
    let before = [old, second, third].map(|of| slots(&daemon, of).unwrap_or(0));
    let digest = daemon.service("chat")?.table_digest;

    let (old_text, new_text) = (old.to_string(), new.to_string());
    daemon.change(&["backend", "add", "chat", &new_text, "--replaces", &old_text])?;
    talk.go_on()?;
    daemon.wait_eligible("chat", new, true, SOON)?;
    let after = [new, second, third].map(|of| slots(&daemon, of).unwrap_or(0));
    ensure!(before == after, "{before:?} slots, then {after:?}");
    ensure!(daemon.service("chat")?.table_digest == digest);
    ensure!(daemon.backend("chat", new)?.replaces == Some(old));

    // Those of the old one survive its linger, and the others notice nothing.
    talk.go_on()?;
    let new_ones = Talk::start(&lab, CONNECTIONS)?;
    let names = new_ones.by_backend();
    ensure!(
        !names.contains_key("backend1") && names.contains_key("backend4"),
        "new connections: {names:?}"
    );
    std::thread::sleep(Duration::from_secs(5));
    talk.go_on()?;

    // Its place is taken, and stays so.
    daemon
        .cli(&["backend", "add", "chat", &old_text])?
        .ensure(1, &["has its place", "--replaces", &new_text])?;
    daemon
        .cli(&["diff"])?
        .ensure(0, &["in the place of", &old_text])?;
    daemon
        .cli(&["save"])?
        .ensure(0, &[&format!("replaces = \"{old}\"")])?;
    drop(talk);
    drop(new_ones);
    daemon.signal(Signal::SIGKILL)?;
    daemon.wait_for_end(SOON)?;
    daemon.restart()?;
    daemon.wait_eligible("chat", new, true, SOON)?;
    let again = [new, second, third].map(|of| slots(&daemon, of).unwrap_or(0));
    ensure!(again == after, "after a restart {again:?} slots");
    ensure!(daemon.service("chat")?.table_digest == digest);
    Ok(())
}
