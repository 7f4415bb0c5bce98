//! What backends may be used for, kept up as wishes, verdicts and time change: [`crate::tracking::standing`] for each of them.

use std::collections::HashMap;
use std::net::IpAddr;

use lb_common::track::Status;

use super::{Effective, EffectiveBackend, State, eligibility, only_down};
use crate::model::{Admin, Health, OnEmpty, ServiceKey};
use crate::plan::DesiredBackend;
use crate::tracking::standing::{Standing, Timers, Wish};

/// By service and address.
pub(super) type Standings = HashMap<(ServiceKey, IpAddr), Standing>;

impl State {
    /// Brings every backend's status up to `now` (nanoseconds of the packets' clock). Returns when the next one changes by itself.
    pub fn advance(&mut self, now: u64) -> Option<u64> {
        let mut wishes = HashMap::new();
        for service in &self.effective {
            let ignored = self.health_is_ignored(service);
            for backend in &service.backends {
                let wish = self.wish(service, backend, ignored);
                wishes.insert((service.spec.key, backend.address), wish);
            }
        }
        // Who is not wished for any more lingers, as long as the service is there.
        let services: std::collections::HashSet<_> =
            self.effective.iter().map(|s| s.spec.key).collect();
        self.standings.retain(|at, standing| {
            services.contains(&at.0)
                && (wishes.contains_key(at) || {
                    standing.remove(now);
                    standing.status() != Status::Gone
                })
        });
        for (at, wish) in wishes {
            let timers = Timers::of(at.0.protocol);
            let standing = self
                .standings
                .entry(at)
                .or_insert_with(|| Standing::new(timers, wish, now));
            standing.update(wish, now);
            // GONE is final: one that is wanted again begins anew, under another id.
            if standing.status() == Status::Gone && usable(wish) {
                *standing = Standing::new(timers, wish, now);
            }
        }
        self.standings.values().filter_map(Standing::next).min()
    }

    fn wish(&self, service: &Effective, backend: &EffectiveBackend, ignored: bool) -> Wish {
        let observed = self.observed(&service.spec.name, backend.address);
        let health = observed.map_or(Health::Unknown, |o| o.health);
        Wish {
            admin: backend.admin.admin,
            health: if ignored && health == Health::Down {
                Health::Up
            } else {
                health
            },
            weight: backend.weight,
            removed: false,
        }
    }

    /// Whether the service is served by those whose probes fail, for want of others (docs/decisions/0013-on-empty.md).
    fn health_is_ignored(&self, service: &Effective) -> bool {
        let spec = &service.spec;
        let of = |backend: &EffectiveBackend| {
            let observed = self.observed(&spec.name, backend.address);
            let next_hop = self.next_hop(backend.address);
            (
                eligibility(&self.node, spec, backend, observed, next_hop).is_ok(),
                only_down(&self.node, spec, backend, observed, next_hop),
            )
        };
        let all: Vec<_> = service.backends.iter().map(of).collect();
        spec.on_empty == OnEmpty::Keep
            && all.iter().all(|(eligible, _)| !eligible)
            && all.iter().any(|(_, down)| *down)
    }

    /// What a backend's flows may use it for.
    pub(super) fn status(&self, key: ServiceKey, address: IpAddr) -> Status {
        self.standings
            .get(&(key, address))
            .map_or(Status::Draining, Standing::status)
    }

    /// Whether a backend is GONE: down or disabled for so long that its flows are forgotten.
    pub(super) fn is_out(&self, key: ServiceKey, address: IpAddr) -> bool {
        self.standings
            .get(&(key, address))
            .is_some_and(|standing| standing.status() == Status::Gone)
    }

    /// Backends that are no longer part of the service, while their flows linger.
    pub(super) fn leaving(&self, service: &Effective) -> Vec<DesiredBackend> {
        let key = service.spec.key;
        let gone = self.standings.iter().filter(|((k, address), _)| {
            *k == key && service.backends.iter().all(|b| b.address != *address)
        });
        let mut leaving: Vec<_> = gone
            .map(|((_, address), standing)| DesiredBackend {
                address: *address,
                weight: 0,
                eligible: false,
                status: standing.status(),
                only_down: false,
                may_keep: false,
                // What is installed stays.
                route: None,
            })
            .collect();
        leaving.sort_by_key(|backend| backend.address);
        leaving
    }
}

const fn usable(wish: Wish) -> bool {
    !matches!(wish.admin, Admin::Disabled) && !matches!(wish.health, Health::Down)
}
