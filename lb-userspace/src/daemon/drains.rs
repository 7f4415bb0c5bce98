//! Drains that end by themselves: watched, and carried out as the change that an operator would make. When one is over is
//! `state::drain`'s.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::Result;

use super::commands::find_backend;
use super::owner::{Owner, RETRY};
use crate::api::dto::DrainStatus;
use crate::model::{Admin, Affinity, Protocol, Tracking};
use crate::state::drain::{Conditions, End, Flows};
use crate::state::{AdminRecord, BackendRef, Effective, EffectiveBackend};

/// Who ends a drain, as `sluice diff` shows it.
const BY: &str = "sluice";

/// What the daemon keeps of drains beside what the overlay says of them.
#[derive(Debug, Default)]
pub struct Drains {
    watched: HashMap<BackendRef, Watched>,
    /// When the next one is to be looked at, if nothing else happens.
    pub(super) next: Option<Instant>,
    /// Why one that is over could not be ended: said once.
    error: Option<String>,
}

#[derive(Debug)]
struct Watched {
    /// What was asked for; asked for anew it begins anew.
    conditions: Conditions,
    at: Option<u64>,
    /// By the monotonic clock: steps of the wall clock do not matter while the daemon runs.
    deadline: Option<Instant>,
    /// Whole sweeps there had been when no slot sent unknown flows to the backend any more.
    settled: Option<u64>,
}

impl Watched {
    fn new(conditions: Conditions, at: Option<u64>) -> Self {
        Self {
            conditions,
            at,
            deadline: conditions
                .left(at, seconds_since_epoch())
                .map(|left| Instant::now() + left),
            settled: None,
        }
    }

    fn left(&self, now: Instant) -> Option<Duration> {
        self.deadline
            .map(|deadline| deadline.saturating_duration_since(now))
    }
}

impl Owner {
    /// Ends drains that are over. What fails is tried again soon.
    pub(super) fn end_drains(&mut self) {
        self.drains.next = None;
        // Before the tables are in force, or while they are not what they should be, nothing can be said of who has flows.
        if self.waits || !self.carries_traffic || self.apply_error.is_some() {
            return;
        }
        let mut failed = None;
        for (backend, end) in self.drains_over() {
            if let Err(error) = self.end_drain(&backend, end) {
                let (service, address) = &backend;
                failed = Some(format!(
                    "the drain of {address} of {service:?} is over ({end}), but the backend cannot be disabled: {error:#}"
                ));
            }
        }
        if let Some(error) = &failed {
            self.drains.next = Some(Instant::now() + RETRY);
            if self.drains.error != failed {
                tracing::error!("{error}");
            }
        }
        self.drains.error = failed;
    }

    /// Looks at every drain that ends by itself, and says which are over.
    fn drains_over(&mut self) -> Vec<(BackendRef, End)> {
        let mut watched = std::mem::take(&mut self.drains.watched);
        let now = Instant::now();
        let mut still = HashMap::new();
        let mut over = Vec::new();
        for service in self.state.services() {
            for backend in &service.backends {
                let Some(conditions) = backend.admin.until else {
                    continue;
                };
                let key = (service.spec.name.clone(), backend.address);
                let at = backend.admin.at;
                let mut watched = watched
                    .remove(&key)
                    .filter(|old| old.conditions == conditions && old.at == at)
                    .unwrap_or_else(|| Watched::new(conditions, at));
                let mut flows = self.flows_left(service, backend.address);
                if flows.is_complete() {
                    let settled = *watched.settled.get_or_insert(self.sweeps);
                    // One may have been under way.
                    flows.counted |= self.sweeps >= settled + 2;
                } else {
                    watched.settled = None;
                }
                if let Some(end) = conditions.judge(watched.left(now), flows) {
                    over.push((key.clone(), end));
                }
                still.insert(key, watched);
            }
        }
        self.drains.next = still.values().filter_map(|watched| watched.deadline).min();
        self.drains.watched = still;
        over
    }

