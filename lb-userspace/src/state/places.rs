//! Who has whose place in the lookup table: backends that replaced others, and how the place is handed over.
//!
//! A place is an identity, which the table is made from. A backend's is its own address, or what it inherited from the one that it
//! replaced. Within a service each place has one holder.

use std::collections::HashMap;
use std::net::IpAddr;

use lb_common::track::Status;

use super::overlay::{BackendChange, ChangeError, Overlay, Presence, Stamp};
use super::{Effective, EffectiveBackend, State, eligibility};
use crate::model::{Admin, Health, ServiceKey, ServiceSpec};

/// Backends that were replaced while they got new flows, and by whom: by service and address.
pub(super) type Heirs = HashMap<(ServiceKey, IpAddr), IpAddr>;

impl Overlay {
    /// Puts `address` in the place of `old`, which the service has and which is removed thereby.
    pub fn replace_backend(
        &mut self,
        service: &Effective,
        old: &EffectiveBackend,
        address: IpAddr,
        weight: u32,
        stamp: &Stamp,
    ) -> Result<(), ChangeError> {
        let name = &service.spec.name;
        if address == old.address {
            return Err(ChangeError::Invalid(format!(
                "backend {address} of {name:?} cannot replace itself; name another address"
            )));
        }
        let new = crate::model::BackendSpec {
            address,
            weight,
            replaces: Some(old.identity),
        };
        self.add_backend(service, &new, stamp.clone())?;
        self.remove_backend(service, old.address, stamp.clone());
        Ok(())
    }

    /// Takes places from backends that were put into them at run time, and then backends that were added at run time, until
    /// nobody shares one: the file goes before. Returns what was lost, a sentence each.
    pub(super) fn yield_places(&mut self, file: &[ServiceSpec]) -> Vec<String> {
        let services: Vec<ServiceSpec> = self.declared(file).map(|(s, _)| s.clone()).collect();
        let mut lost = Vec::new();
        for spec in services {
            // Each turn takes one thing away from the overlay.
            while let Some([first, second]) = shared(&self.merge_backends(&spec)) {
                let pair = [second.address, first.address];
                let change = |address| (spec.name.clone(), address);
                let inherited = |c: &BackendChange| c.place.is_some();
                let added = |c: &BackendChange| matches!(c.presence, Presence::Added { .. });
                let of = |what: &dyn Fn(&BackendChange) -> bool| {
                    let mut pair = pair.into_iter();
                    pair.find(|a| self.backends.get(&change(*a)).is_some_and(what))
                };
                let why = format!("the file gives {}'s place to another", first.identity);
                if let Some(address) = of(&inherited) {
                    if let Some(change) = self.backends.get_mut(&change(address)) {
                        change.place = None;
                    }
                    lost.push(format!(
                        "backend {address} of {:?}, put in the place of {} at run time: {why}",
                        spec.name, first.identity
                    ));
                } else if let Some(address) = of(&added) {
                    self.backends.remove(&change(address));
                    lost.push(format!(
                        "backend {address} of {:?}, added at run time: {why}",
                        spec.name
                    ));
                } else {
                    // The file alone was checked when it was read.
                    break;
                }
            }
        }
        lost
    }
}

/// Two backends with the same place.
fn shared(backends: &[EffectiveBackend]) -> Option<[&EffectiveBackend; 2]> {
    let mut holders: HashMap<IpAddr, &EffectiveBackend> = HashMap::new();
    backends
        .iter()
        .find_map(|b| holders.insert(b.identity, b).map(|first| [first, b]))
}

/// Refuses two backends in one place.
pub(super) fn check(service: &str, backends: &[EffectiveBackend]) -> Result<(), ChangeError> {
    let Some(pair) = shared(backends) else {
        return Ok(());
    };
    let place = pair[0].identity;
    let heir = pair.iter().find(|b| b.address != place);
    let heir = heir.map_or(place, |b| b.address);
    let other = pair.iter().find(|b| b.address != heir);
    let other = other.map_or(place, |b| b.address);
    Err(ChangeError::Conflict(if other == place {
        format!(
            "backend {heir} of {service:?} replaced {place} and has its place in the lookup table; remove {heir} first \
             (`sluice backend remove {service} {heir}`), or let them change places (`sluice backend add {service} {place} --replaces {heir}`)"
        )
    } else {
        format!(
            "backends {heir} and {other} of {service:?} both replace {place}, and one can have its place in the lookup table; \
             remove the other first (`sluice backend remove {service} ADDRESS`)"
        )
    }))
}

impl State {
    /// Notes who was replaced by whom, before `next` takes the place of what holds.
    pub(super) fn bequeath(&mut self, next: &[Effective]) {
        let mut heirs = std::mem::take(&mut self.heirs);
        for service in next {
            let key = service.spec.key;
            let Some(before) = self.effective.iter().find(|s| s.spec.key == key) else {
                continue;
            };
            let left = before
                .backends
                .iter()
                .filter(|b| service.backend(b.address).is_none());
            for old in left {
                let new = service.backends.iter().find(|b| b.identity == old.identity);
                let Some(new) = new else { continue };
                let observed = self.observed(&before.spec.name, old.address);
                let next_hop = self.next_hop(old.address);
                // One that was never in the table hands on what it waited for.
                for (_, heir) in heirs.iter_mut().filter(|(of, _)| of.0 == key) {
                    if *heir == old.address {
                        *heir = new.address;
                    }
                }
                if eligibility(&self.node, &before.spec, old, observed, next_hop).is_ok() {
                    heirs.retain(|of, heir| of.0 != key || *heir != new.address);
                    heirs.insert((key, old.address), new.address);
                }
            }
        }
        self.heirs = heirs;
    }

    /// For whom a backend that was replaced stays in the table: while nobody knows whether its heir can have new flows, which takes a
    /// probe. Else its slots would go to everybody, and come back.
    pub(super) fn keeps_for(&self, key: ServiceKey, old: IpAddr) -> Option<&EffectiveBackend> {
        if self.status(key, old) != Status::Draining {
            return None;
        }
        let heir = self.heirs.get(&(key, old))?;
        let service = self.effective.iter().find(|s| s.spec.key == key)?;
        let backend = service.backend(*heir)?;
        let wanted = backend.admin.admin == Admin::Active && backend.weight > 0;
        (wanted && self.undecided(&service.spec.name, *heir)).then_some(backend)
    }

    /// Whether it is not yet known if a backend may get flows.
    pub(super) fn undecided(&self, service: &str, address: IpAddr) -> bool {
        let unknown = self
            .observed(service, address)
            .is_none_or(|o| o.health == Health::Unknown);
        unknown || self.next_hop(address).is_none()
    }

    /// Forgets heirs that have come into their own.
    pub(super) fn settle_heirs(&mut self) {
        let known: Vec<_> = self
            .heirs
            .keys()
            .filter(|(key, old)| self.keeps_for(*key, *old).is_none())
            .copied()
            .collect();
        for place in known {
            self.heirs.remove(&place);
        }
    }
}
