//! From what is installed to what is desired: ordered operations.
//!
//! Pure. The order is what keeps packets safe: egress and backends are written before any slot names them, slots before the
//! service table leads to them, and only after a grace period is anything cleared or given to somebody else.

mod adopt;
mod desired;
mod installed;
mod seats;

use std::sync::Arc;

use lb_common::abi::Route;
use lb_common::slot::SlotWord;

use lb_common::track::Status;

use crate::dataplane::{Operation, Who};
use crate::maglev::{self, Moves};
use crate::model::TableSize;
use crate::tracking::change::fresh;

use seats::{held, seats};

pub use adopt::AdoptError;
pub use desired::{DesiredBackend, DesiredService};
pub use installed::{Installed, InstalledBackend, InstalledService, idle_units, window};

/// What to do, and what holds afterwards.
#[derive(Debug)]
pub struct Plan {
    pub operations: Vec<Operation>,
    pub moves: Moves,
    /// Services whose lookup table changes.
    pub tables_changed: u64,
    /// A backend waits for an id that this plan frees: plan again.
    pub postponed: bool,
    /// The installed state once every operation is applied.
    pub after: Installed,
}

/// Why there is no plan. Nothing has changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    #[error(
        "{what} needs more than capacity.{key} = {limit}: raise it in sluice.toml and restart; or, since what leaves keeps its \
         place until the last packet has left it, take things away first and add others in a second step"
    )]
    Capacity {
        what: String,
        key: &'static str,
        limit: u32,
    },
}

impl Installed {
    /// Plans the way to `desired`, which is sorted by key. `full`: write everything, whatever is believed to be there; needed
    /// after [`Installed::interrupted`].
    pub fn plan(&self, desired: &[DesiredService], full: bool) -> Result<Plan, PlanError> {
        let mut wanted = 0;
        for service in desired {
            wanted += service.backends.iter().filter(|b| !b.lingers).count();
            if wanted > self.capacity.backends as usize {
                return Err(PlanError::Capacity {
                    what: format!(
                        "what service {} adds to make {wanted} backends",
                        service.key
                    ),
                    key: "backends",
                    limit: self.capacity.backends,
                });
            }
        }
        let mut planner = Planner {
            postponed: false,
            before: self,
            after: self.clone(),
            full,
            backends: Vec::new(),
            slots: Vec::new(),
            changes: Vec::new(),
            freed: Vec::new(),
            moves: Moves::default(),
            tables_changed: 0,
        };
        planner.free_orphans();
        planner.remove_services(desired);
        for service in desired {
            planner.service(service)?;
        }
        planner.finish()
    }
}

struct Planner<'a> {
    before: &'a Installed,
    after: Installed,
    full: bool,
    backends: Vec<Operation>,
    slots: Vec<(u32, SlotWord)>,
    changes: Vec<Operation>,
    /// Backend ids that nothing will name once the plan is through.
    freed: Vec<u32>,
    /// A backend has no id yet: those that are gone have to leave theirs first.
    postponed: bool,
    moves: Moves,
    tables_changed: u64,
}

