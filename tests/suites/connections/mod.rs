//! Connections survive change: long-lived ones through everything that moves slots, and through restarts and upgrades.

mod everything;
mod failures;
mod ledger;
mod restarts;
mod upgrade;

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::config::{File, Service};
use lab::traffic::Outcome;
use lab::{Daemon, Family, Lab, Traffic};

use crate::Suites;
use crate::setup::{ECHO, HTTP};
use ledger::Ledger;

/// The services: TCP and UDP echo behind one VIP.
const CHAT: &str = "chat";
const DATAGRAMS: &str = "datagrams";

/// Anything the daemon does by itself, on a machine with much else to do.
const SOON: Duration = Duration::from_secs(20);

/// New connections, and new flows, that a look at the table takes.
const NEWCOMERS: usize = 40;

pub fn add(suites: &mut Suites) {
    everything::add(suites);
    restarts::add(suites);
    upgrade::add(suites);
    failures::add(suites);
}

/// Both services over the first `backends`, the TCP one probed over HTTP.
///
/// The UDP one has no probes: a suspect of a UDP service is DOWN at once (its grace is 0, for a datagram has no retransmission
/// that would find the way back), so that a blip rightly moves its flows.
fn chat<'lab>(lab: &'lab Lab, backends: usize, extra: &str) -> Result<Daemon<'lab>> {
    let addresses = || lab.backends()[..backends].iter().map(|b| b.v4());
    let vip = Family::V4.vip_port(ECHO);
    let extra = extra.to_owned();
    let chat = Service {
        probe_port: Some(HTTP),
        interval_ms: 100,
        extra: extra.clone(),
        ..Service::tcp(CHAT, vip, addresses()).probed()
    };
    let datagrams = Service {
        extra,
        ..Service::udp(DATAGRAMS, vip, addresses())
    };
    Daemon::start(lab, &File::new(vec![chat, datagrams]))
}

/// Traffic over both services, and the books that are kept of it.
struct Scene<'lab> {
    lab: &'lab Lab,
    traffic: Traffic,
    ledger: Ledger<'lab>,
    /// Datagrams of flows that are no part of `traffic`.
    others: u64,
}

impl<'lab> Scene<'lab> {
    fn begin(
        lab: &'lab Lab,
        daemon: &Daemon<'_>,
        connections: usize,
        flows: usize,
    ) -> Result<Self> {
        // The books first: what is never counted cannot be missed.
        let ledger = Ledger::open(lab, daemon)?;
        let vip = Family::V4.vip_port(ECHO);
        let traffic = Traffic::start(lab, vip, connections, flows)?;
        Ok(Self {
            lab,
            traffic,
            ledger,
            others: 0,
        })
    }

    /// Lets the traffic go on for some rounds after `step`. Nothing may have broken, and the books must balance.
    fn after(&mut self, step: &str, daemon: &Daemon<'_>) -> Result<()> {
        self.take_stock(daemon)
            .with_context(|| format!("after this step: {step}"))
    }

    fn take_stock(&mut self, daemon: &Daemon<'_>) -> Result<()> {
        self.traffic.go_on(3)?;
        self.traffic.ensure_whole()?;
        let _hush = self.traffic.hush()?;
        self.ledger.balance(daemon)
    }

    /// Ends the traffic. Nothing broke, and the peers' numbers agree.
    fn end(self) -> Result<Vec<Outcome>> {
        let outcomes = self.traffic.stop()?;
        let broken: Vec<_> = outcomes.iter().filter(|o| o.broken.is_some()).collect();
        ensure!(broken.is_empty(), "broken at the end: {broken:?}");
        for outcome in &outcomes {
            ensure!(outcome.said == outcome.answered, "unanswered: {outcome:?}");
        }
        let udp = outcomes.iter().filter(|o| o.protocol == "udp");
        let said: u64 = udp.map(|outcome| outcome.said).sum();
        ledger::ensure_echoed(self.lab, said + self.others)?;
        Ok(outcomes)
    }

    /// Which backends new connections go to, and how many to each.
    fn newcomers(&self) -> Result<BTreeMap<String, u64>> {
        let vip = Family::V4.vip_port(ECHO);
        let addresses = self.lab.client().sources(vip.ip()).len();
        let mut names = BTreeMap::new();
        for i in 0..NEWCOMERS {
            let mut connection = self.lab.client().connect_from(vip, i % addresses)?;
            *names.entry(connection.exchange("new")?).or_default() += 1;
        }
        Ok(names)
    }

    /// The same for new flows over UDP.
    fn new_flows(&mut self) -> Result<BTreeMap<String, u64>> {
        let run = self
            .lab
            .client()
            .udp(Family::V4.vip_port(ECHO), NEWCOMERS, 8)?;
        self.others += NEWCOMERS as u64;
        Ok(run.ensure_all_answered()?.by_backend())
    }
}
