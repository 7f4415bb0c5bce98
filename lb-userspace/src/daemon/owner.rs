//! The owner loop: the only one who changes state and data plane. Events come in, plans are applied, answers go out.

use std::collections::HashMap;
use std::future::Future;
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime};

use anyhow::Result;
use tokio::signal::unix::Signal;
use tokio::sync::{mpsc, oneshot, watch};

use crate::api::dto::Command;
use crate::dataplane::DataPlane as _;
use crate::dataplane::attach::Attachment;
use crate::dataplane::kernel::KernelDataPlane;
use crate::health::{HealthEvent, ProbeTarget, ProberHandle};
use crate::maglev::Moves;
use crate::metrics::Snapshot;
use crate::model::{Config, ServiceKey};
use crate::netlink::{NextHopEvent, NextHopsHandle};
use crate::plan::{Installed, PlanError};
use crate::state::{BackendRef, State};
use crate::tracking::Tracking;
use crate::tracking::sweep::Tally;

use super::chores::{self, Chores};
use super::overlay::Restored;
use super::store::Store;

/// How long the first plan waits for first verdicts beyond the longest probe timeout: probes start within 0.2 s, next hops
/// are known within 0.5 s.
const FIRST_VERDICTS: Duration = Duration::from_secs(1);
/// A probe that may take longer than this does not hold up the start.
const LONGEST_WAIT: Duration = Duration::from_secs(5);
/// How often interfaces are looked at: one that was deleted and made again has lost its program.
const INTERFACES: Duration = Duration::from_secs(2);
/// A plan that could not be applied is tried again after this.
pub(super) const RETRY: Duration = Duration::from_secs(1);

/// Why the loop ended.
pub enum Ending {
    Signal(&'static str),
    Detached,
}

/// Everything that wakes the loop.
pub struct Inputs {
    pub health: mpsc::Receiver<HealthEvent>,
    pub hops: mpsc::Receiver<NextHopEvent>,
    pub commands: mpsc::Receiver<Command>,
    pub snapshots: mpsc::Receiver<oneshot::Sender<Snapshot>>,
}

pub struct Owner {
    pub(super) config_path: PathBuf,
    pub(super) config: Config,
    pub(super) config_loaded: SystemTime,
    pub(super) config_error: Option<String>,
    pub(super) started: Instant,
    pub(super) state: State,
    /// Run-time changes on disk: what `state` has, whenever a change has been answered.
    pub(super) store: Store,
    pub(super) installed: Installed,
    pub(super) plane: KernelDataPlane,
    pub(super) prober: ProberHandle,
    pub(super) targets: HashMap<ProbeTarget, Vec<BackendRef>>,
    next_hops: NextHopsHandle,
    pub(super) attachments: Vec<Attachment>,
    /// No plan has been applied: not every backend has a verdict and a next hop yet, and it is not late enough to go on without.
    pub(super) waits: bool,
    first_plan_by: Instant,
    /// The data plane may differ from `installed`: a plan was interrupted, or an earlier daemon left it so. The next plan writes
    /// everything.
    pub(super) unsure: bool,
    /// Why the last plan could not be applied.
    pub(super) apply_error: Option<String>,
    pub(super) attach_error: Option<String>,
    pub(super) table_changes: u64,
    /// The program has been attached, perhaps.
    pub(super) carries_traffic: bool,
    /// When a backend's status changes by itself.
    next_turn: Option<Instant>,
    /// Some slot is not at rest, or some flow is remembered.
    pub(super) restless: bool,
    pub(super) next_sweep: Instant,
    /// What the last sweep saw.
    pub(super) tally: Tally,
    pub(super) chores: Chores,
    /// Whole sweeps so far.
    pub(super) sweeps: u64,
    /// Drains that end by themselves.
    pub(super) drains: super::drains::Drains,
    readiness: watch::Sender<Vec<String>>,
}

impl Owner {
    pub fn new(
        config_path: PathBuf,
        config: Config,
        Restored { mut state, store }: Restored,
        (plane, left): (KernelDataPlane, Option<Installed>),
        prober: ProberHandle,
        next_hops: NextHopsHandle,
        readiness: watch::Sender<Vec<String>>,
    ) -> Self {
        let longest = config
            .services
            .iter()
            .map(|s| s.health.timeout)
            .max()
            .unwrap_or_default();
        let carries_traffic = left.is_some();
        let installed = left.unwrap_or_else(|| Installed::new(config.capacity));
        state.carry_on(installed.statuses(), plane.clock(), Instant::now());
        Self {
            config_path,
            config_loaded: SystemTime::now(),
            config_error: None,
            started: Instant::now(),
            state,
            store,
            installed,
            config,
            plane,
            prober,
            targets: HashMap::new(),
            next_hops,
            attachments: Vec::new(),
            first_plan_by: Instant::now() + longest.min(LONGEST_WAIT) + FIRST_VERDICTS,
            waits: true,
            unsure: carries_traffic,
            apply_error: None,
            attach_error: None,
            table_changes: 0,
            carries_traffic,
            next_turn: None,
            restless: carries_traffic,
            next_sweep: Instant::now(),
            tally: Tally::default(),
            chores: Chores::default(),
            sweeps: 0,
            drains: super::drains::Drains::default(),
            readiness,
        }
    }

