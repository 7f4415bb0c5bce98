//! What of the overlay a file, newly read, leaves standing.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

use super::merge::fold;
use super::overlay::{BackendChange, Overlay, Presence, declares};
use crate::model::{Admin, Capacity, ServiceKey, ServiceSpec};

impl Overlay {
    /// Forgets what was said of services and backends that `file` does not declare (any more): whoever declares them again
    /// means something new. What was added at run time and stands in the file now is the file's. Returns what was lost thereby,
    /// a sentence each; that something removed has left the file too is no loss.
    pub(super) fn forget_undeclared(&mut self, file: &[ServiceSpec]) -> Vec<String> {
        self.give_to(file);
        self.removed
            .retain(|name, _| file.iter().any(|spec| spec.name == *name));
        let services: HashMap<String, ServiceSpec> = self
            .declared(file)
            .map(|(spec, _)| (spec.name.clone(), spec.clone()))
            .collect();
        let mut lost = Vec::new();
        self.backends.retain(|(name, address), change| {
            let Some(spec) = services.get(name) else {
                let why = format!("the file does not have service {name:?}");
                lost.extend(loss(name, *address, change, &why));
                return false;
            };
            let declared = declares(spec, *address);
            if declared && matches!(change.presence, Presence::Added { .. }) {
                change.presence = Presence::Declared;
                change.place = None;
            }
            let stays = declared || matches!(change.presence, Presence::Added { .. });
            if !stays {
                lost.extend(loss(name, *address, change, "the file does not have it"));
            }
            stays
        });
        self.tidy(file);
        lost
    }

    /// Services added at run time that the file now declares as they are (`sluice save`, then `sluice reload`) are the file's.
    fn give_to(&mut self, file: &[ServiceSpec]) {
        let sorted = |mut spec: ServiceSpec| {
            spec.backends.sort_by_key(|backend| backend.address);
            spec
        };
        for spec in file {
            let Some(added) = self.added.get(&spec.name) else {
                continue;
            };
            let holds = fold(&added.spec, &self.merge_backends(&added.spec));
            if sorted(holds) == sorted(spec.clone()) {
                self.added.remove(&spec.name);
                self.removed.remove(&spec.name);
            }
        }
    }

    /// Forgets what is as the file says anyway: the file's next word on it is to count.
    fn tidy(&mut self, file: &[ServiceSpec]) {
        let declared: HashMap<(String, IpAddr), (u32, IpAddr)> = self
            .declared(file)
            .flat_map(|(spec, _)| {
                let name = &spec.name;
                spec.backends
                    .iter()
                    .map(move |b| ((name.clone(), b.address), (b.weight, b.identity())))
            })
            .collect();
        self.backends.retain(|backend, change| {
            let said = match change.presence {
                Presence::Added { weight, .. } => Some((weight, backend.1)),
                _ => declared.get(backend).copied(),
            };
            let (weight, place) = said.unzip();
            change.weight.take_if(|(now, _)| Some(*now) == weight);
            change.place.take_if(|(now, _)| Some(*now) == place);
            change.presence != Presence::Declared
                || change.place.is_some()
                || change.weight.is_some()
                || change.admin.is_some()
        });
    }

    /// Fits the overlay to a file it may never have met: what [`Overlay::forget_undeclared`] does, and the file wins where a
    /// service added at run time wants a name or VIP of the file's, or more than the maps hold. Then it merges. Returns what was
    /// lost, a sentence each.
    pub(super) fn fit(&mut self, file: &[ServiceSpec], capacity: Capacity) -> Vec<String> {
        self.give_to(file);
        let mut lost = self.yield_to(file);
        lost.extend(self.forget_undeclared(file));
        lost.extend(self.yield_places(file));
        self.tidy(file);
        lost.extend(self.shed(file, capacity));
        lost
    }

