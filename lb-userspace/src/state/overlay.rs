//! What operators changed at run time, and how it lies over the file.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use crate::model::{Admin, BackendSpec, ServiceKey, ServiceSpec};

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

/// The operator's last word on a backend: what, why, who, when.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AdminRecord {
    pub admin: Admin,
    pub reason: Option<String>,
    pub by: Option<String>,
    /// Seconds since the Unix epoch.
    pub at: Option<u64>,
}

/// A backend with everything the operator said of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EffectiveBackend {
    pub address: IpAddr,
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
enum Presence {
    /// As the file says.
    Declared,
    Added {
        weight: u32,
    },
    Removed,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct BackendChange {
    presence: Presence,
    weight: Option<u32>,
    admin: Option<AdminRecord>,
}

/// Run-time changes. Held in memory: they survive a reload of the file, not a restart of the daemon.
#[derive(Clone, Debug, Default)]
pub struct Overlay {
    added: BTreeMap<String, ServiceSpec>,
    /// Names of services of the file that were removed.
    removed: Vec<String>,
    backends: BTreeMap<(String, IpAddr), BackendChange>,
}

impl Overlay {
    /// The file with the overlay upon it.
    ///
    /// # Errors
    /// When a service of the file collides with one added at run time.
    pub fn merge(&self, file: &[ServiceSpec]) -> Result<Vec<Effective>, ChangeError> {
        let kept = file
            .iter()
            .filter(|spec| !self.removed.contains(&spec.name))
            .map(|spec| (spec, Origin::File));
        let added = self.added.values().map(|spec| (spec, Origin::Runtime));
        let mut names: HashMap<&str, Origin> = HashMap::new();
        let mut keys: HashMap<ServiceKey, &str> = HashMap::new();
        let mut services = Vec::new();
        for (spec, origin) in kept.chain(added) {
            if names.insert(&spec.name, origin).is_some() {
                return Err(ChangeError::Conflict(format!(
                    "service {:?} is in the file and was also added at run time; remove the added one first: `sluice service remove {}`",
                    spec.name, spec.name
                )));
            }
            if let Some(other) = keys.insert(spec.key, &spec.name) {
                return Err(ChangeError::Conflict(format!(
                    "service {:?} wants {}, which service {other:?} has already; choose another address, port or protocol for one of them, or remove one",
                    spec.name, spec.key
                )));
            }
            services.push(Effective {
                spec: spec.clone(),
                origin,
                backends: self.merge_backends(spec),
            });
        }
        Ok(services)
    }

    fn merge_backends(&self, spec: &ServiceSpec) -> Vec<EffectiveBackend> {
        let change = |address| self.backends.get(&(spec.name.clone(), address));
        let make = |address, weight, origin, change: Option<&BackendChange>| EffectiveBackend {
            address,
            weight: change.and_then(|c| c.weight).unwrap_or(weight),
            admin: change.and_then(|c| c.admin.clone()).unwrap_or_default(),
            origin,
        };
        let mut backends: Vec<_> = spec
            .backends
            .iter()
            .filter_map(|backend| {
                let change = change(backend.address);
                let gone = change.is_some_and(|c| c.presence == Presence::Removed);
                (!gone).then(|| make(backend.address, backend.weight, Origin::File, change))
            })
            .collect();
        for ((service, address), change) in &self.backends {
            let declared = spec.backends.iter().any(|b| b.address == *address);
            if let Presence::Added { weight } = change.presence
                && *service == spec.name
                && !declared
            {
                backends.push(make(*address, weight, Origin::Runtime, Some(change)));
            }
        }
        backends
    }

    /// How many things differ from the file.
    pub fn changes(&self) -> usize {
        self.added.len() + self.removed.len() + self.backends.len()
    }