    fn end_drain(&mut self, (service, address): &BackendRef, end: End) -> Result<()> {
        let old = self
            .state
            .service(service)
            .and_then(|s| s.backend(*address));
        let why = old.and_then(|backend| backend.admin.reason.clone());
        let reason = match why {
            Some(why) => format!("{end} ({why})"),
            None => end.to_string(),
        };
        let message = format!("backend {address} of {service:?} is disabled: {reason}");
        let record = AdminRecord {
            admin: Admin::Disabled,
            reason: Some(reason),
            by: Some(BY.to_owned()),
            at: Some(seconds_since_epoch()),
            until: None,
        };
        let changed = self.commit(|owner| {
            let changed = owner.state.change(|overlay, _, services| {
                overlay.set_admin(find_backend(services, service, *address)?, *address, record);
                Ok(())
            })?;
            Ok((message, changed))
        })?;
        tracing::info!(user = BY, "{}", changed.message);
        Ok(())
    }

    /// What is known of the flows that a backend of this service still has.
    pub(super) fn flows_left(&self, service: &Effective, address: IpAddr) -> Flows {
        let Some(installed) = self.installed.services.get(&service.spec.key) else {
            return Flows {
                counted: true,
                ..Flows::default()
            };
        };
        let nothing_kept = service.spec.tracking == Tracking::Off;
        let id = installed.backends.get(&address).map_or(0, |b| b.id);
        let unlearnt = self.unlearnt(installed);
        Flows {
            // What may be in the table was remembered before tracking was turned off, and is not followed.
            remembered: if nothing_kept { 0 } else { self.remembered(id) },
            unknown_slots: Self::slots_unlearnt(installed, &unlearnt, address),
            counted: nothing_kept || !self.restless,
        }
    }

    pub(super) fn drain_status(
        &self,
        service: &Effective,
        backend: &EffectiveBackend,
    ) -> Option<DrainStatus> {
        let conditions = backend.admin.until?;
        let key = (service.spec.name.clone(), backend.address);
        let left = match self.drains.watched.get(&key) {
            Some(watched) if watched.at == backend.admin.at => watched.left(Instant::now()),
            _ => conditions.left(backend.admin.at, seconds_since_epoch()),
        };
        Some(DrainStatus {
            until_empty: conditions.until_empty,
            timeout_seconds: conditions.timeout.map(|timeout| timeout.as_secs()),
            ends_in_seconds: left.map(|left| left.as_secs()),
        })
    }

    /// What an operator should know who drains this backend now.
    pub(super) fn about_drain(&self, name: &str, address: IpAddr) -> Option<String> {
        let service = self.state.service(name)?;
        let until = service.backend(address)?.admin.until;
        let flows = self.flows_left(service, address);
        let installed = self.installed.services.get(&service.spec.key)?;
        let until_empty = until.is_some_and(|until| until.until_empty);
        if installed.slots_of(address) > 0 {
            return Some(
                "no other backend is eligible, so new flows still go to it (on_empty = \"keep\"), and it does not get empty"
                    .to_owned(),
            );
        }
        if service.spec.tracking == Tracking::Off {
            let then = if until_empty {
                ", so the drain ends at once"
            } else {
                ""
            };
            return Some(format!(
                "no flow of this service is remembered (tracking is off): those that were open went elsewhere at once{then}"
            ));
        }
        let more = if flows.is_complete() {
            ""
        } else {
            " (those that have not spoken since are not counted yet)"
        };
        let mut text =
            format!("{flows} left{more}; `sluice backend list {name}` shows how many still are");
        let idle = humantime::format_duration(service.spec.times.flow_idle);
        if flows.is_complete() {
            // No slot sends it unknown flows.
        } else if service.spec.key.protocol == Protocol::Udp {
            text.push_str(&format!(
                "; it gets new UDP flows for {idle} more at least, for they cannot be told from old ones"
            ));
        } else if service.spec.affinity == Affinity::ClientIp {
            text.push_str(&format!(
                "; clients that have not been seen since go to it for {idle} more at least, for no packet says that a client is new"
            ));
        }
        Some(text)
    }
}

fn seconds_since_epoch() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}