    pub async fn run(
        &mut self,
        mut inputs: Inputs,
        ending: impl Future<Output = &'static str>,
        reload: &mut Signal,
    ) -> Ending {
        tokio::pin!(ending);
        self.watch();
        self.settle();
        // Moved on by settling only: however busy the other inputs are, what is due comes to its turn.
        let mut wake = self.wake_at();
        loop {
            tokio::select! {
                biased;
                name = &mut ending => return Ending::Signal(name),
                () = tokio::time::sleep_until(wake.into()) => {}
                _ = reload.recv() => {
                    // The outcome is in the log and in `status`.
                    let _ = self.reload();
                }
                Some(event) = inputs.health.recv() => {
                    self.health(event);
                    while let Ok(event) = inputs.health.try_recv() {
                        self.health(event);
                    }
                }
                Some(event) = inputs.hops.recv() => {
                    self.hop(event);
                    while let Ok(event) = inputs.hops.try_recv() {
                        self.hop(event);
                    }
                }
                Some(command) = inputs.commands.recv() => {
                    if let Some(detached) = self.command(command) {
                        return detached;
                    }
                    // A change was applied before it was answered.
                    self.say_whether_ready();
                    // What it set going may be due before all else.
                    wake = wake.min(self.wake_at());
                    continue;
                }
                Some(reply) = inputs.snapshots.recv() => {
                    // A scraper that went away is no concern.
                    let _ = reply.send(self.snapshot());
                    continue;
                }
                // Last: whoever asks for something meanwhile comes first.
                () = tokio::time::sleep(chores::PAUSE), if self.round_under_way() => {
                    self.look_after_flows();
                    continue;
                }
            }
            self.settle();
            wake = self.wake_at();
        }
    }

    /// The next moment something is due without an event.
    fn wake_at(&self) -> Instant {
        let now = Instant::now();
        if self.apply_error.is_some() || self.attach_error.is_some() {
            now + RETRY
        } else if self.waits || self.attachments.is_empty() {
            self.first_plan_by.max(now)
        } else {
            let due = [self.next_turn, self.next_round(), self.drains.next]
                .into_iter()
                .flatten()
                .min();
            (now + INTERFACES)
                .min(due.unwrap_or(now + INTERFACES))
                .max(now)
        }
    }

    /// Brings the data plane to what state says, attaches when it is time, and says whether the node is ready.
    fn settle(&mut self) {
        if self.state.unknown().is_empty() || Instant::now() >= self.first_plan_by {
            self.waits = false;
        }
        let before = self.apply_error.clone();
        if let Err(error) = self.apply() {
            if error.is::<PlanError>() {
                self.apply_what_is_there();
            }
            let text = Some(format!("{error:#}"));
            if before != text {
                tracing::error!("the data plane could not be brought up to date: {error:#}");
            }
            self.apply_error = text;
        }
        self.look_after_flows();
        self.end_drains();
        // What carries traffic goes on as it was, under this daemon's program.
        let due = !self.waits || self.carries_traffic;
        let wanted = &self.config.node.interfaces;
        let missing = self.attach_error.is_some()
            || wanted.len() != self.attachments.len()
            || self
                .attachments
                .iter()
                .any(|attachment| !attachment.stands());
        let in_force = self.apply_error.is_none() || self.carries_traffic;
        if in_force && due && missing {
            let error = self
                .attach(&self.config.clone())
                .err()
                .map(|error| format!("{error:#}"));
            if let Some(error) = &error
                && self.attach_error.as_ref() != Some(error)
            {
                tracing::error!("{error}");
            }
            self.attach_error = error;
        }
        self.say_whether_ready();
    }

    fn look_after_flows(&mut self) {
        if let Err(error) = self.chores() {
            tracing::error!("flows could not be looked after: {error:#}");
        }
    }

    fn say_whether_ready(&self) {
        let not_ready = self.not_ready();
        self.readiness.send_if_modified(|old| {
            let changed = *old != not_ready;
            if changed && not_ready.is_empty() {
                tracing::info!("ready");
            }
            *old = not_ready;
            changed
        });
    }

    /// Plans and applies. Returns what moved.
    pub(super) fn apply(&mut self) -> Result<Moves> {
        self.apply_those(|_, _| true)
    }

