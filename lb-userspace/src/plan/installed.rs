//! What the data plane holds, and who owns which id, number and range of slots.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use lb_common::abi::{Route, ServiceEntry};
use lb_common::address::Address;
use lb_common::flow::Age;
use lb_common::service::{Echo, Service, ServiceTuple, VipNote, vip_bit};

use lb_common::track::{Status, TableWord};

use super::PlanError;
use crate::dataplane::Who;
use crate::maglev::{self, Member};
use crate::model::{Affinity, Capacity, ServiceKey};
use crate::tracking::Tracking;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InstalledBackend {
    pub id: u32,
    pub route: Option<Route>,
    pub status: Status,
    pub who: Who,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InstalledService {
    /// In the data plane; never reused while the maps live.
    pub number: u32,
    pub affinity: Affinity,
    /// What happens to echo requests to its VIP.
    pub echo: Echo,
    pub tracking: Tracking,
    /// How long its flows may be silent, in units of [`Age`].
    pub flow_idle: u16,
    pub first_slot: u32,
    /// Number of slots; 0 only before the first table.
    pub size: u32,
    pub backends: BTreeMap<IpAddr, InstalledBackend>,
    /// Who shares the table, sorted by identity.
    pub members: Vec<Member>,
    /// The members' backends: one that replaced another has its identity.
    pub holders: Vec<IpAddr>,
    /// For each slot an index into `members`; empty: no backend.
    pub table: Vec<u32>,
    /// For each member the number of its slots.
    shares: Vec<u32>,
    /// The table is what an earlier daemon left, perhaps a mixture of two.
    pub(super) as_found: bool,
}

impl InstalledService {
    pub(super) fn new(number: u32) -> Self {
        Self {
            number,
            affinity: Affinity::default(),
            echo: Echo::default(),
            tracking: Tracking::default(),
            flow_idle: 0,
            first_slot: 0,
            size: 0,
            backends: BTreeMap::new(),
            members: Vec::new(),
            holders: Vec::new(),
            table: Vec::new(),
            shares: Vec::new(),
            as_found: false,
        }
    }

    /// Where its table is, as the data path reads it.
    pub(super) fn table_word(&self) -> TableWord {
        TableWord::new(self.first_slot, self.size, self.flow_idle)
    }

    /// Gives the service another table.
    pub(super) fn set_table(
        &mut self,
        members: Vec<Member>,
        holders: Vec<IpAddr>,
        table: Vec<u32>,
    ) {
        self.shares = vec![0; members.len()];
        for &member in &table {
            self.shares[member as usize] += 1;
        }
        self.members = members;
        self.holders = holders;
        self.table = table;
        self.as_found = false;
    }

    /// The backend id that slot `i` names; 0: none.
    pub fn backend_of_slot(&self, i: u32) -> u32 {
        let holder = self
            .table
            .get(i as usize)
            .and_then(|&m| self.holders.get(m as usize));
        holder
            .and_then(|address| self.backends.get(address))
            .map_or(0, |backend| backend.id)
    }

    /// Slots that name this backend.
    pub fn slots_of(&self, address: IpAddr) -> u32 {
        let member = self.holders.iter().position(|holder| *holder == address);
        member
            .and_then(|m| self.shares.get(m))
            .copied()
            .unwrap_or(0)
    }

    /// Equal on two nodes ⇔ same slots.
    pub fn digest(&self) -> Option<u64> {
        (!self.table.is_empty()).then(|| maglev::digest(&self.members, &self.table))
    }
}

/// A range of slots that only an interrupted plan gave to a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct StrayRange {
    pub key: ServiceKey,
    pub size: u32,
    pub first_slot: u32,
}

/// A time of silence as the data path measures it, in units of [`Age`]: surely not less.
pub const fn idle_units(flow_idle: Duration) -> u16 {
    let begun = (flow_idle.subsec_nanos() > 0) as u64;
    Age::units(flow_idle.as_secs() + begun)
}

/// How long a slot learns before it may settle, nanoseconds: the time of silence that `flow_idle` units were made from, or up to one
/// unit more.
pub const fn window(flow_idle: u16) -> u64 {
    (flow_idle.saturating_sub(1) as u64) << 32
}

/// The planner's mirror of the data plane. Cheap to clone: services are shared.
#[derive(Clone, Debug)]
pub struct Installed {
    pub capacity: Capacity,
    pub services: BTreeMap<ServiceKey, Arc<InstalledService>>,
    pub(super) egress: BTreeSet<u32>,
    /// Ranges that packets may still be led to, beside those of `services`: see [`Installed::interrupted`].
    pub(super) stray: BTreeSet<StrayRange>,
    /// Ids that nobody wants, with the numbers of their services: the next plan frees them.
    pub(super) orphans: BTreeMap<u32, u32>,
    pub(super) used_ids: BTreeSet<u32>,
    /// Where to look for the next id: freed ones come round last.
    pub(super) next_id: u32,
    pub(super) next_number: u32,
}

impl Installed {
    /// Nothing is installed.
    pub fn new(capacity: Capacity) -> Self {
        Self {
            capacity,
            services: BTreeMap::new(),
            egress: BTreeSet::new(),
            stray: BTreeSet::new(),
            orphans: BTreeMap::new(),
            used_ids: BTreeSet::new(),
            next_id: 1,
            // 0 is what cleared backend records say.
            next_number: 1,
        }
    }

