//! What should be: the file ⊕ the overlay of run-time changes, joined with what probes and netlink say.
//!
//! Pure: no clock but the one passed in, no IO. Owns: who is eligible, and why not. Does not own: how the data plane gets there
//! (`plan`).

mod document;
pub mod drain;
mod eligible;
mod fit;
mod merge;
mod overlay;
mod places;
mod standings;

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use crate::health::ProbeTarget;
use crate::model::{Config, Health, NodeSpec, ServiceKey, ServiceSpec};
use crate::netlink::NextHopState;
use crate::plan::{DesiredBackend, DesiredService};

use places::Heirs;
use standings::Standings;

pub use document::DocumentError;
pub use eligible::{Mute, eligibility, only_down, route, transmits};
pub use merge::{Change, Difference};
pub use overlay::{AdminRecord, ChangeError, Effective, EffectiveBackend, Origin, Overlay, Stamp};

/// What is known of one backend's health.
#[derive(Clone, Debug)]
pub struct Observed {
    pub health: Health,
    pub reason: String,
    pub since: Instant,
}

/// A backend of a service, by name and address.
pub type BackendRef = (String, IpAddr);

/// Everything the control plane knows.
#[derive(Clone, Debug)]
pub struct State {
    node: NodeSpec,
    file: Vec<ServiceSpec>,
    overlay: Overlay,
    /// File ⊕ overlay, kept ready.
    effective: Vec<Effective>,
    /// By backend, not by probe: a reload that changes the probe carries what is known until the new probe's first verdict.
    health: HashMap<BackendRef, Observed>,
    next_hops: HashMap<IpAddr, NextHopState>,
    /// What each backend may be used for, those that were removed and still have flows included.
    standings: Standings,
    /// A next hop is no longer needed since this was last asked.
    let_go: bool,
    heirs: Heirs,
}

impl State {
    /// The file alone, as without any run-time change.
    pub fn new(config: &Config) -> Self {
        Self::restore(config, Overlay::default()).0
    }

    /// The file with run-time changes of an earlier daemon upon it. Those that the file leaves no place for are dropped: the
    /// second value says which, a sentence each.
    pub fn restore(config: &Config, mut overlay: Overlay) -> (Self, Vec<String>) {
        let lost = overlay.fit(&config.services, config.capacity);
        let effective = overlay
            .merge(&config.services)
            .expect("a fitted overlay does not conflict with a checked file");
        let state = Self {
            node: config.node.clone(),
            file: config.services.clone(),
            overlay,
            effective,
            health: HashMap::new(),
            next_hops: HashMap::new(),
            standings: Standings::default(),
            let_go: false,
            heirs: Heirs::default(),
        };
        (state, lost)
    }

    pub fn services(&self) -> &[Effective] {
        &self.effective
    }

    /// What operators changed at run time.
    pub const fn overlay(&self) -> &Overlay {
        &self.overlay
    }

    /// In what all of this differs from the file.
    pub fn differences(&self) -> Vec<Difference> {
        self.overlay.differences(&self.file)
    }

    pub fn service(&self, name: &str) -> Option<&Effective> {
        self.effective
            .iter()
            .find(|service| service.spec.name == name)
    }

    /// Puts another file in the place of the old one; run-time changes, health and next hops stay. Returns which run-time
    /// changes are dropped, because the file no longer has what they were about, a sentence each.
    pub fn reload(&mut self, config: &Config) -> Result<Vec<String>, ChangeError> {
        let mut overlay = self.overlay.clone();
        let lost = overlay.forget_undeclared(&config.services);
        let effective = overlay.merge(&config.services)?;
        self.overlay = overlay;
        self.node = config.node.clone();
        self.file = config.services.clone();
        self.adopt(effective);
        Ok(lost)
    }

    /// Drops every run-time change. Returns what differed from the file.
    pub fn reset(&mut self) -> Vec<Difference> {
        let dropped = self.differences();
        self.overlay = Overlay::default();
        let effective = self
            .overlay
            .merge(&self.file)
            .expect("without run-time changes nothing conflicts with a checked file");
        self.adopt(effective);
        dropped
    }

    /// Makes a run-time change, or none at all. `change` edits a copy of the overlay. `false`: it was so already.
    pub fn change(
        &mut self,
        change: impl FnOnce(&mut Overlay, &[ServiceSpec], &[Effective]) -> Result<(), ChangeError>,
    ) -> Result<bool, ChangeError> {
        let mut overlay = self.overlay.clone();
        change(&mut overlay, &self.file, &self.effective)?;
        // What is as the file says is the file's again. Nothing else can go: a change concerns what is declared.
        overlay.forget_undeclared(&self.file);
        let effective = overlay.merge(&self.file)?;
        let changed = effective != self.effective;
        if changed {
            self.overlay = overlay;
            self.adopt(effective);
        }
        Ok(changed)
    }

    fn adopt(&mut self, effective: Vec<Effective>) {
        self.bequeath(&effective);
        self.effective = effective;
        let known: HashSet<BackendRef> = self.backends().collect();
        self.health.retain(|backend, _| known.contains(backend));
        self.forget_next_hops();
    }

    /// Drops the next hops of addresses that nobody needs any more.
    fn forget_next_hops(&mut self) {
        let addresses = self.addresses();
        self.next_hops
            .retain(|address, _| addresses.contains(address));
    }

