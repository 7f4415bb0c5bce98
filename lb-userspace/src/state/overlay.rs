//! What operators changed at run time, and the ways to change it. How it lies over the file is `merge`'s, what of it a new
//! file leaves standing is `fit`'s.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::drain::Conditions;
use crate::model::{Admin, BackendSpec, ServiceSpec};

/// Who declared a service or backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    File,
    Runtime,
}

impl Origin {
    pub const fn name(self) -> &'static str {
        match self {
            Self::File => "file",
            Self::Runtime => "runtime",
        }
    }
}

/// Who changed something, and when.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stamp {
    pub by: Option<String>,
    /// Seconds since the Unix epoch.
    pub at: Option<u64>,
}

/// The operator's last word on a backend: what, why, who, when.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AdminRecord {
    pub admin: Admin,
    pub reason: Option<String>,
    pub by: Option<String>,
    /// Seconds since the Unix epoch.
    pub at: Option<u64>,
    /// Of a drain: when it ends by itself, if it does.
    pub until: Option<Conditions>,
}

impl AdminRecord {
    /// `draining until empty`, `disabled`
    pub fn said(&self) -> String {
        match self.until {
            Some(until) => format!("{} {until}", self.admin),
            None => self.admin.to_string(),
        }
    }
}

/// A backend with everything the operator said of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EffectiveBackend {
    pub address: IpAddr,
    /// What the lookup table is made from: its own address, or that of one which it replaced.
    pub identity: IpAddr,
    pub weight: u32,
    pub admin: AdminRecord,
    pub origin: Origin,
}

/// A service with everything the operator said of it. `spec.backends` is as declared; `backends` is what holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Effective {
    pub spec: ServiceSpec,
    pub origin: Origin,
    pub backends: Vec<EffectiveBackend>,
}

impl Effective {
    pub fn backend(&self, address: IpAddr) -> Option<&EffectiveBackend> {
        self.backends
            .iter()
            .find(|backend| backend.address == address)
    }
}

/// Why a change is refused. Nothing has changed then.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChangeError {
    #[error("{0}")]
    NotFound(String),
    #[error("{0}")]
    Conflict(String),
    #[error("{0}")]
    Invalid(String),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct AddedService {
    pub spec: ServiceSpec,
    pub stamp: Stamp,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Presence {
    /// As the service is declared.
    Declared,
    Added {
        weight: u32,
        stamp: Stamp,
    },
    Removed(Stamp),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct BackendChange {
    pub presence: Presence,
    /// The identity of one that it replaced.
    pub place: Option<(IpAddr, Stamp)>,
    pub weight: Option<(u32, Stamp)>,
    pub admin: Option<AdminRecord>,
}

impl BackendChange {
    pub(super) const fn of(presence: Presence) -> Self {
        Self {
            presence,
            place: None,
            weight: None,
            admin: None,
        }
    }
}

/// Run-time changes. They survive a reload of the file and, stored (`document`), the daemon.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Overlay {
    pub(super) added: BTreeMap<String, AddedService>,
    /// Services of the file that were removed, by name.
    pub(super) removed: BTreeMap<String, Stamp>,
    pub(super) backends: BTreeMap<(String, IpAddr), BackendChange>,
}

impl Overlay {
    pub fn is_empty(&self) -> bool {
        self.added.is_empty() && self.removed.is_empty() && self.backends.is_empty()
    }

    pub fn add_service(&mut self, spec: ServiceSpec, stamp: Stamp) -> Result<(), ChangeError> {
        // A service of the file that was removed and comes back with other settings is an added one; its name stays removed.
        if self.added.contains_key(&spec.name) {
            return Err(ChangeError::Conflict(format!(
                "service {:?} exists already",
                spec.name
            )));
        }
        self.forget_backends(&spec.name);
        self.added
            .insert(spec.name.clone(), AddedService { spec, stamp });
        Ok(())
    }

    pub fn remove_service(
        &mut self,
        name: &str,
        file: &[ServiceSpec],
        stamp: Stamp,
    ) -> Result<(), ChangeError> {
        let was_added = self.added.remove(name).is_some();
        let in_file = file.iter().any(|spec| spec.name == name);
        let hidden = self.removed.contains_key(name);
        if !was_added && (!in_file || hidden) {
            return Err(ChangeError::NotFound(format!(
                "there is no service {name:?}"
            )));
        }
        if in_file && !hidden {
            self.removed.insert(name.to_owned(), stamp);
        }
        self.forget_backends(name);
        Ok(())
    }

    pub(super) fn forget_backends(&mut self, service: &str) {
        self.backends.retain(|(name, _), _| name != service);
    }

    pub fn add_backend(
        &mut self,
        service: &Effective,
        backend: &BackendSpec,
        stamp: Stamp,
    ) -> Result<(), ChangeError> {
        let name = &service.spec.name;
        if service.backend(backend.address).is_some() {
            return Err(ChangeError::Conflict(format!(
                "service {name:?} has backend {} already",
                backend.address
            )));
        }
        let place = backend.replaces.map(|place| (place, stamp.clone()));
        // One of the file's that was removed comes back, with the weight asked for now.
        let change = if declares(&service.spec, backend.address) {
            BackendChange {
                place,
                weight: Some((backend.weight, stamp)),
                ..BackendChange::of(Presence::Declared)
            }
        } else {
            BackendChange {
                place,
                ..BackendChange::of(Presence::Added {
                    weight: backend.weight,
                    stamp,
                })
            }
        };
        self.backends
            .insert((name.clone(), backend.address), change);
        Ok(())
    }

    pub fn remove_backend(&mut self, service: &Effective, address: IpAddr, stamp: Stamp) {
        let key = (service.spec.name.clone(), address);
        if declares(&service.spec, address) {
            let change = BackendChange::of(Presence::Removed(stamp));
            self.backends.insert(key, change);
        } else {
            self.backends.remove(&key);
        }
    }

    pub fn set_weight(&mut self, service: &Effective, address: IpAddr, weight: u32, stamp: Stamp) {
        self.entry(service, address).weight = Some((weight, stamp));
    }

    pub fn set_admin(&mut self, service: &Effective, address: IpAddr, record: AdminRecord) {
        self.entry(service, address).admin = Some(record);
    }

    fn entry(&mut self, service: &Effective, address: IpAddr) -> &mut BackendChange {
        self.backends
            .entry((service.spec.name.clone(), address))
            .or_insert(BackendChange::of(Presence::Declared))
    }
}

/// Whether the declaration itself names this backend.
pub(super) fn declares(spec: &ServiceSpec, address: IpAddr) -> bool {
    spec.backends.iter().any(|b| b.address == address)
}
