//! The file ⊕ the overlay: what holds, and how it differs from the file.

use std::collections::HashMap;
use std::net::IpAddr;

use super::overlay::{
    BackendChange, ChangeError, Effective, EffectiveBackend, Origin, Overlay, Presence, Stamp,
    declares,
};
use super::places;
use crate::model::{Admin, BackendSpec, ServiceKey, ServiceSpec};

impl Overlay {
    /// The file with the overlay upon it.
    ///
    /// # Errors
    /// When a service of the file collides with one added at run time, or a backend's place with another's.
    pub fn merge(&self, file: &[ServiceSpec]) -> Result<Vec<Effective>, ChangeError> {
        let mut names: HashMap<&str, Origin> = HashMap::new();
        let mut keys: HashMap<ServiceKey, &str> = HashMap::new();
        let mut services = Vec::new();
        for (spec, origin) in self.declared(file) {
            if names.insert(&spec.name, origin).is_some() {
                return Err(ChangeError::Conflict(format!(
                    "service {:?} is in the file and was also added at run time, with other settings; remove the added one first: \
                     `sluice service remove {}`",
                    spec.name, spec.name
                )));
            }
            if let Some(other) = keys.insert(spec.key, &spec.name) {
                return Err(ChangeError::Conflict(format!(
                    "service {:?} wants {}, which service {other:?} has already; choose another address, port or protocol for one of them, or remove one",
                    spec.name, spec.key
                )));
            }
            let backends = self.merge_backends(spec);
            places::check(&spec.name, &backends)?;
            services.push(Effective {
                spec: spec.clone(),
                origin,
                backends,
            });
        }
        Ok(services)
    }