    fn backends(&self) -> impl Iterator<Item = BackendRef> + '_ {
        self.effective
            .iter()
            .flat_map(|s| s.backends.iter().map(|b| (s.spec.name.clone(), b.address)))
    }

    /// Addresses whose next hops are needed: those of backends, and of those that were removed while their flows linger.
    pub fn addresses(&self) -> HashSet<IpAddr> {
        let declared = self
            .effective
            .iter()
            .flat_map(|s| s.backends.iter().map(|b| b.address));
        declared
            .chain(self.lingering_at().map(|(_, address)| address))
            .collect()
    }

    /// Whether [`State::addresses`] has become smaller by itself since this was last called: those who watch them must be told, or
    /// they would not tell again of an address that comes back.
    pub fn has_let_go(&mut self) -> bool {
        std::mem::take(&mut self.let_go)
    }

    /// What to probe, and for which backends the result counts.
    pub fn probe_targets(&self) -> HashMap<ProbeTarget, Vec<BackendRef>> {
        let mut targets: HashMap<ProbeTarget, Vec<BackendRef>> = HashMap::new();
        for service in &self.effective {
            for backend in &service.backends {
                let target = probe_target(service.spec.key, &service.spec.health, backend.address);
                targets
                    .entry(target)
                    .or_default()
                    .push((service.spec.name.clone(), backend.address));
            }
        }
        targets
    }

    /// Takes in a verdict of a probe. Returns the backends whose health changed.
    pub fn observe(
        &mut self,
        backends: &[BackendRef],
        health: Health,
        reason: &str,
        now: Instant,
    ) -> Vec<BackendRef> {
        let mut flipped = Vec::new();
        for backend in backends {
            let (service, address) = backend;
            let known = self.service(service).and_then(|s| s.backend(*address));
            if known.is_none() {
                continue;
            }
            let old = self.health.get(backend);
            let since = match old {
                Some(old) if old.health == health => old.since,
                _ => {
                    flipped.push(backend.clone());
                    now
                }
            };
            self.health.insert(
                backend.clone(),
                Observed {
                    health,
                    reason: reason.to_owned(),
                    since,
                },
            );
        }
        flipped
    }

    /// Takes in what netlink says of an address. News of one that is no backend any more comes too late: kept, it would stand
    /// for the truth when the address comes back.
    pub fn set_next_hop(&mut self, address: IpAddr, next_hop: NextHopState) {
        let declared = self.effective.iter().any(|s| s.backend(address).is_some());
        if declared || self.lingering_at().any(|(_, lingers)| lingers == address) {
            self.next_hops.insert(address, next_hop);
        }
    }

    pub fn observed(&self, service: &str, address: IpAddr) -> Option<&Observed> {
        // A look-up by (&str, IpAddr) needs an owned key; these maps are small and this is no hot path.
        self.health.get(&(service.to_owned(), address))
    }

    pub fn next_hop(&self, address: IpAddr) -> Option<&NextHopState> {
        self.next_hops.get(&address)
    }

    pub const fn node(&self) -> &NodeSpec {
        &self.node
    }

    /// Backends of which it is not yet known whether they may get flows.
    pub fn unknown(&self) -> Vec<BackendRef> {
        self.backends()
            .filter(|(service, address)| self.undecided(service, *address))
            .collect()
    }

    /// What the data plane should hold, sorted by service key.
    pub fn desired(&self) -> Vec<DesiredService> {
        let mut lingering = self.lingering();
        let mut desired: Vec<_> = self
            .effective
            .iter()
            .map(|service| {
                let mut desired = self.desired_service(service);
                desired
                    .backends
                    .extend(lingering.remove(&service.spec.key).unwrap_or_default());
                desired
            })
            .collect();
        desired.sort_by_key(|service| service.key);
        desired
    }

    fn desired_service(&self, service: &Effective) -> DesiredService {
        let spec = &service.spec;
        let installed = service
            .backends
            .iter()
            .filter(|backend| !self.is_out(spec.key, backend.address));
        let present = installed.map(|backend| {
            let next_hop = self.next_hop(backend.address);
            let observed = self.observed(&spec.name, backend.address);
            DesiredBackend {
                address: backend.address,
                identity: backend.identity,
                status: self.status(spec.key, backend.address),
                lingers: false,
                weight: backend.weight,
                eligible: eligibility(&self.node, spec, backend, observed, next_hop).is_ok(),
                only_down: only_down(&self.node, spec, backend, observed, next_hop),
                may_keep: backend.admin.admin != crate::model::Admin::Disabled,
                route: route(&self.node, spec, backend.address, next_hop).ok(),
            }
        });
        DesiredService {
            key: spec.key,
            affinity: spec.affinity,
            tracking: spec.tracking,
            flow_idle: crate::plan::idle_units(spec.times.flow_idle),
            table_size: spec.table_size,
            on_empty: spec.on_empty,
            echo: self.node.icmp_echo,
            backends: present.collect(),
        }
    }
}

/// What to probe for a backend. Port 0 in the spec: the service's own.
fn probe_target(
    key: ServiceKey,
    health: &crate::model::HealthSpec,
    address: IpAddr,
) -> ProbeTarget {
    let port = if health.port == 0 {
        key.port
    } else {
        health.port
    };
    ProbeTarget {
        address: SocketAddr::new(address, port),
        kind: health.kind.clone(),
        interval: health.interval,
        timeout: health.timeout,
        rise: health.rise,
        fall: health.fall,
    }
}

#[cfg(test)]
mod tests;
