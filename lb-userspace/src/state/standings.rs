//! What backends may be used for, kept up as wishes, verdicts and time change: [`crate::tracking::standing`] for each of them.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::time::Instant;

use lb_common::track::Status;

use super::{Effective, EffectiveBackend, State, eligibility};
use crate::model::{Admin, Health, OnEmpty, ServiceKey};
use crate::plan::DesiredBackend;
use crate::tracking::standing::{Standing, Timers, Wish};

/// By service and address.
pub(super) type Standings = HashMap<(ServiceKey, IpAddr), Standing>;

impl State {
    /// Takes over what an earlier daemon left: its backends' statuses, and with them what it knew of their health. Probes go on from
    /// there: a daemon that just started knows no better, and must not move connections until it does.
    pub fn carry_on(
        &mut self,
        left: impl IntoIterator<Item = (ServiceKey, IpAddr, Status)>,
        now: u64,
        instant: Instant,
    ) {
        for (key, address, status) in left {
            let Some(service) = self.effective.iter().find(|s| s.spec.key == key) else {
                continue;
            };
            // One that is no longer declared lingers from now on: `advance` sees to it.
            self.standings.insert(
                (key, address),
                Standing::left(Timers::of(&service.spec.times), status, now),
            );
            let active = service
                .backend(address)
                .is_some_and(|b| b.admin.admin != Admin::Disabled);
            let (health, reason) = match status {
                Status::Active => (Health::Up, "up before the daemon's start"),
                Status::Suspect | Status::Down if active => {
                    (Health::Down, "failing before the daemon's start")
                }
                _ => continue,
            };
            let name = service.spec.name.clone();
            self.observe(&[(name, address)], health, reason, instant);
        }
    }

    /// Brings every backend's status up to `now` (nanoseconds of the packets' clock). Returns when the next one changes by itself.
    pub fn advance(&mut self, now: u64) -> Option<u64> {
        let mut wishes = HashMap::new();
        for service in &self.effective {
            let ignored = self.health_is_ignored(service);
            for backend in &service.backends {
                let wish = self.wish(service, backend, ignored);
                let timers = Timers::of(&service.spec.times);
                wishes.insert((service.spec.key, backend.address), (wish, timers));
            }
        }
        // Who is not wished for any more lingers, as long as the service is there.
        let services: HashMap<_, _> = self
            .effective
            .iter()
            .map(|s| (s.spec.key, Timers::of(&s.spec.times)))
            .collect();
        let before = self.standings.len();
        self.standings.retain(|at, standing| {
            services.get(&at.0).is_some_and(|timers| {
                wishes.contains_key(at) || {
                    // The change that removes it may have given the service another time to linger.
                    standing.retime(*timers);
                    standing.remove(now);
                    standing.status() != Status::Gone
                }
            })
        });
        if self.standings.len() < before {
            self.let_go = true;
            self.forget_next_hops();
        }
        for (at, (wish, timers)) in wishes {
            let standing = self
                .standings
                .entry(at)
                .or_insert_with(|| Standing::new(timers, wish, now));
            standing.retime(timers);
            standing.update(wish, now);
            // GONE is final: one that is wanted again begins anew, under another id.
            if standing.status() == Status::Gone && usable(wish) {
                *standing = Standing::new(timers, wish, now);
            }
        }
        self.settle_heirs();
        self.standings.values().filter_map(Standing::next).min()
    }

    fn wish(&self, service: &Effective, backend: &EffectiveBackend, ignored: bool) -> Wish {
        let spec = &service.spec;
        let observed = self.observed(&spec.name, backend.address);
        let next_hop = self.next_hop(backend.address);
        let unreachable = next_hop.is_some()
            && super::route(&self.node, spec, backend.address, next_hop).is_err();
        let health = match observed.map_or(Health::Unknown, |o| o.health) {
            // Packets would go where the last route led.
            Health::Up if unreachable => Health::Down,
            health => health,
        };
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

    /// Whether the service is served without regard to health, for want of eligible backends (docs/decisions/0013-on-empty.md):
    /// then nobody's flows are forgotten either.
    fn health_is_ignored(&self, service: &Effective) -> bool {
        let spec = &service.spec;
        let eligible = |backend: &EffectiveBackend| {
            let observed = self.observed(&spec.name, backend.address);
            let next_hop = self.next_hop(backend.address);
            // Not looked up yet, as at every start: if that were "nobody", those that an earlier daemon left DOWN would be taken for
            // healthy, and carry flows again for the grace of their probes.
            let soon = next_hop.is_none()
                && backend.admin.admin == Admin::Active
                && backend.weight > 0
                && observed.is_some_and(|o| o.health == Health::Up);
            soon || eligibility(&self.node, spec, backend, observed, next_hop).is_ok()
        };
        spec.on_empty == OnEmpty::Keep && !service.backends.iter().any(eligible)
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

    /// When a backend will be GONE by itself, nanoseconds of the packets' clock.
    pub fn gone_at(&self, key: ServiceKey, address: IpAddr) -> Option<u64> {
        self.standings.get(&(key, address))?.gone_at()
    }

    /// Where backends are that are no longer part of their service, while their flows linger.
    pub(super) fn lingering_at(&self) -> impl Iterator<Item = (&Effective, IpAddr)> {
        let services: HashMap<ServiceKey, &Effective> =
            self.effective.iter().map(|s| (s.spec.key, s)).collect();
        let declared: HashSet<(ServiceKey, IpAddr)> = self
            .effective
            .iter()
            .flat_map(|s| s.backends.iter().map(|b| (s.spec.key, b.address)))
            .collect();
        self.standings
            .keys()
            .filter(move |at| !declared.contains(at))
            .filter_map(move |(key, address)| Some((*services.get(key)?, *address)))
    }

    /// They themselves. Their routes are followed as everybody's: connections go on when a gateway or a MAC changes.
    pub(super) fn lingering(&self) -> HashMap<ServiceKey, Vec<DesiredBackend>> {
        let mut lingering: HashMap<_, Vec<_>> = HashMap::new();
        for (service, address) in self.lingering_at() {
            let key = service.spec.key;
            let next_hop = self.next_hop(address);
            let heir = self.keeps_for(key, address);
            lingering.entry(key).or_default().push(DesiredBackend {
                address,
                identity: heir.map_or(address, |heir| heir.identity),
                weight: heir.map_or(0, |heir| heir.weight),
                eligible: heir.is_some(),
                status: self.status(key, address),
                only_down: false,
                may_keep: false,
                lingers: true,
                route: super::route(&self.node, &service.spec, address, next_hop).ok(),
            });
        }
        for backends in lingering.values_mut() {
            backends.sort_by_key(|backend| backend.address);
        }
        lingering
    }
}

const fn usable(wish: Wish) -> bool {
    !matches!(wish.admin, Admin::Disabled) && !matches!(wish.health, Health::Down)
}
