//! The planner's mirror of a data plane that an earlier daemon filled, and perhaps died over: whatever step it died at.
//!
//! What is in doubt is taken for unwanted, or for unfinished: the next plan must be a full one. It writes every table anew (where a
//! slot does not change, no store), and frees the ids that nobody names.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use lb_common::service::Service;
use lb_common::track::Status;

use super::{Installed, InstalledBackend, InstalledService};
use crate::dataplane::Found;
use crate::maglev::Member;
use crate::model::{Affinity, Capacity, Protocol, ServiceKey};
use crate::tracking::Tracking;

/// Why a data plane cannot be carried on with.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AdoptError {
    #[error("capacity.{key} = {limit} is less than what the data path in force uses ({used})")]
    Capacity {
        key: &'static str,
        limit: u32,
        used: u64,
    },
    #[error("its service table has an entry that this version does not know: {0}")]
    Entry(String),
}

impl Installed {
    /// What is installed, by the maps.
    ///
    /// # Errors
    /// When it is more than `capacity` has room for, or not ours.
    pub fn adopt(capacity: Capacity, found: &Found) -> Result<Self, AdoptError> {
        let mut installed = Self::new(capacity);
        let mut keys = BTreeMap::new();
        for entry in &found.entries {
            let service = Service::from(entry);
            // Without a protocol it is only the note that an address is a VIP.
            let Some(tuple) = entry.tuple().filter(|tuple| tuple.protocol != 0) else {
                continue;
            };
            let protocol = match tuple.protocol {
                6 => Protocol::Tcp,
                17 => Protocol::Udp,
                other => return Err(AdoptError::Entry(format!("protocol {other}"))),
            };
            let key = ServiceKey {
                vip: IpAddr::from(tuple.address),
                port: u16::from_be(tuple.port),
                protocol,
            };
            let end = u64::from(service.first_slot) + u64::from(service.slots);
            if end > u64::from(capacity.slots) {
                return Err(too_small("slots", capacity.slots, end));
            }
            let mut mine = InstalledService::new(service.number);
            mine.affinity = if service.client_affinity {
                Affinity::ClientIp
            } else {
                Affinity::FiveTuple
            };
            // Not known, nor needed (nor is what is noted of its VIP): the full plan puts what is wanted in force.
            mine.tracking = Tracking::Adaptive;
            mine.flow_idle = service.flow_idle;
            mine.first_slot = service.first_slot;
            mine.size = service.slots;
            installed.next_number = installed.next_number.max(service.number + 1);
            keys.insert(service.number, key);
            installed.services.insert(key, Arc::new(mine));
        }
        if installed.services.len() > capacity.services as usize {
            let used = installed.services.len() as u64;
            return Err(too_small("services", capacity.services, used));
        }
        for backend in &found.backends {
            if backend.id > capacity.backends {
                return Err(too_small(
                    "backends",
                    capacity.backends,
                    u64::from(backend.id),
                ));
            }
            installed.used_ids.insert(backend.id);
            installed.next_number = installed.next_number.max(backend.service + 1);
            let service = keys
                .get(&backend.service)
                .and_then(|key| installed.services.get_mut(key))
                .map(Arc::make_mut)
                // GONE is final: whoever wants it again needs another id.
                .filter(|_| backend.status != Status::Gone)
                .filter(|service| !service.backends.contains_key(&backend.who.address));
            let Some(service) = service else {
                installed.orphans.insert(backend.id, backend.service);
                continue;
            };
            let mine = InstalledBackend {
                id: backend.id,
                route: backend.route,
                status: backend.status,
                who: backend.who,
            };
            service.backends.insert(backend.who.address, mine);
        }
        // Those that were freed last come round last.
        let greatest = installed.used_ids.last().copied().unwrap_or(0);
        installed.next_id = if greatest >= capacity.backends {
            1
        } else {
            greatest + 1
        };
        for service in installed.services.values_mut() {
            let service = Arc::make_mut(service);
            let primaries = found.primaries.get(&service.number);
            let (seats, table) = table(service, primaries.map_or(&[], Vec::as_slice));
            let (members, holders) = seats.into_iter().unzip();
            service.set_table(members, holders, table);
            service.as_found = true;
        }
        Ok(installed)
    }
}

const fn too_small(key: &'static str, limit: u32, used: u64) -> AdoptError {
    AdoptError::Capacity { key, limit, used }
}

/// The table that the slots make: for `on_empty = "keep"`, when nobody is eligible. A slot that names nobody of the service makes
/// it worthless.
fn table(service: &InstalledService, primaries: &[u32]) -> (Vec<(Member, IpAddr)>, Vec<u32>) {
    let named: HashSet<u32> = primaries.iter().copied().collect();
    let sharing = service
        .backends
        .iter()
        .filter(|(_, b)| named.contains(&b.id));
    let mut sharing: Vec<_> = sharing
        .map(|(address, backend)| {
            let member = Member {
                identity: backend.who.identity,
                weight: backend.who.weight.max(1),
            };
            (member, *address, backend.id)
        })
        .collect();
    sharing.sort_by_key(|(member, ..)| member.identity);
    let index: HashMap<u32, u32> = (0..).zip(&sharing).map(|(i, (.., id))| (*id, i)).collect();
    let table: Option<Vec<u32>> = primaries.iter().map(|id| index.get(id).copied()).collect();
    let seats = sharing
        .into_iter()
        .map(|(member, address, _)| (member, address));
    table.map_or_else(
        || (Vec::new(), Vec::new()),
        |table| (seats.collect(), table),
    )
}
