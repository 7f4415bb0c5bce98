//! What is known of remembered flows, for people and for drains: slots by mode, entries by state, flows by backend. As the last
//! sweep counted them. And of backends that are only there for the flows they have left.

use std::collections::HashMap;
use std::net::IpAddr;

use lb_common::event::Event;
use lb_common::flow::FlowState;

use super::owner::Owner;
use super::report::next_hop;
use crate::api::dto::{BackendAdmin, BackendDetail, FlowEntries, SlotModes, TrackingStatus};
use crate::dataplane::DataPlane as _;
use crate::model::Health;
use crate::plan::InstalledService;
use crate::state::{Effective, Origin};
use crate::tracking::SECOND;

/// Of one service's slots: how many send unknown flows to a former backend, by its id.
pub type Unlearnt = HashMap<u32, u64>;

impl Owner {
    pub(super) fn tracking_status(&self) -> TrackingStatus {
        let mut slots = SlotModes::default();
        for service in self.installed.services.values() {
            let modes = self.slot_modes(service);
            slots.steady += modes.steady;
            slots.learn += modes.learn;
            slots.residue += modes.residue;
        }
        TrackingStatus {
            slots,
            entries: self.flow_entries(),
            capacity: self.plane.flow_entries(),
            pins_failed: self.plane.event_counter(Event::PinFailed),
            learning_lost: self.plane.event_counter(Event::LearningLost),
        }
    }

    pub(super) fn slot_modes(&self, service: &InstalledService) -> SlotModes {
        let [steady, learn, residue] = self.modes(service);
        SlotModes {
            steady,
            learn,
            residue,
        }
    }

    pub(super) fn flow_entries(&self) -> FlowEntries {
        let of = |state: FlowState| u64::from(self.tally.states[state as usize]);
        FlowEntries {
            syn: of(FlowState::Syn),
            learnt: of(FlowState::Learnt),
            established: of(FlowState::Established),
            closed: of(FlowState::Closed),
        }
    }

    pub(super) fn unlearnt(&self, service: &InstalledService) -> Unlearnt {
        // At rest there is none, and nothing to be looked through.
        if self.restless {
            self.plane.unlearnt(service.first_slot, service.size)
        } else {
            Unlearnt::new()
        }
    }

    /// Remembered flows of a backend.
    pub(super) fn remembered(&self, id: u32) -> u64 {
        let flows = self.tally.backends.get(id as usize).copied();
        flows.unwrap_or_default().into()
    }

    /// Slots that send new or unknown flows to a backend.
    pub(super) fn slots_unlearnt(
        service: &InstalledService,
        unlearnt: &Unlearnt,
        address: IpAddr,
    ) -> u64 {
        let id = service.backends.get(&address).map_or(0, |b| b.id);
        u64::from(service.slots_of(address)) + unlearnt.get(&id).copied().unwrap_or_default()
    }

    /// Backends that are no longer part of the service, while their flows linger.
    pub(super) fn removed(
        &self,
        service: &Effective,
        installed: &InstalledService,
        unlearnt: &Unlearnt,
    ) -> Vec<BackendDetail> {
        let now = self.plane.clock();
        let spec = &service.spec;
        let gone = installed
            .backends
            .iter()
            .filter(|(address, _)| service.backend(**address).is_none());
        gone.map(|(&address, backend)| {
            let counters = self.plane.backend_counters(backend.id);
            let left = self
                .state
                .gone_at(spec.key, address)
                .map(|at| at.saturating_sub(now).div_ceil(SECOND));
            let for_how_long = left.map_or(String::new(), |left| format!(" for {left} s more"));
            let declared = spec.backends.iter().any(|b| b.address == address);
            BackendDetail {
                service: spec.name.clone(),
                address,
                id: backend.id,
                replaces: (backend.who.identity != address).then_some(backend.who.identity),
                weight: 0,
                admin: BackendAdmin::Removed,
                admin_reason: None,
                admin_by: None,
                admin_at: None,
                drain: None,
                forgotten_in_seconds: left,
                health: Health::Unknown,
                health_reason: None,
                health_since_seconds: None,
                eligible: false,
                not_eligible: Some(format!("removed: keeps its open flows{for_how_long}")),
                next_hop: self.state.next_hop(address).map(next_hop),
                slots: installed.slots_of(address),
                flows_remembered: self.remembered(backend.id),
                slots_unlearnt: Self::slots_unlearnt(installed, unlearnt, address),
                packets: counters.packets,
                bytes: counters.bytes,
                flows: counters.flows,
                origin: if declared {
                    Origin::File
                } else {
                    Origin::Runtime
                }
                .name()
                .to_owned(),
            }
        })
        .collect()
    }
}