    fn yield_to(&mut self, file: &[ServiceSpec]) -> Vec<String> {
        let kept = file
            .iter()
            .filter(|spec| !self.removed.contains_key(&spec.name));
        let mut keys: HashMap<ServiceKey, String> = HashMap::new();
        let mut names = HashSet::new();
        for spec in kept {
            keys.insert(spec.key, spec.name.clone());
            names.insert(spec.name.clone());
        }
        let mut lost = Vec::new();
        for added in self.added.clone().into_values() {
            let (name, key) = (added.spec.name, added.spec.key);
            if names.contains(&name) {
                lost.push(format!(
                    "service {name:?}, added at run time at {key}: the file has a service of this name with other settings"
                ));
                self.added.remove(&name);
                lost.extend(self.leave_admin(&name));
            } else if let Some(other) = keys.get(&key) {
                lost.push(format!(
                    "service {name:?}, added at run time: service {other:?} has {key}"
                ));
                self.added.remove(&name);
                self.forget_backends(&name);
            } else {
                keys.insert(key, name);
            }
        }
        lost
    }

    /// Another service took the name: who was drained stays drained, whatever else was said was said of the other.
    fn leave_admin(&mut self, service: &str) -> Vec<String> {
        let mut lost = Vec::new();
        self.backends.retain(|(name, address), change| {
            if name != service {
                return true;
            }
            let rest = BackendChange {
                admin: None,
                ..change.clone()
            };
            lost.extend(loss(name, *address, &rest, "it was another service's"));
            change.presence = Presence::Declared;
            change.weight = None;
            change.place = None;
            change.admin.is_some()
        });
        lost
    }

    /// Drops run-time additions until the rest has room: the file was checked against its capacity without them.
    fn shed(&mut self, file: &[ServiceSpec], capacity: Capacity) -> Vec<String> {
        let mut lost = Vec::new();
        while let Some(key) = self.exceeded(file, capacity) {
            let why = format!("there is no room, capacity.{key} is too small");
            let added = |(_, change): &(&(String, IpAddr), &BackendChange)| {
                matches!(change.presence, Presence::Added { .. })
            };
            let backend = self.backends.iter().rev().find(added);
            if let Some((backend, change)) = backend.map(|(b, c)| (b.clone(), c.clone())) {
                lost.extend(loss(&backend.0, backend.1, &change, &why));
                self.backends.remove(&backend);
            } else if let Some((name, added)) = self.added.pop_last() {
                lost.push(format!(
                    "service {name:?}, added at run time at {}: {why}",
                    added.spec.key
                ));
                self.forget_backends(&name);
            } else {
                // What the file alone needs was checked when it was read.
                break;
            }
        }
        lost
    }

    fn exceeded(&self, file: &[ServiceSpec], capacity: Capacity) -> Option<&'static str> {
        let (mut services, mut backends, mut slots) = (0, 0, 0);
        for (spec, _) in self.declared(file) {
            let holds = self.merge_backends(spec).len();
            services += 1_u64;
            backends += holds as u64;
            slots += u64::from(spec.table_size.resolve(holds));
        }
        [
            ("services", services, capacity.services),
            ("backends", backends, capacity.backends),
            ("slots", slots, capacity.slots),
        ]
        .into_iter()
        .find(|&(_, needed, limit)| needed > u64::from(limit))
        .map(|(key, _, _)| key)
    }
}

/// What is lost with a change to a backend, a sentence each.
fn loss(service: &str, address: IpAddr, change: &BackendChange, why: &str) -> Vec<String> {
    let mut lost = Vec::new();
    let mut say = |what: String| {
        lost.push(format!("backend {address} of {service:?}, {what}: {why}"));
    };
    if let Presence::Added { weight, .. } = change.presence {
        say(format!("added at run time with weight {weight}"));
    }
    if let Some((place, _)) = change.place {
        say(format!("put in the place of {place} at run time"));
    }
    if let Some((weight, _)) = change.weight {
        say(format!("given weight {weight} at run time"));
    }
    if let Some(record) = &change.admin
        && record.admin != Admin::Active
    {
        let reason = record.reason.as_deref();
        let reason = reason.map_or_else(String::new, |reason| format!(" ({reason})"));
        say(format!("{} at run time{reason}", record.admin));
    }
    lost
}
