//! The demo: the main job on real traffic, told to somebody who sees it for the first time.
//!
//! Owns: the course of events. Does not own: how it looks (`screen`) or whether the numbers agree (`verdict`).

mod screen;
mod verdict;

use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::capture::SETTLE;
use crate::client::Load;
use crate::config::{File, Service};
use crate::packet::{Ethernet, Ip};
use crate::wait::wait_until;
use crate::{Capture, Daemon, Direction, Family, Lab, Run, address};

use screen::{Row, Screen};
use verdict::{Counted, Events};

const BACKENDS: usize = 3;
const CLIENTS: usize = 4;
/// Connections a second: below what a small machine can do, so that the numbers tell of balancing, not of load.
const RATE: u32 = 250;
/// Connections of each of the three acts.
const PER_ACT: usize = 800;
/// The backend that dies, by number.
const VICTIM: usize = 2;
const PORT: u16 = 80;
const SERVICE: &str = "web";
/// Between two pictures of the table.
const PICTURE: Duration = Duration::from_millis(250);
/// No act takes longer; if one does, something is wrong.
const ACT_LIMIT: Duration = Duration::from_secs(30);

/// Runs it. `Ok(false)`: it ran, but the numbers do not agree.
pub fn run(json: bool) -> Result<bool> {
    let mut screen = Screen::new(json);
    screen.title("Sluice: balancing TCP connections in the kernel, with XDP");
    screen.say(
        "A small Internet is built from network namespaces on this machine, and removed again at the end:\n\n\
         \x20   client (4 addresses) ── router ──┬── balancer   runs `sluice run`, answers for 203.0.113.10:80\n\
         \x20                                    ├── backend1   HTTP server\n\
         \x20                                    ├── backend2   HTTP server\n\
         \x20                                    └── backend3   HTTP server\n\n\
         The balancer's XDP program wraps each packet of a client in an IP header to one backend. The backend\n\
         unwraps it and answers the client directly.",
    );
    let began = Instant::now();
    let lab = Lab::builder().backends(BACKENDS).clients(CLIENTS).build()?;
    for backend in lab.backends() {
        backend.serve_http(PORT)?;
    }
    lab.start_decapsulators()?;

    let service = Service {
        interval_ms: 100,
        ..Service::tcp(
            SERVICE,
            Family::V4.vip_port(PORT),
            lab.backends().iter().map(|b| b.v4()),
        )
        .probed()
    };
    let daemon = Daemon::start(&lab, &File::new(vec![service]))?;
    for backend in lab.backends() {
        daemon.wait_eligible(SERVICE, backend.v4(), true, Duration::from_secs(10))?;
    }
    screen.say(&format!(
        "The balancer runs with this configuration ({}):",
        daemon.config_path().display()
    ));
    screen.quote(&daemon.config_text()?);
    let status = daemon.status()?;
    let interface = status
        .interfaces
        .first()
        .context("the daemon serves no interface")?;
    let mode = interface
        .got
        .map_or_else(|| "not attached".to_owned(), |mode| format!("{mode} XDP"));
    screen.say(&format!(
        "Ready after {:.1} s: {} is attached ({mode}), {BACKENDS} backends are up.",
        began.elapsed().as_secs_f64(),
        interface.name
    ));

    // Counted where frames leave the router for each backend: without any help from the balancer.
    let openings = Arc::new(Openings::default());
    let captures = lab
        .backends()
        .iter()
        .map(|backend| {
            let openings = openings.clone();
            Capture::count(
                lab.router(),
                &backend.port(),
                Direction::Out,
                move |frame| openings.note(frame),
            )
        })
        .collect::<Result<Vec<_>>>()?;
    let mut show = Show {
        lab: &lab,
        daemon: &daemon,
        screen: &mut screen,
    };
    let (run, events) = show.acts()?;

    wait_until("the last packets to arrive", SETTLE, || {
        let counted: u64 = daemon
            .watch_backends(SERVICE)?
            .iter()
            .map(|backend| backend.packets)
            .sum();
        Ok(counted == captures.iter().map(Capture::seen).sum::<u64>())
    })
    // If they never agree, the verdict says where.
    .ok();
    let received = captures
        .into_iter()
        .map(Capture::stop_counting)
        .collect::<Result<Vec<_>>>()?;
    let shown = daemon.watch_backends(SERVICE)?;
    let counted = lab
        .backends()
        .iter()
        .zip(received)
        .map(|(backend, received)| Counted::new(backend, &shown, received))
        .collect::<Result<Vec<_>>>()?;
    Ok(verdict::give(
        &mut screen,
        &run,
        &events,
        &counted,
        openings.repeated(),
    ))
}