    /// Takes in that the plan towards `wanted` was applied only in part, nobody knows how far.
    ///
    /// Afterwards `self` owns what either side owns, so the next plan (which must be a full one) gives no id, number or range to
    /// somebody else while packets may still be led to it. What that plan does not want it takes back in the usual order.
    /// Interrupting the same plan again adds nothing.
    pub fn interrupted(&mut self, wanted: &Self) {
        self.used_ids.extend(&wanted.used_ids);
        self.orphans.extend(&wanted.orphans);
        self.next_id = wanted.next_id;
        self.next_number = wanted.next_number;
        for (key, theirs) in &wanted.services {
            let Some(ours) = self.services.get_mut(key) else {
                self.services.insert(*key, Arc::clone(theirs));
                continue;
            };
            let ours = Arc::make_mut(ours);
            let number = ours.number;
            let orphans = &mut self.orphans;
            // GONE is final, and may have been said of those already: whoever wants them again needs another id.
            ours.backends.retain(|address, backend| {
                let stays = theirs.backends.contains_key(address);
                if !stays {
                    orphans.insert(backend.id, number);
                }
                stays
            });
            // Entries may have been cleared by the shorter time already.
            ours.flow_idle = ours.flow_idle.min(theirs.flow_idle);
            if theirs.first_slot != ours.first_slot {
                self.stray.insert(StrayRange {
                    key: *key,
                    size: theirs.size,
                    first_slot: theirs.first_slot,
                });
            }
            for (address, theirs) in &theirs.backends {
                let backend = ours.backends.entry(*address).or_insert(*theirs);
                if backend.id != theirs.id {
                    orphans.insert(backend.id, number);
                    *backend = *theirs;
                }
                backend.route = theirs.route.or(backend.route);
                // One that was DOWN, perhaps only for a moment, comes back when it carries again.
                if Status::Down == theirs.status {
                    backend.status = Status::Down;
                }
            }
        }
    }

    /// Every backend with what it may be used for.
    pub fn statuses(&self) -> Vec<(ServiceKey, IpAddr, Status)> {
        let of = |(key, service): (&ServiceKey, &Arc<InstalledService>)| {
            let backends = service.backends.iter();
            let row =
                |(address, backend): (&IpAddr, &InstalledBackend)| (*key, *address, backend.status);
            backends.map(row).collect::<Vec<_>>()
        };
        self.services.iter().flat_map(of).collect()
    }

    pub fn backends_used(&self) -> u64 {
        self.used_ids.len() as u64
    }

    pub fn slots_used(&self) -> u64 {
        self.services
            .values()
            .map(|service| u64::from(service.size))
            .sum()
    }

    pub(super) fn take_number(&mut self) -> u32 {
        let number = self.next_number;
        self.next_number += 1;
        number
    }

    /// An id that nothing names; `None` while there is none.
    pub(super) fn take_id(&mut self) -> Option<u32> {
        let limit = self.capacity.backends;
        if self.used_ids.len() >= limit as usize {
            return None;
        }
        let candidates = (self.next_id..=limit).chain(1..self.next_id);
        let id = candidates
            .into_iter()
            .find(|id| !self.used_ids.contains(id))
            .expect("fewer used than there are");
        self.used_ids.insert(id);
        self.next_id = if id == limit { 1 } else { id + 1 };
        Some(id)
    }

    pub(super) fn release_id(&mut self, id: u32) {
        self.used_ids.remove(&id);
    }

    /// First gap of `size` slots that neither `self` nor `before` uses; or a stray range of the service's own.
    pub(super) fn take_slots(
        &self,
        before: &Self,
        size: u32,
        key: &ServiceKey,
    ) -> Result<u32, PlanError> {
        let own = self.stray.iter().find(|s| s.key == *key && s.size == size);
        if let Some(own) = own {
            return Ok(own.first_slot);
        }
        let stray = self.stray.iter().map(|s| (s.first_slot, s.size));
        let mut taken: Vec<_> = before
            .services
            .values()
            .chain(self.services.values())
            .map(|s| (s.first_slot, s.size))
            .chain(stray)
            .collect();
        taken.sort_unstable();
        let mut start = 0;
        for (first, length) in taken {
            if first >= start + size {
                break;
            }
            start = start.max(first + length);
        }
        let limit = self.capacity.slots;
        if u64::from(start) + u64::from(size) > u64::from(limit) {
            let what = format!("the lookup table of {key} ({size} slots in one piece)");
            return Err(PlanError::Capacity {
                what,
                key: "slots",
                limit,
            });
        }
        Ok(start)
    }

    /// Interfaces that routes lead through.
    pub(super) fn interfaces(&self) -> BTreeSet<u32> {
        let backends = self
            .services
            .values()
            .flat_map(|service| service.backends.values());
        backends
            .filter_map(|backend| backend.route.map(|route| route.ifindex))
            .collect()
    }

    /// The service table's entries: one for each service, and a note for each VIP.
    pub(super) fn entries(&self) -> Vec<ServiceEntry> {
        let mut vips: BTreeMap<IpAddr, (u64, Echo)> = BTreeMap::new();
        let mut entries = Vec::with_capacity(2 * self.services.len());
        for (key, service) in &self.services {
            let protocol = key.protocol.number();
            let (protocols, echo) = vips.entry(key.vip).or_default();
            *protocols |= vip_bit(protocol);
            *echo = service.echo;
            let tuple = ServiceTuple {
                address: Address::from(key.vip),
                port: key.port.to_be(),
                protocol,
            };
            let data = Service {
                number: service.number,
                client_affinity: service.affinity == Affinity::ClientIp,
                first_slot: service.first_slot,
                slots: service.size,
                flow_idle: service.flow_idle,
            };
            entries.push(ServiceEntry::service(&tuple, data));
        }
        entries.extend(vips.into_iter().map(|(vip, (protocols, echo))| {
            ServiceEntry::vip(Address::from(vip), VipNote::new(protocols, echo))
        }));
        entries
    }
}
