//! The owner loop: the only one who changes state and data plane. Events come in, plans are applied, answers go out.

use std::collections::HashMap;
use std::future::Future;
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime};

use anyhow::Result;
use lb_common::abi::BackendCounters;
use tokio::signal::unix::Signal;
use tokio::sync::{mpsc, oneshot, watch};

use crate::api::dto::Command;
use crate::dataplane::attach::{self, Attachment, BALANCER_PREFIX};
use crate::dataplane::kernel::KernelDataPlane;
use crate::dataplane::{DataPlane as _, Operation, pin_directory};
use crate::health::{HealthEvent, ProbeTarget, ProberHandle};
use crate::maglev::Moves;
use crate::metrics::Snapshot;
use crate::model::Config;
use crate::netlink::{NextHopEvent, NextHopsHandle};
use crate::plan::Installed;
use crate::state::{BackendRef, State};
use crate::tracking::Tracking;
use crate::tracking::sweep::Tally;

use super::overlay::Restored;
use super::store::Store;

/// How long the first attachment waits for first verdicts beyond the longest probe timeout: probes start within 0.2 s, next hops
/// are known within 0.5 s.
const FIRST_VERDICTS: Duration = Duration::from_secs(1);
/// A probe that may take longer than this does not hold up the start …
const LONGEST_WAIT: Duration = Duration::from_secs(5);
/// … but while an older program is forwarding there is no hurry to replace it by one that knows less.
const LONGEST_WAIT_TO_REPLACE: Duration = Duration::from_secs(60);
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
    /// When the data path is attached even if not every backend has a verdict.
    attach_by: Instant,
    /// Why the last plan could not be applied; then every slot is written again.
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
    /// Whole sweeps so far.
    pub(super) sweeps: u64,
    /// Drains that end by themselves.
    pub(super) drains: super::drains::Drains,
    /// Counted for backends whose ids are gone.
    pub(super) retired: BackendCounters,
    readiness: watch::Sender<Vec<String>>,
}

impl Owner {
    pub fn new(
        config_path: PathBuf,
        config: Config,
        Restored { state, store }: Restored,
        plane: KernelDataPlane,
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
        let patience = if attach::is_pinned(&pin_directory(&config.node.pin), BALANCER_PREFIX) {
            LONGEST_WAIT_TO_REPLACE
        } else {
            LONGEST_WAIT
        };
        Self {
            config_path,
            config_loaded: SystemTime::now(),
            config_error: None,
            started: Instant::now(),
            state,
            store,
            installed: Installed::new(config.capacity),
            config,
            plane,
            prober,
            targets: HashMap::new(),
            next_hops,
            attachments: Vec::new(),
            attach_by: Instant::now() + longest.min(patience) + FIRST_VERDICTS,
            apply_error: None,
            attach_error: None,
            table_changes: 0,
            carries_traffic: false,
            next_turn: None,
            restless: false,
            next_sweep: Instant::now(),
            tally: Tally::default(),
            sweeps: 0,
            drains: super::drains::Drains::default(),
            retired: BackendCounters::default(),
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
        } else if self.attachments.is_empty() {
            self.attach_by.max(now)
        } else {
            let sweep = self.restless.then_some(self.next_sweep);
            let due = [self.next_turn, sweep, self.drains.next]
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
        let before = self.apply_error.clone();
        if let Err(error) = self.apply() {
            let text = Some(format!("{error:#}"));
            if before != text {
                tracing::error!("the data plane could not be brought up to date: {error:#}");
            }
            self.apply_error = text;
        }
        if let Err(error) = self.chores() {
            tracing::error!("flows could not be looked after: {error:#}");
        }
        self.end_drains();
        let due = self.state.unknown().is_empty() || Instant::now() >= self.attach_by;
        let wanted = &self.config.node.interfaces;
        let missing = self.attach_error.is_some()
            || wanted.len() != self.attachments.len()
            || self
                .attachments
                .iter()
                .any(|attachment| !attachment.stands());
        if self.apply_error.is_none() && due && missing {
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
        let now = self.plane.clock();
        let turn = self.state.advance(now);
        self.next_turn =
            turn.map(|at| Instant::now() + Duration::from_nanos(at.saturating_sub(now)));
        let mut desired = self.state.desired();
        if !self.carries_traffic {
            // Nobody has a connection through these tables yet. First verdicts come one by one; were they changes, whole tables
            // would be learning for hours after each start.
            for service in &mut desired {
                service.tracking = Tracking::Off;
            }
        }
        let plan = self.installed.plan(&desired, self.apply_error.is_some())?;
        if plan.postponed {
            let soon = Instant::now() + RETRY;
            self.next_turn = Some(self.next_turn.map_or(soon, |turn| turn.min(soon)));
        }
        if plan.operations.is_empty() {
            self.installed = plan.after;
            return Ok(plan.moves);
        }
        // Grace periods block this thread for some milliseconds.
        tokio::task::block_in_place(|| -> Result<()> {
            for operation in &plan.operations {
                if operation.unsettles() && !self.restless {
                    self.restless = true;
                    self.next_sweep = Instant::now() + super::chores::SWEEP;
                }
                let Operation::ClearBackend { id } = operation else {
                    self.plane.apply(operation)?;
                    continue;
                };
                let last = self.plane.backend_counters(*id);
                self.plane.apply(operation)?;
                self.retired.packets += last.packets;
                self.retired.bytes += last.bytes;
                self.retired.flows += last.flows;
            }
            Ok(())
        })
        .inspect_err(|error| {
            // Some operations may have happened: the next plan writes everything, and reuses nothing of this one for others.
            self.installed.interrupted(&plan.after);
            self.apply_error = Some(format!("{error:#}"));
        })?;
        self.installed = plan.after;
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
        if self.attachments.is_empty() && reasons.is_empty() {
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