    /// When there is no room for all: an earlier daemon left services that are not wanted any more, say. What is there already is looked
    /// after, and what is not wanted makes room for the next attempt.
    fn apply_what_is_there(&mut self) {
        let there = |installed: &Installed, key: &ServiceKey| installed.services.contains_key(key);
        if let Err(error) = self.apply_those(there) {
            tracing::error!("nor could what is in force already: {error:#}");
        }
    }

    /// Plans and applies these services.
    fn apply_those(&mut self, which: impl Fn(&Installed, &ServiceKey) -> bool) -> Result<Moves> {
        let now = self.plane.clock();
        let turn = self.state.advance(now);
        if self.state.has_let_go() {
            self.next_hops.watch(self.state.addresses());
        }
        self.next_turn =
            turn.map(|at| Instant::now() + Duration::from_nanos(at.saturating_sub(now)));
        let mut desired = self.state.desired();
        desired.retain(|service| which(&self.installed, &service.key));
        if !self.carries_traffic {
            // Nobody has a connection through these tables yet. First verdicts come one by one; were they changes, whole tables
            // would be learning for hours after each start.
            for service in &mut desired {
                service.tracking = Tracking::Off;
            }
        }
        let plan = self.installed.plan(&desired, self.unsure)?;
        if self.waits {
            // Planned only to say whether it can be: with few verdicts, whole tables would move to the first that have one.
            self.apply_error = None;
            return Ok(Moves::default());
        }
        if plan.postponed {
            let soon = Instant::now() + RETRY;
            self.next_turn = Some(self.next_turn.map_or(soon, |turn| turn.min(soon)));
        }
        if plan.operations.is_empty() {
            self.installed = plan.after;
            self.apply_error = None;
            return Ok(plan.moves);
        }
        self.before_plan(&plan)?;
        // Grace periods block this thread for some milliseconds.
        tokio::task::block_in_place(|| -> Result<()> {
            for operation in &plan.operations {
                self.before_operation(operation);
                self.plane.apply(operation)?;
            }
            Ok(())
        })
        .inspect_err(|error| {
            // Some operations may have happened: the next plan writes everything, and reuses nothing of this one for others.
            self.installed.interrupted(&plan.after);
            self.unsure = true;
            self.apply_error = Some(format!("{error:#}"));
        })?;
        self.after_plan(&plan.after);
        self.installed = plan.after;
        self.unsure = false;
        self.apply_error = None;
        self.table_changes += plan.tables_changed;
        if plan.tables_changed > 0 {
            tracing::info!(
                tables = plan.tables_changed,
                slots_moved = plan.moves.moved,
                in_excess = plan.moves.excess,
                "lookup tables changed"
            );
        }
        Ok(plan.moves)
    }

    /// Tells probes and netlink what to look at.
    pub(super) fn watch(&mut self) {
        self.targets = self.state.probe_targets();
        // A probe whose settings changed goes on from what the old one found.
        self.prober
            .watch_from(self.targets.iter().map(|(target, backends)| {
                let known = backends
                    .iter()
                    .filter_map(|(service, address)| self.state.observed(service, *address))
                    .map(|observed| (observed.health, observed.reason.clone()));
                (target.clone(), crate::health::agreed(known))
            }));
        self.next_hops.watch(self.state.addresses());
        // A target that was probed for another service has its verdict already.
        for (target, backends) in &self.targets {
            if let Some((health, reason, _)) = self.prober.current(target)
                && health != crate::model::Health::Unknown
            {
                self.state
                    .observe(backends, health, &reason, Instant::now());
            }
        }
    }

    fn health(&mut self, event: HealthEvent) {
        let Some(backends) = self.targets.get(&event.target) else {
            return;
        };
        for (service, address) in
            self.state
                .observe(backends, event.health, &event.reason, Instant::now())
        {
            tracing::info!(service, backend = %address, health = %event.health, reason = event.reason, "health");
        }
    }

    fn hop(&mut self, event: NextHopEvent) {
        if let crate::netlink::NextHopState::Unresolved(why) = &event.state {
            tracing::warn!(backend = %event.address, "next hop unknown: {why}");
        }
        self.state.set_next_hop(event.address, event.state);
    }

    pub(super) fn not_ready(&self) -> Vec<String> {
        let mut reasons = Vec::new();
        reasons.extend(self.apply_error.clone());
        reasons.extend(self.attach_error.clone());
        if (self.attachments.is_empty() || self.waits) && reasons.is_empty() {
            let unknown = self.state.unknown().into_iter().take(5);
            reasons.extend(unknown.map(|(service, address)| {
                format!("backend {address} of {service} has no verdict yet")
            }));
            if reasons.is_empty() {
                reasons.push("not attached yet".to_owned());
            }
        }
        reasons
    }
}