impl Planner<'_> {
    /// Ids that an earlier plan, or daemon, did not get to free.
    fn free_orphans(&mut self) {
        for (id, service) in std::mem::take(&mut self.after.orphans) {
            self.freed.push(id);
            self.backends.push(Operation::SetStatus {
                id,
                service,
                status: Status::Gone,
            });
        }
    }

    fn remove_services(&mut self, desired: &[DesiredService]) {
        let gone: Vec<_> = self
            .before
            .services
            .keys()
            .filter(|key| {
                desired
                    .binary_search_by_key(*key, |service| service.key)
                    .is_err()
            })
            .copied()
            .collect();
        for key in gone {
            if let Some(service) = self.after.services.remove(&key) {
                self.freed
                    .extend(service.backends.values().map(|backend| backend.id));
            }
        }
    }

    fn service(&mut self, desired: &DesiredService) -> Result<(), PlanError> {
        let old = self.before.services.get(&desired.key).cloned();
        let size = table_size(desired, old.as_deref());
        let mut service = match &old {
            Some(old) => InstalledService::clone(old),
            None => InstalledService::new(self.after.take_number()),
        };
        service.affinity = desired.affinity;
        service.echo = desired.echo;
        let fresh_range = service.size != size;
        if fresh_range {
            // The old range stays as it is until the grace period; nobody else may get it in this plan.
            service.first_slot = self.after.take_slots(self.before, size, &desired.key)?;
            service.size = size;
        }
        service.tracking = desired.tracking;
        let idle = old.as_deref().map_or(0, |old| old.flow_idle);
        service.flow_idle = desired.flow_idle;
        let mut turns = self.backends(desired, &mut service, fresh_range, idle)?;
        if old.is_some() && idle < service.flow_idle {
            // Flows that were silent for the shorter time may have been forgotten since their slots began to learn.
            turns.came_back = service.backends.values().map(|b| b.id).collect();
        }
        let mut seats = seats(desired, old.as_deref());
        seats.retain(|(_, holder)| service.backends.contains_key(holder));
        let (members, holders): (Vec<_>, Vec<_>) = seats.into_iter().unzip();
        if fresh_range
            || service.as_found
            || members != service.members
            || holders != service.holders
        {
            let table = maglev::build(&members, size);
            if old.is_some() {
                // What flows notice is the backend, not the identity that it may have from another.
                let before = held(&service.members, &service.holders);
                let after = held(&members, &holders);
                let moved = maglev::compare((&before, &service.table), (&after, &table));
                self.moves.moved += moved.moved;
                self.moves.excess += moved.excess;
            }
            if fresh_range
                || table != service.table
                || members != service.members
                || holders != service.holders
            {
                self.tables_changed += 1;
            }
            service.set_table(members, holders, table);
        }
        self.write_slots(old.as_deref(), &service, fresh_range, turns);
        self.after.services.insert(desired.key, Arc::new(service));
        Ok(())
    }

    /// Gives ids to new backends, takes them from removed ones, and writes routes that changed.
    fn backends(
        &mut self,
        desired: &DesiredService,
        service: &mut InstalledService,
        fresh_range: bool,
        idle: u16,
    ) -> Result<Turns, PlanError> {
        let mut turns = Turns::default();
        let table = service.table_word();
        let retimed = idle != service.flow_idle;
        let gone: Vec<_> = service
            .backends
            .keys()
            .filter(|a| desired.backends.iter().all(|b| b.address != **a))
            .copied()
            .collect();
        for address in gone {
            if let Some(backend) = service.backends.remove(&address) {
                self.freed.push(backend.id);
                // Slots that learn its flows must not name it any more.
                self.backends.push(Operation::SetStatus {
                    id: backend.id,
                    service: service.number,
                    status: Status::Gone,
                });
                turns.gone = true;
            }
        }
        for backend in &desired.backends {
            let who = Who {
                address: backend.address,
                identity: backend.identity,
                weight: backend.weight,
            };
            let installed = match service.backends.get(&backend.address) {
                Some(installed) => *installed,
                None if backend.lingers => continue,
                None => match self.after.take_id() {
                    Some(id) => InstalledBackend {
                        id,
                        route: None,
                        status: backend.status,
                        who,
                    },
                    // There is room for all that are declared: others have yet to leave.
                    None => {
                        self.postponed = true;
                        continue;
                    }
                },
            };
            let new = !service.backends.contains_key(&backend.address);
            let changed = backend.route.is_some() && backend.route != installed.route;
            let route = if changed {
                backend.route
            } else {
                installed.route
            };
            if new || self.full || who != installed.who {
                self.backends.push(Operation::Describe {
                    id: installed.id,
                    who,
                });
            }
            if new || changed || fresh_range || retimed || self.full {
                self.backends.push(Operation::WriteBackend {
                    id: installed.id,
                    service: service.number,
                    status: backend.status,
                    route: route.unwrap_or(Route::NONE),
                    table,
                });
            } else if backend.status != installed.status {
                self.backends.push(Operation::SetStatus {
                    id: installed.id,
                    service: service.number,
                    status: backend.status,
                });
            }
            if installed.status == Status::Down && backend.status.carries() {
                turns.came_back.push(installed.id);
            }
            service.backends.insert(
                backend.address,
                InstalledBackend {
                    id: installed.id,
                    route,
                    status: backend.status,
                    who,
                },
            );
        }
        Ok(turns)
    }

    /// The slots that differ from what stands there.
    fn write_slots(
        &mut self,
        old: Option<&InstalledService>,
        new: &InstalledService,
        fresh_range: bool,
        turns: Turns,
    ) {
        let Some(old) = old.filter(|_| !fresh_range) else {
            let word = |i| {
                let primary = new.backend_of_slot(i);
                (new.first_slot + i, fresh(primary, new.tracking))
            };
            self.slots.extend((0..new.size).map(word));
            return;
        };
        if !self.full
            && !turns.gone
            && turns.came_back.is_empty()
            && old.tracking == new.tracking
            && old.table == new.table
            && old.members == new.members
            && old.holders == new.holders
            && old
                .backends
                .iter()
                .map(|(a, b)| (a, b.id))
                .eq(new.backends.iter().map(|(a, b)| (a, b.id)))
        {
            return;
        }
        self.changes.push(Operation::ChangeSlots {
            service: new.number,
            first: new.first_slot,
            primaries: (0..new.size).map(|i| new.backend_of_slot(i)).collect(),
            tracking: new.tracking,
            came_back: turns.came_back,
        });
    }

    fn finish(mut self) -> Result<Plan, PlanError> {
        let mut operations = Vec::new();
        for ifindex in self.after.interfaces() {
            let new = self.after.egress.insert(ifindex);
            if new || self.full {
                operations.push(Operation::AllowEgress { ifindex });
            }
        }
        operations.append(&mut self.backends);
        if !self.slots.is_empty() {
            operations.push(Operation::WriteSlots { slots: self.slots });
        }
        operations.append(&mut self.changes);
        let entries = self.after.entries();
        let limit = self.after.capacity.services;
        if self.after.services.len() > limit as usize {
            let what = format!("{} services", self.after.services.len());
            return Err(PlanError::Capacity {
                what,
                key: "services",
                limit,
            });
        }
        if self.full || entries != self.before.entries() {
            operations.push(Operation::SetServices { entries });
        }
        // Also when only slots moved out of a range: it may be given away by the next plan.
        let ranges_freed = self.before.services.iter().any(|(key, old)| {
            self.after
                .services
                .get(key)
                .is_none_or(|new| new.first_slot != old.first_slot)
        }) || !self.before.stray.is_empty();
        self.after.stray.clear();
        if !self.freed.is_empty() || ranges_freed {
            operations.push(Operation::Grace);
        }
        if !self.freed.is_empty() {
            // A packet that met an entry before it was purged may still be on its way.
            operations.push(Operation::Purge {
                ids: self.freed.clone(),
            });
            operations.push(Operation::Grace);
        }
        for id in self.freed {
            operations.push(Operation::ClearBackend { id });
            self.after.release_id(id);
        }
        Ok(Plan {
            operations,
            moves: self.moves,
            tables_changed: self.tables_changed,
            postponed: self.postponed,
            after: self.after,
        })
    }
}

/// What a plan means for the flows of a service's backends.
#[derive(Default)]
struct Turns {
    /// One of them is gone.
    gone: bool,
    /// Their flows are to be learnt anew where they are the incumbent: they were DOWN and carry again, or flows may now be silent for
    /// longer.
    came_back: Vec<u32>,
}

/// A table keeps its size for the service's life unless it is set by hand, or too small for its backends.
fn table_size(desired: &DesiredService, old: Option<&InstalledService>) -> u32 {
    match (desired.table_size, old) {
        (TableSize::Auto, Some(old)) if old.size as usize >= desired.backends.len() => old.size,
        (size, _) => size.resolve(desired.backends.len()),
    }
}

#[cfg(test)]
mod tests;
