//! The books: what clients sent to the VIP, what reached the backends, what the balancer says of it, and what the peers know.
//!
//! Frames are counted in front of the balancer and behind it by the router's kernel, so that the balancer's counters are compared
//! with something that is not the balancer. To be read while the traffic is silent.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::packet::{IPPROTO_TCP, IPPROTO_UDP};
use lab::stack::Stack;
use lab::tally::{Tally, Wanted};
use lab::{Daemon, Lab, wait_for};

use super::{CHAT, DATAGRAMS};

/// For what is still on its way when the traffic falls silent: acknowledgements, the ends of connections.
const SETTLE: Duration = Duration::from_secs(10);

/// A service's packets to a backend, by the backend's number.
type Key = (&'static str, usize);

/// Running counts, and what they were when they balanced last.
pub struct Ledger<'lab> {
    lab: &'lab Lab,
    given: Tally,
    reached: BTreeMap<Key, Tally>,
    last: Page,
}

/// One reading.
#[derive(Clone, Debug, Default)]
pub struct Page {
    /// Frames to the VIP that the router handed to the balancer.
    given: u64,
    /// Encapsulated frames that the router handed to each backend.
    reached: BTreeMap<Key, u64>,
    /// Datagrams that the backends' servers answered.
    echoed: u64,
    /// Segments that the clients' TCP had to send again because they were lost.
    lost: u64,
    /// What the daemon says.
    told: Told,
}

/// The balancer's own counters.
#[derive(Clone, Debug, Default)]
struct Told {
    forwarded: u64,
    dropped: u64,
    /// Without backends that are no longer told of: removed ones.
    backends: BTreeMap<Key, u64>,
}

impl<'lab> Ledger<'lab> {
    pub fn open(lab: &'lab Lab, daemon: &Daemon<'_>) -> Result<Self> {
        let given = Tally::start(lab.router(), lab.balancer_port(), Wanted::ToVip)?;
        let mut reached = BTreeMap::new();
        for backend in lab.backends() {
            for (service, protocol) in [(CHAT, IPPROTO_TCP), (DATAGRAMS, IPPROTO_UDP)] {
                let wanted = Wanted::Encapsulated(protocol);
                let tally = Tally::start(lab.router(), &backend.port(), wanted)?;
                reached.insert((service, backend.number()), tally);
            }
        }
        let mut ledger = Self {
            lab,
            given,
            reached,
            last: Page::default(),
        };
        ledger.last = ledger.read()?;
        ledger.last.told = ledger.ask(daemon)?;
        Ok(ledger)
    }

    /// Waits until the books balance, and begins a new page.
    pub fn balance(&mut self, daemon: &Daemon<'_>) -> Result<()> {
        self.last = wait_for("the books to balance", SETTLE, || {
            self.agree(daemon).map(Some)
        })?;
        Ok(())
    }

    /// An error unless everything since the last balance went through: given = reached = forwarded, nothing dropped, nothing sent
    /// twice because it was lost. The counters go on over the end of a daemon, as the packets do.
    pub fn agree(&self, daemon: &Daemon<'_>) -> Result<Page> {
        let mut page = self.read()?;
        page.ensure_whole_since(&self.last)?;
        page.told = self.ask(daemon)?;
        page.ensure_told_since(&self.last)?;
        Ok(page)
    }

    fn read(&self) -> Result<Page> {
        let mut reached = BTreeMap::new();
        for (key, tally) in &self.reached {
            reached.insert(*key, tally.seen()?);
        }
        Ok(Page {
            given: self.given.seen()?,
            reached,
            echoed: echoed(self.lab),
            lost: Stack::of(self.lab.client().namespace())?.lost_segments()?,
            told: Told::default(),
        })
    }

    fn ask(&self, daemon: &Daemon<'_>) -> Result<Told> {
        let metrics = daemon.metrics()?;
        let mut backends = BTreeMap::new();
        for &(service, number) in self.reached.keys() {
            let address = self.lab.backend(number).v4().to_string();
            let labels = [("service", service), ("backend", address.as_str())];
            if let Ok(packets) = metrics.value("sluice_backend_packets_total", &labels) {
                backends.insert((service, number), packets);
            }
        }
        let verdict = |verdict| metrics.sum("sluice_packets_total", &[("verdict", verdict)]);
        Ok(Told {
            forwarded: verdict("forward"),
            dropped: verdict("drop"),
            backends,
        })
    }
}

impl Page {
    fn reached_since(&self, last: &Self, which: impl Fn(&Key) -> bool) -> u64 {
        let sum = |page: &Self| -> u64 {
            let chosen = page.reached.iter().filter(|(key, _)| which(key));
            chosen.map(|(_, frames)| frames).sum()
        };
        sum(self) - sum(last)
    }

    fn ensure_whole_since(&self, last: &Self) -> Result<()> {
        let given = self.given - last.given;
        let reached = self.reached_since(last, |_| true);
        ensure!(given > 0, "nothing was sent");
        ensure!(
            given == reached,
            "the balancer was given {given} frames, {reached} reached the backends"
        );
        let datagrams = self.reached_since(last, |(service, _)| *service == DATAGRAMS);
        let echoed = self.echoed - last.echoed;
        ensure!(
            datagrams == echoed,
            "{datagrams} datagrams reached the backends, which answered {echoed}"
        );
        let lost = self.lost - last.lost;
        ensure!(
            lost == 0,
            "clients had to send {lost} segments again, which were lost"
        );
        Ok(())
    }

    fn ensure_told_since(&self, last: &Self) -> Result<()> {
        let reached = self.reached_since(last, |_| true);
        let forwarded = since(self.told.forwarded, last.told.forwarded)?;
        ensure!(
            forwarded == reached,
            "{forwarded} packets were counted as forwarded, {reached} reached the backends"
        );
        let dropped = since(self.told.dropped, last.told.dropped)?;
        ensure!(dropped == 0, "{dropped} packets were dropped");
        for (key, now) in &self.told.backends {
            let told = since(*now, last.told.backends.get(key).copied().unwrap_or(0))?;
            let reached = self.reached_since(last, |other| other == key);
            ensure!(
                told == reached,
                "{told} packets were counted for backend {} of {}, {reached} reached it",
                key.1,
                key.0
            );
        }
        Ok(())
    }
}

fn since(now: u64, before: u64) -> Result<u64> {
    let grown = now.checked_sub(before);
    grown.with_context(|| format!("a counter of the balancer went back from {before} to {now}"))
}

fn echoed(lab: &Lab) -> u64 {
    let datagrams = |backend: &lab::Backend| backend.counters().datagrams.load(Ordering::SeqCst);
    lab.backends().iter().map(datagrams).sum()
}

/// What the peers know: the backends answered as many datagrams as clients sent, on all days together.
pub fn ensure_echoed(lab: &Lab, said: u64) -> Result<()> {
    let echoed = echoed(lab);
    ensure!(
        echoed == said,
        "clients sent {said} datagrams, backends answered {echoed}"
    );
    Ok(())
}