/// What is shown, to whom.
struct Show<'a> {
    lab: &'a Lab,
    daemon: &'a Daemon<'a>,
    screen: &'a mut Screen,
}

impl Show<'_> {
    fn acts(&mut self) -> Result<(Run, Events)> {
        let victim = self.lab.backend(VICTIM);
        self.screen.title("1. Three backends share the connections");
        self.screen.say(&format!(
            "{RATE} new connections a second, in turn from {CLIENTS} client addresses. Each is opened, asks once, is\n\
             answered and closed. The table is the daemon's (`sluice backend list {SERVICE}`); SERVED is what the\n\
             HTTP server itself has counted."
        ));
        let load = self.load()?;
        self.watch(&load, PER_ACT)?;

        self.screen
            .title(&format!("2. {} dies under load", victim.name()));
        self.screen.say(
            "Its server process is gone: connections to it are refused. The daemon's probes (every 100 ms) see it, and\n\
             after 2 failures in a row its slots of the lookup table go to the other two.",
        );
        let target = load.progress().0 + PER_ACT;
        let killed = Instant::now();
        victim.kill();
        wait_until("the table to change", ACT_LIMIT, || {
            let backends = self.daemon.watch_backends(SERVICE)?;
            Ok(backends
                .iter()
                .any(|backend| backend.address == victim.v4() && backend.slots == 0))
        })?;
        let moved = Instant::now();
        self.screen.say(&format!(
            "The table changed {:.0} ms after the kill.",
            (moved - killed).as_secs_f64() * 1e3
        ));
        let remaining = target.saturating_sub(load.progress().0);
        self.watch(&load, remaining)?;

        self.screen
            .title(&format!("3. {} comes back", victim.name()));
        self.screen.say(
            "Its server is started again while the load goes on. It gets new connections only: those that are open stay with the\n\
             backends that have them.",
        );
        let target = load.progress().0 + PER_ACT;
        let revived = Instant::now();
        victim.revive()?;
        self.daemon
            .wait_eligible(SERVICE, victim.v4(), true, ACT_LIMIT)?;
        let returned = revived.elapsed();
        self.screen.say(&format!(
            "After 2 good probes it has its slots back ({:.0} ms).",
            returned.as_secs_f64() * 1e3
        ));
        let remaining = target.saturating_sub(load.progress().0);
        self.watch(&load, remaining)?;
        Ok((
            load.stop()?,
            Events {
                killed,
                moved,
                revived,
                victim: victim.number(),
            },
        ))
    }

    fn load(&self) -> Result<Load> {
        self.lab
            .client()
            .start_load(Family::V4.vip_port(PORT), RATE)
    }

    /// Draws the table until `count` more connections are done.
    fn watch(&mut self, load: &Load, count: usize) -> Result<()> {
        let target = load.progress().0 + count;
        let began = Instant::now();
        loop {
            let (done, failed) = load.progress();
            let finished = done >= target;
            let rows = self.rows()?;
            self.screen.draw(&rows, done, failed, finished);
            if finished {
                return Ok(());
            }
            anyhow::ensure!(
                began.elapsed() < ACT_LIMIT,
                "{done} of {target} connections within {ACT_LIMIT:?}"
            );
            std::thread::sleep(PICTURE);
        }
    }

    fn rows(&self) -> Result<Vec<Row>> {
        let shown = self.daemon.watch_backends(SERVICE)?;
        self.lab
            .backends()
            .iter()
            .map(|backend| Row::new(backend, &shown))
            .collect()
    }
}

/// The SYNs that reached backends. A client that gets no answer to its SYN, because the backend died in that moment,
/// sends it again a second later: one connection, but two SYNs, and to the balancer two flows.
#[derive(Default)]
struct Openings {
    /// Client's address, its port, and the sequence number of the SYN.
    seen: Mutex<HashSet<(IpAddr, u16, u32)>>,
    repeated: AtomicU64,
}

impl Openings {
    /// Whether the frame carries a client's packet inside an outer IP header (probes and neighbour discovery do not);
    /// if that opens a connection, it is remembered.
    fn note(&self, frame: &[u8]) -> bool {
        let inner = || -> Option<Ip<'_>> { Ethernet::parse(frame)?.ip()?.inner() };
        let Some(packet) = inner().filter(|packet| address::is_vip(packet.destination)) else {
            return false;
        };
        if packet.opens_a_flow()
            && let (Some((port, _)), Some(sequence)) = (packet.ports(), packet.tcp_sequence())
            && !self
                .seen
                .lock()
                .unwrap_or_else(|poison| poison.into_inner())
                .insert((packet.source, port, sequence))
        {
            self.repeated.fetch_add(1, Ordering::Relaxed);
        }
        true
    }

    fn repeated(&self) -> u64 {
        self.repeated.load(Ordering::Relaxed)
    }
}