    pub fn add_service(&mut self, spec: ServiceSpec) -> Result<(), ChangeError> {
        // A service of the file that was removed and comes back with other settings is an added one; its name stays removed.
        if self.added.contains_key(&spec.name) {
            return Err(ChangeError::Conflict(format!(
                "service {:?} exists already",
                spec.name
            )));
        }
        self.forget_backends(&spec.name);
        self.added.insert(spec.name.clone(), spec);
        Ok(())
    }

    pub fn remove_service(&mut self, name: &str, file: &[ServiceSpec]) -> Result<(), ChangeError> {
        let was_added = self.added.remove(name).is_some();
        let in_file = file.iter().any(|spec| spec.name == name);
        let hidden = self.removed.iter().any(|removed| removed == name);
        if !was_added && (!in_file || hidden) {
            return Err(ChangeError::NotFound(format!(
                "there is no service {name:?}"
            )));
        }
        if in_file && !hidden {
            self.removed.push(name.to_owned());
        }
        self.forget_backends(name);
        Ok(())
    }

    /// Forgets what was said of services and backends that `file`, newly read, does not declare (any more): whoever declares
    /// them again means something new. What was added at run time and stands in the file now is the file's.
    pub(super) fn forget_undeclared(&mut self, file: &[ServiceSpec]) {
        self.removed
            .retain(|name| file.iter().any(|spec| spec.name == *name));
        let services: HashMap<&str, &ServiceSpec> = file
            .iter()
            .filter(|spec| !self.removed.contains(&spec.name))
            .chain(self.added.values())
            .map(|spec| (spec.name.as_str(), spec))
            .collect();
        self.backends.retain(|(name, address), change| {
            let Some(spec) = services.get(name.as_str()) else {
                return false;
            };
            let declared = spec.backends.iter().any(|b| b.address == *address);
            if declared && matches!(change.presence, Presence::Added { .. }) {
                change.presence = Presence::Declared;
            }
            declared || matches!(change.presence, Presence::Added { .. })
        });
    }

    fn forget_backends(&mut self, service: &str) {
        self.backends.retain(|(name, _), _| name != service);
    }

    pub fn add_backend(
        &mut self,
        service: &Effective,
        backend: &BackendSpec,
    ) -> Result<(), ChangeError> {
        let name = &service.spec.name;
        if service.backend(backend.address).is_some() {
            return Err(ChangeError::Conflict(format!(
                "service {name:?} has backend {} already",
                backend.address
            )));
        }
        let declared = service
            .spec
            .backends
            .iter()
            .any(|b| b.address == backend.address);
        // One of the file's that was removed comes back, with the weight asked for now.
        let change = if declared {
            BackendChange {
                presence: Presence::Declared,
                weight: Some(backend.weight),
                admin: None,
            }
        } else {
            BackendChange {
                presence: Presence::Added {
                    weight: backend.weight,
                },
                weight: None,
                admin: None,
            }
        };
        self.backends
            .insert((name.clone(), backend.address), change);
        Ok(())
    }

    pub fn remove_backend(
        &mut self,
        service: &Effective,
        address: IpAddr,
    ) -> Result<(), ChangeError> {
        let key = (service.spec.name.clone(), address);
        if service.spec.backends.iter().any(|b| b.address == address) {
            self.backends.insert(
                key,
                BackendChange {
                    presence: Presence::Removed,
                    weight: None,
                    admin: None,
                },
            );
        } else {
            self.backends.remove(&key);
        }
        Ok(())
    }

    pub fn set_weight(&mut self, service: &Effective, address: IpAddr, weight: u32) {
        self.entry(service, address).weight = Some(weight);
    }

    pub fn set_admin(&mut self, service: &Effective, address: IpAddr, record: AdminRecord) {
        self.entry(service, address).admin = Some(record);
    }

    fn entry(&mut self, service: &Effective, address: IpAddr) -> &mut BackendChange {
        self.backends
            .entry((service.spec.name.clone(), address))
            .or_insert(BackendChange {
                presence: Presence::Declared,
                weight: None,
                admin: None,
            })
    }
}