    /// Every service that is declared and not removed, the file's first.
    pub(super) fn declared<'a>(
        &'a self,
        file: &'a [ServiceSpec],
    ) -> impl Iterator<Item = (&'a ServiceSpec, Origin)> {
        let kept = file
            .iter()
            .filter(|spec| !self.removed.contains_key(&spec.name))
            .map(|spec| (spec, Origin::File));
        let added = self.added.values().map(|a| (&a.spec, Origin::Runtime));
        kept.chain(added)
    }

    pub(super) fn merge_backends(&self, spec: &ServiceSpec) -> Vec<EffectiveBackend> {
        let change = |address| self.backends.get(&(spec.name.clone(), address));
        let make = |said: BackendSpec, origin, change: Option<&BackendChange>| EffectiveBackend {
            address: said.address,
            identity: change
                .and_then(|c| c.place.as_ref())
                .map_or_else(|| said.identity(), |(place, _)| *place),
            weight: change
                .and_then(|c| c.weight.as_ref())
                .map_or(said.weight, |(weight, _)| *weight),
            admin: change.and_then(|c| c.admin.clone()).unwrap_or_default(),
            origin,
        };
        let mut backends: Vec<_> = spec
            .backends
            .iter()
            .filter_map(|backend| {
                let change = change(backend.address);
                let gone = change.is_some_and(|c| matches!(c.presence, Presence::Removed(_)));
                (!gone).then(|| make(backend.clone(), Origin::File, change))
            })
            .collect();
        for ((service, address), change) in &self.backends {
            if let Presence::Added { weight, .. } = change.presence
                && *service == spec.name
                && !declares(spec, *address)
            {
                let said = BackendSpec {
                    address: *address,
                    weight,
                    replaces: None,
                };
                backends.push(make(said, Origin::Runtime, Some(change)));
            }
        }
        backends
    }

    /// What differs from the file, in the order of `sluice diff`: services, then backends. That somebody made a backend active
    /// again is kept (with reason, user and time), but is no difference.
    pub fn differences(&self, file: &[ServiceSpec]) -> Vec<Difference> {
        let mut rows = Vec::new();
        for (name, stamp) in &self.removed {
            let was = file.iter().find(|spec| spec.name == *name);
            let was = was.map(|spec| spec.key.to_string());
            rows.push(Difference::new(
                name,
                None,
                Change::ServiceRemoved,
                was,
                None,
                stamp,
            ));
        }
        for (name, added) in &self.added {
            let now = Some(added.spec.key.to_string());
            rows.push(Difference::new(
                name,
                None,
                Change::ServiceAdded,
                None,
                now,
                &added.stamp,
            ));
        }
        for ((name, address), change) in &self.backends {
            let declared = file
                .iter()
                .filter(|spec| !self.removed.contains_key(&spec.name) && spec.name == *name)
                .flat_map(|spec| &spec.backends)
                .find(|backend| backend.address == *address);
            let weight = |weight: u32| Some(format!("weight {weight}"));
            let row = |what, file, now, stamp| {
                Difference::new(name, Some(*address), what, file, now, stamp)
            };
            let said = declared.and_then(|b| weight(b.weight));
            let place = |place: IpAddr| {
                let own = place == *address;
                (!own).then(|| format!("in the place of {place}"))
            };
            match &change.presence {
                Presence::Declared => {
                    if let Some((now, stamp)) = &change.place {
                        let file = declared.and_then(|b| place(b.identity()));
                        rows.push(row(Change::Place, file, place(*now), stamp));
                    }
                }
                Presence::Added { weight: w, stamp } => {
                    let place = change.place.as_ref().and_then(|(now, _)| place(*now));
                    let now = [weight(*w), place].into_iter().flatten();
                    let now = Some(now.collect::<Vec<_>>().join(", "));
                    rows.push(row(Change::BackendAdded, None, now, stamp));
                }
                Presence::Removed(stamp) => {
                    rows.push(row(Change::BackendRemoved, said.clone(), None, stamp));
                }
            }
            if let Some((w, stamp)) = &change.weight {
                rows.push(row(Change::Weight, said, weight(*w), stamp));
            }
            if let Some(record) = &change.admin
                && record.admin != Admin::Active
            {
                let stamp = Stamp {
                    by: record.by.clone(),
                    at: record.at,
                };
                let file = declared.map(|_| Admin::Active.to_string());
                rows.push(Difference {
                    reason: record.reason.clone(),
                    ..row(Change::Admin, file, Some(record.said()), &stamp)
                });
            }
        }
        rows
    }
}

/// What kind of thing differs from the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    ServiceAdded,
    ServiceRemoved,
    BackendAdded,
    BackendRemoved,
    /// Whose place in the lookup table a backend has.
    Place,
    Weight,
    /// Draining or disabled. No key of the file says that.
    Admin,
}

/// One thing in which what holds differs from the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    pub change: Change,
    pub service: String,
    pub backend: Option<IpAddr>,
    /// What the file says; `None`: nothing.
    pub file: Option<String>,
    /// What holds instead; `None`: it is gone.
    pub now: Option<String>,
    pub reason: Option<String>,
    pub stamp: Stamp,
}

impl Difference {
    fn new(
        service: &str,
        backend: Option<IpAddr>,
        change: Change,
        file: Option<String>,
        now: Option<String>,
        stamp: &Stamp,
    ) -> Self {
        Self {
            change,
            service: service.to_owned(),
            backend,
            file,
            now,
            reason: None,
            stamp: stamp.clone(),
        }
    }
}

impl Effective {
    /// As a file would have to declare it for the same to hold.
    pub fn folded(&self) -> ServiceSpec {
        fold(&self.spec, &self.backends)
    }
}

pub(super) fn fold(spec: &ServiceSpec, backends: &[EffectiveBackend]) -> ServiceSpec {
    let backend = |b: &EffectiveBackend| BackendSpec {
        address: b.address,
        weight: b.weight,
        replaces: (b.identity != b.address).then_some(b.identity),
    };
    ServiceSpec {
        backends: backends.iter().map(backend).collect(),
        ..spec.clone()
    }
}
