//! What is known of remembered flows, for people and for drains: slots by mode, entries by state, flows by backend. As the last
//! sweep counted them.

use std::collections::HashMap;
use std::net::IpAddr;

use lb_common::event::Event;
use lb_common::flow::FlowState;

use super::owner::Owner;
use crate::api::dto::{FlowEntries, SlotModes, TrackingStatus};
use crate::dataplane::DataPlane as _;
use crate::plan::InstalledService;

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
}
